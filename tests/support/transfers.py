"""Sessions that are hard to transfer, and all that the tables store of a session, including times."""

import asyncio
import json
import random
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql
from strands.session.session_repository import SessionRepository
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.repository import session_tables
from strands_psycopg.repository.agents import AgentChange
from strands_psycopg.repository.window import Variant, Window
from strands_psycopg.transfer import TransferResult
from support.multi_agents import Team
from support.storage import has_storage

# Values that JSONB alone would change, that JSON cannot express, or that look like encoded bytes.
ODD: list[Any] = [
    {"z": 1, "a": 2, "é": 3, "": None},
    [{"b": 1, "a": 2}, {"a": 1, "b": 2}],
    {"text": 'NUL \0, lone \ud800, pair \ud83d\ude00, line \u2028 end\r\n, "quoted" \\'},
    [float("nan"), float("inf"), -float("inf"), -0.0, 1e16, 1.0, 5e-324, 10**30],
    {"bytes": b"\0\xff", "more": [b""]},
    {"__bytes_encoded__": True, "data": "no base64!"},
    [{"data": "aGk=", "__bytes_encoded__": True}, b"hi", {"order": "order [["}],
]

# In older versions, Strands' files cannot hold bytes in an agent's state.
_HOLD_BYTES = SessionAgent("a", {"bytes": b""}, {}).to_dict()["state"] != {"bytes": b""}

# Those that Strands reads back from its files unchanged. It can read the third one but not write it.
IN_FILES = ODD[: 5 if _HOLD_BYTES else 4]
BY_STRANDS = [*IN_FILES[:2], *IN_FILES[3:]]

_TABLES = (
    "strands_sessions",
    "strands_agents",
    "strands_messages",
    "strands_message_variants",
    "strands_checkpoints",
    "strands_multi_agents",
    "strands_session_storage",
    "strands_session_chunks",
)


def message(index: int, document: object = None, *, redacted: bool = False) -> SessionMessage:
    """Return a message that contains a document."""
    content: Any = {"role": "user", "content": [{"text": f"text {index}"}, {"json": document}]}
    redaction: Any = {"role": "user", "content": [{"json": document, "text": "[redacted]"}]}
    return SessionMessage(content, index, redaction if redacted else None)


def agent(agent_id: str) -> SessionAgent:
    """Return an agent whose window begins with its fourth message."""
    return SessionAgent(agent_id, {"z": 1, "a": 2}, {"removed_message_count": 3, "a": 1})


def fill(
    repository: SessionRepository,
    session_id: str = "s",
    *,
    documents: list[Any] = ODD,
    multi_agents: bool = True,
) -> None:
    """Store a session with two agents and two multi-agents that contain the documents.

    In PostgreSQL, and unless the documents are those for files, the agents have windows, variants and checkpoints, and
    the session has a storage.
    """
    repository.create_session(Session(session_id, SessionType.AGENT))
    for agent_id in ("a", "ö"):
        repository.create_agent(
            session_id, SessionAgent(agent_id, {"documents": documents}, {"removed_message_count": 2, "a": documents})
        )
        for index, document in enumerate(documents):
            repository.create_message(session_id, agent_id, message(index, document))
    repository.update_message(session_id, "a", message(1, documents[1], redacted=True))
    # Strands' files cannot hold bytes in the state of a multi-agent.
    state = documents if documents is ODD else documents[:3]
    repository.create_multi_agent(session_id, Team("graph", {"b": state, "a": 1}))
    repository.create_multi_agent(session_id, Team("swarm", {}))
    if isinstance(repository, PostgresSessionRepository) and documents is ODD:
        _fill_windows(repository, session_id)
        if has_storage:
            asyncio.run(_fill_storage(repository, session_id))


def _fill_windows(repository: PostgresSessionRepository, session_id: str) -> None:
    """Add a summary and edited messages to an agent of ``fill``, and checkpoints to both agents."""
    variants = [Variant(n, original, message(n, ODD).message) for n, original in ((1, None), (2, 3), (3, 4), (4, 0))]
    store_window(repository, session_id, "a", Window((4, (1, 4), 3), 5), *variants[2:])
    documents: dict[str, Any] = {"state": ODD, "system_prompt": None}
    store_checkpoint(repository, session_id, "a", 5, Window((4, (1, 4), 3), None), documents)
    store_window(repository, session_id, "a", Window((1, 2, (4, 5)), 6), *variants[:2])
    store_checkpoint(repository, session_id, "a", 7, Window((1, 2, 1), None), {"z": 1, "a": {"b": b"", "a": 1}})
    store_window(repository, session_id, "ö", Window(((0, 2),), None))
    store_checkpoint(repository, session_id, "ö", 6, Window(((0, 2), (1, 2)), None), {})


async def _fill_storage(repository: PostgresSessionRepository, session_id: str) -> None:
    storage = repository.storage(session_id)
    await storage.write("notes", b"running to the houses")
    await storage.write(f"context/{session_id}/scopes/agent/a/1_0", random.Random(1).randbytes(60_000))
    await storage.write("empty", b"")
    await repository.storage(session_id, expires_in=1e9).write("\U0010ffff", random.Random(1).randbytes(50_000))


def store_window(
    repository: PostgresSessionRepository, session_id: str, agent_id: str, window: Window, *variants: Variant
) -> None:
    """Store an agent's window with new variants; others that nothing refers to are deleted."""
    change = AgentChange(agent_id, None, window, variants=variants)
    session_tables(repository).agents.store(session_id, change, write_id=uuid4())


def store_checkpoint(
    repository: PostgresSessionRepository,
    session_id: str,
    agent_id: str,
    number: int,
    window: Window,
    data: dict[str, Any],
) -> UUID:
    """Store a checkpoint of an agent when its log had a number of messages, and return the checkpoint's id."""
    tables = session_tables(repository)
    agent = tables.agents.read(session_id, agent_id)
    assert agent is not None
    snapshot_id = UUID(int=number << 80 | 7 << 76 | 2 << 62)
    tables.checkpoints.save(
        session_id,
        agent_id,
        snapshot_id,
        data,
        window,
        message_count=number,
        keep=None,
        window_variant_ids=agent.window.variant_ids if agent.window else [],
        expected=agent.write_id,
    )
    return snapshot_id


# The counts of what ``fill`` stores in PostgreSQL, in the last line of JSON lines and as a result.
VALUES = 4 if has_storage else 0
COUNTS: dict[str, Any] = {
    "agents": 2,
    "messages": 14,
    "message_variants": 4,
    "checkpoints": 3,
    "multi_agents": 2,
    "values": VALUES,
}
FILLED = TransferResult(sessions=1, **COUNTS)


def age(connection: psycopg.Connection[Any]) -> None:
    """Set the times of every row to different ones in the past."""
    for number, table in enumerate(_TABLES[:-2]):
        is_updated = table not in ("strands_message_variants", "strands_checkpoints")
        update = sql.SQL(", updated_at = s.at + interval '1.000001 hours'" if is_updated else "")
        connection.execute(
            sql.SQL(
                "UPDATE {0} AS t SET created_at = s.at {1} FROM ("
                "SELECT ctid, '2025-01-02 03:04:05.000006Z'::timestamptz + row_number() OVER () * interval '1 day'"
                " + %s * interval '1 ms' AS at FROM {0}) AS s WHERE t.ctid = s.ctid"
            ).format(sql.Identifier(table), update),
            [number],
        )
    connection.execute("UPDATE strands_session_storage SET updated_at = updated_at - interval '1.000001 hours'")


def rows(connection: psycopg.Connection[Any], session_id: str = "s") -> dict[str, list[str]]:
    """Return all that the tables store of a session, except for write ids and the session's own id, also in keys."""
    query = sql.SQL("SELECT (to_jsonb(t) - 'write_id' - 'session_id')::text FROM {} AS t WHERE session_id = %s")
    found = {}
    for table in _TABLES:
        found[table] = sorted(
            row[0].replace(f'"context/{session_id}/', '"context/s/')
            for row in connection.execute(query.format(sql.Identifier(table)), [session_id]).fetchall()
        )
    return found


def restored(repository: SessionRepository, session_id: str = "s") -> str:
    """Return what a repository returns of a session that ``fill`` stored, as one text."""
    session = repository.read_session(session_id)
    assert session is not None
    parts: list[Any] = [session.to_dict()]
    for agent_id in ("a", "ö"):
        agent = repository.read_agent(session_id, agent_id)
        assert agent is not None
        parts.append(agent.to_dict())
        parts += [each.to_dict() for each in repository.list_messages(session_id, agent_id)]
    parts += [repr(repository.read_multi_agent(session_id, each)) for each in ("graph", "swarm")]
    return json.dumps(parts, default=repr)
