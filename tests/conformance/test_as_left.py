"""An agent comes back as it was left, whatever has edited it, and its log holds what was said.

Random sequences of turns, edits, reductions, redactions, checkpoints and restores. After each restore the agent equals
the one that lived on.
"""

import asyncio
import contextlib
import copy
import json
from collections.abc import AsyncIterable, Callable
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strands import Agent, tool
from strands.agent.conversation_manager import (
    ConversationManager,
    NullConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.hooks import MessageAddedEvent
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types.content import Message, Messages
from strands.types.exceptions import ContextWindowOverflowException
from strands.types.session import encode_bytes_values
from strands.types.streaming import StreamEvent

from strands_psycopg import PayloadContext, PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import dump
from support.payloads import ScramblingCodec
from support.scale import scale

EXAMPLES = scale(25, 2_000)

PINS = hasattr(SlidingWindowConversationManager(), "pin_first")

MANAGERS: dict[str, Callable[[], ConversationManager]] = {
    "window": lambda: SlidingWindowConversationManager(window_size=4),
    "no window": lambda: SlidingWindowConversationManager(window_size=40),
    "each call": lambda: SlidingWindowConversationManager(window_size=4, per_turn=True),
    "summary": lambda: SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2),
    "null": NullConversationManager,
}
if PINS:
    MANAGERS |= {
        "pinned window": lambda: SlidingWindowConversationManager(window_size=4, pin_first=1),
        "pinned summary": lambda: SummarizingConversationManager(
            summary_ratio=0.5, preserve_recent_messages=2, pin_first=1
        ),
    }


@tool
def weigh(thing: str) -> str:
    """Weigh a thing."""
    return f"{thing}: " + "kilo" * 200


class Model(ScriptedModel):
    """Calls a tool, finds the context too large or has the prompt redacted, where the prompt says so."""

    def __init__(self) -> None:
        super().__init__([["ok"]])
        self.overflowed: set[str] = set()

    async def stream(self, messages: Messages, *arguments: Any, **kwargs: Any) -> AsyncIterable[StreamEvent]:
        text = str(messages[-1]["content"][-1].get("text", ""))
        if text.startswith("overflow") and text not in self.overflowed:
            self.overflowed.add(text)
            raise ContextWindowOverflowException("too large")
        self.replies = [[{"name": "weigh", "input": {"thing": text}, "toolUseId": f"use {text}"}]]
        self.replies = self.replies if text.startswith("tool") else [[f"answer {len(messages)}"]]
        self.calls.clear()
        async for event in super().stream(messages, *arguments, **kwargs):
            yield event
        if text.startswith("guarded"):
            yield {"redactContent": {"redactUserContentMessage": "[gone]", "redactAssistantContentMessage": None}}


class Life:
    """One session, with the agent that lives on in it and what it has said."""

    def __init__(self, repository: PostgresSessionRepository, manager: str) -> None:
        self.repository = repository
        self.kind = manager
        self.session_id = str(uuid4())
        self.said: list[Message] = []
        self.snapshots: list[Any] = []
        self.checkpoints: list[tuple[str, str]] = []
        self.secrets: list[str] = []
        # What takes the place of a redacted message under its tracking id may be a copy from before, and is not stored.
        self.redacted_ids: set[str | None] = set()
        self.has_copies = False
        self.number = 0
        self.agent, self.manager = self.build()
        self.listen()

    def build(self) -> tuple[Agent, PostgresSessionManager]:
        manager = PostgresSessionManager(self.session_id, self.repository)
        agent = Agent(
            model=Model(),
            tools=[weigh],
            session_manager=manager,
            conversation_manager=MANAGERS[self.kind](),
            callback_handler=None,
        )
        return agent, manager

    def listen(self) -> None:
        self.agent.hooks.add_callback(MessageAddedEvent, lambda event: self.said.append(copy.deepcopy(event.message)))

    def left(self) -> str:
        """The agent, as Strands repairs it at a restore."""
        lived = copy.copy(self.agent)
        messages = copy.deepcopy(self.agent.messages)
        lived.messages = RepositorySessionManager._fix_broken_tool_use(None, messages)  # type: ignore[arg-type]
        return dump(lived)

    def check(self) -> None:
        self.manager.sync_agent(self.agent)
        restored, manager = self.build()
        assert dump(restored) == self.left()
        log = self.repository.list_messages(self.session_id, "default")
        assert [each.message_id for each in log] == list(range(len(log)))
        assert as_json([each.to_message() for each in log]) == as_json(self.said)
        if self.number % 2:
            # Another process goes on with it; what the repair has changed is stored with its next write.
            self.agent, self.manager = restored, manager
            self.listen()

    def step(self, name: str, place: int, variety: int) -> None:
        self.number += 1
        messages = self.agent.messages
        index = place % len(messages) if messages else 0
        self.has_copies |= name in ("copy", "repeat", "load")
        if name == "edit" and self.has_copies and messages and messages[index].get("tracking_id") in self.redacted_ids:
            return
        match name:
            case "say" | "tool" | "overflow":
                self.turn(f"{name} {self.number}")
            case "guarded":
                self.turn(f"guarded SECRET{self.number}")
                self.redacted(f"SECRET{self.number}")
            case "redact":
                if self.said and any(each["role"] == "user" for each in messages):
                    self.turn(f"say SECRET{self.number}")
                    last = next(
                        each for each in reversed(self.agent.messages) if f"SECRET{self.number}" in json.dumps(each)
                    )
                    redaction = with_content(last, "[gone]")
                    self.manager.redact_latest_message(redaction, self.agent)
                    for position, each in enumerate(self.agent.messages):
                        if each is last:
                            self.agent.messages[position] = redaction
                    self.redacted(f"say SECRET{self.number}")
            case "append":
                messages.append({"role": "user", "content": [{"text": f"unannounced {self.number}"}]})
            case "insert":
                messages.insert(index, {"role": "user", "content": [{"text": f"inserted {self.number}"}]})
            case "pop" if messages:
                messages.pop(index)
            case "clear":
                messages.clear()
            case "trim":
                del messages[:index]
            case "replace" if messages and messages[index].get("tracking_id") not in self.redacted_ids:
                messages[index] = with_content(messages[index], f"replaced {self.number}")
            case "copy":
                self.agent.messages = copy.deepcopy(messages)
            case "repeat" if messages:
                messages.append(copy.deepcopy(messages[index]))
            case "swap" if len(messages) > 1:
                messages[index], messages[-1] = messages[-1], messages[index]
            case "edit" if messages:
                edit(messages[index], variety, self.number)
            case "pin" if messages:
                metadata = cast(dict[str, Any], messages[index]).setdefault("metadata", {})
                metadata.setdefault("custom", {})["pinned"] = True
            case "state":
                self.agent.state.set(f"key {variety}", {"number": self.number, "a": [None, -0.0, "\0"]})
            case "take":
                self.snapshots.append(self.agent.take_snapshot(preset="session"))
            case "load" if self.snapshots:
                self.agent.load_snapshot(self.snapshots[place % len(self.snapshots)])
            case "save":
                snapshot_id = asyncio.run(self.manager.save_snapshot(self.agent))
                assert snapshot_id is not None
                self.checkpoints.append((snapshot_id, dump(self.agent)))
            case "rewind" if self.checkpoints:
                snapshot_id, then = self.checkpoints[place % len(self.checkpoints)]
                assert asyncio.run(self.manager.restore_snapshot(self.agent, snapshot_id=snapshot_id))
                if not self.secrets:
                    assert dump(self.agent) == then
            case "check":
                self.check()

    def turn(self, prompt: str) -> None:
        # Nothing can be removed, or the edits leave no conversation that goes on.
        with contextlib.suppress(ContextWindowOverflowException, ValueError):
            self.agent(prompt)

    def redacted(self, secret: str) -> None:
        self.secrets.append(secret)
        for each in self.said:
            if each["content"] == [{"text": secret}] or each["content"] == [{"text": f"guarded {secret}"}]:
                each["content"] = [{"text": "[gone]"}]
                self.redacted_ids.add(each.get("tracking_id"))
        self.redacted_ids.discard(None)


def edit(message: Message, variety: int, number: int) -> None:
    content: list[Any] = message["content"]
    match variety % 6:
        case 0:
            content.append({"text": f"more {number}"})
        case 1:
            message["role"] = message.pop("role")  # type: ignore[misc]
        case 2 if content and isinstance(content[0], dict):
            content[0]["deep"] = {"a": {"b": [1, {"c": number}]}}
        case 3 if content and "deep" in content[0]:
            content[0]["deep"]["a"]["b"][0] = True
        case 4 if content:
            content[0] = {"text": f"{number}: " + "long " * 10_000}
        case 5:
            content[:] = [{"text": "truncated"}]


def with_content(message: Message, text: str) -> Message:
    changed = copy.copy(message)
    changed["content"] = [{"text": text}]
    return changed


def as_json(messages: list[Message]) -> str:
    return json.dumps(encode_bytes_values(messages))


NAMES = [
    *("say", "say", "say", "tool", "overflow", "guarded", "redact", "append", "insert", "pop", "clear", "trim"),
    *("replace", "copy", "repeat", "swap", "edit", "edit", "edit", "pin", "state", "take", "load", "save", "rewind"),
    *("check", "check"),
]
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 9), st.integers(0, 11)), min_size=1, max_size=14)


@pytest.fixture(autouse=True)
def _no_random_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strands' repair draws an id for what it inserts."""
    repair = "strands.session.repository_session_manager._generate_tracking_id"
    monkeypatch.setattr(repair, lambda: "of the repair", raising=False)


CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=CHECKS)
@given(manager=st.sampled_from(sorted(MANAGERS)), steps=STEPS)
def test_agent_comes_back_through_a_payload_codec(
    dsn: str,
    pool_options: dict[str, Any],
    connection: psycopg.Connection[Any],
    manager: str,
    steps: list[tuple[str, int, int]],
) -> None:
    codec = ScramblingCodec()
    with PostgresSessionRepository(dsn, payload_codec=codec, **pool_options) as repository:
        life = Life(repository, manager)
        for name, place, variety in steps:
            life.step(name, place, variety)
        life.number = 0
        life.check()
        decoded = [json.dumps(document) for document in stored_messages(connection, codec, life.session_id)]
        for secret in life.secrets:
            assert not [each for each in decoded if f'{secret}"' in each and '"role": "user"' in each]


def stored_messages(connection: psycopg.Connection[Any], codec: ScramblingCodec, session_id: str) -> list[Any]:
    found = connection.execute(
        """
        SELECT agent_id, 'message', message_id, message FROM strands_messages WHERE session_id = %(session_id)s
        UNION ALL SELECT agent_id, 'redaction', message_id, redact_message FROM strands_messages
            WHERE session_id = %(session_id)s AND redact_message IS NOT NULL
        UNION ALL SELECT agent_id, 'variant', variant_id, message FROM strands_message_variants
            WHERE session_id = %(session_id)s
        """,
        {"session_id": session_id},
    ).fetchall()
    return [
        codec.decode(document, PayloadContext(session_id, agent_id, kind, index))
        for agent_id, kind, index, document in found
    ]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=CHECKS)
@given(manager=st.sampled_from(sorted(MANAGERS)), steps=STEPS)
def test_agent_comes_back_as_it_was_left(
    repository: PostgresSessionRepository,
    connection: psycopg.Connection[Any],
    manager: str,
    steps: list[tuple[str, int, int]],
) -> None:
    life = Life(repository, manager)
    for name, place, variety in steps:
        life.step(name, place, variety)
    life.number = 0
    life.check()
    for secret in life.secrets:
        # What others have made of it aside: here the model's answers and tool calls repeat the prompt.
        assert not raw_rows(connection, life.session_id, secret)


def raw_rows(connection: psycopg.Connection[Any], session_id: str, secret: str) -> list[Any]:
    prompt = f'"text": "%{secret}"'
    return connection.execute(
        """
        SELECT to_jsonb(t)::text FROM strands_messages AS t
        WHERE session_id = %(session_id)s AND message->>'role' = 'user' AND to_jsonb(t)::text LIKE %(prompt)s
        UNION ALL
        SELECT to_jsonb(t)::text FROM strands_message_variants AS t
        WHERE session_id = %(session_id)s AND message->>'role' = 'user' AND to_jsonb(t)::text LIKE %(prompt)s
        """,
        {"session_id": session_id, "prompt": f"%{prompt}%"},
    ).fetchall()
