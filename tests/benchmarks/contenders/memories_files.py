"""Strands' FileMemoryStore on this library's storage, which searches by words."""

import asyncio
from collections.abc import Iterator

from strands.vended_memory_stores.file_memory_store import FileMemoryStore

from strands_psycopg import PostgresStorage


class Contender:
    """Keeps memories as Markdown files."""

    def __init__(self, dsn: str, folder: str) -> None:
        self._storage = PostgresStorage(dsn)
        self._storage.ensure_schema()
        self.store = FileMemoryStore(name="notes", storage=self._storage)

    def fill(self, texts: Iterator[str]) -> None:
        """Add texts one by one."""

        async def add() -> None:
            for text in texts:
                await self.store.add(text)

        asyncio.run(add())

    def exact(self, query: str, limit: int) -> None:
        """Return nothing: it stores no vectors."""

    def close(self) -> None:
        """Close the pool."""
        self._storage.close()
