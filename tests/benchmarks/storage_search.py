"""Search in a memory of 1,000 and of 100,000 entries, beside Strands' keyword search, which reads every value.

Each time is the median of several, of a call of ``FileMemoryStore.search`` or ``PostgresStorage.search``. Run it with
``python tests/benchmarks/storage_search.py``; it starts a server of its own.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable

import psycopg
from strands.storage import InMemoryStorage
from strands.storage.search import KeywordSearchStrategy
from strands.vended_memory_stores.file_memory_store import FileMemoryStore

from strands_psycopg import PostgresSessionRepository, PostgresStorage
from strands_psycopg.embedded import postgres

_VOCABULARY = 20_000
_WORDS_EACH = 60


class Language:
    """Words whose frequency falls with their rank, as in a language."""

    def __init__(self) -> None:
        self._chance = random.Random(1)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self.words = sorted({"".join(self._chance.choices(letters, k=8)) for _ in range(_VOCABULARY)})
        self._chance.shuffle(self.words)
        self._weights = [1 / (rank + 10) for rank in range(len(self.words))]

    def text(self) -> str:
        """Make up an entry of a memory."""
        drawn = self._chance.choices(self.words, self._weights, k=_WORDS_EACH)
        return f"# {' '.join(drawn[:4])}\n{' '.join(drawn[4:])}"


async def _median(call: Callable[[], Awaitable[object]], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


async def _measure(name: str, search: Callable[[str], Awaitable[object]], language: Language, times: int) -> None:
    words = language.words
    queries = {
        "a rare word": words[15_000],
        "a common word": words[0],
        "ten words": " ".join(words[rank] for rank in (1, 5, 20, 100, 500, 1000, 2000, 5000, 8000, 12_000)),
        "a whole entry": language.text(),
    }
    for kind, query in queries.items():
        median = await _median(lambda: search(query), times)  # noqa: B023
        print(f"{name:44} {kind:14} {median:9.1f} ms", flush=True)


async def _fill(storage: PostgresStorage, texts: list[str], prefix: str) -> None:
    slots = asyncio.Semaphore(8)

    async def write(number: int, text: str) -> None:
        async with slots:
            await storage.write(f"{prefix}/{number:06}.md", text.encode())

    await asyncio.gather(*(write(number, text) for number, text in enumerate(texts)))


async def _main(entries: int, times: int) -> None:
    language = Language()
    with postgres() as dsn, PostgresSessionRepository(dsn) as repository:
        repository.ensure_schema()
        storage = PostgresStorage(repository)
        texts = [language.text() for _ in range(entries)]
        began = time.perf_counter()
        await _fill(storage, texts[:1000], "memory/small")
        await _fill(storage, texts, "memory/large")
        print(f"{entries + 1000} writes took {time.perf_counter() - began:.0f} s")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        for name, count in (("small", 1000), ("large", entries)):
            memory = FileMemoryStore(name=name, storage=storage)
            await _measure(f"FileMemoryStore, {count} entries", memory.search, language, times)
        # In turns, so that a machine that is busy is so for both.
        keyword, view = KeywordSearchStrategy(), storage.namespace("memory/small")
        for _ in range(2):
            await _measure("PostgresStorage, 1000 entries", view.search, language, times)
            await _measure("Strands' keywords on it", lambda query: keyword.search(view, query), language, 3)
        in_memory = InMemoryStorage()
        for number, text in enumerate(texts[:1000]):
            await in_memory.write(f"{number:06}.md", text.encode())
        await _measure("Strands' keywords on InMemoryStorage, 1000", in_memory.search, language, 5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=9)
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.entries, arguments.times))
