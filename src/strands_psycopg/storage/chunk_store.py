"""The table of chunks, each of which counts the values that use it: the last value to stop using it deletes it.

Each method is part of the caller's transaction, which has locked the row of the value, if there is one. So the counts
and the values change together. Chunks are locked in the order of their ids, by a statement of its own, since the next
statement must see what was committed while this one waited. Two transactions can still deadlock if they insert the
same chunks under new keys. The server then aborts one of them, and it is retried.
"""

from collections.abc import Collection, Mapping, Set
from itertools import accumulate
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.database import Database, new_cursor
from strands_psycopg.storage.scope import Scope

# In the order of ids, so that two of these statements cannot deadlock.
_LOCK = """
    SELECT chunk_id, reference_count FROM {chunks} WHERE {scope} = %(scope)s AND chunk_id = ANY(%(chunk_ids)s::uuid[])
    ORDER BY chunk_id FOR UPDATE
"""

_LOCK_WITH_VALUE = """
    SELECT chunk_id, reference_count FROM {chunks}
    WHERE {scope} = %(scope)s AND chunk_id = ANY(%(chunk_ids)s::uuid[] || (
        SELECT chunk_ids FROM {values} WHERE {scope} = %(scope)s AND key = %(key)s
    ))
    ORDER BY chunk_id FOR UPDATE
"""

_ADD_REFERENCES = """
    UPDATE {chunks} SET reference_count = reference_count + 1
    WHERE {scope} = %(scope)s AND chunk_id = ANY(%(chunk_ids)s)
    RETURNING true
"""

# One bytea is sent much faster than an array of them. The count of a new chunk is 1.
_INSERT = """
    INSERT INTO {chunks} AS c ({scope}, chunk_id, data)
    SELECT %(scope)s::text, new.chunk_id, substring(%(data)s FROM new.start + 1 FOR new.size)
    FROM unnest(%(chunk_ids)s::uuid[], %(starts)s::integer[], %(sizes)s::integer[])
        AS new (chunk_id, start, size)
    WHERE {session_locked}
    ON CONFLICT ({scope}, chunk_id) DO UPDATE SET reference_count = c.reference_count + 1
    RETURNING true
"""

_DELETE_UNUSED = """
    DELETE FROM {chunks}
    WHERE {scope} = %(scope)s AND chunk_id = ANY(%(chunk_ids)s) AND reference_count <= %(number)s::integer
"""

_REMOVE_REFERENCES = """
    UPDATE {chunks} SET reference_count = reference_count - %(number)s::integer
    WHERE {scope} = %(scope)s AND chunk_id = ANY(%(chunk_ids)s)
"""


class ChunkStore:
    """The chunks of one storage."""

    def __init__(self, database: Database, scope: Scope) -> None:
        self._scope = scope
        self._lock = scope.compose(database, _LOCK)
        self._lock_with_value = scope.compose(database, _LOCK_WITH_VALUE)
        self._add_references = scope.compose(database, _ADD_REFERENCES)
        self._insert = scope.compose(database, _INSERT)
        self._delete_unused = scope.compose(database, _DELETE_UNUSED)
        self._remove_references = scope.compose(database, _REMOVE_REFERENCES)

    def lock_with_value(self, chunk_ids: Collection[UUID], key: str) -> tuple[bytes, dict[str, object]]:
        """Return the statement that locks those of the chunks that exist, and those of a value, with its parameters.

        Its rows are chunk ids with reference counts. The value must be locked before.
        """
        return self._lock_with_value, self._parameters(chunk_ids) | {"key": key}

    def add(
        self, chunks: Mapping[UUID, memoryview], existing: Set[UUID], cursor: Cursor[TupleRow]
    ) -> list[Cursor[TupleRow]]:
        """Count one more value that uses chunks, within a pipeline; insert those that do not exist.

        Args:
            chunks: The chunks by their ids.
            existing: Those of them that exist and are locked; another transaction may insert others meanwhile.
            cursor: A cursor of the transaction.

        Returns:
            Cursors whose results have a row for each chunk.
        """
        statements = []
        if known := chunks.keys() & existing:
            statements.append((self._add_references, self._parameters(known)))
        if new := sorted(chunks.keys() - existing):
            parameters = self._parameters(new) | _insert_parameters([chunks[chunk_id] for chunk_id in new])
            statements.append((self._insert, parameters))
        return [new_cursor(cursor.connection).execute(*statement) for statement in statements]

    def release(self, references: Mapping[UUID, int], cursor: Cursor[TupleRow]) -> int:
        """Count values that no longer use chunks; return how many chunks were deleted, since no other value uses them.

        Args:
            references: How many values no longer use each of the chunks.
            cursor: A cursor of the transaction.
        """
        if not references:
            return 0
        counts: dict[UUID, int] = dict(cursor.execute(self._lock, self._parameters(references.keys())).fetchall())
        with cursor.connection.pipeline():
            deletions = self.release_locked(references, counts, cursor)
        return sum(each.rowcount for each in deletions)

    def release_locked(
        self, references: Mapping[UUID, int], counts: Mapping[UUID, int], cursor: Cursor[TupleRow]
    ) -> list[Cursor[TupleRow]]:
        """Do what ``release`` does, for chunks that are locked and within a pipeline.

        Args:
            references: As in ``release``.
            counts: The reference counts of those of the chunks that exist.
            cursor: A cursor of the transaction.

        Returns:
            Cursors whose row counts are those of deleted chunks.
        """
        deletions = []
        for number in set(references.values()):
            existing = [key for key, value in references.items() if value == number and key in counts]
            unused = [key for key in existing if counts[key] <= number]
            used = [key for key in existing if counts[key] > number]
            if unused:
                parameters = self._parameters(unused) | {"number": number}
                deletions.append(new_cursor(cursor.connection).execute(self._delete_unused, parameters))
            if used:
                parameters = self._parameters(used) | {"number": number}
                new_cursor(cursor.connection).execute(self._remove_references, parameters)
        return deletions

    def _parameters(self, chunk_ids: Collection[UUID]) -> dict[str, object]:
        return self._scope.parameters | {"chunk_ids": list(chunk_ids)}


def _insert_parameters(chunks: list[memoryview]) -> dict[str, object]:
    sizes = [len(chunk) for chunk in chunks]
    starts = list(accumulate(sizes, initial=0))[:-1]
    return {"data": b"".join(chunks), "starts": starts, "sizes": sizes}
