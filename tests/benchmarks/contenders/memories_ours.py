"""This library's memory store, with one owner for all memories."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.memories import DIMENSIONS, embed, embed_one
from strands_psycopg import PostgresMemoryStore, PostgresSessionRepository

_EXACT = """
    SELECT content FROM strands_memory_vectors AS v JOIN strands_memories AS m USING (owner, store, memory_id)
    WHERE owner = %s ORDER BY embedding <=> %s::vector LIMIT %s
"""

_UUID = "00000000-0000-7000-8000-{:012}"


class Contender:
    """Keeps memories."""

    owners = 1

    def __init__(self, dsn: str, folder: str) -> None:
        self._connection: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self._repository = PostgresSessionRepository(dsn)
        self._stores = [
            PostgresMemoryStore("notes", self._repository, owner=f"owner {number}", embed=embed, dimensions=DIMENSIONS)
            for number in range(self.owners)
        ]
        self.store = self._stores[0]
        self.store.ensure_schema()
        self._filled = 0

    def fill(self, texts: Iterator[str]) -> None:
        """Import texts, in turn for each owner, and let the server look at what it has."""
        lines: list[list[str]] = [[] for _ in self._stores]
        for text in texts:
            self._filled += 1
            line = {
                "memory_id": _UUID.format(self._filled),
                "content": text,
                "metadata": None,
                "created_at": "2026-01-01T00:00:00Z",
                "updated_at": "2026-01-01T00:00:00Z",
                "embedding": embed_one(text),
            }
            lines[self._filled % self.owners].append(json.dumps(line))
        for store, own in zip(self._stores, lines, strict=True):
            asyncio.run(store.import_lines(own))
        self._connection.execute("VACUUM ANALYZE strands_memories, strands_memory_vectors")

    def exact(self, query: str, limit: int) -> list[str]:
        """Return the nearest texts, by comparing all vectors."""
        with self._connection.transaction():
            self._connection.execute("SET LOCAL enable_indexscan = off")
            parameters = ("owner 0", str(embed_one(query)), limit)
            return [content for (content,) in self._connection.execute(_EXACT, parameters)]

    def close(self) -> None:
        """Close the pool."""
        self._connection.close()
        self._repository.close()
