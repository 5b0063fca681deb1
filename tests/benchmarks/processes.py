"""Contenders' processes, each in its own Python, which live as long as the whole run."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

_TESTS = Path(__file__).parents[1]


class Process:
    """A contender at work.

    Args:
        python: Its Python.
        contender: Its module.
        dsn: Its database.
        folder: Its folder.
    """

    def __init__(self, python: str, contender: str, dsn: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", contender, dsn, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_TESTS)},
        )

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()

    def do(self, work: str, numbers: dict[str, Any]) -> dict[str, list[float]]:
        """Run a job and return what was measured."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([work, numbers]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{work} failed; what it said is above")
        measured: dict[str, list[float]] = json.loads(answer)
        return measured
