"""Memory stores side by side: adding, and searching by vectors among few and many memories.

Run it with ``PYTHONPATH=tests python -m benchmarks.memories``; ``--peer`` takes the Python of an environment with
strands-postgres-store. It starts a server of its own. Each contender has a process and a database of its own.

Vectors have 384 dimensions and need no model: that of a text is the sum of three of 500 topics and noise, drawn from
the text. So vectors lie in groups, as those of texts do. No query has a word of an entry.
"""

import argparse
import asyncio
import json
import operator
import random
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache
from hashlib import shake_128
from typing import Any, Protocol

DIMENSIONS = 384
_TOPICS = 500
_QUERIES = 40
_WARM_UP = 5

_Vector = list[float]


class Store(Protocol):
    """What a contender has: a store of Strands', filled at once where it can."""

    store: Any

    def fill(self, texts: Iterator[str]) -> None:
        """Store texts with their vectors."""

    def exact(self, query: str, limit: int) -> list[str] | None:
        """Return the texts nearest to a query, without an index; None if it has no vectors."""


@lru_cache(maxsize=_TOPICS)
def _topic(number: int) -> tuple[int, ...]:
    return tuple(array("b", shake_128(f"topic {number}".encode()).digest(DIMENSIONS)))


def embed_one(text: str) -> _Vector:
    """Return the vector of a text."""
    drawn = random.Random(text)
    noise = array("b", shake_128(text.encode()).digest(DIMENSIONS))
    vectors = [_topic(drawn.randrange(_TOPICS)) for _ in range(3)]
    sums = map(operator.add, map(operator.add, vectors[0], vectors[1]), vectors[2])
    return [float(value) for value in map(operator.add, sums, noise)]


def embed(texts: list[str]) -> list[_Vector]:
    """Return the vectors of texts."""
    return [embed_one(text) for text in texts]


def entry(number: int) -> str:
    """Return the text of an entry."""
    return f"entry{number} is one of the facts that an agent has learned about its user"


def query(number: int) -> str:
    """Return the text of a query, none of whose words is in an entry."""
    return f"query{number}"


async def _timed(call: Callable[[int], Awaitable[object]], count: int) -> list[float]:
    seconds = []
    for number in range(_WARM_UP + count):
        began = time.perf_counter()
        await call(number)
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - began)
    return seconds


async def _measure(contender: Store) -> dict[str, float]:
    store = contender.store
    searches = await _timed(lambda number: store.search(query(number), {"max_search_results": 10}), _QUERIES)
    measured = {"search": statistics.median(searches)}
    hits = []
    for number in range(_QUERIES):
        exact = contender.exact(query(number), 10)
        if exact is not None:
            found = await store.search(query(number), {"max_search_results": 10})
            hits.append(len(set(exact) & {each.content for each in found}) / len(exact))
    if hits:
        measured["recall"] = statistics.mean(hits)
    adds = await _timed(lambda number: store.add(f"added {time.time_ns()} {number}"), _QUERIES)
    return measured | {"add": statistics.median(adds)}


def _work(name: str, dsn: str, folder: str, sizes: list[int]) -> None:
    """Run one contender, in its own process."""
    from importlib import import_module

    contender = import_module(f"benchmarks.contenders.{name}").Contender(dsn, folder)
    filled = 0
    for entries in sizes:
        contender.fill(entry(number) for number in range(filled, entries))
        print(json.dumps({"entries": entries, **asyncio.run(_measure(contender))}), flush=True)
        filled = entries
    contender.close()


def _run(name: str, python: str, dsn: str, sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = [python, "-m", "benchmarks.memories", "--work", name, dsn, folder, *map(str, sizes)]
        output = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True).stdout
    for line in output.splitlines():
        measured = json.loads(line)
        cells = [f"{measured['add'] * 1000:.3g}", f"{measured['search'] * 1000:.3g}"]
        cells.append(f"{measured['recall']:.3f}" if "recall" in measured else "")
        print(f"| {name} | {measured['entries']:,} | {' | '.join(cells)} |", flush=True)


def _main() -> None:
    if sys.argv[1:2] == ["--work"]:
        name, dsn, folder, *sizes = sys.argv[2:]
        _work(name, dsn, folder, list(map(int, sizes)))
        return
    from benchmarks.server import databases

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with strands-postgres-store")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000], help="numbers of entries, ascending")
    arguments = parser.parse_args()
    sizes = arguments.sizes
    print("| store | entries | add, ms | search, ms | recall@10 |\n| --- | --: | --: | --: | --: |")
    with databases() as served:
        _run("memories_ours", sys.executable, served.dsn("ours"), sizes)
        _run("memories_ours_by_owner", sys.executable, served.dsn("by owner"), sizes)
        if arguments.peer:
            _run("memories_peer", arguments.peer, served.dsn("peer"), sizes)
        _run("memories_files", sys.executable, served.dsn("files"), [size for size in sizes if size <= 1_000])


if __name__ == "__main__":
    _main()
