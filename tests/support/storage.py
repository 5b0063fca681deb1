"""Whether Strands has storages, which older versions do not, and the contents of the tables of ours."""

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

_COUNT_CHUNKS = """
    SELECT count(*), coalesce(sum(length(data)), 0), count(*) FILTER (
        WHERE NOT EXISTS (SELECT FROM strands_storage AS s WHERE c.chunk_id = ANY(s.chunk_ids))
    ), count(*) FILTER (WHERE released)
    FROM strands_chunks AS c
"""

_SELECT_VALUES = """
    SELECT key, coalesce(data, (
        SELECT string_agg(c.data, '' ORDER BY ordinal)
        FROM unnest(chunk_ids) WITH ORDINALITY AS item (chunk_id, ordinal) JOIN strands_chunks AS c USING (chunk_id)
    ))
    FROM strands_storage
"""


class Chunks(NamedTuple):
    """Counts of the chunks in the table.

    Attributes:
        number: All chunks.
        size: Their bytes.
        unused: Chunks that no value uses.
        released: Chunks that are marked as released.
    """

    number: int
    size: int
    unused: int
    released: int


NO_CHUNKS = Chunks(0, 0, 0, 0)


def chunks(connection: Connection) -> Chunks:
    """Count the chunks in the table."""
    return Chunks(*(int(number) for number in connection.execute(_COUNT_CHUNKS).fetchall()[0]))


def values(connection: Connection) -> dict[str, bytes]:
    """Return every value by its key."""
    return dict(connection.execute(_SELECT_VALUES).fetchall())
