"""All values of a session's storage, as forks, exports and imports copy them."""

import re
from collections.abc import Generator
from contextlib import closing
from datetime import datetime
from typing import NamedTuple, cast
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.database import Database, new_cursor
from strands_psycopg.payload import Payloads
from strands_psycopg.storage.chunk_store import ChunkStore
from strands_psycopg.storage.chunks import chunk_id, split
from strands_psycopg.storage.scope import Scope
from strands_psycopg.storage.text_search import searchable_text
from strands_psycopg.storage.value_reader import CURRENT, TIMES, WHOLE_VALUE, complete
from strands_psycopg.storage.value_writer import MAX_INLINE_SIZE
from strands_psycopg.watchdog import watchdog

# What comes before the session's id in the keys of a context manager's stash and of a SnapshotSessionManager.
_FOLDERS = ("context", "session")

_COLUMNS = "session_id, key, data, chunk_ids, size, search_vector, write_id, updated_at, expires_at"

_READ = (
    """
    SELECT s.key, {whole_value}, s.size, s.search_vector::text, {times}
    FROM {values} AS s WHERE s.session_id = %(scope)s AND {current} ORDER BY s.key
""".replace("{whole_value}", WHOLE_VALUE)
    .replace("{current}", CURRENT)
    .replace("{times}", TIMES)
)

# A transaction has one such cursor at a time; one value at a time is in memory.
_OPEN = "DECLARE copied NO SCROLL CURSOR FOR"
_FETCH = b"FETCH FORWARD 1 FROM copied"
_CLOSE = b"CLOSE copied"

_INSERT = (
    "INSERT INTO {values} ("
    + _COLUMNS
    + """)
    VALUES (
        %(scope)s::text, %(key)s::text, %(data)s::bytea, %(chunk_ids)s::uuid[], %(size)s::bigint,
        coalesce(
            %(search_vector)s::tsvector, pg_catalog.to_tsvector('pg_catalog.simple'::regconfig, %(text)s::text)
        ), %(write_id)s::uuid, %(updated_at)s::timestamptz, %(expires_at)s::timestamptz
    )
    RETURNING true
"""
)

_COPY_CHUNKS = """
    INSERT INTO {chunks} (session_id, chunk_id, data, reference_count)
    SELECT %(scope)s::text, c.chunk_id, c.data, c.reference_count FROM {chunks} AS c WHERE c.session_id = %(source_id)s
"""

_COPY_VALUES = (
    "INSERT INTO {values} ("
    + _COLUMNS
    + """)
    SELECT %(scope)s::text,
        CASE
            WHEN pg_catalog.starts_with(s.key, %(source_context)s::text)
            THEN %(context)s::text || pg_catalog.substr(s.key, pg_catalog.length(%(source_context)s::text) + 1)
            WHEN pg_catalog.starts_with(s.key, %(source_session)s::text)
            THEN %(session)s::text || pg_catalog.substr(s.key, pg_catalog.length(%(source_session)s::text) + 1)
            ELSE s.key
        END, s.data, s.chunk_ids, s.size, s.search_vector, %(write_id)s::uuid, s.updated_at, s.expires_at
    FROM {values} AS s WHERE s.session_id = %(source_id)s
"""
)

_COUNT = """
    SELECT (SELECT pg_catalog.count(*) FROM {chunks} AS c WHERE c.session_id = %(source_id)s),
        (SELECT pg_catalog.count(*) FROM {values} AS s WHERE s.session_id = %(source_id)s)
"""


class SessionValue(NamedTuple):
    """A value of a session's storage, as it is stored.

    Attributes:
        key: Its key.
        data: Its bytes.
        search_vector: The words by which a search finds it, as PostgreSQL writes a ``tsvector``; None if it does not.
        updated_at: When it was written; in UTC as ISO 8601 if it was read.
        expires_at: When it expires, likewise; None if it does not.
    """

    key: str
    data: bytes
    search_vector: str | None
    updated_at: str | datetime
    expires_at: str | datetime | None


class SessionValues:
    """Copies the values of sessions, as parts of transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        scope = Scope("", is_session=True)
        self._read = scope.compose(database, _READ)
        self._open = scope.compose(database, _OPEN + _READ)
        self._insert = scope.compose(database, _INSERT)
        self._copy_chunks = scope.compose(database, _COPY_CHUNKS)
        self._copy_values = scope.compose(database, _COPY_VALUES)
        self._count = scope.compose(database, _COUNT)

    def read(self, cursor: Cursor[TupleRow], session_id: str) -> Generator[SessionValue, None, None]:
        """Yield the values of a session that have not expired, in the order of their keys, one at a time.

        They are as they are stored: a payload codec has not decoded them. Other statements must wait until the
        generator is exhausted or closed.

        Raises:
            DatabaseError: Chunks of a value are missing.
        """
        scope = Scope(session_id, is_session=True)
        stream = cast("Generator[TupleRow, None, None]", cursor.stream(self._read, scope.parameters, binary=True))
        # Otherwise the connection could not be used, not even to roll back, after an error in the caller.
        with closing(stream) as rows:
            while True:
                with watchdog.watch(cursor.connection, self._database.response_timeout):
                    row = next(rows, None)
                if row is None:
                    return
                yield _value(scope, row)

    def insert(self, cursor: Cursor[TupleRow], session_id: str, value: SessionValue, write_id: UUID) -> bool:
        """Store a new value; return whether the database did.

        If it has no search vector, it gets the one that a storage with the configuration ``simple`` would store.
        """
        scope = Scope(session_id, is_session=True)
        text = searchable_text(value.key, value.data) if value.search_vector is None else None
        row = scope.parameters | value._asdict() | {"text": text, "size": len(value.data), "chunk_ids": None}
        row["write_id"] = write_id
        if len(value.data) <= MAX_INLINE_SIZE:
            return bool(cursor.execute(self._insert, row).fetchall())
        chunks = split(value.data)
        chunk_ids = [chunk_id(chunk, scope.hash_key) for chunk in chunks]
        by_id = dict(zip(chunk_ids, chunks, strict=True))
        row |= {"data": None, "chunk_ids": chunk_ids}
        with cursor.connection.pipeline():
            added = ChunkStore(self._database, scope).add(by_id, set(), cursor)
            stored = new_cursor(cursor.connection).execute(self._insert, row)
        return sum(len(each.fetchall()) for each in added) == len(by_id) and bool(stored.fetchall())

    def copy(
        self, cursor: Cursor[TupleRow], source_id: str, session_id: str, write_id: UUID, payloads: Payloads
    ) -> bool:
        """Copy the values of a session to a new one; return whether the database has stored all.

        Keys in which Strands has put the session's id get that of the new one. With a payload codec, values are decoded
        as those of the source and encoded as those of the new session.

        Raises:
            PayloadCodecError: The codec failed.
        """
        parameters = Scope(session_id, is_session=True).parameters | {"source_id": source_id, "write_id": write_id}
        if not payloads.has_codec:
            for folder in _FOLDERS:
                parameters |= {f"source_{folder}": _prefix(folder, source_id), folder: _prefix(folder, session_id)}
            copies = (self._copy_chunks, self._copy_values)
            copied = tuple(cursor.execute(copy, parameters).rowcount for copy in copies)
            return cursor.execute(self._count, parameters).fetchall() == [copied]
        is_stored = True
        source = Scope(source_id, is_session=True)
        cursor.execute(self._open, source.parameters, prepare=False)
        while rows := cursor.execute(_FETCH, prepare=False, binary=True).fetchall():
            value = _value(source, rows[0])
            key = rename_key(value.key, source_id, session_id)
            document = payloads.decode_bytes(value.data, source_id, value.key)
            data = payloads.encode_bytes(document, session_id, key)
            is_stored &= self.insert(cursor, session_id, value._replace(key=key, data=data), write_id)
        cursor.execute(_CLOSE, prepare=False)
        return is_stored


def _value(scope: Scope, row: TupleRow) -> SessionValue:
    key, data, size, *rest = row
    return SessionValue(key, complete(f"reading {scope.describe(key)}", size, data), *rest)


def rename_key(key: str, source_id: str, session_id: str) -> str:
    """Return the key of a value that is copied to another session: where Strands has put an id, it is that one's."""
    for folder in _FOLDERS:
        prefix = _prefix(folder, source_id)
        if key.startswith(prefix):
            return _prefix(folder, session_id) + key[len(prefix) :]
    return key


def keys_of_agent(session_id: str, agent_id: str) -> dict[str, object]:
    """Return the ranges of the keys in which Strands has put an agent's id: its stash, and its snapshots.

    Each is from ``name`` up to ``name_end``, in the order of bytes.
    """
    ranges: dict[str, object] = {}
    for name, folder in zip(("stash", "snapshots"), _FOLDERS, strict=True):
        prefix = re.sub("/+", "/", f"{_prefix(folder, session_id)}agent/{agent_id}/")
        ranges |= {name: prefix, f"{name}_end": prefix[:-1] + "0"}  # which follows the slash
    return ranges


def _prefix(folder: str, session_id: str) -> str:
    return re.sub("/+", "/", f"{folder}/{session_id}/scopes/")
