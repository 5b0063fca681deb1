"""Vectors for memories that were stored without one, as by a store that searches by words only."""

from typing import NamedTuple
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.binary_parameter import BinaryParameter
from strands_psycopg.codec import decode
from strands_psycopg.database import Database
from strands_psycopg.memory.vectors import Vectors, compose

_Row = dict[str, object]

_BATCH = 100

_FIND = """
    SELECT m.memory_id, m.content, m.content_exact, m.write_id FROM {memories} AS m
    WHERE m.owner = %(owner)s AND m.store = %(store)s
        AND (%(after)s::uuid IS NULL OR m.memory_id > %(after)s::uuid)
        AND NOT EXISTS (
            SELECT true FROM {memory_vectors} AS v
            WHERE v.owner = %(owner)s AND v.store = %(store)s AND v.memory_id = m.memory_id
        )
    ORDER BY m.memory_id LIMIT %(limit)s
"""

# A memory that was edited or forgotten since it was read does not get the vector of its old text.
_STORE = """
    INSERT INTO {memory_vectors} (owner, store, memory_id, embedding)
    SELECT %(owner)s, %(store)s, m.memory_id, %(embedding)s::public.vector::public.halfvec FROM {memories} AS m
    WHERE m.owner = %(owner)s AND m.store = %(store)s AND m.memory_id = %(memory_id)s AND m.write_id = %(write_id)s
    FOR SHARE
    ON CONFLICT (owner, store, memory_id) DO NOTHING
    RETURNING true
"""


class Text(NamedTuple):
    """The text of a memory without a vector.

    Attributes:
        memory_id: The id of the memory.
        content: The text.
        write_id: The write id of the last write to the memory.
    """

    memory_id: UUID
    content: str
    write_id: UUID


class MissingVectors:
    """Finds the memories of one owner and store that have no vector, and stores one for them.

    Args:
        database: Where the tables are.
        owner: The owner; empty if there is none.
        store: The name of the store.
    """

    def __init__(self, database: Database, *, owner: str, store: str) -> None:
        self._database = database
        self._key: _Row = {"owner": owner, "store": store}
        self._operation = f"embedding memories without a vector in memory store {store!r}"

    def batch(self, after: UUID | None) -> list[Text]:
        """Return up to 100 memories without a vector, oldest first, starting after an id."""
        row = self._key | {"after": after, "limit": Int8(_BATCH)}
        rows = self._database.fetch(self._operation, self._database.statement(_FIND), row, prepare=False).rows
        return [
            Text(memory_id, content if exact is None else decode("null", exact), write_id)
            for memory_id, content, exact, write_id in rows
        ]

    def store(self, texts: list[Text], embeddings: list[BinaryParameter], vectors: Vectors) -> int:
        """Store the vectors of texts, all in one transaction, and return how many were stored."""
        statement = compose(self._database, vectors, _STORE)
        rows = [
            self._key | {"memory_id": text.memory_id, "write_id": text.write_id, "embedding": embedding}
            for text, embedding in zip(texts, embeddings, strict=True)
        ]

        def work(cursor: Cursor[TupleRow]) -> int:
            cursor.executemany(statement, rows, returning=True)
            count = len(cursor.fetchall())
            while cursor.nextset():
                count += len(cursor.fetchall())
            return count

        return self._database.transact(self._operation, work)
