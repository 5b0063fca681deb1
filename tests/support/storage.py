"""Strands' storages, which older versions of Strands do not have, and what the tables of ours hold."""

from typing import Any, NamedTuple

import psycopg
import pytest

try:
    import strands.storage.search as _search
except ImportError:
    _search = None  # type: ignore[assignment]

has_storage = _search is not None
needs_storage = pytest.mark.skipif(not has_storage, reason="strands-agents before 1.54 has no storage with a search")

Connection = psycopg.Connection[Any]

_PIECES = """
    SELECT count(*), coalesce(sum(length(data)), 0), count(*) FILTER (
        WHERE NOT EXISTS (SELECT FROM strands_storage AS s WHERE p.piece_id = ANY(s.pieces))
    ), count(*) FILTER (WHERE released)
    FROM strands_pieces AS p
"""

_VALUES = """
    SELECT key, coalesce(data, (
        SELECT string_agg(p.data, '' ORDER BY number)
        FROM unnest(pieces) WITH ORDINALITY AS part (piece_id, number) JOIN strands_pieces AS p USING (piece_id)
    ))
    FROM strands_storage
"""


class Pieces(NamedTuple):
    """What is in the table of pieces.

    Attributes:
        number: How many.
        size: How many bytes they have.
        unused: How many of them no value uses.
        released: How many are marked as released.
    """

    number: int
    size: int
    unused: int
    released: int


NONE = Pieces(0, 0, 0, 0)


def pieces(connection: Connection) -> Pieces:
    """Read the table of pieces."""
    return Pieces(*(int(number) for number in connection.execute(_PIECES).fetchall()[0]))


def values(connection: Connection) -> dict[str, bytes]:
    """Read every value by its key."""
    return dict(connection.execute(_VALUES).fetchall())
