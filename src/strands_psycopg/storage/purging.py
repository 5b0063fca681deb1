"""Deletion of values that have expired or were not written for some time, concurrently with writers."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.arguments import check_count, check_duration
from strands_psycopg.batches import batches
from strands_psycopg.database import Database, PipelinedTransaction
from strands_psycopg.storage.chunk_store import ChunkStore
from strands_psycopg.storage.scope import Scope
from strands_psycopg.storage.transactions import Transactions
from strands_psycopg.storage.value_reader import allowed, key_range

_MAX_BATCH_SIZE = 10_000

# Per transaction; a larger value is a batch of its own.
_MAX_BATCH_BYTES = 32 * 2**20

_IS_OLD = """(
        s.expires_at <= pg_catalog.now()
        OR s.updated_at < pg_catalog.now() - pg_catalog.make_interval(secs => %(idle)s::float8)
    )
"""  # idle may be NULL

_LIST = """
    SELECT {refused}, found.key, found.size
    FROM {checked} (
        SELECT s.key, s.size FROM {values} AS s
        WHERE s.{scope} = %(scope)s AND s.key >= %(prefix)s AND s.key < %(end)s AND s.key > %(after)s AND {is_old}
        ORDER BY s.key LIMIT %(limit)s
    ) AS found {if_allowed}
    ORDER BY found.key
""".replace("{is_old}", _IS_OLD)

# In the order of keys, so that two purges cannot deadlock. A value that is locked is about to be written or deleted.
_LOCK = """
    SELECT s.key FROM {values} AS s
    WHERE s.{scope} = %(scope)s AND s.key = ANY(%(keys)s) ORDER BY s.key FOR UPDATE SKIP LOCKED
"""

_DELETE = """
    DELETE FROM {values} AS s WHERE s.{scope} = %(scope)s AND s.key = ANY(%(keys)s) AND {owned} AND {is_old}
    RETURNING s.size, s.chunk_ids
""".replace("{is_old}", _IS_OLD)


@dataclass(frozen=True)
class StoragePurgeResult:
    """What a purge of a storage deleted, or would delete.

    Attributes:
        values: The number of values.
        bytes: The sum of their sizes. Values that share chunks take less space.
    """

    values: int = 0
    bytes: int = 0

    def __add__(self, other: "StoragePurgeResult") -> "StoragePurgeResult":
        return StoragePurgeResult(self.values + other.values, self.bytes + other.bytes)


class _OldValue(NamedTuple):
    key: str
    size: int


class ValuePurge:
    """Deletes old values of one storage."""

    def __init__(self, database: Database, scope: Scope, chunks: ChunkStore) -> None:
        self._database = database
        self._scope = scope
        self._chunks = chunks
        self._transactions = Transactions(database, scope)
        self._list = scope.compose(database, _LIST)
        self._lock = scope.compose(database, _LOCK)
        self._delete = scope.compose(database, _DELETE)

    def run(
        self, prefix: str, *, idle_for: timedelta | float | None, batch_size: int, dry_run: bool, term: UUID | None
    ) -> Iterator[StoragePurgeResult]:
        """Delete old values in batches and yield the counts of each batch.

        Args:
            prefix: What their keys begin with.
            idle_for: The time since they were written; None to delete only those that have expired.
            batch_size: The maximum number of values per transaction.
            dry_run: Only count the values that would be deleted.
            term: The term of the lease that must be held; None if none must be held.

        Raises:
            ValueError: ``idle_for`` or ``batch_size`` is out of range.
        """
        idle = None if idle_for is None else check_duration("idle_for", idle_for)
        check_count("batch_size", batch_size, _MAX_BATCH_SIZE)
        return self._run(prefix, idle, batch_size, dry_run, term)

    def _run(
        self, prefix: str, idle: float | None, batch_size: int, dry_run: bool, term: UUID | None
    ) -> Iterator[StoragePurgeResult]:
        operation = f"purging {self._scope.describe(prefix)}"
        parameters = self._scope.parameters | key_range(prefix) | {"idle": idle, "limit": Int8(batch_size)}
        after = ""
        while True:
            result = self._database.fetch(operation, self._list, parameters | {"after": after})
            page = [_OldValue(*row) for row in allowed(operation, self._scope, result.rows)]
            for batch in batches(page, _MAX_BATCH_BYTES, lambda value: value.size):
                if dry_run:
                    yield StoragePurgeResult(len(batch), sum(value.size for value in batch))
                else:
                    keys = [value.key for value in batch]
                    yield self._purge(operation, parameters | {"keys": keys}, term)
            if len(page) < batch_size:
                return
            after = page[-1].key

    def _purge(self, operation: str, parameters: dict[str, object], term: UUID | None) -> StoragePurgeResult:
        """Delete those values that are still old and not in use."""

        def work(transaction: PipelinedTransaction, results: list[list[TupleRow]]) -> StoragePurgeResult:
            (locked,) = results
            keys = [key for (key,) in locked]
            deleted = transaction.cursor.execute(self._delete, parameters | {"keys": keys}).fetchall()
            references = Counter(chunk_id for _, chunk_ids in deleted for chunk_id in set(chunk_ids or ()))
            self._chunks.release(references, transaction.cursor)
            return StoragePurgeResult(len(deleted), sum(size for size, _ in deleted))

        return self._transactions.run(operation, [(self._lock, parameters)], work, term=term)
