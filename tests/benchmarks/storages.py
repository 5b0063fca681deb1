"""The work of storages, done by each contender alike; each function returns the seconds of every repetition."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from benchmarks.model import conversation, text
from benchmarks.works import Measured, new_session


class Contender(Protocol):
    """Something that has a Strands ``Storage``, or what does the same."""

    @property
    def storage(self) -> Any:
        """The storage."""


def _timed(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    async def main() -> list[float]:
        seconds = []
        for number in range(count + 3):
            began = time.perf_counter()
            await call()
            if number >= 3:
                seconds.append(time.perf_counter() - began)
        return seconds

    return asyncio.run(main())


def values(contender: Contender, *, size: int, count: int) -> Measured:
    """Values that are written under one key, each new, and read again."""
    written = iter([random.Random(number).randbytes(size) for number in range(count + 3)])
    key = new_session()
    write = _timed(lambda: contender.storage.write(key, next(written)), count)
    return {"write": write, "read": _timed(lambda: contender.storage.read(key), count)}


def snapshots(contender: Contender, *, size: int, count: int) -> Measured:
    """Snapshots of a conversation of about so many bytes, each with one more message, under one key."""
    messages = conversation(2 * size // 850)
    more = conversation(count + 3)
    grown = iter([json.dumps({"messages": [*messages, *more[: n + 1]]}).encode() for n in range(count + 3)])
    key = new_session()
    return {"seconds": _timed(lambda: contender.storage.write(key, next(grown)), count)}


_filled: set[int] = set()


async def _fill(storage: Any, entries: int) -> None:
    waiting = iter(range(entries))

    async def work() -> None:
        for number in waiting:
            await storage.write(f"of-{entries}/{number:06}", f"entry {number} {text(20)}".encode())

    await asyncio.gather(*(work() for _ in range(8)))


def lists(contender: Contender, *, entries: int, count: int) -> Measured:
    """The keys of so many entries."""
    if entries not in _filled:
        asyncio.run(_fill(contender.storage, entries))
        _filled.add(entries)

    async def read() -> None:
        assert len(await contender.storage.list(f"of-{entries}/")) == entries

    return {"seconds": _timed(read, count)}


def searches(contender: Contender, *, entries: int, count: int) -> Measured:
    """A search for a word that one of so many entries has."""
    lists(contender, entries=entries, count=1)
    namespace = contender.storage.namespace(f"of-{entries}")
    wanted = iter(random.Random(3).sample(range(entries), count + 3))

    async def search() -> None:
        assert await namespace.search(f"what about {next(wanted)}?")

    return {"seconds": _timed(search, count)}
