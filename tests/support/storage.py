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
    SELECT count(*), coalesce(sum(length(data)), 0), count(*) FILTER (WHERE users = 0),
        count(*) FILTER (WHERE reference_count <> users)
    FROM (
        SELECT c.data, c.reference_count, (
            SELECT count(*) FROM {values} AS s WHERE s.{scope} = c.{scope} AND c.chunk_id = ANY(s.chunk_ids)
        ) AS users
        FROM {chunks} AS c
    ) AS c
"""

_SELECT_VALUES = """
    SELECT CASE WHEN {scope} IN ('', 's') THEN key ELSE {scope} || '/' || key END, coalesce(data, (
        SELECT string_agg(c.data, '' ORDER BY ordinal)
        FROM unnest(chunk_ids) WITH ORDINALITY AS item (chunk_id, ordinal) JOIN {chunks} AS c USING (chunk_id)
        WHERE c.{scope} = v.{scope}
    ))
    FROM {values} AS v
"""


class Tables(NamedTuple):
    """A pair of tables, and the column that says which storage their rows belong to."""

    values: str
    chunks: str
    scope: str


SCOPED = Tables("strands_storage", "strands_chunks", "scope")
OF_SESSIONS = Tables("strands_session_storage", "strands_session_chunks", "session_id")


class Chunks(NamedTuple):
    """Counts of the chunks in the table.

    Attributes:
        number: All chunks.
        size: Their bytes.
        unused: Chunks that no value uses.
        miscounted: Chunks whose count is not that of the values that use them.
    """

    number: int
    size: int
    unused: int
    miscounted: int


NO_CHUNKS = Chunks(0, 0, 0, 0)


def chunks(connection: Connection, tables: Tables = SCOPED) -> Chunks:
    """Count the chunks in the table."""
    return Chunks(*(int(number) for number in _select(connection, _COUNT_CHUNKS, tables)[0]))


def values(connection: Connection, tables: Tables = SCOPED) -> dict[str, bytes]:
    """Return every value by its key, after its scope unless that is empty, or its session unless that is ``s``."""
    return dict(_select(connection, _SELECT_VALUES, tables))


def _select(connection: Connection, query: str, tables: Tables) -> list[Any]:
    for name, replacement in tables._asdict().items():
        query = query.replace("{" + name + "}", replacement)
    return connection.execute(query.encode()).fetchall()
