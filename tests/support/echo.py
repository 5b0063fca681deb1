"""A model that says which process it is in and what it was asked, and can be made to wait in between."""

import asyncio
import os
from collections.abc import AsyncIterable
from typing import Any

from strands.types.content import Messages
from strands.types.exceptions import EventLoopException
from strands.types.streaming import StreamEvent

from strands_psycopg import SessionConflictError
from strands_psycopg.scripted_model import ScriptedModel


class Echo(ScriptedModel):
    """Answers "wait until PATH" with "PID", and once there is such a file with " heard wait until PATH".

    To "conflict" it says "PID" and fails as Strands does if a tool or hook of the application meets a conflict. To any
    other prompt it says both at once.
    """

    def __init__(self) -> None:
        super().__init__([])

    async def stream(self, messages: Messages, *arguments: Any, **kwargs: Any) -> AsyncIterable[StreamEvent]:
        prompt = messages[-1]["content"][0]["text"]
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockStart": {"start": {}}}
        yield {"contentBlockDelta": {"delta": {"text": str(os.getpid())}}}
        if prompt.startswith("wait until "):
            path = prompt.removeprefix("wait until ")
            while not await asyncio.to_thread(os.path.exists, path):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        if prompt == "conflict":
            conflict = SessionConflictError("another writer was first", session_id="other", agent_id="default")
            raise EventLoopException(conflict) from conflict
        yield {"contentBlockDelta": {"delta": {"text": f" heard {prompt}"}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}
