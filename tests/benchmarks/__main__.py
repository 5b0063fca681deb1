"""Runs every contender on the same work in turn, round after round, and prints what it took."""

import argparse
import contextlib
import os
import platform
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.goals import goals
from benchmarks.jobs import COUNTED, COUNTS, Job, jobs, late_jobs
from benchmarks.plot import NAMES, draw
from benchmarks.processes import Process
from benchmarks.results import Results
from benchmarks.server import Databases, databases
from support.proxy import Proxy

_PEERS = ("session_manager", "session_sql", "postgres_storage")
_COUNTING = ("ours", "session_manager", "session_sql", "limit")
_PLOTTED = (
    *("turn", "turn, tool call", "turn, window full", "turn, 1 ms away", "request", "restore of 10", "restore of 100"),
    *("restore of 1,000", "restore of 10,000", "value of 1 KB: write", "value of 1 MB: write", "snapshot of 1 MB"),
)


class _Run:
    """One run.

    Args:
        pythons: The Python of each contender that takes part.
        served: The databases.
        folder: For the contenders' files.
        results: What is measured goes there.
        counted: Over how many repetitions the counts are averaged.
    """

    def __init__(
        self, pythons: dict[str, str], served: Databases, folder: Path, results: Results, counted: int
    ) -> None:
        self._pythons = pythons
        self._served = served
        self._folder = folder
        self._results = results
        self._counted = counted
        self._ends = contextlib.ExitStack()
        self._processes: dict[tuple[str, bool], Process] = {}
        self._proxies: dict[str, Proxy] = {}

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def measure(self, all_jobs: list[Job], rounds: int) -> None:
        """Do jobs, each round all of them, and each job by all contenders in turn."""
        for number in range(rounds):
            for job in all_jobs:
                if number >= (rounds if job.rounds is None else job.rounds):
                    continue
                print(f"round {number + 1} of {rounds}: {job.name}", file=sys.stderr, flush=True)
                for _ in range(job.times):
                    for contender in filter(self._pythons.__contains__, job.contenders):
                        self._do(job, contender)

    def _do(self, job: Job, contender: str) -> None:
        process = self._process(contender, through_proxy=job.delay is not None)
        if job.delay is not None:
            self._proxies[contender].delay = job.delay
        for measure, values in process.do(job.work, job.numbers).items():
            name = job.name if measure == "seconds" else f"{job.name}: {measure}"
            self._results.add(name, contender, values)

    def _process(self, contender: str, *, through_proxy: bool) -> Process:
        key = (contender, through_proxy)
        if key not in self._processes:
            dsn = self._served.dsn(contender)
            if through_proxy:
                self._proxies[contender] = self._ends.enter_context(Proxy(dsn))
                dsn = self._proxies[contender].dsn
            self._processes[key] = self._ends.enter_context(self._start(contender, dsn))
        return self._processes[key]

    def _start(self, contender: str, dsn: str) -> Process:
        return Process(self._pythons[contender], contender, dsn, self._folder / contender)

    def count(self, name: str, work: str, **numbers: Any) -> None:
        """Count what one repetition of a work costs on the server: what twice as many cost more."""
        for contender in filter(self._pythons.__contains__, _COUNTING):
            database = f"{contender} counted"
            repetitions = (1, self._counted, 2 * self._counted)
            _, once, twice = (self._count(contender, database, work, times, numbers) for times in repetitions)
            for measure, first, second in zip(COUNTS, once, twice, strict=True):
                # Reading leaves no WAL of its own, only what the server does at the time.
                if measure != "bytes of WAL" or work != "restores":
                    self._results.add(f"{name}: {measure}", contender, [(second - first) / self._counted])

    def _count(self, contender: str, database: str, work: str, times: int, numbers: dict[str, Any]) -> tuple[int, ...]:
        with Proxy(self._served.dsn(database)) as proxy:
            self._served.checkpoint()
            before = self._served.counts(database)
            with self._start(contender, proxy.dsn) as process:
                process.do(work, {"count": times, **numbers})
            after = self._served.counts(database)
            return proxy.statements, proxy.round_trips, after.commits - before.commits, after.wal - before.wal


def _facts(served: Databases) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory in GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "Python": platform.python_version(),
        "PostgreSQL": served.version,
        **{name: version(name) for name in ("strands-agents", "psycopg", "psycopg-pool")},
    }


def _print(results: Results) -> None:
    for work in results.works:
        print(f"\n{work}")
        for contender in results.contenders(work):
            for beyond in (None, "none"):
                figure = results.figure(work, contender, beyond=beyond)
                if figure is None or contender == beyond or (beyond and not work.startswith(("turn", "request"))):
                    continue
                factor, unit = _unit(work)
                told = "  ".join(f"{value * factor:,.3f}" for value in figure)
                name = NAMES.get(contender, "no session manager")
                print(f"  {name + (', beyond no session manager' if beyond else ''):64} {told} {unit}")
    print("\n(of the medians of all rounds: lower quartile, median, upper quartile)\n")
    for goal in goals(results):
        word = "met   " if goal.met else "MISSED"
        print(f"{word} {goal.text}: {goal.measured.median:.2f} {goal.unit}".rstrip(), f"(at most {goal.bound:g})")


def _unit(work: str) -> tuple[float, str]:
    measure = work.rpartition(": ")[2]
    if measure in ("peak", "kept"):
        return 1e-6, "MB"
    if measure == "rate":
        return 1, "turns per second"
    return (1, "") if measure in COUNTS else (1000, "ms")


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=f"one of {_PEERS}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="so little of each work that the figures mean nothing")
    parser.add_argument("--only", default="", metavar="PATTERN", help="works whose names match this regular expression")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="SVG")
    arguments = parser.parse_args()
    pythons = dict.fromkeys(("none", "ours", "files", "limit"), sys.executable)
    pythons |= dict(peer.split("=", 1) for peer in arguments.peer)

    def chosen(all_jobs: list[Job]) -> list[Job]:
        return [job for job in all_jobs if re.search(arguments.only, job.name)]

    with databases() as served, tempfile.TemporaryDirectory() as folder:
        results = Results(_facts(served))
        with _Run(pythons, served, Path(folder), results, 5 if arguments.quick else 50) as run:
            for name, work, numbers in COUNTED:
                if re.search(arguments.only, name):
                    run.count(name, work, **numbers)
            run.measure(chosen(jobs(quick=arguments.quick)), arguments.rounds)
            run.measure(chosen(late_jobs(quick=arguments.quick)), arguments.rounds)
    _print(results)
    if arguments.json is not None:
        results.write(arguments.json)
    if arguments.plot is not None:
        draw(results, [work for work in _PLOTTED if work in results.works], arguments.plot)


if __name__ == "__main__":
    _main()
