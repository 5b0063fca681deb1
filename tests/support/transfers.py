"""Sessions that are hard to transfer, and all that the tables store of a session, including times."""

import json
from typing import Any

import psycopg
from psycopg import sql
from strands.session.session_repository import SessionRepository
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from support.multi_agents import Team

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

_TABLES = ("strands_sessions", "strands_agents", "strands_messages", "strands_multi_agents")


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
    """Store a session with two agents and two multi-agents that contain the documents."""
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


def age(connection: psycopg.Connection[Any]) -> None:
    """Set the times of every row to different ones in the past."""
    for number, table in enumerate(_TABLES):
        connection.execute(
            sql.SQL(
                "UPDATE {0} AS t SET created_at = s.at, updated_at = s.at + interval '1.000001 hours' FROM ("
                "SELECT ctid, '2025-01-02 03:04:05.000006Z'::timestamptz + row_number() OVER () * interval '1 day'"
                " + %s * interval '1 ms' AS at FROM {0}) AS s WHERE t.ctid = s.ctid"
            ).format(sql.Identifier(table)),
            [number],
        )


def rows(connection: psycopg.Connection[Any], session_id: str = "s") -> dict[str, list[str]]:
    """Return all that the tables store of a session, except for write ids and the session's own id."""
    query = sql.SQL("SELECT (to_jsonb(t) - 'write_id' - 'session_id')::text FROM {} AS t WHERE session_id = %s")
    found = {}
    for table in _TABLES:
        found[table] = sorted(
            row[0] for row in connection.execute(query.format(sql.Identifier(table)), [session_id]).fetchall()
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
