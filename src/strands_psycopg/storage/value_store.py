"""The table of values: small ones are stored inline, large ones in chunks."""

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

# In bytes. Up to this size one row takes no more space than a list of chunks would.
_MAX_INLINE_SIZE = 8192

# In bytes; PostgreSQL sends up to a gigabyte.
MAX_VALUE_SIZE = 256 * 2**20

# In bytes of UTF-8. PostgreSQL's index holds keys of up to 2,700.
MAX_KEY_SIZE = 2048

# Sorts after every key; appended to a prefix, after every key that begins with the prefix.
_AFTER_ALL_KEYS = "\U0010ffff" * (MAX_KEY_SIZE // 4 + 1)

# A statement must see what was committed while the one before it waited for a lock.
_READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"

# A client that is suspended, or whose machine is gone, would keep its locks for hours. The first of these settings ends
# its transaction, but only after a statement that was sent outside a pipeline: psycopg ends a pipeline with a message
# that stops the server's timer.
_SET_TIMEOUTS = """
    SELECT set_config('idle_in_transaction_session_timeout', %(milliseconds)s, true),
        set_config('tcp_keepalives_idle', '30', true), set_config('tcp_keepalives_interval', '10', true),
        set_config('tcp_keepalives_count', '3', true)
"""

# The largest that PostgreSQL accepts, in milliseconds.
_MAX_TIMEOUT = 2**31 - 1

# If the server crashes, the deletion of chunks may be undone. They are then still marked as released.
_SET_ASYNCHRONOUS_COMMIT = b"SELECT set_config('synchronous_commit', 'off', true)"

_UPSERT_INLINE = """
    WITH upsert AS (
        INSERT INTO {storage} AS s (key, data, size, search_vector, updated_at)
        SELECT %(key)s, %(data)s, %(size)s, to_tsvector(%(configuration)s::regconfig, %(text)s), now() WHERE {in_time}
        ON CONFLICT (key) DO UPDATE
        SET data = EXCLUDED.data, size = EXCLUDED.size, search_vector = EXCLUDED.search_vector,
            updated_at = EXCLUDED.updated_at
        WHERE s.chunk_ids IS NULL AND {still_in_time}
        RETURNING true AS done
    )
    SELECT CASE WHEN {in_time} THEN {server_time} END, upsert.done FROM (SELECT 1) AS one LEFT JOIN upsert ON true
"""  # not done: the stored value has chunks, or the row was locked by another writer until the deadline had passed

_LOCK = "SELECT chunk_ids FROM {storage} WHERE key = %(key)s FOR UPDATE"

_UPSERT = """
    INSERT INTO {storage} AS s (key, data, chunk_ids, size, search_vector, updated_at)
    VALUES (
        %(key)s, %(data)s, %(chunk_ids)s, %(size)s, to_tsvector(%(configuration)s::regconfig, %(text)s::text), now()
    )
    ON CONFLICT (key) DO UPDATE
    SET data = EXCLUDED.data, chunk_ids = EXCLUDED.chunk_ids, size = EXCLUDED.size,
        search_vector = EXCLUDED.search_vector, updated_at = EXCLUDED.updated_at
    WHERE %(locked)s OR s.chunk_ids IS NULL
"""  # no row: there was no row to lock, and another transaction has just stored a value in chunks

# A late attempt that waited for a lock finds the row deleted by its retry, and leaves alone what was stored after that.
_DELETE_INLINE = """
    WITH deleted AS (DELETE FROM {storage} WHERE key = %(key)s AND chunk_ids IS NULL AND {in_time})
    SELECT CASE WHEN {in_time} THEN {server_time} END,
        NOT EXISTS (SELECT FROM {storage} WHERE key = %(key)s AND chunk_ids IS NOT NULL)
"""  # not done: the stored value has chunks

_DELETE = "DELETE FROM {storage} WHERE key = %(key)s RETURNING chunk_ids"

# One row per chunk: joining them here is faster than joining them on the server.
_READ = """
    SELECT s.size, coalesce(s.data, c.data)
    FROM {storage} AS s
    LEFT JOIN LATERAL unnest(s.chunk_ids) WITH ORDINALITY AS item (chunk_id, ordinal) ON true
    LEFT JOIN {chunks} AS c USING (chunk_id)
    WHERE s.key = %(key)s
    ORDER BY item.ordinal
"""

_LIST = "SELECT key FROM {storage} WHERE key >= %(prefix)s AND key < %(end)s ORDER BY key"

_SEARCH = """
    SELECT s.key, s.score, s.size, coalesce(s.data, (
        SELECT string_agg(c.data, ''::bytea ORDER BY item.ordinal)
        FROM unnest(s.chunk_ids) WITH ORDINALITY AS item (chunk_id, ordinal) JOIN {chunks} AS c USING (chunk_id)
    ))
    FROM (
        SELECT s.key, s.data, s.chunk_ids, s.size, ts_rank(s.search_vector, query) AS score
        FROM {storage} AS s, to_tsquery(%(configuration)s::regconfig, %(query)s) AS query
        WHERE s.search_vector @@ query AND s.key >= %(prefix)s AND s.key < %(end)s
        ORDER BY score DESC, s.key LIMIT %(limit)s
    ) AS s
    ORDER BY s.score DESC, s.key
"""


@dataclass(frozen=True)
class SearchHit:
    """A value that a search found.

    Attributes:
        key: Its full key.
        score: Its rank by PostgreSQL's ``ts_rank``; higher is better.
        data: The value itself.
    """

    key: str
    score: float
    data: bytes


class ValueStore:
    """The values of one database, schema and table prefix.

    Args:
        database: Where the tables are.
        scope: Equal chunks are stored once for all values that are written with the same scope.
        text_search_config: PostgreSQL's text search configuration for values and queries.
    """

    def __init__(self, database: Database, *, scope: str, text_search_config: str) -> None:
        self._database = database
        self._chunks = ChunkStore(database)
        self._scope = blake2b(scope.encode()).digest()
        self._configuration = text_search_config
        self._upsert_inline = database.statement(_UPSERT_INLINE)
        self._lock = database.statement(_LOCK)
        self._upsert = database.statement(_UPSERT)
        self._delete_inline = database.statement(_DELETE_INLINE)
        self._delete = database.statement(_DELETE)
        self._read = database.statement(_READ)
        self._list = database.statement(_LIST)
        self._search = database.statement(_SEARCH)

    def write(self, key: str, data: bytes, text: str | None) -> None:
        """Store a value, replacing any earlier one.

        Args:
            key: The full key.
            data: The value.
            text: The words by which a search finds the value; None if it does not.

        Raises:
            StrandsPsycopgError: As ``Database.transact``.
        """
        operation = f"writing {key!r}"
        row = {"key": key, "size": len(data), "text": text, "configuration": self._configuration}
        if len(data) > _MAX_INLINE_SIZE:
            chunks = split(data)
            chunk_ids = [chunk_id(chunk, self._scope) for chunk in chunks]
            row |= {"data": None, "chunk_ids": chunk_ids}
            by_id = dict(zip(chunk_ids, chunks, strict=True))
            self._transact_and_clean_up(operation, (self._lock, row), partial(self._upsert_locked, row, by_id))
        elif not self._run_inline(operation, self._upsert_inline, row | {"data": data}):
            row |= {"data": data, "chunk_ids": None}
            self._transact_and_clean_up(operation, (self._lock, row), partial(self._upsert_locked, row, {}))

    def _run_inline(self, operation: str, statement: bytes, row: dict[str, object]) -> bool:
        """Store or delete a value without chunks; return False, doing nothing, if the stored one has chunks."""
        # Nothing in the row distinguishes a late attempt from a new write.
        self._database.synchronise_clock()
        return bool(self._database.write(operation, statement, row).rows[0][1])

    def _upsert_locked(
        self, row: dict[str, object], chunks: dict[UUID, memoryview], cursor: Cursor[TupleRow], locked: list[TupleRow]
    ) -> bool:
        """Store a value in a transaction that has locked its row; return whether there are released chunks."""
        while True:
            new = sorted(chunks.keys() - self._chunks.lock_existing(chunks, cursor))
            unused = set(locked[0][0] or ()) - chunks.keys() if locked else set()
            with cursor.connection.pipeline():
                self._chunks.insert(new, [chunks[chunk_id] for chunk_id in new], cursor)
                upsert = new_cursor(cursor).execute(self._upsert, row | {"locked": bool(locked)})
                released = self._chunks.release(unused, cursor)
            if upsert.rowcount:
                return released.fetchone() is not None
            locked = cursor.execute(self._lock, row).fetchall()

    def delete(self, key: str) -> None:
        """Delete a value, if there is one.

        Raises:
            StrandsPsycopgError: As ``Database.transact``.
        """
        operation = f"deleting {key!r}"
        row: dict[str, object] = {"key": key}
        if not self._run_inline(operation, self._delete_inline, row):
            self._transact_and_clean_up(operation, (self._delete, row), self._release_deleted)

    def _release_deleted(self, cursor: Cursor[TupleRow], deleted: list[TupleRow]) -> bool:
        """Release the chunks of a value that this transaction has deleted; return whether there are released chunks."""
        with cursor.connection.pipeline():
            released = self._chunks.release(set(deleted[0][0] or ()) if deleted else set(), cursor)
        return released.fetchone() is not None

    def _transact_and_clean_up(
        self, operation: str, first: _Statement, work: Callable[[Cursor[TupleRow], list[TupleRow]], bool]
    ) -> None:
        """Store or delete a value in a transaction, then delete released chunks in further ones."""
        if self._transact(operation, first, work):
            try:
                while self._transact("deleting unused chunks", (_SET_ASYNCHRONOUS_COMMIT, {}), self._delete_released):
                    pass
            except StrandsPsycopgError as error:
                # The value is stored. The next transaction that stores or deletes one tries again.
                logger.warning("error=<%s> | unused chunks were not deleted", error)

    def _delete_released(self, cursor: Cursor[TupleRow], _: list[TupleRow]) -> bool:
        return self._chunks.delete_released(cursor)

    def _transact(
        self, operation: str, first: _Statement, work: Callable[[Cursor[TupleRow], list[TupleRow]], _T]
    ) -> _T:
        """Run a transaction that begins with the statement ``first``, whose rows are passed to ``work``."""
        milliseconds = str(int(min(self._database.response_timeout * 1000, _MAX_TIMEOUT)))

        def transaction(cursor: Cursor[TupleRow]) -> _T:
            with cursor.connection.pipeline():
                cursor.execute(_READ_COMMITTED)
                new_cursor(cursor).execute(_SET_TIMEOUTS, {"milliseconds": milliseconds})
                result = new_cursor(cursor).execute(*first)
            return work(cursor, result.fetchall())

        return self._database.transact(operation, transaction)

    def read(self, key: str) -> bytes | None:
        """Return a value, or None if there is none.

        Raises:
            DatabaseError: Chunks of the value are missing.
            StrandsPsycopgError: As ``Database.fetch``.
        """
        operation = f"reading {key!r}"
        rows = self._database.fetch(operation, self._read, {"key": key}, binary=True).rows
        return _complete(operation, rows[0][0], b"".join(part or b"" for _, part in rows)) if rows else None

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, sorted.

        Raises:
            StrandsPsycopgError: As ``Database.fetch``.
        """
        rows = self._database.fetch(f"listing {prefix!r}", self._list, _key_range(prefix)).rows
        return [key for (key,) in rows]

    def search(self, prefix: str, query: str, limit: int) -> list[SearchHit]:
        """Return up to ``limit`` values that match a ``tsquery`` and whose keys begin with a prefix, best match first.

        Raises:
            DatabaseError: Chunks of a value are missing.
            StrandsPsycopgError: As ``Database.fetch``.
        """
        operation = f"searching {prefix!r}"
        parameters = _key_range(prefix) | {"query": query, "configuration": self._configuration, "limit": limit}
        # Not prepared: whether the index of keys or that of words is faster depends on the parameters.
        rows = self._database.fetch(operation, self._search, parameters, binary=True, prepare=False).rows
        return [SearchHit(key, score, _complete(operation, size, data)) for key, score, size, data in rows]


def _key_range(prefix: str) -> dict[str, object]:
    return {"prefix": prefix, "end": prefix + _AFTER_ALL_KEYS}


def _complete(operation: str, size: int, data: bytes | None) -> bytes:
    """Return the data of a value if it has the size that it was written with."""
    if data is None or len(data) != size:
        raise DatabaseError(f"{operation}: chunks of the value are missing; restore the table of chunks from a backup")
    return data
