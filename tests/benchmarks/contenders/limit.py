"""The limit: the same rows through one bare connection with prepared statements."""

import json
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb
from strands.session.session_manager import SessionManager
from strands.types.session import SessionMessage

from benchmarks.contenders.filling import fill
from benchmarks.model import build, text, user_message
from benchmarks.works import Measured, timed
from strands_psycopg import PostgresSessionRepository

_INSERT = """
    INSERT INTO strands_messages (session_id, agent_id, message_id, message, write_id, created_at, updated_at)
    VALUES (%s, 'default', %s, %s, %s, now(), now())
"""

_SESSION = "SELECT session_type FROM strands_sessions WHERE session_id = %s"

_NEW_SESSION = """
    INSERT INTO strands_sessions (session_id, session_type, write_id, created_at, updated_at)
    VALUES (%s, 'AGENT', gen_random_uuid(), now(), now())
"""

_NEW_AGENT = """
    INSERT INTO strands_agents (session_id, agent_id, state, conversation_manager_state, _internal_state, write_id,
        created_at, updated_at)
    VALUES (%s, 'default', '{}', '{}', '{}', gen_random_uuid(), now(), now())
"""

_AGENT = """
    SELECT state::text, conversation_manager_state::text, _internal_state::text
    FROM strands_agents WHERE session_id = %s AND agent_id = 'default'
"""

_MESSAGES = """
    SELECT message_id, message::text FROM strands_messages
    WHERE session_id = %s AND agent_id = 'default' AND message_id >= %s ORDER BY message_id
"""


class _Manager(SessionManager):
    """Stores each message as it is added, and restores them: on the event loop, unchecked, and nothing else."""

    def __init__(self, connection: psycopg.Connection[Any], session_id: str) -> None:
        self._cursor = connection.cursor()
        self._key = [session_id]
        self._next_index = 0

    def initialize(self, agent: Any, **kwargs: Any) -> None:
        self._cursor.execute(_SESSION, self._key)
        if self._cursor.fetchall():
            rows = self._cursor.execute(_AGENT, self._key).fetchall()
            removed = [json.loads(column) for column in rows[0]][1].get("removed_message_count", 0)
            agent.messages = _messages(self._cursor, self._key[0], removed)
            self._next_index = removed + len(agent.messages)
        else:
            self._cursor.execute(_NEW_SESSION, self._key)
            self._cursor.execute(_NEW_AGENT, self._key)
            for message in agent.messages:
                self.append_message(message, agent)

    def append_message(self, message: Any, agent: Any, **kwargs: Any) -> None:
        insert(self._cursor, self._key[0], self._next_index, message)
        self._next_index += 1

    def sync_agent(self, agent: Any, **kwargs: Any) -> None:
        pass

    def redact_latest_message(self, redact_message: Any, agent: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def insert(cursor: psycopg.Cursor[Any], session_id: str, index: int, message: Any) -> None:
    """Store a message."""
    cursor.execute(_INSERT, [session_id, index, Jsonb(message), uuid4()])


def _messages(cursor: psycopg.Cursor[Any], session_id: str, offset: int) -> list[Any]:
    rows = cursor.execute(_MESSAGES, [session_id, offset]).fetchall()
    return [SessionMessage(json.loads(row), index).to_message() for index, row in rows]


class Contender:
    """Keeps messages in tables of the very same shape."""

    def __init__(self, dsn: str, folder: str) -> None:
        self._dsn = dsn
        with PostgresSessionRepository(dsn) as repository:
            repository.ensure_schema()
        self._connection: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self._connection.prepare_threshold = 0
        self._cursor = self._connection.cursor()
        self.storage = _Plain(dsn)

    def manager(self, session_id: str) -> _Manager:
        """Return a session manager."""
        return _Manager(self._connection, session_id)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()
        self.storage.close()

    def last_of(self, *, messages: int, count: int) -> Measured:
        """An agent and the last 40 of so many messages."""
        session_id = fill(self._dsn, messages, "last_of")
        return {"seconds": timed(lambda: build(self.manager(session_id), window=40), count)}

    def appends(self, *, messages: int, count: int) -> Measured:
        """INSERTs into a session of so many messages."""
        session_id = fill(self._dsn, messages, "appends")
        indexes = iter(range(self._next_index(session_id), 1 << 60))
        return {"seconds": timed(lambda: insert(self._cursor, session_id, next(indexes), user_message()), count)}

    def codec(self, *, document: Any, count: int) -> Measured:
        """Python's own JSON, which keeps the document's order and knows no bytes."""
        document = _without_bytes(document)
        stored = json.dumps(document)
        return {
            "encode": timed(lambda: json.dumps(document), count),
            "decode": timed(lambda: json.loads(stored), count),
        }

    def _next_index(self, session_id: str) -> int:
        query = "SELECT coalesce(max(message_id) + 1, 0) FROM strands_messages WHERE session_id = %s"
        return int(self._cursor.execute(query, [session_id]).fetchall()[0][0])


def _without_bytes(document: Any) -> Any:
    if isinstance(document, bytes):
        return text(len(document) // 6)
    if isinstance(document, dict):
        return {key: _without_bytes(value) for key, value in document.items()}
    return [_without_bytes(value) for value in document] if isinstance(document, list) else document


_PLAIN = """
    CREATE TABLE IF NOT EXISTS plain (
        key text COLLATE "C" PRIMARY KEY, data bytea NOT NULL, updated_at timestamptz NOT NULL
    )
"""
_PUT = """
    INSERT INTO plain VALUES (%s, %b, now())
    ON CONFLICT (key) DO UPDATE SET data = EXCLUDED.data, updated_at = EXCLUDED.updated_at
"""


class _Plain:
    """Values as plain rows, without leaving the event loop."""

    def __init__(self, dsn: str) -> None:
        self._connection: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self._connection.prepare_threshold = 0
        self._connection.execute(_PLAIN)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    async def write(self, key: str, data: bytes) -> None:
        """Store a value."""
        self._connection.execute(_PUT, [key, data])

    async def read(self, key: str) -> bytes:
        """Return a value."""
        rows = self._connection.execute("SELECT data FROM plain WHERE key = %s", [key], binary=True).fetchall()
        return bytes(rows[0][0])

    async def list(self, prefix: str) -> list[str]:
        """Return the keys with a prefix."""
        query = "SELECT key FROM plain WHERE key >= %s AND key < %s ORDER BY key"
        return [key for (key,) in self._connection.execute(query, [prefix, prefix + "\U0010ffff"])]
