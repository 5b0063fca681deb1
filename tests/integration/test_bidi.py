"""Bidirectional agents, whose messages are first stored as placeholders and then replaced."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from typing import Any

import psycopg
import pytest
from strands.hooks import HookProvider, HookRegistry
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types.content import Messages
from strands.types.tools import ToolUse

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository, SessionConflictError
from support import processes

bidi = pytest.importorskip("strands.bidi", reason="strands-agents before 1.57 has other bidirectional agents")
pytest.importorskip("strands.bidi.types.events")

from strands.bidi.hooks import BidiAgentStopEvent  # noqa: E402
from strands.bidi.models import BidiModel  # noqa: E402
from strands.bidi.types import events  # noqa: E402

Step = Callable[[], Awaitable[object]]


class ScriptedBidiModel(BidiModel):
    """Sends the events of a script, one reply of them for each message that it gets, and then waits.

    A callable in the script is awaited at its place.
    """

    def __init__(self, *replies: Sequence[Any]) -> None:
        self._replies = list(replies)
        self._pending: asyncio.Queue[Any] = asyncio.Queue()
        self.started_with: Messages = []

    def update_config(self, **model_config: Any) -> None:
        pass

    def get_config(self) -> Any:
        return {"model_id": "scripted"}

    async def start(
        self, system_prompt: Any = None, tools: Any = None, messages: Messages | None = None, **kwargs: Any
    ) -> None:
        self._pending = asyncio.Queue()
        self.started_with = list(messages or [])

    async def stop(self) -> None:
        pass

    async def send(self, content: Any) -> None:
        for event in self._replies.pop(0) if self._replies else []:
            self._pending.put_nowait(event)

    async def receive(self) -> AsyncIterable[Any]:
        while True:
            event = await self._pending.get()
            if callable(event):
                await event()
            else:
                yield event


def spoken(role: Any, words: Sequence[str], content_id: str, *between: Any) -> list[Any]:
    """The events of one transcript."""
    deltas = [events.BidiTranscriptDeltaEvent(word, role, content_id) for word in words]
    return [
        events.BidiTranscriptStartEvent(role, content_id),
        *between,
        *deltas,
        events.BidiTranscriptStopEvent(role, content_id),
    ]


def reply(*contents: list[Any]) -> list[Any]:
    return [
        events.BidiResponseStartEvent("r"),
        *(event for content in contents for event in content),
        events.BidiResponseStopEvent("r"),
    ]


async def converse(agent: Any, *prompts: str) -> None:
    """Send prompts, each when the answer to the one before has ended, and stop."""
    await agent.start()
    try:
        for prompt in prompts:
            await agent.send(prompt)
            async for event in agent.receive():
                if isinstance(event, events.BidiResponseStopEvent):
                    break
    finally:
        await agent.stop()


def build(repository: PostgresSessionRepository, *replies: Sequence[Any], **options: Any) -> Any:
    manager = PostgresSessionManager("s", repository)
    return bidi.BidiAgent(model=ScriptedBidiModel(*replies), session_manager=manager, agent_id="voice", **options)


def stored_texts(repository: PostgresSessionRepository) -> list[tuple[str, str]]:
    messages = repository.list_messages("s", "voice")
    assert [message.message_id for message in messages] == list(range(len(messages)))
    return [
        (message.message["role"], "".join(block.get("text", "-") for block in message.message["content"]))
        for message in messages
    ]


TALK = reply(spoken("user", ["Good ", "day"], "u"), spoken("assistant", ["Hello", " to you"], "a"))


def test_the_final_transcript_is_stored_and_restored(repository: PostgresSessionRepository) -> None:
    agent = build(repository, TALK)
    asyncio.run(converse(agent, "hi"))

    assert stored_texts(repository) == [("user", "hi"), ("user", "Good day"), ("assistant", "Hello to you")]
    assert build(repository).messages == agent.messages


def test_strands_own_manager_stores_the_placeholders(repository: PostgresSessionRepository) -> None:
    manager = RepositorySessionManager("s", repository)
    agent = bidi.BidiAgent(model=ScriptedBidiModel(TALK), session_manager=manager, agent_id="voice")
    asyncio.run(converse(agent, "hi"))

    assert stored_texts(repository) == [("user", "hi"), ("user", ""), ("assistant", "")]


def test_transcripts_that_overlap_are_stored_each_in_its_place(repository: PostgresSessionRepository) -> None:
    inner = spoken("assistant", ["inner"], "a")
    tool_use: ToolUse = {"toolUseId": "1", "name": "missing", "input": {}}
    agent = build(repository, reply(spoken("user", ["outer"], "u", *inner, events.BidiToolUseBlocksEvent([tool_use]))))
    asyncio.run(converse(agent, "hi"))

    texts = stored_texts(repository)
    assert texts[:3] == [("user", "hi"), ("user", "outer"), ("assistant", "inner")]
    assert build(repository).messages == agent.messages


def test_a_transcript_that_was_cut_off_is_stored_as_incomplete(repository: PostgresSessionRepository) -> None:
    cut_off = spoken("assistant", ["never ", "to end"], "a")[:-1]
    agent = build(repository, [*cut_off, events.BidiResponseStopEvent("r")])
    asyncio.run(converse(agent, "hi"))

    assert stored_texts(repository) == [("user", "hi"), ("assistant", "[Transcript unavailable.]")]
    assert build(repository).messages == agent.messages


def test_a_placeholder_is_stored_while_the_answer_is_being_spoken(repository: PostgresSessionRepository) -> None:
    seen: list[Any] = []

    async def look() -> None:
        seen.append(await asyncio.to_thread(stored_texts, repository))

    asyncio.run(converse(build(repository, reply(spoken("assistant", ["done"], "a", look))), "hi"))

    assert seen == [[("user", "hi"), ("assistant", "")]]
    assert stored_texts(repository) == [("user", "hi"), ("assistant", "done")]


class StateAtTheEnd(HookProvider):
    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        registry.add_callback(BidiAgentStopEvent, lambda event: event.agent.state.set("stopped", True))


def test_state_is_saved_when_the_agent_stops(repository: PostgresSessionRepository) -> None:
    # Callbacks of this event run in reverse order: hooks that are added later change the state before it is saved.
    agent = build(repository, reply())
    agent.hooks.add_hook(StateAtTheEnd())
    asyncio.run(converse(agent, "hi"))

    assert build(repository).state.get() == {"stopped": True}


def test_a_restored_agent_goes_on_with_what_was_said(repository: PostgresSessionRepository) -> None:
    asyncio.run(converse(build(repository, TALK), "hi"))
    agent = build(repository, reply(spoken("assistant", ["again"], "a")))
    asyncio.run(converse(agent, "and?"))

    assert [message["content"] for message in agent.model.started_with] == [
        [{"text": "hi"}],
        [{"text": "Good day"}],
        [{"text": "Hello to you"}],
    ]
    assert [text for _, text in stored_texts(repository)] == ["hi", "Good day", "Hello to you", "and?", "again"]


def test_a_replacement_changes_the_stored_row(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    asyncio.run(converse(build(repository, reply(spoken("assistant", ["done"], "a"))), "hi"))

    row = connection.execute(
        """
        SELECT message->'content'->0->>'text', message->'metadata'->'custom'->'bidi'->>'status', updated_at > created_at
        FROM strands_messages WHERE agent_id = 'voice' AND message_id = 1
        """
    ).fetchall()
    assert row == [("done", "complete", True)]


def test_an_overtaken_agent_is_told(repository: PostgresSessionRepository) -> None:
    first, second = build(repository, TALK), build(repository, TALK)
    asyncio.run(converse(first, "hi"))
    with pytest.raises(SessionConflictError):
        asyncio.run(converse(second, "hi"))
    assert len(stored_texts(repository)) == 3


def test_a_process_without_bidirectional_agents_imports_nothing_of_them() -> None:
    script = """
import sys
assert not any(name.partition(".")[0] == "strands_psycopg" for name in sys.modules)
from strands import Agent
loaded = {name for name in sys.modules if "bidi" in name}
import strands_psycopg
assert {name for name in sys.modules if "bidi" in name} == loaded
"""
    code, _, errors = processes.run_younger(script)
    assert (code, errors) == (0, "")
