"""Storing and deleting values: small ones are stored inline, large ones in chunks.

A storage with a guard passes the write ids of the values that it may replace, and a storage of a session the term of
its lease. The statement that stores or deletes a value inline does so only if both hold; if it does not, a transaction
repeats it that first locks the lease and the value, and raises what is wrong.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from hashlib import blake2b
from typing import NamedTuple, TypeVar
from uuid import UUID, uuid4

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.database import Database
from strands_psycopg.errors import LeaseLostError, StorageConflictError, StrandsPsycopgError
from strands_psycopg.storage.chunk_store import ChunkStore, new_cursor
from strands_psycopg.storage.chunks import chunk_id, split
from strands_psycopg.storage.seen_writes import MISSING, SeenWrites

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_Statement = tuple[bytes, dict[str, object]]

# In bytes. Up to this size one row takes no more space than a list of chunks would.
_MAX_INLINE_SIZE = 8192

# In bytes; PostgreSQL sends up to a gigabyte.
MAX_VALUE_SIZE = 256 * 2**20

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

# What a statement checks for a storage with a guard; for one without, each is ``true``.
_GUARDED = {
    # Whether the value s may be replaced.
    "unchanged": "(%(expected)s::uuid[] IS NULL OR s.write_id = ANY(%(expected)s))",
    # Whether the value may be replaced, or may be missing. Without the lock, another transaction could delete the row
    # before the INSERT, which would then restore a deleted value.
    "present": """(
        %(expected)s::uuid[] IS NULL OR %(missing)s::uuid = ANY(%(expected)s) OR EXISTS (
            SELECT true FROM {storage} AS s WHERE s.key = %(key)s AND s.write_id = ANY(%(expected)s) FOR UPDATE
        )
    )""",
}

# What a statement checks for a storage of a session; for another one it is ``true``. Locking the row until the end of
# the transaction prevents a takeover between this check and the write.
_LEASED = {
    "fenced": """(
        %(term)s::uuid IS NULL OR EXISTS (
            SELECT true FROM {leases} WHERE session_id = %(session_id)s AND term = %(term)s FOR SHARE
        )
    )""",
}

_LOCK_LEASE = "SELECT true FROM {leases} WHERE session_id = %(session_id)s AND term = %(term)s FOR SHARE"

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


class _Change(NamedTuple):
    """A value to store or delete.

    Attributes:
        operation: What is being done, for errors and log lines.
        key: The full key.
        expected: The write ids of the values that may be replaced; None if every value may be.
        term: Of the lease that must be held; None if no lease must be.
        row: The parameters of the statements.
    """

    operation: str
    key: str
    expected: list[UUID] | None
    term: UUID | None
    row: dict[str, object]


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
        checks = dict.fromkeys(_GUARDED.keys() | _LEASED.keys(), "true")
        checks |= (_GUARDED if seen is not None else {}) | (_LEASED if session_id is not None else {})
        self._upsert_inline = _compose(database, _UPSERT_INLINE, checks)
        self._lock_lease = database.statement(_LOCK_LEASE)
        self._lock = database.statement(_LOCK)
        self._upsert = _compose(database, _UPSERT, checks)
        self._delete_inline = _compose(database, _DELETE_INLINE, checks)
        self._delete = _compose(database, _DELETE, checks)

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
            change = self._change(f"writing {key!r}", key, expected, term)
            change.row.update(size=len(data), text=text, configuration=self._configuration, write_id=write_id)
            if len(data) > _MAX_INLINE_SIZE:
                chunks = split(data)
                chunk_ids = [chunk_id(chunk, self._scope) for chunk in chunks]
                change.row.update(data=None, chunk_ids=chunk_ids)
                by_id = dict(zip(chunk_ids, chunks, strict=True))
                self._transact_and_clean_up(change, self._lock, partial(self._upsert_locked, change, by_id))
            else:
                change.row.update(data=data, chunk_ids=None)
                if not self._run_inline(change, self._upsert_inline):
                    self._transact_and_clean_up(change, self._lock, partial(self._upsert_locked, change, {}))

    def delete(self, key: str, *, term: UUID | None) -> None:
        """Delete a value, if there is one.

        Args:
            key: The full key.
            term: As in ``write``.

        Raises:
            StrandsPsycopgError: As in ``write``.
        """
        with self._replacing(key, MISSING) as expected:
            change = self._change(f"deleting {key!r}", key, expected, term)
            if not self._run_inline(change, self._delete_inline):
                self._transact_and_clean_up(change, self._delete, partial(self._release_deleted, change))

    def _replacing(self, key: str, write_id: UUID) -> AbstractContextManager[list[UUID] | None]:
        return nullcontext() if self._seen is None else self._seen.replacing(key, write_id)

    def _change(self, operation: str, key: str, expected: list[UUID] | None, term: UUID | None) -> _Change:
        row: dict[str, object] = {"key": key, "expected": expected, "missing": MISSING}
        row.update(session_id=self._session_id, term=term)
        return _Change(operation, key, expected, term, row)

    def _run_inline(self, change: _Change, statement: bytes) -> bool:
        """Store or delete a value without chunks; return False, doing nothing, if that takes a transaction."""
        # A late attempt cannot see from the row that there have been newer writes.
        self._database.synchronise_clock()
        return bool(self._database.write(change.operation, statement, change.row).rows[0][1])

    def _upsert_locked(
        self, change: _Change, chunks: dict[UUID, memoryview], cursor: Cursor[TupleRow], locked: list[TupleRow]
    ) -> bool:
        """Store a value in a transaction that has locked its row; return whether there are released chunks."""
        while True:
            _check_unchanged(change, locked)
            new = sorted(chunks.keys() - self._chunks.lock_existing(chunks, cursor))
            unused = set(locked[0][0] or ()) - chunks.keys() if locked else set()
            with cursor.connection.pipeline():
                self._chunks.insert(new, [chunks[chunk_id] for chunk_id in new], cursor)
                upsert = new_cursor(cursor).execute(self._upsert, change.row | {"locked": bool(locked)})
                released = self._chunks.release(unused, cursor)
            if upsert.rowcount:
                return released.fetchone() is not None
            locked = cursor.execute(self._lock, change.row).fetchall()

    def _release_deleted(self, change: _Change, cursor: Cursor[TupleRow], deleted: list[TupleRow]) -> bool:
        """Release the chunks of a value that this transaction has deleted; return whether there are released chunks."""
        if not deleted and change.expected is not None:
            _check_unchanged(change, cursor.execute(self._lock, change.row).fetchall())
        with cursor.connection.pipeline():
            released = self._chunks.release(set(deleted[0][0] or ()) if deleted else set(), cursor)
        return released.fetchone() is not None

    def _transact_and_clean_up(
        self, change: _Change, first: bytes, work: Callable[[Cursor[TupleRow], list[TupleRow]], bool]
    ) -> None:
        """Store or delete a value in a transaction, then delete released chunks in further ones."""
        if self._transact(change.operation, (first, change.row), work, term=change.term):
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
        term: UUID | None = None,
    ) -> _T:
        """Run a transaction that begins with the statement ``first``, whose rows are passed to ``work``.

        If it has a term, it locks the lease before, or raises ``LeaseLostError``.
        """
        milliseconds = str(int(min(self._database.response_timeout * 1000, _MAX_TIMEOUT)))
        lease = {"session_id": self._session_id, "term": term}

        def transaction(cursor: Cursor[TupleRow]) -> _T:
            with cursor.connection.pipeline():
                cursor.execute(_READ_COMMITTED)
                new_cursor(cursor).execute(_SET_TIMEOUTS, {"milliseconds": milliseconds})
                held = new_cursor(cursor).execute(self._lock_lease, lease) if term is not None else None
                result = new_cursor(cursor).execute(*first)
            if held is not None and not held.fetchall():
                raise LeaseLostError(
                    f"{operation}: another holder has taken over session {self._session_id!r}, or its lease was "
                    "deleted; nothing was stored. Stop writing, and take a new lease to continue from what is stored",
                    session_id=str(self._session_id),
                )
            return work(cursor, result.fetchall())

        return self._database.transact(operation, transaction)


def _compose(database: Database, template: str, checks: dict[str, str]) -> bytes:
    for name, check in checks.items():
        template = template.replace("{" + name + "}", check)
    return database.statement(template)


def _check_unchanged(change: _Change, locked: list[TupleRow]) -> None:
    """Check the value that is to be changed, whose row has been locked if there is one.

    Raises:
        StorageConflictError: It may not be replaced.
    """
    if change.expected is not None and (locked[0][1] if locked else MISSING) not in change.expected:
        raise StorageConflictError(
            f"{change.operation}: another writer has written or deleted the value since this storage last read or "
            "wrote it; nothing was stored. To continue from what is stored, build a new session manager and agent; "
            "hold a lease to keep other writers away",
            key=change.key,
        )
