"""Turns that are killed between any two statements: what comes back is the agent as of the last statement.

Every message that was stored is in the log, in order, and the conversation goes on.
"""

import asyncio
import contextlib
import copy
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import pytest
from psycopg.conninfo import make_conninfo
from strands import Agent, tool
from strands.agent.conversation_manager import (
    ConversationManager,
    NullConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.hooks import BeforeModelCallEvent
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types.content import Message
from strands.types.exceptions import ContextWindowOverflowException

from strands_psycopg import DatabaseUnavailableError, PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import dump
from support.crew import Crew
from support.scale import TORTURE, scale
from support.tables import Connection, one
from support.waiting import wait_until

MANAGERS: dict[str, Callable[[], ConversationManager]] = {
    "null": NullConversationManager,
    "window": lambda: SlidingWindowConversationManager(window_size=4),
    "summary": lambda: SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2),
}


class KilledError(BaseException):
    """What ends a process here."""


@tool
def count(number: int) -> str:
    """Count."""
    return f"{number} " + "counted " * 100


class Model(ScriptedModel):
    """Does what the prompt says."""

    def __init__(self) -> None:
        super().__init__([["ok"]])
        self.overflowed: set[str] = set()

    async def stream(self, messages: Any, *arguments: Any, **kwargs: Any) -> Any:
        text = str(messages[-1]["content"][-1].get("text", ""))
        if text.startswith("overflow") and text not in self.overflowed:
            self.overflowed.add(text)
            raise ContextWindowOverflowException("too large")
        names = ["a", "b"] if text.startswith("tools") else []
        calls = [{"name": "count", "input": {"number": 1}, "toolUseId": f"{text} {name}"} for name in names]
        self.replies = [calls or [f"answer {len(messages)}"]]
        self.calls.clear()
        async for event in super().stream(messages, *arguments, **kwargs):
            yield event
        if text.startswith("guarded"):
            yield {"redactContent": {"redactUserContentMessage": "[gone]", "redactAssistantContentMessage": None}}


class Life:
    """One session and its agent, with what it has said."""

    def __init__(self, repository: PostgresSessionRepository, session_id: str, kind: str) -> None:
        self.said: list[Message] = []
        self.snapshot_ids: list[str] = []
        said = self.said

        class Listening(PostgresSessionManager):
            def append_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
                said.append(copy.deepcopy(message))
                super().append_message(message, agent, **kwargs)

            def redact_latest_message(self, redact_message: Message, agent: Any, **kwargs: Any) -> None:
                said[-1]["content"] = copy.deepcopy(redact_message["content"])
                super().redact_latest_message(redact_message, agent, **kwargs)

        self.manager = Listening(session_id, repository)
        self.agent = Agent(
            model=Model(),
            tools=[count],
            session_manager=self.manager,
            conversation_manager=MANAGERS[kind](),
            callback_handler=None,
        )
        self.agent.hooks.add_callback(BeforeModelCallEvent, self.meddle)

    def meddle(self, event: BeforeModelCallEvent) -> None:
        if "meddle" in str(event.agent.messages[-1]):
            event.agent.messages[0]["content"].append({"text": "edited by a hook"})
            event.agent.messages.insert(1, {"role": "assistant", "content": [{"text": "inserted"}]})

    def steps(self) -> Iterator[Callable[[], object]]:
        agent, manager = self.agent, self.manager
        yield lambda: agent("one")
        yield lambda: agent("tools two")
        yield lambda: agent("meddle three")
        yield lambda: self.snapshot_ids.append(str(asyncio.run(manager.save_snapshot(agent))))
        yield lambda: agent("guarded four")
        yield lambda: self.in_turn("overflow five")
        yield lambda: agent.messages.pop(0)
        yield lambda: agent.state.set("mood", "good")
        yield lambda: manager.sync_agent(agent)
        yield lambda: asyncio.run(manager.restore_snapshot(agent, snapshot_id=self.snapshot_ids[0]))
        yield lambda: agent("tools six")
        yield lambda: agent.messages.clear()
        yield lambda: agent("seven")

    def in_turn(self, prompt: str) -> None:
        with contextlib.suppress(ContextWindowOverflowException):
            self.agent(prompt)


def plain(agent: Agent) -> str:
    """Return all that a session keeps of an agent, as Strands repairs it, without what is drawn at random."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stripped(each) for key, each in value.items() if key not in ("tracking_id", "metrics")}
        return [stripped(each) for each in value] if isinstance(value, list) else value

    repaired = copy.copy(agent)
    messages = copy.deepcopy(agent.messages)
    repaired.messages = RepositorySessionManager._fix_broken_tool_use(None, messages)  # type: ignore[arg-type]
    return json.dumps(stripped(json.loads(dump(repaired))))


def contents(messages: list[Message]) -> str:
    return json.dumps([[message["role"], message["content"]] for message in messages])


def log(repository: PostgresSessionRepository, session_id: str) -> str:
    stored = repository.list_messages(session_id, "default")
    assert [message.message_id for message in stored] == list(range(len(stored)))
    return contents([message.to_message() for message in stored])


class Statement(NamedTuple):
    """What there was at a statement of a life that was not cut short.

    Attributes:
        memory: The agent in memory.
        restored: What a restore gave after it.
        log: What the log held then.
        said: What had been said.
    """

    memory: str
    restored: str
    log: str
    said: str


def restored(repository: PostgresSessionRepository, session_id: str, kind: str) -> Agent:
    return Life(repository, session_id, kind).agent


@pytest.mark.parametrize("kind", MANAGERS)
def test_agent_killed_between_any_two_statements_comes_back_as_of_the_last(
    repository: PostgresSessionRepository, dsn: str, pool_options: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with PostgresSessionRepository(dsn, **pool_options) as mortal:
        database = mortal._tables.messages._database
        statements: list[Statement] = []
        life = Life(mortal, "living", kind)

        def observe(*arguments: Any) -> Any:
            memory, said = plain(life.agent), contents(life.said)
            result = type(database).write(database, *arguments)
            back = plain(restored(repository, "living", kind))
            statements.append(Statement(memory, back, log(repository, "living"), said))
            return result

        # What is stored with a turn's last message may be what the conversation manager leaves of it.
        allowed: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(database, "write", observe)
            for step in life.steps():
                step()
                allowed += [plain(life.agent)] * (len(statements) - len(allowed))
        assert len(statements) > 15
        for number, (statement, at_the_end) in enumerate(zip(statements, allowed, strict=True)):
            assert statement.restored in (statement.memory, at_the_end), number
            assert statement.log == statement.said, number

        new = plain(restored(repository, "new", kind))
        choices = [(number, when) for number in range(len(statements)) for when in ("before", "after")]
        for number, when in choices if TORTURE else choices[:: len(choices) // 8]:
            session_id = f"{number} {when}"
            life = Life(mortal, session_id, kind)
            executed = 0

            def die(*arguments: Any, number: int = number, when: str = when) -> Any:
                nonlocal executed
                if executed > number or (executed == number and when == "before"):
                    executed = number + 1
                    raise KilledError
                result = type(database).write(database, *arguments)
                executed += 1
                if executed > number:
                    raise KilledError
                return result

            with monkeypatch.context() as patch:
                patch.setattr(database, "write", die)
                # A turn goes on to its last hook, where the manager refuses.
                with contextlib.suppress(KilledError, DatabaseUnavailableError):
                    for step in life.steps():
                        step()
            assert executed == number + 1, session_id
            last = number if when == "after" else number - 1
            agent = restored(repository, session_id, kind)
            assert plain(agent) == (statements[last].restored if last >= 0 else new), session_id
            assert log(repository, session_id) == (statements[last].log if last >= 0 else "[]"), session_id

            agent("and now?")
            assert plain(restored(repository, session_id, kind)) == plain(agent), session_id


# Each event prints the memory before it is stored, and after. Hooks edit it, and every third turn goes back to a
# checkpoint.
WRITE = """
import asyncio, json, sys
from strands import Agent, tool
from strands.agent.conversation_manager import NullConversationManager
from strands.hooks import BeforeModelCallEvent, MessageAddedEvent
from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel

dsn, life = sys.argv[1:]

def show(word, agent):
    print(word, json.dumps(agent.messages), flush=True)

class Manager(PostgresSessionManager):
    def sync_agent(self, agent, **kwargs):
        show("will", agent)
        super().sync_agent(agent, **kwargs)

@tool
def count_up(number: int) -> int:
    '''Count.'''
    return number + 1

class Model(ScriptedModel):
    number = 0

    async def stream(self, messages, *arguments, **kwargs):
        self.number += 1
        call = {"name": "count_up", "input": {"number": 1}, "toolUseId": f"call {life}.{self.number}"}
        self.replies = [[f"answer {life}.{self.number}"] if self.number % 2 == 0 else [call]]
        self.calls.clear()
        async for event in super().stream(messages, *arguments, **kwargs):
            yield event

def meddle(event):
    messages = event.agent.messages
    if len(messages) > 12:
        del messages[:-4]
        messages[0] = {"role": "user", "content": [{"text": f"summary {life}"}]}
    if len(messages) > 3 and "text" in messages[0]["content"][0]:
        messages[0]["content"][0]["text"] += "!"

with PostgresSessionRepository(dsn) as repository:
    manager = Manager("s", repository, keep_snapshots=2)
    agent = Agent(model=Model([]), tools=[count_up], session_manager=manager, callback_handler=None,
                  conversation_manager=NullConversationManager())
    show("did", agent)
    agent.hooks.add_callback(MessageAddedEvent, lambda event: show("did", event.agent))
    agent.hooks.add_callback(BeforeModelCallEvent, meddle)
    for turn in range(1_000_000):
        agent(f"ask {life}.{turn}")
        if turn % 3 == 1:
            saved = asyncio.run(manager.save_snapshot(agent))
        if turn % 3 == 2:
            assert asyncio.run(manager.restore_snapshot(agent, snapshot_id=saved))
"""


def repaired(messages: list[Message]) -> str:
    return contents(RepositorySessionManager._fix_broken_tool_use(cast(Any, None), messages))


def test_killed_process_leaves_the_agent_of_its_last_event(
    crew: Crew, dsn: str, repository: PostgresSessionRepository, connection: Connection
) -> None:
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    said: list[str] = []
    events = 0
    for life in range(scale(4, 200)):
        writer = crew.start(WRITE, make_conninfo(dsn, application_name="writer"), str(life))
        # However slow the machine is, every second process shall get as far as an event.
        seen = [writer.line()] if life % 2 else []
        # A random moment, so there is no condition to wait for.
        time.sleep(moments.uniform(0.1, 0.6))
        writer.signal(signal.SIGKILL)
        lines = [line.split(" ", 1) for line in [*seen, *writer.lines()]]
        assert writer.end() == -signal.SIGKILL, writer.errors()
        writer.close()
        # Until then its last write may still land.
        wait_until(
            lambda: one(connection, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'writer'") == 0
        )
        agent = Agent(
            model=ScriptedModel([["still works"]]),
            session_manager=PostgresSessionManager("s", repository),
            conversation_manager=NullConversationManager(),
            callback_handler=None,
        )
        events += len(lines)
        last = max((number for number, (word, _) in enumerate(lines) if word == "did"), default=None)
        if last is not None:
            possible = [repaired(json.loads(memory)) for _, memory in lines[last:]]
            assert contents(agent.messages) in possible, f"seed {seed}"
        agent(f"check {life}")
        restored = Agent(
            model=ScriptedModel([["ok"]]),
            session_manager=PostgresSessionManager("s", repository),
            conversation_manager=NullConversationManager(),
            callback_handler=None,
        )
        assert contents(restored.messages) == contents(agent.messages), f"seed {seed}"
        stored = log(repository, "s")
        assert stored.startswith(said[-1][:-1] if said else "["), f"seed {seed}"
        said.append(stored)
    assert events > life // 2
    print(f"{life + 1} kills, {events} lines")
