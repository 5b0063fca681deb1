"""Export and import of memories as JSON lines, one memory a line.

A line is ASCII and JSON that any program can read: ``memory_id``, ``content``, ``metadata``, ``created_at``,
``updated_at``, and ``embedding`` if the memory has one. If metadata contains values that programs read differently
(NaN, -0.0, ...), ``metadata_exact`` contains its exact text, as in exports of sessions. ``duplicate`` is true if the
same text was stored again on purpose.
"""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any
from uuid import UUID, uuid4

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.codec import decode, encode
from strands_psycopg.database import Database
from strands_psycopg.memory.embedding import VectorError, encode_vector
from strands_psycopg.memory.entry import (
    COLUMN_COUNT,
    COLUMNS,
    content_parameters,
    metadata_parameters,
    parse_memory_id,
    read_memory,
)
from strands_psycopg.memory.vectors import ADD_VECTOR, Vectors, compose

_Row = dict[str, object]

_BATCH = 200

# In seconds, for one batch.
_RESPONSE_TIMEOUT = 600.0

_OF_BATCH = """
    FROM {memories} AS m
    WHERE m.owner = %(owner)s AND m.store = %(store)s AND (%(after)s::uuid IS NULL OR m.memory_id > %(after)s::uuid)
    ORDER BY m.memory_id LIMIT %(limit)s
"""

_EXPORT = "SELECT " + COLUMNS + ", m.content_hash = m.memory_id, NULL::text" + _OF_BATCH

_EXPORT_WITH_VECTORS = (
    "SELECT "
    + COLUMNS
    + """, m.content_hash = m.memory_id, (
        SELECT v.embedding::text FROM {memory_vectors} AS v
        WHERE v.owner = %(owner)s AND v.store = %(store)s AND v.memory_id = m.memory_id
    )"""
    + _OF_BATCH
)

_IMPORT = """
    INSERT INTO {memories} (
        owner, store, memory_id, content, content_exact, content_hash, metadata, metadata_exact, search_vector,
        write_id, created_at, updated_at
    )
    SELECT %(owner)s, %(store)s, %(memory_id)s, %(content)s, %(content_exact)s, %(content_hash)s,
        %(metadata)s::jsonb, %(metadata_exact)s, pg_catalog.to_tsvector(%(configuration)s::regconfig, %(text)s),
        %(write_id)s, %(created_at)s, %(updated_at)s
    ON CONFLICT DO NOTHING
    RETURNING true
"""


class LineError(ValueError):
    """A line is not in the expected format."""


def parse_line(line: str, dimensions: int | None) -> _Row:
    """Return the parameters of the memory on a line.

    Args:
        line: The line.
        dimensions: The number of dimensions that its vector must have; None if vectors are left out.

    Raises:
        LineError: It is not in the expected format; the error does not quote it.
    """
    try:
        record: dict[str, Any] = json.loads(line)
        memory_id = parse_memory_id(record["memory_id"])
        exact = record.get("metadata_exact")
        metadata = None
        if record["metadata"] is not None:
            metadata = decode("null", exact) if exact is not None else decode(json.dumps(record["metadata"]), None)
        row = content_parameters(record["content"]) | metadata_parameters(metadata)
        vector = record.get("embedding") if dimensions is not None else None
        row |= {
            "memory_id": memory_id,
            "created_at": _parse_time(record["created_at"]),
            "updated_at": _parse_time(record["updated_at"]),
            "embedding": None if vector is None else encode_vector(vector, dimensions or 0),
        }
    except KeyError as error:
        raise LineError(f"the key {error} is missing") from None
    except RecursionError:
        raise LineError("it is nested too deeply") from None
    except json.JSONDecodeError:
        raise LineError("it is not JSON") from None
    except VectorError as error:
        raise LineError(str(error)) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise LineError(f"it is not a memory: {type(error).__name__}") from None
    if record.get("duplicate") is True:
        row["content_hash"] = memory_id
    return row


def _parse_time(text: str) -> datetime:
    # Python parses the suffix Z only since 3.11.
    time = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    if time.tzinfo is None:
        raise ValueError("a time has no offset")
    return min(time, datetime.now(timezone.utc))


def _format_line(row: TupleRow) -> str:
    memory = read_memory(row)
    duplicate, vector = row[COLUMN_COUNT:]
    parts = [f'"memory_id": "{memory.memory_id}"', f'"content": {json.dumps(memory.content)}']
    if memory.metadata is None:
        parts.append('"metadata": null')
    else:
        text, exact = encode(memory.metadata)
        parts.append(f'"metadata": {text}')
        # The JSON text above already has the order of keys.
        if exact is not None and not exact.startswith("order "):
            parts.append(f'"metadata_exact": {json.dumps(exact)}')
    parts += [f'"created_at": "{memory.created_at}"', f'"updated_at": "{memory.updated_at}"']
    if duplicate:
        parts.append('"duplicate": true')
    if vector is not None:
        parts.append(f'"embedding": {vector}')
    return "{" + ", ".join(parts) + "}"


class JsonLines:
    """Exports and imports the memories of one owner in one store.

    Args:
        database: Where the tables are.
        owner: The owner; empty if there is none.
        store: The name of the store.
        text_search_config: PostgreSQL's text search configuration.
    """

    def __init__(self, database: Database, *, owner: str, store: str, text_search_config: str) -> None:
        self._database = database
        self._key: _Row = {"owner": owner, "store": store, "configuration": text_search_config}
        self._store = store

    def batch(self, after: UUID | None, vectors: Vectors | None) -> tuple[list[str], UUID | None]:
        """Return lines of the memories after an id, oldest first, and the id to continue after; None at the end."""
        statement = compose(self._database, vectors, _EXPORT if vectors is None else _EXPORT_WITH_VECTORS)
        row = self._key | {"after": after, "limit": Int8(_BATCH)}
        rows = self._database.fetch(f"exporting memory store {self._store!r}", statement, row, prepare=False).rows
        return [_format_line(each) for each in rows], UUID(rows[-1][0]) if len(rows) == _BATCH else None

    def store(self, rows: Sequence[_Row], vectors: Vectors | None) -> int:
        """Store memories that have neither the id nor the text of a stored one, all in one transaction.

        Args:
            rows: Their parameters.
            vectors: The table of vectors, if those that have vectors keep them.

        Returns:
            The number of stored memories.
        """
        statement = self._database.statement(_IMPORT)
        parameters = [self._key | {"write_id": uuid4()} | row for row in rows]

        def work(cursor: Cursor[TupleRow]) -> int:
            cursor.executemany(statement, parameters, returning=True)
            stored = []
            for row in parameters:
                if cursor.fetchall():
                    stored.append(row)
                cursor.nextset()
            if vectors is not None:
                with_vectors = [row for row in stored if row["embedding"] is not None]
                cursor.executemany(compose(self._database, vectors, ADD_VECTOR), with_vectors)
            return len(stored)

        operation = f"importing into memory store {self._store!r}"
        return self._database.transact(operation, work, response_timeout=_RESPONSE_TIMEOUT)


def line_batches(lines: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Split numbered lines into lists of the size of a transaction; blank lines are left out."""
    batch = []
    for number, line in lines:
        if line.strip():
            batch.append((number, line))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
