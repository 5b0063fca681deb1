"""Rows of chunks: taken into use by values, given up, and removed when nothing uses them.

All of it happens in transactions of others, who lock the row of the value first, if there is one, and then chunks in
the order of their ids, statement by statement; the next one must see what was committed while one waited. Two that
store the same chunks under new keys, or take up what the other gives up, can still wait for each other. Then the server
ends one, and it is tried again.
"""

from collections.abc import Collection
from itertools import accumulate
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow, tuple_row

from strands_psycopg.database import Database

# How many released chunks are removed in one transaction.
_BATCH = 1000

# In order, so that two of these do not wait for each other.
_LOCK_EXISTING = """
    SELECT chunk_id FROM {chunks} WHERE chunk_id = ANY(%(chunk_ids)s) ORDER BY chunk_id FOR KEY SHARE
"""

# One string of bytes is sent much faster than an array of them.
_INSERT = """
    INSERT INTO {chunks} (chunk_id, data)
    SELECT new.chunk_id, substring(%(data)s FROM new.start + 1 FOR new.size)
    FROM unnest(%(chunk_ids)s::uuid[], %(starts)s::integer[], %(sizes)s::integer[]) AS new (chunk_id, start, size)
    ON CONFLICT (chunk_id) DO UPDATE SET released = false
"""

# Of two transactions that cease to use a chunk at once, the later one waits here, and sees then that nobody does.
_LOCK_UNUSED = """
    SELECT chunk_id FROM {chunks} WHERE chunk_id = ANY(%(chunk_ids)s) ORDER BY chunk_id FOR NO KEY UPDATE
"""

_RELEASE = """
    UPDATE {chunks} AS p SET released = true
    WHERE chunk_id = ANY(%(chunk_ids)s) AND NOT EXISTS (
        SELECT FROM {storage} AS s WHERE s.chunks @> ARRAY[p.chunk_id]
    )
"""

_IS_ANY_RELEASED = "SELECT chunk_id FROM {chunks} WHERE released ORDER BY chunk_id LIMIT 1"

# Those that are locked are being used again, or removed.
_LOCK_RELEASED = """
    SELECT chunk_id FROM {chunks} WHERE released ORDER BY chunk_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""

_DELETE = """
    DELETE FROM {chunks} AS p
    WHERE chunk_id = ANY(%(chunk_ids)s) AND NOT EXISTS (
        SELECT FROM {storage} AS s WHERE s.chunks @> ARRAY[p.chunk_id]
    )
"""

_KEEP_USED = "UPDATE {chunks} SET released = false WHERE chunk_id = ANY(%(chunk_ids)s)"


class ChunkStore:
    """The chunks of one database, schema and prefix of tables."""

    def __init__(self, database: Database) -> None:
        self._lock_existing = database.statement(_LOCK_EXISTING)
        self._insert = database.statement(_INSERT)
        self._lock_unused = database.statement(_LOCK_UNUSED)
        self._release = database.statement(_RELEASE)
        self._is_any_released = database.statement(_IS_ANY_RELEASED)
        self._lock_released = database.statement(_LOCK_RELEASED)
        self._delete = database.statement(_DELETE)
        self._keep_used = database.statement(_KEEP_USED)

    def lock_existing(self, chunk_ids: Collection[UUID], cursor: Cursor[TupleRow]) -> set[UUID]:
        """Keep those of the chunks that there are until the transaction ends, and give their ids."""
        if not chunk_ids:
            return set()
        return {chunk_id for (chunk_id,) in cursor.execute(self._lock_existing, {"chunk_ids": list(chunk_ids)})}

    def insert(self, chunk_ids: list[UUID], chunks: list[memoryview], cursor: Cursor[TupleRow]) -> None:
        """Store chunks, whose ids are sorted; in a pipeline. Another may have stored one meanwhile."""
        if chunk_ids:
            cursor.execute(self._insert, _joined(chunk_ids, chunks))

    def release(self, chunk_ids: Collection[UUID], cursor: Cursor[TupleRow]) -> Cursor[TupleRow]:
        """Mark those of the chunks that nothing uses any more, in a pipeline; the cursor finds one that is marked.

        It may be one that another process has left so.
        """
        if chunk_ids:
            left = {"chunk_ids": list(chunk_ids)}
            new_cursor(cursor).execute(self._lock_unused, left)
            new_cursor(cursor).execute(self._release, left)
        return new_cursor(cursor).execute(self._is_any_released)

    def delete_released(self, cursor: Cursor[TupleRow]) -> bool:
        """Remove released chunks that no value uses; tell whether there may be more of them."""
        taken = [chunk_id for (chunk_id,) in cursor.execute(self._lock_released, {"limit": _BATCH})]
        if taken:
            with cursor.connection.pipeline():
                new_cursor(cursor).execute(self._delete, {"chunk_ids": taken})
                new_cursor(cursor).execute(self._keep_used, {"chunk_ids": taken})
        return len(taken) == _BATCH


def new_cursor(cursor: Cursor[TupleRow]) -> Cursor[TupleRow]:
    """Give a cursor like this one, for a further result of a pipeline."""
    return Cursor(cursor.connection, row_factory=tuple_row)


def _joined(chunk_ids: list[UUID], chunks: list[memoryview]) -> dict[str, object]:
    sizes = [len(chunk) for chunk in chunks]
    starts = list(accumulate(sizes, initial=0))[:-1]
    return {"chunk_ids": chunk_ids, "data": b"".join(chunks), "starts": starts, "sizes": sizes}
