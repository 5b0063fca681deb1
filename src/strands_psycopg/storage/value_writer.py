"""Storing and deleting values: small ones are stored inline, large ones in chunks.

Each statement makes the checks that the storage needs. If one that stores or deletes a value inline has done nothing, a
transaction tries again: it locks the lease and the value first, and raises what is wrong.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from hashlib import blake2b
from typing import TypeVar
from uuid import UUID, uuid4

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.database import Database
from strands_psycopg.errors import DatabaseError, StrandsPsycopgError
from strands_psycopg.storage.chunk_store import ChunkStore, new_cursor
from strands_psycopg.storage.chunks import chunk_id, split
from strands_psycopg.storage.seen_writes import MISSING, SeenWrites
from strands_psycopg.storage.write_checks import Change, WriteChecks

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_Row = dict[str, object]
_Statement = tuple[bytes, _Row]

# In bytes. Up to this size one row takes no more space than a list of chunks would.
_MAX_INLINE_SIZE = 8192

# In bytes; PostgreSQL sends up to a gigabyte.
MAX_VALUE_SIZE = 256 * 2**20

# A statement must see what was committed while the one before it waited for a lock.
_READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"

# A client that is suspended, or whose machine is gone, would keep its locks for hours. The first of these settings ends
# its transaction, but only after a statement that was sent outside a pipeline: psycopg ends a pipeline with a message
# that stops the server's timer. The last one makes index scans complete, by which unused chunks are found.
_CONFIGURE = """
    SELECT set_config('idle_in_transaction_session_timeout', %(milliseconds)s, true),
        set_config('tcp_keepalives_idle', '30', true), set_config('tcp_keepalives_interval', '10', true),
        set_config('tcp_keepalives_count', '3', true), set_config('gin_fuzzy_search_limit', '0', true)
"""

# Another round is needed only if another transaction stores a value under the same new key meanwhile.
_MAX_ROUNDS = 10

# The largest that PostgreSQL accepts, in milliseconds.
_MAX_TIMEOUT = 2**31 - 1

# If the server crashes, the deletion of chunks may be undone. They are then still marked as released.
_SET_ASYNCHRONOUS_COMMIT = b"SELECT set_config('synchronous_commit', 'off', true)"

_UPSERT_INLINE = """
    WITH upsert AS (
        INSERT INTO {storage} AS s (key, data, size, search_vector, write_id, updated_at)
        SELECT %(key)s, %(data)s, %(size)s, to_tsvector(%(configuration)s::regconfig, %(text)s), %(write_id)s, now()
        WHERE {in_time} AND {fenced} AND {present}
        ON CONFLICT (key) DO UPDATE
        SET data = EXCLUDED.data, size = EXCLUDED.size, search_vector = EXCLUDED.search_vector,
            write_id = EXCLUDED.write_id, updated_at = EXCLUDED.updated_at
        WHERE s.chunk_ids IS NULL AND {still_in_time} AND {unchanged}
        RETURNING true AS done
    )
    SELECT CASE WHEN {in_time} THEN {server_time} END, upsert.done FROM (SELECT 1) AS one LEFT JOIN upsert ON true
"""  # not done: the stored value has chunks, the row was locked until the deadline had passed, or a check failed

_LOCK = "SELECT chunk_ids, write_id FROM {storage} WHERE key = %(key)s FOR UPDATE"

_UPSERT = """
    INSERT INTO {storage} AS s (key, data, chunk_ids, size, search_vector, write_id, updated_at)
    VALUES (
        %(key)s, %(data)s, %(chunk_ids)s, %(size)s, to_tsvector(%(configuration)s::regconfig, %(text)s::text),
        %(write_id)s, now()
    )
    ON CONFLICT (key) DO UPDATE
    SET data = EXCLUDED.data, chunk_ids = EXCLUDED.chunk_ids, size = EXCLUDED.size,
        search_vector = EXCLUDED.search_vector, write_id = EXCLUDED.write_id, updated_at = EXCLUDED.updated_at
    WHERE (%(locked)s OR s.chunk_ids IS NULL) AND {unchanged}
"""  # no row: there was no row to lock, and another transaction has just stored a value in chunks, or an unexpected one

# A late attempt that waited for a lock finds the row deleted by its retry, and leaves alone what was stored after that.
_DELETE_INLINE = """
    WITH deleted AS (
        DELETE FROM {storage} AS s
        WHERE s.key = %(key)s AND s.chunk_ids IS NULL AND {in_time} AND {fenced} AND {unchanged}
        RETURNING true
    )
    SELECT CASE WHEN {in_time} THEN {server_time} END,
        EXISTS (SELECT true FROM deleted) OR NOT EXISTS (SELECT true FROM {storage} WHERE key = %(key)s) AND {fenced}
"""  # not done: the stored value has chunks, or a check failed

_DELETE = "DELETE FROM {storage} AS s WHERE s.key = %(key)s AND {unchanged} RETURNING s.chunk_ids"


class ValueWriter:
    """Stores and deletes the values of one database, schema and table prefix.

    Args:
        database: Where the tables are.
        scope: Equal chunks are stored once for all values that are written with the same scope.
        text_search_config: PostgreSQL's text search configuration for values.
        seen: The write ids of the values that may be replaced; None if every value may be.
        session_id: The session whose lease each write must hold, if it is held at all.
    """

    def __init__(
        self,
        database: Database,
        *,
        scope: str,
        text_search_config: str,
        seen: SeenWrites | None,
        session_id: str | None,
    ) -> None:
        self._database = database
        self._chunks = ChunkStore(database)
        self._scope = blake2b(scope.encode()).digest()
        self._configuration = text_search_config
        self._seen = seen
        self._session_id = session_id
        checks = WriteChecks(database, guarded=seen is not None, leased=session_id is not None)
        self._lock_lease = checks.lock_lease
        self._upsert_inline = checks.compose(_UPSERT_INLINE)
        self._lock = database.statement(_LOCK)
        self._upsert = checks.compose(_UPSERT)
        self._delete_inline = checks.compose(_DELETE_INLINE)
        self._delete = checks.compose(_DELETE)

    def write(self, key: str, data: bytes, text: str | None, *, term: UUID | None) -> None:
        """Store a value, replacing any earlier one.

        Args:
            key: The full key.
            data: The value.
            text: The words by which a search finds the value; None if it does not.
            term: Of the lease that must be held; None if no lease must be.

        Raises:
            StorageConflictError: The stored value is none of those that may be replaced.
            LeaseLostError: The lease is no longer held.
            StrandsPsycopgError: As ``Database.transact``.
        """
        write_id = uuid4()
        with self._replacing(key, write_id) as expected:
            change = Change(f"writing {key!r}", key, expected, self._session_id, term)
            row = change.parameters | {"size": len(data), "text": text, "configuration": self._configuration}
            row["write_id"] = write_id
            if len(data) > _MAX_INLINE_SIZE:
                chunks = split(data)
                chunk_ids = [chunk_id(chunk, self._scope) for chunk in chunks]
                row |= {"data": None, "chunk_ids": chunk_ids}
                by_id = dict(zip(chunk_ids, chunks, strict=True))
                work = partial(self._upsert_locked, change, row, by_id)
                self._transact_and_clean_up(change, (self._lock, row), work)
            elif not self._run_inline(change, self._upsert_inline, row | {"data": data}):
                row |= {"data": data, "chunk_ids": None}
                work = partial(self._upsert_locked, change, row, {})
                self._transact_and_clean_up(change, (self._lock, row), work)

    def delete(self, key: str, *, term: UUID | None) -> None:
        """Delete a value, if there is one.

        Args:
            key: The full key.
            term: As in ``write``.

        Raises:
            StrandsPsycopgError: As in ``write``.
        """
        with self._replacing(key, MISSING) as expected:
            change = Change(f"deleting {key!r}", key, expected, self._session_id, term)
            row = change.parameters
            if not self._run_inline(change, self._delete_inline, row):
                work = partial(self._release_deleted, change, row)
                self._transact_and_clean_up(change, (self._delete, row), work)

    def _replacing(self, key: str, write_id: UUID) -> AbstractContextManager[list[UUID] | None]:
        return nullcontext() if self._seen is None else self._seen.replacing(key, write_id)

    def _run_inline(self, change: Change, statement: bytes, row: _Row) -> bool:
        """Store or delete a value without chunks; return False, doing nothing, if that takes a transaction."""
        # A late attempt cannot see from the row that there have been newer writes.
        self._database.synchronise_clock()
        return bool(self._database.write(change.operation, statement, row).rows[0][1])

    def _upsert_locked(
        self,
        change: Change,
        row: _Row,
        chunks: dict[UUID, memoryview],
        cursor: Cursor[TupleRow],
        locked: list[TupleRow],
    ) -> bool:
        """Store a value in a transaction that has locked its row; return whether there are released chunks."""
        for _ in range(_MAX_ROUNDS):
            change.check_unchanged(locked)
            new = sorted(chunks.keys() - self._chunks.lock_existing(chunks, cursor))
            unused = set(locked[0][0] or ()) - chunks.keys() if locked else set()
            with cursor.connection.pipeline():
                self._chunks.insert(new, [chunks[chunk_id] for chunk_id in new], cursor)
                upsert = new_cursor(cursor).execute(self._upsert, row | {"locked": bool(locked)})
                released = self._chunks.release(unused, cursor)
            if new and cursor.rowcount != len(new):
                break
            if upsert.rowcount:
                return released.fetchone() is not None
            locked = cursor.execute(self._lock, row).fetchall()
        raise DatabaseError(
            f"{change.operation}: the database reported success, but did not store everything; look for a trigger or "
            "rule on its tables that suppresses rows"
        )

    def _release_deleted(self, change: Change, row: _Row, cursor: Cursor[TupleRow], deleted: list[TupleRow]) -> bool:
        """Release the chunks of a value that this transaction has deleted; return whether there are released chunks."""
        # There is no value, or one that may not be deleted.
        if not deleted and change.expected is not None:
            change.check_unchanged(cursor.execute(self._lock, row).fetchall())
        with cursor.connection.pipeline():
            released = self._chunks.release(set(deleted[0][0] or ()) if deleted else set(), cursor)
        return released.fetchone() is not None

    def _transact_and_clean_up(
        self, change: Change, first: _Statement, work: Callable[[Cursor[TupleRow], list[TupleRow]], bool]
    ) -> None:
        """Store or delete a value in a transaction, then delete released chunks in further ones."""
        if self._transact(change.operation, first, work, leased=change if change.term is not None else None):
            try:
                while self._transact("deleting unused chunks", (_SET_ASYNCHRONOUS_COMMIT, {}), self._delete_released):
                    pass
            except StrandsPsycopgError as error:
                # The value is stored. The next transaction that stores or deletes one tries again.
                logger.warning("error=<%s> | unused chunks were not deleted", error)

    def _delete_released(self, cursor: Cursor[TupleRow], _: list[TupleRow]) -> bool:
        return self._chunks.delete_released(cursor)

    def _transact(
        self,
        operation: str,
        first: _Statement,
        work: Callable[[Cursor[TupleRow], list[TupleRow]], _T],
        *,
        leased: Change | None = None,
    ) -> _T:
        """Run a transaction that begins with the statement ``first``, whose rows are passed to ``work``.

        If there is a change that needs a lease, the lease is locked before and checked.
        """
        milliseconds = str(int(min(self._database.response_timeout * 1000, _MAX_TIMEOUT)))

        def transaction(cursor: Cursor[TupleRow]) -> _T:
            with cursor.connection.pipeline():
                cursor.execute(_READ_COMMITTED)
                new_cursor(cursor).execute(_CONFIGURE, {"milliseconds": milliseconds})
                lease = new_cursor(cursor).execute(self._lock_lease, leased.parameters) if leased else None
                result = new_cursor(cursor).execute(*first)
            if leased and lease:
                leased.check_lease(lease.fetchall())
            return work(cursor, result.fetchall())

        return self._database.transact(operation, transaction)
