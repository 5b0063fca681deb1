"""Rows of values, and of the chunks that large ones are made of."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TypeVar
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.database import Database
from strands_psycopg.errors import DatabaseError, StrandsPsycopgError
from strands_psycopg.storage.chunk_store import ChunkStore, new_cursor
from strands_psycopg.storage.chunks import chunk_id, split

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_Statement = tuple[bytes, dict[str, object]]

# In bytes. Up to here one row takes no more than a list of chunks would.
_LARGEST_WHOLE = 8192

# In bytes; PostgreSQL sends up to a gigabyte.
LARGEST_VALUE = 256 * 2**20

# In bytes of UTF-8. PostgreSQL's index takes keys of up to 2,700.
LONGEST_KEY = 2048

# Greater than every key, so behind a prefix greater than every key that begins with it.
_LAST = "\U0010ffff" * (LONGEST_KEY // 4 + 1)

# What was committed while a statement waited for a lock must be seen by the next one.
_READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"

# A client that stands still, or whose machine is gone, would keep its locks for hours. The first of these ends it after
# an answer to a statement that was sent alone: psycopg ends a pipeline with a message that stops the server's timer.
_NEVER_IDLE = """
    SELECT set_config('idle_in_transaction_session_timeout', %(milliseconds)s, true),
        set_config('tcp_keepalives_idle', '30', true), set_config('tcp_keepalives_interval', '10', true),
        set_config('tcp_keepalives_count', '3', true)
"""

# PostgreSQL's own.
_LONGEST_TIMEOUT = 2**31 - 1

# A crash of the server may undo it, which leaves chunks marked as released.
_SOMETIME = b"SELECT set_config('synchronous_commit', 'off', true)"

_PUT_WHOLE = """
    WITH put AS (
        INSERT INTO {storage} AS s (key, data, size, words, updated_at)
        SELECT %(key)s, %(data)s, %(size)s, to_tsvector(%(configuration)s::regconfig, %(words)s), now() WHERE {in_time}
        ON CONFLICT (key) DO UPDATE
        SET data = EXCLUDED.data, size = EXCLUDED.size, words = EXCLUDED.words, updated_at = EXCLUDED.updated_at
        WHERE s.chunks IS NULL AND {still_in_time}
        RETURNING true AS done
    )
    SELECT CASE WHEN {in_time} THEN {server_time} END, put.done FROM (SELECT 1) AS one LEFT JOIN put ON true
"""  # not done: the value that is there is made of chunks, or another was being written until it was too late

_LOCK = "SELECT chunks FROM {storage} WHERE key = %(key)s FOR UPDATE"

_PUT = """
    INSERT INTO {storage} AS s (key, data, chunks, size, words, updated_at)
    VALUES (
        %(key)s, %(data)s, %(chunks)s, %(size)s, to_tsvector(%(configuration)s::regconfig, %(words)s::text), now()
    )
    ON CONFLICT (key) DO UPDATE
    SET data = EXCLUDED.data, chunks = EXCLUDED.chunks, size = EXCLUDED.size, words = EXCLUDED.words,
        updated_at = EXCLUDED.updated_at
    WHERE %(locked)s OR s.chunks IS NULL
"""  # no row: somebody else has just stored one that is made of chunks

# One that waited for a lock finds that its repeat has deleted the row, and nothing that was stored after that.
_DELETE_WHOLE = """
    WITH gone AS (DELETE FROM {storage} WHERE key = %(key)s AND chunks IS NULL AND {in_time})
    SELECT CASE WHEN {in_time} THEN {server_time} END,
        NOT EXISTS (SELECT FROM {storage} WHERE key = %(key)s AND chunks IS NOT NULL)
"""  # not done: the value that is there is made of chunks

_DELETE = "DELETE FROM {storage} WHERE key = %(key)s RETURNING chunks"

# A row for each chunk: putting them together here is faster than there.
_READ = """
    SELECT s.size, coalesce(s.data, p.data)
    FROM {storage} AS s
    LEFT JOIN LATERAL unnest(s.chunks) WITH ORDINALITY AS part (chunk_id, number) ON true
    LEFT JOIN {chunks} AS p USING (chunk_id)
    WHERE s.key = %(key)s
    ORDER BY part.number
"""

_LIST = "SELECT key FROM {storage} WHERE key >= %(prefix)s AND key < %(end)s ORDER BY key"

_SEARCH = """
    SELECT s.key, s.score, s.size, coalesce(s.data, (
        SELECT string_agg(p.data, ''::bytea ORDER BY part.number)
        FROM unnest(s.chunks) WITH ORDINALITY AS part (chunk_id, number) JOIN {chunks} AS p USING (chunk_id)
    ))
    FROM (
        SELECT s.key, s.data, s.chunks, s.size, ts_rank(s.words, query) AS score
        FROM {storage} AS s, to_tsquery(%(configuration)s::regconfig, %(query)s) AS query
        WHERE s.words @@ query AND s.key >= %(prefix)s AND s.key < %(end)s
        ORDER BY score DESC, s.key LIMIT %(limit)s
    ) AS s
    ORDER BY s.score DESC, s.key
"""


@dataclass(frozen=True)
class SearchHit:
    """A value that a search found.

    Attributes:
        key: Its whole key.
        score: Its rank by PostgreSQL's ``ts_rank``; higher is better.
        data: Its bytes.
    """

    key: str
    score: float
    data: bytes


class Values:
    """The values of one database, schema and prefix of tables.

    Args:
        database: Where they are.
        scope: Chunks are shared by the values that are stored under the same one.
        text_search_config: PostgreSQL's text search configuration for words and queries.
    """

    def __init__(self, database: Database, *, scope: str, text_search_config: str) -> None:
        self._database = database
        self._chunks = ChunkStore(database)
        self._scope = blake2b(scope.encode()).digest()
        self._configuration = text_search_config
        self._put_whole = database.statement(_PUT_WHOLE)
        self._lock = database.statement(_LOCK)
        self._put = database.statement(_PUT)
        self._delete_whole = database.statement(_DELETE_WHOLE)
        self._delete = database.statement(_DELETE)
        self._read = database.statement(_READ)
        self._list = database.statement(_LIST)
        self._search = database.statement(_SEARCH)

    def write(self, key: str, data: bytes, words: str | None) -> None:
        """Store a value, whatever was there.

        Args:
            key: The whole key.
            data: The value.
            words: By which it is found; None if it is not.

        Raises:
            StrandsPsycopgError: As ``Database.transact``.
        """
        operation = f"writing {key!r}"
        row = {"key": key, "size": len(data), "words": words, "configuration": self._configuration}
        if len(data) > _LARGEST_WHOLE:
            chunks = split(data)
            chunk_ids = [chunk_id(chunk, self._scope) for chunk in chunks]
            row |= {"data": None, "chunks": chunk_ids}
            self._change(
                operation, (self._lock, row), partial(self._replace, row, dict(zip(chunk_ids, chunks, strict=True)))
            )
        elif not self._write_whole(operation, self._put_whole, row | {"data": data}):
            row |= {"data": data, "chunks": None}
            self._change(operation, (self._lock, row), partial(self._replace, row, {}))

    def _write_whole(self, operation: str, statement: bytes, row: dict[str, object]) -> bool:
        """Store or delete a value without chunks; tell whether the one before had none either, and it is done."""
        # Nothing in the row tells a value that lands late from a new one.
        self._database.learn_time()
        return bool(self._database.write(operation, statement, row).rows[0][1])

    def _replace(
        self, row: dict[str, object], chunks: dict[UUID, memoryview], cursor: Cursor[TupleRow], locked: list[TupleRow]
    ) -> bool:
        """Store a value in a transaction that has locked its row; tell whether there are released chunks."""
        while True:
            added = sorted(chunks.keys() - self._chunks.lock_existing(chunks, cursor))
            left = set(locked[0][0] or ()) - chunks.keys() if locked else set()
            with cursor.connection.pipeline():
                self._chunks.insert(added, [chunks[chunk_id] for chunk_id in added], cursor)
                put = new_cursor(cursor).execute(self._put, row | {"locked": bool(locked)})
                released = self._chunks.release(left, cursor)
            if put.rowcount:
                return released.fetchone() is not None
            locked = cursor.execute(self._lock, row).fetchall()

    def delete(self, key: str) -> None:
        """Delete a value, if there is one.

        Raises:
            StrandsPsycopgError: As ``Database.transact``.
        """
        operation = f"deleting {key!r}"
        row: dict[str, object] = {"key": key}
        if not self._write_whole(operation, self._delete_whole, row):
            self._change(operation, (self._delete, row), self._remove)

    def _remove(self, cursor: Cursor[TupleRow], deleted: list[TupleRow]) -> bool:
        """Go on in a transaction that has deleted a value; tell whether there are released chunks."""
        with cursor.connection.pipeline():
            released = self._chunks.release(set(deleted[0][0] or ()) if deleted else set(), cursor)
        return released.fetchone() is not None

    def _change(
        self, operation: str, first: _Statement, work: Callable[[Cursor[TupleRow], list[TupleRow]], bool]
    ) -> None:
        """Store or delete a value, and then remove the chunks that nothing uses any more."""
        if self._transact(operation, first, work):
            try:
                while self._transact("removing unused chunks", (_SOMETIME, {}), self._remove_unused):
                    pass
            except StrandsPsycopgError as error:
                # The value is stored. What is left here is removed after the next change.
                logger.warning("error=<%s> | unused chunks were not removed", error)

    def _remove_unused(self, cursor: Cursor[TupleRow], _: list[TupleRow]) -> bool:
        """Remove chunks in a transaction; tell whether there may be more to remove."""
        return self._chunks.delete_released(cursor)

    def _transact(
        self, operation: str, first: _Statement, work: Callable[[Cursor[TupleRow], list[TupleRow]], _T]
    ) -> _T:
        """Run a statement in a transaction, and then what goes on with its rows."""
        milliseconds = str(int(min(self._database.response_timeout * 1000, _LONGEST_TIMEOUT)))

        def transaction(cursor: Cursor[TupleRow]) -> _T:
            with cursor.connection.pipeline():
                cursor.execute(_READ_COMMITTED)
                new_cursor(cursor).execute(_NEVER_IDLE, {"milliseconds": milliseconds})
                found = new_cursor(cursor).execute(*first)
            return work(cursor, found.fetchall())

        return self._database.transact(operation, transaction)

    def read(self, key: str) -> bytes | None:
        """Give a value, or None.

        Raises:
            DatabaseError: Chunks of it are missing.
            StrandsPsycopgError: As ``Database.fetch``.
        """
        operation = f"reading {key!r}"
        rows = self._database.fetch(operation, self._read, {"key": key}, binary=True).rows
        return _whole(operation, rows[0][0], b"".join(part or b"" for _, part in rows)) if rows else None

    def keys(self, prefix: str) -> list[str]:
        """Give the keys that begin with a prefix, sorted.

        Raises:
            StrandsPsycopgError: As ``Database.fetch``.
        """
        rows = self._database.fetch(f"listing {prefix!r}", self._list, _range(prefix)).rows
        return [key for (key,) in rows]

    def search(self, prefix: str, query: str, limit: int) -> list[SearchHit]:
        """Give the values whose key begins with a prefix and whose words match a ``tsquery``, best first.

        Raises:
            DatabaseError: Chunks of one are missing.
            StrandsPsycopgError: As ``Database.fetch``.
        """
        operation = f"searching {prefix!r}"
        row = _range(prefix) | {"query": query, "configuration": self._configuration, "limit": limit}
        # Whether the keys or the words find the values sooner depends on which they are.
        rows = self._database.fetch(operation, self._search, row, binary=True, prepare=False).rows
        return [SearchHit(key, score, _whole(operation, size, data)) for key, score, size, data in rows]


def _range(prefix: str) -> dict[str, object]:
    return {"prefix": prefix, "end": prefix + _LAST}


def _whole(operation: str, size: int, data: bytes | None) -> bytes:
    if data is None or len(data) != size:
        raise DatabaseError(f"{operation}: chunks of the value are missing; restore the chunks' table from a backup")
    return data
