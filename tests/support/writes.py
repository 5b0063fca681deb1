"""Every kind of write that a repository makes, each with what must be there before it and a newer write after it."""

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
from psycopg import sql
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.repository.agents import AgentChange, EncodedAgent
from strands_psycopg.repository.window import Variant, Window
from strands_psycopg.uuids import uuid7
from support.tables import TABLES

_Step = Callable[[PostgresSessionRepository, str], object]


class Write(NamedTuple):
    """A kind of write, to the session whose id its steps are given.

    Attributes:
        name: What it is called.
        prepare: Stores what it needs.
        act: Writes.
        follow: Makes another write to the same place, later.
    """

    name: str
    prepare: _Step
    act: _Step
    follow: _Step

    def __str__(self) -> str:
        return self.name


def message(index: int, text: str) -> SessionMessage:
    """Build a user's message."""
    return SessionMessage({"role": "user", "content": [{"text": text}]}, index)


def agent(mood: str) -> SessionAgent:
    """Build an agent ``a``."""
    return SessionAgent("a", {"mood": mood}, {"removed_message_count": 0})


def _nothing(repository: PostgresSessionRepository, session_id: str) -> None:
    repository.read_session(session_id)


def _create_session(repository: PostgresSessionRepository, session_id: str) -> None:
    repository.create_session(Session(session_id, SessionType.AGENT))


def _create_agent(repository: PostgresSessionRepository, session_id: str) -> None:
    _create_session(repository, session_id)
    repository.create_agent(session_id, agent("new"))


def _create_message(repository: PostgresSessionRepository, session_id: str) -> None:
    _create_agent(repository, session_id)
    repository.create_message(session_id, "a", message(0, "first"))


def _create_multi_agent(repository: PostgresSessionRepository, session_id: str) -> None:
    _create_session(repository, session_id)
    repository._tables.multi_agents.create(session_id, "m", {"step": 0}, write_id=uuid4())


def store_with_message(
    repository: PostgresSessionRepository,
    session_id: str,
    stored: SessionAgent,
    message: SessionMessage,
    **options: Any,
) -> None:
    """Store an agent's documents and its next message in one statement, as a session manager does."""
    change = AgentChange(stored.agent_id, EncodedAgent.of(stored), None, drops_variants=False)
    repository._tables.agents.store(session_id, change, message, write_id=uuid4(), **options)


def _store_variant(repository: PostgresSessionRepository, session_id: str, index: int, mood: str) -> None:
    seen = repository._tables.agents.read(session_id, "a")
    assert seen is not None
    variant = Variant(index, None, message(0, mood).message)
    change = AgentChange("a", None, Window((index,), index + 1), {0: message(0, mood).message}, [variant])
    repository._tables.agents.store(session_id, change, message(index, mood), write_id=uuid4(), expected=seen.write_id)


def _redact(repository: PostgresSessionRepository, session_id: str, text: str) -> None:
    repository._tables.messages.redact(
        session_id, "a", message(0, text).message, message_ids=[0], variant_ids=[], write_id=uuid4()
    )


def save_checkpoint(repository: PostgresSessionRepository, session_id: str) -> None:
    """Save a checkpoint of an agent ``a``."""
    seen = repository._tables.agents.read(session_id, "a")
    assert seen is not None
    repository._tables.checkpoints.save(
        session_id,
        "a",
        uuid7(),
        {"state": {}},
        Window.of([0]),
        message_count=1,
        keep=1,
        window_variant_ids=[],
        expected=seen.write_id,
    )


def _update_and_append(repository: PostgresSessionRepository, session_id: str, index: int, mood: str) -> None:
    seen = repository._tables.agents.read(session_id, "a")
    assert seen is not None
    store_with_message(repository, session_id, agent(mood), message(index, mood), expected=seen.write_id)


def _update_multi_agent(repository: PostgresSessionRepository, session_id: str, step: int) -> None:
    repository._tables.multi_agents.update(session_id, "m", {"step": step}, write_id=uuid4())


def _leave(repository: PostgresSessionRepository, session_id: str) -> None:
    lease = repository._tables.leases.current(session_id)
    assert lease is not None
    repository._tables.leases.release(lease)


def _enter(repository: PostgresSessionRepository, session_id: str) -> None:
    repository.lease(session_id).__enter__()


WRITES = [
    Write(
        "create_session",
        _nothing,
        _create_session,
        lambda repository, session_id: repository.create_agent(session_id, agent("next")),
    ),
    Write(
        "create_agent",
        _create_session,
        lambda repository, session_id: repository.create_agent(session_id, agent("now")),
        lambda repository, session_id: repository.update_agent(session_id, agent("next")),
    ),
    Write(
        "create_message",
        _create_message,
        lambda repository, session_id: repository.create_message(session_id, "a", message(1, "now")),
        lambda repository, session_id: repository.create_message(session_id, "a", message(2, "next")),
    ),
    Write(
        "update_and_append",
        _create_message,
        lambda repository, session_id: _update_and_append(repository, session_id, 1, "now"),
        lambda repository, session_id: _update_and_append(repository, session_id, 2, "next"),
    ),
    Write(
        "store_variant",
        _create_message,
        lambda repository, session_id: _store_variant(repository, session_id, 1, "now"),
        lambda repository, session_id: _store_variant(repository, session_id, 2, "next"),
    ),
    Write(
        "redact",
        _create_message,
        lambda repository, session_id: _redact(repository, session_id, "now"),
        lambda repository, session_id: _redact(repository, session_id, "next"),
    ),
    Write("save_checkpoint", _create_message, save_checkpoint, save_checkpoint),
    Write(
        "update_agent",
        _create_agent,
        lambda repository, session_id: repository.update_agent(session_id, agent("now")),
        lambda repository, session_id: repository.update_agent(session_id, agent("next")),
    ),
    Write(
        "update_message",
        _create_message,
        lambda repository, session_id: repository.update_message(session_id, "a", message(0, "now")),
        lambda repository, session_id: repository.update_message(session_id, "a", message(0, "next")),
    ),
    Write(
        "create_multi_agent",
        _create_session,
        lambda repository, session_id: repository._tables.multi_agents.create(
            session_id, "m", {"step": 1}, write_id=uuid4()
        ),
        lambda repository, session_id: _update_multi_agent(repository, session_id, 2),
    ),
    Write(
        "update_multi_agent",
        _create_multi_agent,
        lambda repository, session_id: _update_multi_agent(repository, session_id, 1),
        lambda repository, session_id: _update_multi_agent(repository, session_id, 2),
    ),
    Write(
        "annotate_session",
        lambda repository, session_id: repository.create_session(Session(session_id, SessionType.AGENT), owner="old"),
        lambda repository, session_id: repository.annotate_session(session_id, owner="now", expected_owner="old"),
        lambda repository, session_id: repository.annotate_session(session_id, owner="next", expected_owner="now"),
    ),
    Write(
        "delete_session",
        _create_message,
        lambda repository, session_id: repository.delete_session(session_id),
        _create_session,
    ),
    Write(
        "delete_agent",
        _create_message,
        lambda repository, session_id: repository.delete_agent(session_id, "a"),
        lambda repository, session_id: repository.create_agent(session_id, agent("next")),
    ),
    Write("take_lease", _create_session, _enter, _leave),
    Write(
        "release_lease",
        _enter,
        _leave,
        _enter,
    ),
]

_IGNORED = ["session_id", "snapshot_id", "write_id", "term", "created_at", "updated_at", "acquired_at", "expires_at"]


def rows(connection: psycopg.Connection[Any], session_id: str) -> dict[str, list[Any]]:
    """Return a session's rows in every table, without what differs between two sessions that were written alike."""
    query = sql.SQL(
        "SELECT to_jsonb(t) - %s::text[] #- '{{message,tracking_id}}' #- '{{message,metadata}}' FROM {} AS t "
        "WHERE session_id = %s ORDER BY 1"
    )
    return {
        table: [row for (row,) in connection.execute(query.format(sql.Identifier(table)), [_IGNORED, session_id])]
        for table in TABLES
    }
