"""This library's memory store, with one owner for nearly all memories."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.contenders.vector_index import without_index
from benchmarks.memories import DIMENSIONS, embed, embed_one
from strands_psycopg import PostgresMemoryStore, PostgresSessionRepository

_EXACT = """
    SELECT content FROM strands_memory_vectors AS v JOIN strands_memories AS m USING (owner, store, memory_id)
    WHERE owner = %s ORDER BY embedding <=> %s::vector::halfvec LIMIT %s
"""

# As ``add`` stores them.
_FILL = """
    WITH filled AS (
        INSERT INTO strands_memories (
            owner, store, memory_id, content, content_hash, search_vector, write_id, created_at, updated_at
        )
        SELECT owner, 'notes', memory_id, content, md5(content)::uuid, to_tsvector('simple', lower(content)), memory_id,
            now(), now()
        FROM filling
    )
    INSERT INTO strands_memory_vectors (owner, store, memory_id, embedding)
    SELECT owner, 'notes', memory_id, embedding FROM filling
"""

_UUID = "00000000-0000-7000-8000-{:012}"

_INDEX = "strands_memory_vectors_embedding"


class Contender:
    """Keeps memories."""

    owner = "owner 0"

    def __init__(self, dsn: str, folder: str) -> None:
        self._connection: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self._repository = PostgresSessionRepository(dsn)
        self.store = PostgresMemoryStore(
            "notes", self._repository, owner=self.owner, embed=embed, dimensions=DIMENSIONS
        )
        self.store.ensure_schema()
        self._filled = 0

    def fill(self, texts: Iterator[str]) -> None:
        """Copy texts with their vectors, build the index, and let the server look at what it has."""
        with without_index(self._connection, _INDEX):
            self.copy(texts)
        self._connection.execute("VACUUM ANALYZE strands_memories, strands_memory_vectors")

    def copy(self, texts: Iterator[str]) -> None:
        """Copy texts with their vectors."""
        connection = self._connection
        with connection.transaction():
            connection.execute(
                f"CREATE TEMPORARY TABLE filling (owner text, memory_id uuid, content text, embedding "
                f"vector({DIMENSIONS})) ON COMMIT DROP".encode()
            )
            with connection.cursor().copy("COPY filling FROM STDIN") as copy:
                for text in texts:
                    self._filled += 1
                    copy.write_row((self.owner, _UUID.format(self._filled), text, json.dumps(embed_one(text))))
            connection.execute(_FILL)

    def exact(self, query: str, limit: int) -> list[str]:
        """Return the nearest texts, by comparing all vectors."""
        with self._connection.transaction():
            self._connection.execute("SET LOCAL enable_indexscan = off")
            parameters = (self.owner, str(embed_one(query)), limit)
            return [content for (content,) in self._connection.execute(_EXACT, parameters)]

    def close(self) -> None:
        """Close the pool."""
        self._connection.close()
        self._repository.close()
