"""The conversation of the demo, in a process that can be killed.

The process runs ``main``. It reads its task as a line of JSON from standard input, and reports its agent's messages as
lines of JSON on standard output.
"""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import suppress
from typing import Any

from strands import Agent, tool
from strands.types.content import Messages
from strands.types.streaming import StreamEvent
from typing_extensions import Self

from strands_psycopg.errors import StrandsPsycopgError
from strands_psycopg.manager import PostgresSessionManager
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel
from strands_psycopg.system_errors import explain

# Cheap devices pad what they send with NUL bytes.
_THERMOMETERS = {"greenhouse": "31.50\0\0"}
PARTIAL_REPLY = "Yes, at 31.5 C it bolts. Open the ro"
_QUESTIONS = ("How warm is it in the greenhouse?", "Is that too warm for lettuce?")
_REPLIES: list[list[str | dict[str, Any]]] = [
    ["Let me look.", {"name": "read_thermometer", "input": {"place": "greenhouse"}}],
    ["It is 31.5 C in the greenhouse."],
    [PARTIAL_REPLY],
]
_REPLIES_AFTER_RESUME = [["Yes, at 31.5 C it bolts. Open the roof."]]


@tool
def read_thermometer(place: str) -> dict[str, Any]:
    """Read the thermometer of a place.

    Args:
        place: Where it hangs.
    """
    raw = _THERMOMETERS[place]
    reading = {"unit": "C", "celsius": float(raw.rstrip("\0")), "raw": raw}
    return {"status": "success", "content": [{"json": reading}]}


class _InterruptedModel(ScriptedModel):
    """Calls a function in the middle of its last reply.

    Args:
        replies: As for ``ScriptedModel``.
        interrupt: The function, which should not return.
    """

    def __init__(self, replies: Sequence[Sequence[str | dict[str, Any]]], interrupt: Callable[[], object]) -> None:
        super().__init__(replies)
        self._interrupt = interrupt

    async def stream(self, messages: Messages, *args: Any, **kwargs: Any) -> AsyncIterable[StreamEvent]:
        """Stream the next reply of the script, the last one only as far as its text."""
        is_last = len(self.calls) == len(self.replies) - 1
        async for event in super().stream(messages, *args, **kwargs):
            yield event
            if is_last and "contentBlockDelta" in event:
                self._interrupt()


def main() -> None:
    """Run one of the two processes: start the conversation until killed, or resume it."""
    line = sys.stdin.readline()
    if not line:
        # The parent was interrupted before it sent the task.
        return
    task = json.loads(line)
    with PostgresSessionRepository(task["dsn"], schema=task["schema"]) as repository:

        def build(model: ScriptedModel) -> Agent:
            manager = PostgresSessionManager(task["session_id"], repository)
            return Agent(model=model, tools=[read_thermometer], session_manager=manager, callback_handler=None)

        def wait_to_be_killed() -> None:
            _report(agent)
            # Returns if the parent has ended.
            sys.stdin.read()
            os._exit(1)

        if task["resume"]:
            agent = build(ScriptedModel(_REPLIES_AFTER_RESUME))
            _report(agent)
            agent()
            _report(agent)
        else:
            agent = build(_InterruptedModel(_REPLIES, wait_to_be_killed))
            for question in _QUESTIONS:
                agent(question)


def _report(agent: Agent) -> None:
    # The text of the messages is sent as one JSON string, so that no byte of it changes.
    print(json.dumps(json.dumps(agent.messages)), flush=True)


class AgentProcess:
    """A process that runs an agent; a context manager that kills it at the end of the block.

    Args:
        dsn: The database. It is not passed on the command line, where others could read its password.
        schema: The schema of the tables.
        session_id: The session.
        resume: Whether the agent resumes the session instead of starting it.
    """

    def __init__(self, dsn: str, schema: str | None, session_id: str, *, resume: bool) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"import {__name__} as conversation; conversation.main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                # Only the parent handles Ctrl-C.
                start_new_session=True,
            )
        except OSError as error:
            raise StrandsPsycopgError(f"a process of the demo cannot be started: {explain(error)}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._reports = self._process.stdout
        task = {"dsn": dsn, "schema": schema, "session_id": session_id, "resume": resume}
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def messages(self) -> str:
        """Wait for the process to report its agent's messages; return their JSON text unchanged.

        Raises:
            StrandsPsycopgError: The process has ended.
        """
        line = self._reports.readline()
        if not line:
            raise StrandsPsycopgError("a process of the demo ended too early; see its output above")
        text: str = json.loads(line)
        return text

    def kill(self) -> None:
        """Kill the process, without any cleanup."""
        self._process.kill()
        self._process.wait()
