"""strands-postgres-store, which has no owners."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
from strands_postgres_store import PostgresMemoryStore

from benchmarks.contenders.urls import url
from benchmarks.contenders.vector_index import without_index
from benchmarks.memories import DIMENSIONS, embed_one

_EXACT = "SELECT content FROM strands_memory ORDER BY embedding <=> %s::vector LIMIT %s"

_FILL = "COPY strands_memory (id, content, embedding, created_at) FROM STDIN"


class Contender:
    """Keeps memories through SQLAlchemy and psycopg2."""

    def __init__(self, dsn: str, folder: str) -> None:
        self._connection: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self.store: Any = PostgresMemoryStore(
            name="notes", url=url("postgresql+psycopg2", dsn), embedder=embed_one, dimensions=DIMENSIONS
        )

    def fill(self, texts: Iterator[str]) -> None:
        """Insert texts with their vectors, and let the server look at what it has."""
        with (
            without_index(self._connection, "strands_memory_embedding_hnsw"),
            self._connection.cursor().copy(_FILL) as copy,
        ):
            for text in texts:
                copy.write_row((str(uuid4()), text, json.dumps(embed_one(text)), "2026"))
        self._connection.execute("VACUUM ANALYZE strands_memory")

    def exact(self, query: str, limit: int) -> list[str]:
        """Return the nearest texts, by comparing all vectors."""
        with self._connection.transaction():
            self._connection.execute("SET LOCAL enable_indexscan = off")
            return [text for (text,) in self._connection.execute(_EXACT, (str(embed_one(query)), limit))]

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()
        self.store._engine.dispose()
