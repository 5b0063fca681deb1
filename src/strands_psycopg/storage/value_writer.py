"""Storing and deleting values: small ones are stored inline, large ones in chunks.

Each statement makes the checks that the storage needs. If one that stores or deletes a value inline has done nothing, a
transaction tries again: it locks the lease and the value first, and raises what is wrong.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from uuid import UUID, uuid4

from psycopg.rows import TupleRow

from strands_psycopg.database import Database, PipelinedTransaction
from strands_psycopg.errors import suppressed_error
from strands_psycopg.storage.chunk_store import ChunkStore
from strands_psycopg.storage.chunks import chunk_id, split
from strands_psycopg.storage.scope import Scope
from strands_psycopg.storage.seen_writes import MISSING, SeenWrites
from strands_psycopg.storage.transactions import Row, Statement, Transactions
from strands_psycopg.storage.value_reader import allowed
from strands_psycopg.storage.write_checks import Change, WriteChecks

# In bytes. Up to this size one statement that writes all of it is faster than a transaction that writes a part.
MAX_INLINE_SIZE = 32_768

# In bytes; PostgreSQL sends up to a gigabyte.
MAX_VALUE_SIZE = 256 * 2**20

# Another round is needed only if another transaction stores a value under the same new key meanwhile.
_MAX_ROUNDS = 10

_COLUMNS = "{identity}, key, data, chunk_ids, size, search_vector, write_id, updated_at, expires_at"

_NEW_VALUE = """
    {identity_of_value}, %(key)s::text, %(data)s::bytea, %(chunk_ids)s::uuid[], %(size)s::bigint,
    pg_catalog.to_tsvector(%(configuration)s::regconfig, %(text)s::text), %(write_id)s::uuid, pg_catalog.now(),
    pg_catalog.now() + pg_catalog.make_interval(secs => %(expires_in)s::float8)
"""

_REPLACE = """
    ON CONFLICT ({scope}, key) DO UPDATE
    SET data = EXCLUDED.data, chunk_ids = EXCLUDED.chunk_ids, size = EXCLUDED.size,
        search_vector = EXCLUDED.search_vector, write_id = EXCLUDED.write_id, updated_at = EXCLUDED.updated_at,
        expires_at = EXCLUDED.expires_at
"""

# A late attempt that waited for the lock of the row finds a newer value, by its time: the time of the attempt itself is
# that before it waited.
_UPSERT_INLINE = (
    """
    WITH changed AS (
        INSERT INTO {values} AS s ("""
    + _COLUMNS
    + ") SELECT"
    + _NEW_VALUE
    + "WHERE {in_time} AND {owned} AND {fenced} AND {present}"
    + _REPLACE
    + """
        WHERE s.chunk_ids IS NULL AND s.updated_at <= EXCLUDED.updated_at AND {replaceable}
        RETURNING true AS done
    ){touch_session}
    SELECT CASE WHEN {in_time} THEN {server_time} END, changed.done
    FROM (SELECT 1) AS one LEFT JOIN changed ON true
"""
)  # not done: the stored value has chunks or is newer by the server's clock, or a check failed

_LOCK = """
    SELECT chunk_ids, write_id, coalesce(expires_at <= pg_catalog.now(), false)
    FROM {values} WHERE {scope} = %(scope)s AND key = %(key)s FOR UPDATE
"""

_UPSERT = (
    "WITH changed AS (INSERT INTO {values} AS s ("
    + _COLUMNS
    + ") SELECT"
    + _NEW_VALUE
    + "WHERE {session_locked}"
    + _REPLACE
    + """
        WHERE (%(locked)s OR s.chunk_ids IS NULL) AND {replaceable} RETURNING true AS done
    ){touch_session}
    SELECT done FROM changed
"""
)  # no row: no such session; or there was no row to lock, and another transaction has just stored a value in chunks, or
# an unexpected one

# A late attempt that waited for a lock finds the row deleted by its retry, and leaves alone what was stored after that.
# Where the tables are distributed, a DELETE has the time of the node that plans it, so the one that runs it reads it.
_DELETE_INLINE = """
    WITH clock AS (SELECT {in_time} AS in_time), changed AS (
        DELETE FROM {values} AS s
        WHERE s.{scope} = %(scope)s AND s.key = %(key)s AND s.chunk_ids IS NULL AND (SELECT in_time FROM clock)
            AND {owned} AND {fenced} AND {deletable}
        RETURNING true
    ){touch_session}
    SELECT CASE WHEN (SELECT in_time FROM clock) THEN {server_time} END,
        EXISTS (SELECT true FROM changed)
        OR NOT EXISTS (SELECT true FROM {values} WHERE {scope} = %(scope)s AND key = %(key)s)
            AND {owned} AND {fenced}
"""  # not done: the stored value has chunks, or a check failed

_DELETE = """
    WITH changed AS (
        DELETE FROM {values} AS s
        WHERE s.{scope} = %(scope)s AND s.key = %(key)s AND {owned} AND {deletable}
        RETURNING s.write_id, s.chunk_ids
    ){touch_session}
    SELECT {refused}, changed.write_id, changed.chunk_ids FROM {checked} changed {if_allowed}
"""


class ValueWriter:
    """Stores and deletes the values of one storage.

    Args:
        database: Where the tables are.
        scope: Which values they are.
        chunks: The table of their chunks.
        text_search_config: PostgreSQL's text search configuration for values.
        expires_in: Seconds after which a value is not found; None if it always is.
        seen: The write ids of the values that may be replaced; None if every value may be.
    """

    def __init__(
        self,
        database: Database,
        scope: Scope,
        chunks: ChunkStore,
        *,
        text_search_config: str,
        expires_in: float | None,
        seen: SeenWrites | None,
    ) -> None:
        self._database = database
        self._scope = scope
        self._chunks = chunks
        self._transactions = Transactions(database, scope)
        self._configuration = text_search_config
        self._expires_in = expires_in
        self._seen = seen
        checks = WriteChecks(database, scope, guarded=seen is not None)
        self._upsert_inline = checks.compose(_UPSERT_INLINE)
        self._lock = checks.compose(_LOCK)
        self._upsert = checks.compose(_UPSERT)
        self._delete_inline = checks.compose(_DELETE_INLINE)
        self._delete = checks.compose(_DELETE)

    def write(self, key: str, data: bytes, text: str | None, *, term: UUID | None) -> None:
        """Store a value, replacing any earlier one.

        Args:
            key: The key.
            data: The value.
            text: The words by which a search finds the value; None if it does not.
            term: The term of the lease that must be held; None if none must be held.

        Raises:
            StorageConflictError: The stored value is none of those that may be replaced.
            LeaseLostError: The lease is no longer held.
            SessionNotFoundError: The session does not exist.
            SessionOwnerError: The session belongs to another owner.
            StrandsPsycopgError: As ``Database.transact_in_pipeline``.
        """
        write_id = uuid4()
        with self._replacing(key, write_id) as expected:
            change = Change(f"writing {self._scope.describe(key)}", self._scope, key, expected, term)
            row = change.parameters | {"size": len(data), "text": text, "configuration": self._configuration}
            row |= {"write_id": write_id, "expires_in": self._expires_in}
            if len(data) > MAX_INLINE_SIZE:
                chunks = split(data)
                chunk_ids = [chunk_id(chunk, self._scope.hash_key) for chunk in chunks]
                row |= {"data": None, "chunk_ids": chunk_ids}
                self._transact(change, row, dict(zip(chunk_ids, chunks, strict=True)))
                return
            row |= {"data": data, "chunk_ids": None}
            if not self._run_inline(change, self._upsert_inline, row):
                self._transact(change, row, {})

    def delete(self, key: str, *, term: UUID | None) -> None:
        """Delete a value, if there is one.

        Args:
            key: The key.
            term: As in ``write``.

        Raises:
            StrandsPsycopgError: As in ``write``.
        """
        with self._replacing(key, MISSING) as expected:
            change = Change(f"deleting {self._scope.describe(key)}", self._scope, key, expected, term)
            row = change.parameters
            if not self._run_inline(change, self._delete_inline, row):
                work = partial(self._release_deleted, change, row)
                self._transactions.run(change.operation, [(self._delete, row)], work, term=term)

    def _replacing(self, key: str, write_id: UUID) -> AbstractContextManager[list[UUID] | None]:
        return nullcontext() if self._seen is None else self._seen.replacing(key, write_id)

    def _run_inline(self, change: Change, statement: bytes, row: Row) -> bool:
        """Store or delete a value without chunks; return False, and do nothing, if that requires a transaction."""
        # A late attempt cannot see from a row that is missing that there have been newer writes.
        self._database.synchronise_clock()
        return bool(self._database.write(change.operation, statement, row).rows[0][1])

    def _transact(self, change: Change, row: Row, chunks: dict[UUID, memoryview]) -> None:
        """Store a value in a transaction that locks its row and all chunks first."""
        locks = [(self._lock, row), self._chunks.lock_with_value(chunks.keys(), change.key)]
        work = partial(self._upsert_locked, change, row, chunks, locks)
        self._transactions.run(change.operation, locks, work, term=change.term)

    def _upsert_locked(
        self,
        change: Change,
        row: Row,
        chunks: dict[UUID, memoryview],
        locks: list[Statement],
        transaction: PipelinedTransaction,
        locked: list[list[TupleRow]],
    ) -> None:
        """Store a value in a transaction that has run ``locks``."""
        for _ in range(_MAX_ROUNDS):
            values = locked[0]
            counts: dict[UUID, int] = dict(locked[1])
            if not change.is_expected(values):
                self._transactions.check_session(change.operation, transaction)
                raise change.conflict()
            replaced = set(values[0][0] or ()) if values else set()
            unused = dict.fromkeys(replaced - chunks.keys(), 1)
            # Including chunks of the replaced value that somebody has deleted with SQL.
            added = {chunk_id: chunks[chunk_id] for chunk_id in chunks.keys() - (replaced & counts.keys())}
            with transaction.cursor.connection.pipeline():
                stored = self._chunks.add(added, counts.keys(), transaction.cursor)
                upsert = transaction.send(self._upsert, row | {"locked": bool(values)})
                self._chunks.release_locked(unused, counts, transaction.cursor)
            is_stored = bool(upsert.fetchall())
            if not is_stored:
                self._transactions.check_session(change.operation, transaction)
            if sum(len(each.fetchall()) for each in stored) != len(added):
                break
            if is_stored:
                return
            self._chunks.release(dict.fromkeys(added, 1), transaction.cursor)
            results = [transaction.send(*statement) for statement in locks]
            transaction.receive()
            locked = [result.fetchall() for result in results]
        raise suppressed_error(change.operation)

    def _release_deleted(
        self, change: Change, row: Row, transaction: PipelinedTransaction, results: list[list[TupleRow]]
    ) -> None:
        """Release the chunks of a value that this transaction has deleted."""
        (deleted,) = results
        freed = [chunk_ids for _, chunk_ids in allowed(change.operation, self._scope, deleted)]
        # There was no value, or one that may not be deleted, or that a trigger keeps.
        if not freed:
            locked = transaction.cursor.execute(self._lock, row).fetchall()
            if not change.is_expected(locked):
                raise change.conflict()
            if locked:
                deleted = transaction.cursor.execute(self._delete, row).fetchall()
                freed = [chunk_ids for _, chunk_ids in allowed(change.operation, self._scope, deleted)]
                if not freed:
                    raise suppressed_error(change.operation)
        unused = {each for ids in freed for each in ids or ()}
        self._chunks.release(dict.fromkeys(unused, 1), transaction.cursor)
