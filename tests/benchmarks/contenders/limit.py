"""The limit: the same rows through one bare connection with prepared statements, and no agent."""

import json
import time
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb
from strands.types.session import SessionMessage

from benchmarks.contenders.filling import fill
from benchmarks.model import conversation, text, user_message
from benchmarks.works import Measured, new_session, timed
from strands_psycopg import PostgresSessionRepository

_INSERT = """
    INSERT INTO strands_messages (session_id, agent_id, message_id, message, write_id, created_at, updated_at)
    VALUES (%s, 'default', %s, %s, %s, now(), now())
"""

_AGENT = """
    SELECT state::text, conversation_manager_state::text, _internal_state::text
    FROM strands_agents WHERE session_id = %s AND agent_id = 'default'
"""

_MESSAGES = """
    SELECT message_id, message::text FROM strands_messages
    WHERE session_id = %s AND agent_id = 'default' AND message_id >= %s ORDER BY message_id
"""


class Contender:
    """Keeps messages in tables of the very same shape; of a turn it does nothing but store its messages."""

    def __init__(self, dsn: str, folder: str) -> None:
        self._dsn = dsn
        with PostgresSessionRepository(dsn) as repository:
            repository.ensure_schema()
        self._connection: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self._connection.prepare_threshold = 0
        self._cursor = self._connection.cursor()
        self._long: dict[int, str] = {}
        self.storage = _Plain(dsn)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()
        self.storage.close()

    def turns(self, *, count: int, tool: bool = False, full: bool = False, loop: bool = True) -> Measured:
        """Two INSERTs, with a tool call four."""
        session_id = fill(self._dsn, 0, "turns")
        index = self._next_index(session_id)
        messages = [*conversation(2), *conversation(2)] if tool else conversation(2)

        def turn() -> None:
            nonlocal index
            for message in messages:
                self._insert(session_id, index, message)
                index += 1

        return {"seconds": timed(turn, count)}

    def requests(self, *, count: int, messages: int = 40) -> Measured:
        """A session that is looked up, an agent, its messages, two INSERTs."""
        session_id = fill(self._dsn, messages, "requests")
        index = self._next_index(session_id)
        two = conversation(2)

        def request() -> None:
            nonlocal index
            self._cursor.execute("SELECT session_type FROM strands_sessions WHERE session_id = %s", [session_id])
            self._cursor.fetchall()
            self._restore(session_id, index - messages)
            for message in two:
                self._insert(session_id, index, message)
                index += 1

        return {"seconds": timed(request, count)}

    def restores(self, *, messages: int, count: int) -> Measured:
        """An agent and all its messages."""
        if messages not in self._long:
            session_id = self._long[messages] = new_session()
            self._cursor.execute(
                "INSERT INTO strands_sessions (session_id, session_type, write_id, created_at, updated_at)"
                " VALUES (%s, 'AGENT', gen_random_uuid(), now(), now())",
                [session_id],
            )
            self._cursor.execute(
                "INSERT INTO strands_agents (session_id, agent_id, state, conversation_manager_state, _internal_state,"
                " write_id, created_at, updated_at) VALUES (%s, 'default', '{}', '{}', '{}', gen_random_uuid(), now(),"
                " now())",
                [session_id],
            )
            with self._connection.transaction():
                for index, message in enumerate(conversation(messages)):
                    self._insert(session_id, index, message)
        session_id = self._long[messages]
        seconds = []
        for _ in range(count + 1):
            began = time.perf_counter()
            restored = self._restore(session_id, 0)
            seconds.append(time.perf_counter() - began)
            assert len(restored) == messages
        return {"seconds": seconds[1:]}

    def last_of(self, *, messages: int, count: int) -> Measured:
        """An agent and the last 40 of so many messages."""
        session_id = fill(self._dsn, messages, "last_of")
        index = self._next_index(session_id)
        return {"seconds": timed(lambda: self._restore(session_id, index - 40), count)}

    def appends(self, *, messages: int, count: int) -> Measured:
        """INSERTs into a session of so many messages."""
        session_id = fill(self._dsn, messages, "appends")
        indexes = iter(range(self._next_index(session_id), 1 << 60))
        return {"seconds": timed(lambda: self._insert(session_id, next(indexes), user_message()), count)}

    def codec(self, *, document: Any, count: int) -> Measured:
        """Python's own JSON, which keeps the document's order and knows no bytes."""
        document = _without_bytes(document)
        stored = json.dumps(document)
        return {
            "encode": timed(lambda: json.dumps(document), count),
            "decode": timed(lambda: json.loads(stored), count),
        }

    def _insert(self, session_id: str, index: int, message: Any) -> None:
        self._cursor.execute(_INSERT, [session_id, index, Jsonb(message), uuid4()])

    def _restore(self, session_id: str, offset: int) -> list[Any]:
        [json.loads(column) for column in self._cursor.execute(_AGENT, [session_id]).fetchall()[0]]
        rows = self._cursor.execute(_MESSAGES, [session_id, offset]).fetchall()
        return [SessionMessage(json.loads(row), index).to_message() for index, row in rows]

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
        """Give a value."""
        rows = self._connection.execute("SELECT data FROM plain WHERE key = %s", [key], binary=True).fetchall()
        return bytes(rows[0][0])

    async def list(self, prefix: str) -> list[str]:
        """Give the keys with a prefix."""
        query = "SELECT key FROM plain WHERE key >= %s AND key < %s ORDER BY key"
        return [key for (key,) in self._connection.execute(query, [prefix, prefix + "\U0010ffff"])]
