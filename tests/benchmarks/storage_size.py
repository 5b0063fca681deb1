"""What snapshots cost as values of a storage and as plain BYTEA rows: bytes on the disk, bytes of WAL, time.

Run it with ``PYTHONPATH=tests python tests/benchmarks/storage_size.py``; it starts a server of its own.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable

import psycopg

from strands_psycopg import PostgresSessionRepository, PostgresStorage
from strands_psycopg.embedded import postgres
from support.snapshots import PLAIN, PUT, Connection, conversation, size, written

_KINDS = ("chunks", "plain")


class _Costs:
    """What the saves of one kind have cost so far."""

    def __init__(self) -> None:
        self.wal: list[int] = []
        self.seconds: list[float] = []

    def of(self, save: Callable[[], object], connection: Connection) -> None:
        start = written(connection)
        began = time.perf_counter()
        save()
        self.seconds.append(time.perf_counter() - began)
        self.wal.append(written(connection) - start)

    def __str__(self) -> str:
        wal, seconds = statistics.median(self.wal), statistics.median(self.seconds)
        return f"median {wal / 1024:9,.1f} KB of WAL, {seconds * 1000:7.2f} ms; all {sum(self.seconds):6.1f} s"


def _main(turns: int, saves: int) -> None:
    snapshots = conversation(turns + saves)
    print(f"the largest of {turns} snapshots has {len(snapshots[turns - 1]):,} bytes")
    with (
        postgres() as dsn,
        PostgresSessionRepository(dsn) as repository,
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        repository.ensure_schema()
        storage = PostgresStorage(repository)
        connection.execute(PLAIN)

        async def save(kind: str, key: str, data: bytes) -> None:
            if kind == "chunks":
                await storage.write(key, data)
            else:
                connection.execute(PUT, (key, data))

        def measure(name: str, keys: Callable[[int], str], data: list[bytes]) -> None:
            costs = {kind: _Costs() for kind in _KINDS}
            for number, each in enumerate(data):
                for kind in _KINDS:
                    costs[kind].of(lambda: asyncio.run(save(kind, keys(number), each)), connection)  # noqa: B023
            for kind, cost in costs.items():
                print(f"{name:36} {kind:7} {cost}", flush=True)

        measure("an immutable snapshot each turn", lambda turn: f"history/{turn:06}.json", snapshots[:turns])
        ours, plain = size(connection, "strands_storage", "strands_chunks"), size(connection, "plain")
        print(f"on the disk: chunks {ours:,} bytes, plain {plain:,} bytes, {ours / plain:.1%}")

        connection.execute("VACUUM ANALYZE")
        measure("the latest, with one more message", lambda _: "latest.json", snapshots[turns - 1 :])

        async def delete_all() -> None:
            for turn in range(turns):
                await storage.delete(f"history/{turn:06}.json")

        began = time.perf_counter()
        asyncio.run(delete_all())
        print(f"{turns} deletes took {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--saves", type=int, default=50)
    arguments = parser.parse_args()
    _main(arguments.turns, arguments.saves)
