"""Rows of pieces: taken into use by values, given up, and removed when nothing uses them.

All of it happens in transactions of others, who lock the row of the value first, if there is one, and then pieces in
the order of their ids, statement by statement; the next one must see what was committed while one waited. Two that
store the same pieces under new keys, or take up what the other gives up, can still wait for each other. Then the server
ends one, and it is tried again.
"""

from collections.abc import Collection
from itertools import accumulate
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow, tuple_row

from strands_psycopg.database import Database

# How many released pieces are removed in one transaction.
_COLLECTED = 1000

# In order, so that two of these do not wait for each other.
_KEEP = """
    SELECT piece_id FROM {pieces} WHERE piece_id = ANY(%(piece_ids)s) ORDER BY piece_id FOR KEY SHARE
"""

# One string of bytes is sent much faster than an array of them.
_ADD = """
    INSERT INTO {pieces} (piece_id, data)
    SELECT new.piece_id, substring(%(data)s FROM new.start + 1 FOR new.size)
    FROM unnest(%(piece_ids)s::uuid[], %(starts)s::integer[], %(sizes)s::integer[]) AS new (piece_id, start, size)
    ON CONFLICT (piece_id) DO UPDATE SET released = false
"""

# Of two transactions that cease to use a piece at once, the later one waits here, and sees then that nobody does.
_LEAVE = """
    SELECT piece_id FROM {pieces} WHERE piece_id = ANY(%(piece_ids)s) ORDER BY piece_id FOR NO KEY UPDATE
"""

_RELEASE = """
    UPDATE {pieces} AS p SET released = true
    WHERE piece_id = ANY(%(piece_ids)s) AND NOT EXISTS (
        SELECT FROM {storage} AS s WHERE s.pieces @> ARRAY[p.piece_id]
    )
"""

_IS_ANY_RELEASED = "SELECT piece_id FROM {pieces} WHERE released ORDER BY piece_id LIMIT 1"

# Those that are locked are being used again, or removed.
_TAKE_RELEASED = """
    SELECT piece_id FROM {pieces} WHERE released ORDER BY piece_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""

_DISCARD = """
    DELETE FROM {pieces} AS p
    WHERE piece_id = ANY(%(piece_ids)s) AND NOT EXISTS (
        SELECT FROM {storage} AS s WHERE s.pieces @> ARRAY[p.piece_id]
    )
"""

_RETAIN = "UPDATE {pieces} SET released = false WHERE piece_id = ANY(%(piece_ids)s)"


class Stock:
    """The pieces of one database, schema and prefix of tables."""

    def __init__(self, database: Database) -> None:
        self._keep = database.statement(_KEEP)
        self._add = database.statement(_ADD)
        self._leave = database.statement(_LEAVE)
        self._release = database.statement(_RELEASE)
        self._is_any_released = database.statement(_IS_ANY_RELEASED)
        self._take_released = database.statement(_TAKE_RELEASED)
        self._discard = database.statement(_DISCARD)
        self._retain = database.statement(_RETAIN)

    def keep(self, piece_ids: Collection[UUID], cursor: Cursor[TupleRow]) -> set[UUID]:
        """Keep those of the pieces that there are until the transaction ends, and give their ids."""
        if not piece_ids:
            return set()
        return {piece_id for (piece_id,) in cursor.execute(self._keep, {"piece_ids": list(piece_ids)})}

    def add(self, piece_ids: list[UUID], pieces: list[memoryview], cursor: Cursor[TupleRow]) -> None:
        """Store pieces, whose ids are sorted; in a pipeline. Another may have stored one meanwhile."""
        if piece_ids:
            cursor.execute(self._add, _joined(piece_ids, pieces))

    def leave(self, piece_ids: Collection[UUID], cursor: Cursor[TupleRow]) -> Cursor[TupleRow]:
        """Mark those of the pieces that nothing uses any more, in a pipeline; the cursor finds one that is marked.

        It may be one that another process has left so.
        """
        if piece_ids:
            left = {"piece_ids": list(piece_ids)}
            another(cursor).execute(self._leave, left)
            another(cursor).execute(self._release, left)
        return another(cursor).execute(self._is_any_released)

    def collect(self, cursor: Cursor[TupleRow]) -> bool:
        """Remove released pieces that no value uses; tell whether there may be more of them."""
        taken = [piece_id for (piece_id,) in cursor.execute(self._take_released, {"limit": _COLLECTED})]
        if taken:
            with cursor.connection.pipeline():
                another(cursor).execute(self._discard, {"piece_ids": taken})
                another(cursor).execute(self._retain, {"piece_ids": taken})
        return len(taken) == _COLLECTED


def another(cursor: Cursor[TupleRow]) -> Cursor[TupleRow]:
    """Give a cursor like this one, for a further result of a pipeline."""
    return Cursor(cursor.connection, row_factory=tuple_row)


def _joined(piece_ids: list[UUID], pieces: list[memoryview]) -> dict[str, object]:
    sizes = [len(piece) for piece in pieces]
    starts = list(accumulate(sizes, initial=0))[:-1]
    return {"piece_ids": piece_ids, "data": b"".join(pieces), "starts": starts, "sizes": sizes}
