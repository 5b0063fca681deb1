"""Memory stores side by side: adding, and searching by vectors among few and many memories.

Run it with ``PYTHONPATH=tests python -m benchmarks.memories``; ``--peer`` takes the Python of an environment with
strands-postgres-store. Each contender has a process and a server of its own, whose memory no other one uses; all are
filled at once, and search and add in turn. Recall is measured first, so that a search finds its pages in memory.

Vectors have 384 dimensions and need no model: that of a text is the sum of three of 500 topics and noise, drawn from
the text. So vectors lie in groups, as those of texts do. No query has a word of an entry.
"""

import argparse
import asyncio
import json
import operator
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from hashlib import shake_128
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

DIMENSIONS = 384
_TOPICS = 500
_QUERIES = 60
_WARM_UP = 10

# Above that, adding to a file memory takes too long, since each addition writes all.
_MOST_IN_FILES = 1_000

# Those that use the database of another one.
_GUESTS = {"ours_by_owner": "ours"}

_Vector = list[float]


class Store(Protocol):
    """What a contender has: a store of Strands', filled at once where it can."""

    store: Any

    def fill(self, texts: Iterator[str]) -> None:
        """Store texts with their vectors."""

    def exact(self, query: str, limit: int) -> list[str] | None:
        """Return the texts nearest to a query, without an index; None if it has no vectors."""

    def close(self) -> None:
        """Close the connections."""


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


def _work(name: str, dsn: str, folder: str) -> None:
    """Run one contender, in its own process: for each line with a work and a number, print a line with a result."""
    contender: Store = import_module(f"benchmarks.contenders.{name}").Contender(dsn, folder)
    filled = 0
    loop = asyncio.new_event_loop()
    for line in sys.stdin:
        work, number = line.split()
        measured = None
        if work == "fill":
            contender.fill(map(entry, range(filled, int(number))))
            filled = int(number)
        else:
            measured = loop.run_until_complete(_do(contender, work, int(number)))
        print(json.dumps(measured), flush=True)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    contender.close()


async def _do(contender: Store, work: str, number: int) -> float | None:
    """Search or add and return the seconds that it took; or return the recall of a search."""
    began = time.perf_counter()
    if work == "add":
        await contender.store.add(f"added {time.time_ns()} {number}")
        return time.perf_counter() - began
    found = await contender.store.search(query(number), {"max_search_results": 10})
    if work == "search":
        return time.perf_counter() - began
    exact = contender.exact(query(number), 10)
    return None if exact is None else len(set(exact) & {each.content for each in found}) / len(exact)


class _Contender:
    """A contender in its own process."""

    def __init__(self, name: str, python: str, dsn: str, folder: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.memories", "--work", f"memories_{name}", dsn, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )

    def do(self, work: str, number: int) -> float | None:
        """Run a work and return its result."""
        self.begin(work, number)
        return self.end(work)

    def begin(self, work: str, number: int) -> None:
        """Begin a work."""
        assert self._process.stdin is not None
        print(work, number, file=self._process.stdin, flush=True)

    def end(self, work: str) -> float | None:
        """Wait for the work that has begun, and return its result."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{work} of {self.name} failed; what it said is above")
        measured: float | None = json.loads(answer)
        return measured

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _measure(contenders: list[_Contender], entries: int) -> Iterator[tuple[str, str, list[float]]]:
    """Fill the stores and yield what was measured: the work, the contender and its figures."""
    began = time.monotonic()
    for each in contenders:
        each.begin("fill", entries)
    for each in contenders:
        each.end("fill")
    print(f"filled with {entries:,} entries in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for work in ("recall", "search", "add"):
        measured: dict[str, list[float]] = {each.name: [] for each in contenders}
        for number in range(_WARM_UP + _QUERIES):
            for each in contenders:
                value = each.do(work, number)
                if value is not None and number >= _WARM_UP:
                    measured[each.name].append(value)
        for name, values in measured.items():
            if values:
                yield f"memories of {entries:,}: {work}", name, [mean(values)] if work == "recall" else values


def _main() -> None:
    if sys.argv[1:2] == ["--work"]:
        _work(*sys.argv[2:])
        return
    # Not for the peer, whose environment has neither this library nor what draws.
    from benchmarks.results import Results
    from benchmarks.server import databases
    from benchmarks.tables import memories

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with strands-postgres-store")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000], help="numbers of entries, ascending")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    pythons = {"ours": sys.executable, "ours_by_owner": sys.executable, "files": sys.executable}
    if arguments.peer:
        pythons["peer"] = arguments.peer
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {name: stack.enter_context(databases()) for name in pythons if name not in _GUESTS}
        version_of_server = servers["ours"].version
        facts = {"Python": platform.python_version(), "PostgreSQL": version_of_server, "cores": os.cpu_count()}
        results = Results(facts | {name: version(name) for name in ("strands-agents", "psycopg")})
        contenders = []
        for name, python in pythons.items():
            host = _GUESTS.get(name, name)
            contenders.append(_Contender(name, python, servers[host].dsn(host), folder))
            stack.callback(contenders[-1].close)
        for entries in arguments.sizes:
            able = [each for each in contenders if each.name != "files" or entries <= _MOST_IN_FILES]
            for measured in _measure(able, entries):
                results.add(*measured)
            print(memories(results), flush=True)
            if arguments.json is not None:
                results.write(arguments.json)


if __name__ == "__main__":
    _main()
