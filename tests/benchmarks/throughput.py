"""Turns per second of fifty agents in one process, and in each of four, and the CPU that they cost client and server.

Run it with ``PYTHONPATH=tests python -m benchmarks.throughput --peer session_manager=PYTHON``; it starts a server of
its own, with default settings, behind a unix socket. All contenders work in turn, several times.
"""

import argparse
import os
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psycopg

from benchmarks.processes import Process
from benchmarks.server import Databases, databases

_PEERS = ("session_manager", "session_sql", "none")
_PROCESSES = (1, 4)
_AGENTS = 50

# Of each agent: those that ``crowd`` measures, after its first ones.
_TURNS, _FIRST_TURNS = 10, 2


class _Throughput(NamedTuple):
    """What was measured.

    Attributes:
        rate: Turns per second, of all processes.
        client: CPU seconds of the contender's processes per 1,000 turns.
        server: Those of the server, with the opening of the sessions.
    """

    rate: float
    client: float
    server: float


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=f"one of {_PEERS}")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    pythons = {"ours": sys.executable, **dict(peer.split("=", 1) for peer in arguments.peer)}
    measured: dict[tuple[int, str], list[_Throughput]] = {}
    with databases() as server, tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for processes in _PROCESSES:
                for contender, python in pythons.items():
                    throughput = _measure(contender, python, server, Path(folder), processes)
                    measured.setdefault((processes, contender), []).append(throughput)
    print("processes, contender: turns per second, CPU seconds of client and server per 1,000 turns")
    for (processes, contender), rounds in measured.items():
        rate, client, on_server = (statistics.median(figures) for figures in zip(*rounds, strict=True))
        print(f"{processes}, {contender}: {rate:.0f}, {client:.2f}, {on_server:.2f}")


def _measure(contender: str, python: str, server: Databases, folder: Path, processes: int) -> _Throughput:
    dsn = server.dsn(contender)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Process(python, contender, dsn, folder / f"{contender}{number}"))
            for number in range(processes)
        ]
        for worker in workers:
            worker.do("crowd", {"agents": 1, "count": _TURNS})
        before = _server_cpu(dsn)
        crowd = {"agents": _AGENTS, "count": _TURNS}
        with ThreadPoolExecutor(processes) as threads:
            results = list(threads.map(lambda each: each.do("crowd", crowd), workers))
        on_server = _server_cpu(dsn) - before
    return _Throughput(
        rate=sum(result["rate"][0] for result in results),
        client=statistics.fmean(result["CPU"][0] for result in results) * 1000,
        server=on_server / (processes * _AGENTS * (_FIRST_TURNS + _TURNS)) * 1000,
    )


def _server_cpu(dsn: str) -> float:
    """Return the CPU seconds of the server's processes, with those that have ended."""
    with psycopg.connect(dsn) as connection:
        (folder,) = connection.execute("SHOW data_directory").fetchall()[0]
    postmaster = Path(folder, "postmaster.pid").read_text().split()[0]
    ticks = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # From the third field on: state, parent, ..., CPU of the process (two), CPU of ended children (two).
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if status.parent.name == postmaster:
            ticks += sum(map(int, fields[11:15]))
        elif fields[1] == postmaster:
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
