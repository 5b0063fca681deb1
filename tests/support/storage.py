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
        WHERE NOT EXISTS (SELECT FROM strands_storage AS s WHERE p.chunk_id = ANY(s.chunks))
    ), count(*) FILTER (WHERE released)
    FROM strands_chunks AS p
"""

_VALUES = """
    SELECT key, coalesce(data, (
        SELECT string_agg(p.data, '' ORDER BY number)
        FROM unnest(chunks) WITH ORDINALITY AS part (chunk_id, number) JOIN strands_chunks AS p USING (chunk_id)
    ))
    FROM strands_storage
"""


class Chunks(NamedTuple):
    """What is in the table of chunks.

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


NONE = Chunks(0, 0, 0, 0)


def chunks(connection: Connection) -> Chunks:
    """Read the table of chunks."""
    return Chunks(*(int(number) for number in connection.execute(_PIECES).fetchall()[0]))


def values(connection: Connection) -> dict[str, bytes]:
    """Read every value by its key."""
    return dict(connection.execute(_VALUES).fetchall())
