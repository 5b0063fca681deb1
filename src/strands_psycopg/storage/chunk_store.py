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

# How many released chunks are deleted in one transaction.
_BATCH_SIZE = 1000

# In the order of ids, so that two of these statements cannot deadlock.
_LOCK_EXISTING = """
    SELECT chunk_id FROM {chunks} WHERE chunk_id = ANY(%(chunk_ids)s) ORDER BY chunk_id FOR KEY SHARE
"""

# One bytea is sent much faster than an array of them.
_INSERT = """
    INSERT INTO {chunks} (chunk_id, data)
    SELECT new.chunk_id, substring(%(data)s FROM new.start + 1 FOR new.size)
    FROM unnest(%(chunk_ids)s::uuid[], %(starts)s::integer[], %(sizes)s::integer[])
        AS new (chunk_id, start, size)
    ON CONFLICT (chunk_id) DO UPDATE SET released = false
"""

# If two transactions stop using a chunk at the same time, the later one waits here, and then sees that it is unused.
_LOCK_TO_RELEASE = """
    SELECT chunk_id FROM {chunks} WHERE chunk_id = ANY(%(chunk_ids)s) ORDER BY chunk_id FOR NO KEY UPDATE
"""

# The operator is qualified, since one for uuid[] in another schema would win over PostgreSQL's own for any array.
_RELEASE_UNUSED = """
    UPDATE {chunks} AS c SET released = true
    WHERE chunk_id = ANY(%(chunk_ids)s) AND NOT EXISTS (
        SELECT FROM {storage} AS s WHERE s.chunk_ids OPERATOR(pg_catalog.@>) ARRAY[c.chunk_id]
    )
"""

_FIND_RELEASED = "SELECT chunk_id FROM {chunks} WHERE released ORDER BY chunk_id LIMIT 1"

# A chunk that is locked is about to be used again, or deleted.
_LOCK_RELEASED = """
    SELECT chunk_id FROM {chunks} WHERE released ORDER BY chunk_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""

_DELETE_UNUSED = """
    DELETE FROM {chunks} AS c
    WHERE chunk_id = ANY(%(chunk_ids)s) AND NOT EXISTS (
        SELECT FROM {storage} AS s WHERE s.chunk_ids OPERATOR(pg_catalog.@>) ARRAY[c.chunk_id]
    )
"""

_UNMARK_USED = "UPDATE {chunks} SET released = false WHERE chunk_id = ANY(%(chunk_ids)s)"


class ChunkStore:
    """The chunks of one database, schema and table prefix."""

    def __init__(self, database: Database) -> None:
        self._lock_existing = database.statement(_LOCK_EXISTING)
        self._insert = database.statement(_INSERT)
        self._lock_to_release = database.statement(_LOCK_TO_RELEASE)
        self._release_unused = database.statement(_RELEASE_UNUSED)
        self._find_released = database.statement(_FIND_RELEASED)
        self._lock_released = database.statement(_LOCK_RELEASED)
        self._delete_unused = database.statement(_DELETE_UNUSED)
        self._unmark_used = database.statement(_UNMARK_USED)

    def lock_existing(self, chunk_ids: Collection[UUID], cursor: Cursor[TupleRow]) -> set[UUID]:
        """Lock those of the chunks that exist until the transaction ends; return their ids."""
        if not chunk_ids:
            return set()
        return {chunk_id for (chunk_id,) in cursor.execute(self._lock_existing, {"chunk_ids": list(chunk_ids)})}

    def insert(self, chunk_ids: list[UUID], chunks: list[memoryview], cursor: Cursor[TupleRow]) -> None:
        """Insert chunks within a pipeline, sorted by id; another transaction may have inserted some meanwhile."""
        if chunk_ids:
            cursor.execute(self._insert, _insert_parameters(chunk_ids, chunks))

    def release(self, chunk_ids: Collection[UUID], cursor: Cursor[TupleRow]) -> Cursor[TupleRow]:
        """Mark those of the chunks that no value uses, within a pipeline.

        Returns:
            A cursor whose result is one released chunk, if there is any; it may be one that another process left.
        """
        if chunk_ids:
            parameters = {"chunk_ids": list(chunk_ids)}
            new_cursor(cursor.connection).execute(self._lock_to_release, parameters)
            new_cursor(cursor.connection).execute(self._release_unused, parameters)
        return new_cursor(cursor.connection).execute(self._find_released)

    def delete_released(self, cursor: Cursor[TupleRow]) -> bool:
        """Delete a batch of released chunks, except those in use; return whether there may be more."""
        locked = [chunk_id for (chunk_id,) in cursor.execute(self._lock_released, {"limit": _BATCH_SIZE})]
        if locked:
            with cursor.connection.pipeline():
                new_cursor(cursor.connection).execute(self._delete_unused, {"chunk_ids": locked})
                new_cursor(cursor.connection).execute(self._unmark_used, {"chunk_ids": locked})
        return len(locked) == _BATCH_SIZE


def _insert_parameters(chunk_ids: list[UUID], chunks: list[memoryview]) -> dict[str, object]:
    sizes = [len(chunk) for chunk in chunks]
    starts = list(accumulate(sizes, initial=0))[:-1]
    return {"chunk_ids": chunk_ids, "data": b"".join(chunks), "starts": starts, "sizes": sizes}
