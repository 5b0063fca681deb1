"""Reading, listing and searching the table of values."""

from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import TupleRow

from strands_psycopg.database import Database, iso_time
from strands_psycopg.errors import DatabaseError, owner_error
from strands_psycopg.storage.scope import MAX_KEY_SIZE, Scope
from strands_psycopg.storage.seen_writes import MISSING, SeenWrites

# Sorts after every key; appended to a prefix, after every key that begins with the prefix.
_AFTER_ALL_KEYS = "\U0010ffff" * (MAX_KEY_SIZE // 4 + 1)

# Whether the value s has not expired.
CURRENT = "(s.expires_at IS NULL OR s.expires_at > pg_catalog.now())"

# When a value in the alias s was written, and when it expires.
TIMES = iso_time("s.updated_at") + " AS updated_at, " + iso_time("s.expires_at") + " AS expires_at"

# The value s, whose chunks the server joins.
WHOLE_VALUE = """
    coalesce(s.data, (
        SELECT pg_catalog.string_agg(c.data, ''::bytea ORDER BY item.ordinal)
        FROM pg_catalog.unnest(s.chunk_ids) WITH ORDINALITY AS item (chunk_id, ordinal)
        JOIN {chunks} AS c ON c.{scope} = %(scope)s AND c.chunk_id = item.chunk_id
    ))
"""

# The value, and a row for each of its chunks, whose size is -1: joining them here is faster than on the server.
_READ = """
    SELECT {refused}, found.size, found.data, found.write_id, found.chunk_ids
    FROM {checked} (
        SELECT s.size, s.data, s.write_id, s.chunk_ids FROM {values} AS s
        WHERE s.{scope} = %(scope)s AND s.key = %(key)s AND {current}
    ) AS found {if_allowed}
    UNION ALL
    SELECT false, -1, c.data, c.chunk_id, NULL FROM {chunks} AS c
    WHERE c.{scope} = %(scope)s AND c.chunk_id = ANY((
        SELECT s.chunk_ids FROM {values} AS s
        WHERE s.{scope} = %(scope)s AND s.key = %(key)s AND {current} AND {owned}
    )::uuid[])
""".replace("{current}", CURRENT)

_LIST = """
    SELECT {refused}, found.key
    FROM {checked} (
        SELECT s.key FROM {values} AS s
        WHERE s.{scope} = %(scope)s AND s.key >= %(prefix)s AND s.key < %(end)s AND {current}
    ) AS found {if_allowed}
    ORDER BY found.key
""".replace("{current}", CURRENT)

_LIST_SUMMARIES = """
    SELECT {refused}, found.key, found.size, found.updated_at, found.expires_at
    FROM {checked} (
        SELECT s.key, s.size, {times}
        FROM {values} AS s
        WHERE s.{scope} = %(scope)s AND s.key >= %(prefix)s AND s.key < %(end)s AND {current}
    ) AS found {if_allowed}
    ORDER BY found.key
""".replace("{current}", CURRENT).replace("{times}", TIMES)

_SEARCH = """
    SELECT {refused}, s.key, s.score, s.size, {whole_value}
    FROM {checked} (
        SELECT s.key, s.data, s.chunk_ids, s.size, pg_catalog.ts_rank(s.search_vector, query) AS score
        FROM {values} AS s, pg_catalog.to_tsquery(%(configuration)s::regconfig, %(query)s) AS query
        WHERE s.{scope} = %(scope)s AND s.search_vector @@ query AND s.key >= %(prefix)s AND s.key < %(end)s
            AND {current}
        ORDER BY score DESC, s.key LIMIT %(limit)s
    ) AS s {if_allowed}
    ORDER BY s.score DESC, s.key
""".replace("{current}", CURRENT).replace("{whole_value}", WHOLE_VALUE)


@dataclass(frozen=True)
class SearchHit:
    """A value that a search found.

    Attributes:
        key: Its key.
        score: Its rank by PostgreSQL's ``ts_rank``; higher is better.
        data: The value itself.
    """

    key: str
    score: float
    data: bytes


@dataclass(frozen=True)
class ValueSummary:
    """A value in a list.

    Attributes:
        key: Its key.
        size: Its size in bytes, as it is stored.
        updated_at: When it was written, in UTC as ISO 8601.
        expires_at: When it expires, in the same form; None if it does not.
    """

    key: str
    size: int
    updated_at: str
    expires_at: str | None


class ValueReader:
    """Reads the values of one storage.

    Args:
        database: Where the tables are.
        scope: Which values they are.
        text_search_config: PostgreSQL's text search configuration for queries.
        seen: Where to remember which values have been read, if that is wanted.
    """

    def __init__(self, database: Database, scope: Scope, *, text_search_config: str, seen: SeenWrites | None) -> None:
        self._database = database
        self._scope = scope
        self._configuration = text_search_config
        self._seen = seen
        self._read = scope.compose(database, _READ)
        self._list = scope.compose(database, _LIST)
        self._list_summaries = scope.compose(database, _LIST_SUMMARIES)
        self._search = scope.compose(database, _SEARCH)

    def read(self, key: str) -> bytes | None:
        """Return a value, or None if there is none, and remember its write id.

        Raises:
            SessionOwnerError: The session belongs to another owner.
            DatabaseError: Chunks of the value are missing.
            StrandsPsycopgError: As ``Database.fetch``.
        """
        operation = f"reading {self._scope.describe(key)}"
        last = self._seen.last(key) if self._seen is not None else None
        result = self._database.fetch(operation, self._read, self._scope.parameters | {"key": key}, binary=True)
        rows = allowed(operation, self._scope, result.rows)
        data, write_id = _joined(operation, rows) if rows else (None, MISSING)
        if self._seen is not None:
            self._seen.refresh(key, write_id, last=last)
        return data

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, sorted.

        Raises:
            SessionOwnerError: The session belongs to another owner.
            StrandsPsycopgError: As ``Database.fetch``.
        """
        operation = f"listing {self._scope.describe(prefix)}"
        result = self._database.fetch(operation, self._list, self._scope.parameters | key_range(prefix))
        return [key for (key,) in allowed(operation, self._scope, result.rows)]

    def summaries(self, prefix: str) -> list[ValueSummary]:
        """Return the values whose keys begin with a prefix, sorted by key.

        Raises:
            StrandsPsycopgError: As ``keys``.
        """
        operation = f"listing {self._scope.describe(prefix)}"
        result = self._database.fetch(operation, self._list_summaries, self._scope.parameters | key_range(prefix))
        return [ValueSummary(*row) for row in allowed(operation, self._scope, result.rows)]

    def search(self, prefix: str, query: str, limit: int) -> list[SearchHit]:
        """Return up to ``limit`` values that match a ``tsquery`` and whose keys begin with a prefix, best match first.

        Raises:
            SessionOwnerError: The session belongs to another owner.
            DatabaseError: Chunks of a value are missing.
            StrandsPsycopgError: As ``Database.fetch``.
        """
        operation = f"searching {self._scope.describe(prefix)}"
        parameters = self._scope.parameters | key_range(prefix)
        parameters |= {"query": query, "configuration": self._configuration, "limit": limit}
        # Not prepared: whether the index of keys or that of words is faster depends on the parameters.
        result = self._database.fetch(operation, self._search, parameters, binary=True, prepare=False)
        rows = allowed(operation, self._scope, result.rows)
        return [SearchHit(key, score, complete(operation, size, data)) for key, score, size, data in rows]


def key_range(prefix: str) -> dict[str, object]:
    """Return the parameters of a statement about keys that begin with a prefix: from ``prefix`` up to ``end``."""
    return {"prefix": prefix, "end": prefix + _AFTER_ALL_KEYS}


def allowed(operation: str, scope: Scope, rows: list[TupleRow]) -> list[TupleRow]:
    """Return what was found by a statement whose first column is ``{refused}``, without that column.

    Raises:
        SessionOwnerError: The session belongs to another owner.
    """
    if rows and rows[0][0]:
        raise owner_error(operation, scope.id)
    # If nothing was found, a statement that checks the owner returns a row of NULLs.
    return [row[1:] for row in rows if row[1] is not None]


def _joined(operation: str, rows: list[TupleRow]) -> tuple[bytes, UUID]:
    """Return the data and the write id of a value that was read."""
    ((size, data, write_id, chunk_ids),) = (row for row in rows if row[0] >= 0)
    if chunk_ids is not None:
        chunks = {chunk_id: chunk for row_size, chunk, chunk_id, _ in rows if row_size < 0}
        data = b"".join(chunks.get(chunk_id, b"") for chunk_id in chunk_ids)
    return complete(operation, size, data), write_id


def complete(operation: str, size: int, data: bytes | None) -> bytes:
    """Return the data of a value if it has the size that it was written with."""
    if data is None or len(data) != size:
        raise DatabaseError(f"{operation}: chunks of the value are missing; restore the table of chunks from a backup")
    return data
