"""The table of chunks: they are inserted, released by values that no longer use them, and deleted when unused.

Each method is part of the caller's transaction, which has locked the row of the value, if there is one. It locks
chunks in the order of their ids, by a statement of its own, since the next statement must see what was committed while
this one waited. Two transactions can still deadlock if they insert the same chunks under new keys, or if one inserts
what the other releases. The server then aborts one of them, and it is retried.
"""

from collections.abc import Collection
from itertools import accumulate
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.database import Database, new_cursor
from strands_psycopg.storage.scope import Scope

# How many released chunks are deleted in one transaction.
_BATCH_SIZE = 1000

# In the order of ids, so that two of these statements cannot deadlock.
_LOCK_EXISTING = """
    SELECT chunk_id FROM {chunks} WHERE {scope} = %(scope)s AND chunk_id = ANY(%(chunk_ids)s)
    ORDER BY chunk_id FOR KEY SHARE
"""

# One bytea is sent much faster than an array of them.
_INSERT = """
    INSERT INTO {chunks} ({scope}, chunk_id, data)
    SELECT %(scope)s::text, new.chunk_id, substring(%(data)s FROM new.start + 1 FOR new.size)
    FROM unnest(%(chunk_ids)s::uuid[], %(starts)s::integer[], %(sizes)s::integer[])
        AS new (chunk_id, start, size)
    WHERE {session_locked}
    ON CONFLICT ({scope}, chunk_id) DO UPDATE SET released = false
    RETURNING true
"""

# If two transactions stop using a chunk at the same time, the later one waits here, and then sees that it is unused.
_LOCK_TO_RELEASE = """
    SELECT chunk_id FROM {chunks} WHERE {scope} = %(scope)s AND chunk_id = ANY(%(chunk_ids)s)
    ORDER BY chunk_id FOR NO KEY UPDATE
"""

# Whether no value uses the chunk c. The operator is qualified, since one for uuid[] in another schema would win over
# PostgreSQL's own for any array.
_UNUSED = """
    NOT EXISTS (
        SELECT true FROM {values} AS s
        WHERE s.{scope} = %(scope)s AND s.chunk_ids OPERATOR(pg_catalog.@>) ARRAY[c.chunk_id]
    )
"""

_RELEASE_UNUSED = (
    """
    UPDATE {chunks} AS c SET released = true
    WHERE c.{scope} = %(scope)s AND c.chunk_id = ANY(%(chunk_ids)s) AND"""
    + _UNUSED
)

_FIND_RELEASED = "SELECT chunk_id FROM {chunks} WHERE {scope} = %(scope)s AND released ORDER BY chunk_id LIMIT 1"

# A chunk that is locked is about to be used again, or deleted.
_LOCK_RELEASED = """
    SELECT chunk_id FROM {chunks} WHERE {scope} = %(scope)s AND released
    ORDER BY chunk_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""

_DELETE_UNUSED = (
    """
    DELETE FROM {chunks} AS c
    WHERE c.{scope} = %(scope)s AND c.chunk_id = ANY(%(chunk_ids)s) AND"""
    + _UNUSED
)

_UNMARK_USED = """
    UPDATE {chunks} SET released = false WHERE {scope} = %(scope)s AND chunk_id = ANY(%(chunk_ids)s)
"""


class ChunkStore:
    """The chunks of one storage."""

    def __init__(self, database: Database, scope: Scope) -> None:
        self._scope = scope
        self._lock_existing = scope.compose(database, _LOCK_EXISTING)
        self._insert = scope.compose(database, _INSERT)
        self._lock_to_release = scope.compose(database, _LOCK_TO_RELEASE)
        self._release_unused = scope.compose(database, _RELEASE_UNUSED)
        self._find_released = scope.compose(database, _FIND_RELEASED)
        self._lock_released = scope.compose(database, _LOCK_RELEASED)
        self._delete_unused = scope.compose(database, _DELETE_UNUSED)
        self._unmark_used = scope.compose(database, _UNMARK_USED)

    def lock_existing(self, chunk_ids: Collection[UUID], cursor: Cursor[TupleRow]) -> set[UUID]:
        """Lock those of the chunks that exist until the transaction ends; return their ids."""
        if not chunk_ids:
            return set()
        return {chunk_id for (chunk_id,) in cursor.execute(self._lock_existing, self._parameters(chunk_ids))}

    def insert(
        self, chunk_ids: list[UUID], chunks: list[memoryview], cursor: Cursor[TupleRow]
    ) -> Cursor[TupleRow] | None:
        """Insert chunks within a pipeline, sorted by id; another transaction may have inserted some meanwhile.

        Returns:
            A cursor whose result has a row for each; None if there are none.
        """
        if not chunk_ids:
            return None
        parameters = self._parameters(chunk_ids) | _insert_parameters(chunks)
        return new_cursor(cursor.connection).execute(self._insert, parameters)

    def release(self, chunk_ids: Collection[UUID], cursor: Cursor[TupleRow]) -> Cursor[TupleRow]:
        """Mark those of the chunks that no value uses, within a pipeline.

        Returns:
            A cursor whose result is one released chunk, if there is any; it may be one that another process left.
        """
        if chunk_ids:
            parameters = self._parameters(chunk_ids)
            new_cursor(cursor.connection).execute(self._lock_to_release, parameters)
            new_cursor(cursor.connection).execute(self._release_unused, parameters)
        return new_cursor(cursor.connection).execute(self._find_released, self._scope.parameters)

    def delete_released(self, cursor: Cursor[TupleRow]) -> bool:
        """Delete a batch of released chunks, except those in use; return whether there may be more."""
        parameters = self._scope.parameters | {"limit": _BATCH_SIZE}
        locked = [chunk_id for (chunk_id,) in cursor.execute(self._lock_released, parameters)]
        if locked:
            with cursor.connection.pipeline():
                new_cursor(cursor.connection).execute(self._delete_unused, self._parameters(locked))
                new_cursor(cursor.connection).execute(self._unmark_used, self._parameters(locked))
        return len(locked) == _BATCH_SIZE

    def _parameters(self, chunk_ids: Collection[UUID]) -> dict[str, object]:
        return self._scope.parameters | {"chunk_ids": list(chunk_ids)}


def _insert_parameters(chunks: list[memoryview]) -> dict[str, object]:
    sizes = [len(chunk) for chunk in chunks]
    starts = list(accumulate(sizes, initial=0))[:-1]
    return {"data": b"".join(chunks), "starts": starts, "sizes": sizes}
