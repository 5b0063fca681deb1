"""Other Python processes. Unless that is what a test is about, they have done their imports before they start."""

import atexit
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from functools import cache

from support.crew import Crew, Process

_DEADLINE = 60


@cache
def crew() -> Crew:
    """Return the crew of this process, which lives as long."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(Crew())


def start(script: str, *arguments: str, complete: bool = False) -> Process:
    """Start a process that runs the script with these ``sys.argv[1:]``; for the rest see ``Crew.start``."""
    return crew().start(script, *arguments, complete=complete)


def run(script: str, *arguments: str, complete: bool = False) -> str:
    """Run the script in a process of its own to its end, which must be a success, and return what it printed."""
    status, written, errors = start(script, *arguments, complete=complete).finish()
    assert status == 0, errors
    return written


class Forked:
    """A process of the crew with the part of ``subprocess.Popen`` that a parent needs to talk to it."""

    def __init__(self, script: str, *arguments: str) -> None:
        self._process = start(script, *arguments)
        self.pid = self._process.pid
        self.stdin = self.stdout = self

    def write(self, text: str) -> None:
        """Write to its standard input."""
        self._process.write(text)

    def flush(self) -> None:
        """Do nothing, since all is written at once."""

    def readline(self) -> str:
        """Read a line, without its end, from its standard output."""
        return next(iter(self._process), "")

    def kill(self) -> None:
        """Kill it."""
        self._process.signal(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end and return its exit status."""
        return self._process.end()

    def communicate(self) -> None:
        """Close its standard input and wait for its end."""
        self._process.finish()


def run_younger(script: str, *arguments: str) -> tuple[int, str, str]:
    """Run the script in a process that has imported Strands, but neither this package nor psycopg.

    Returns:
        Its exit status, and what it wrote to standard output and to standard error.
    """
    return crew().start(script, *arguments, younger=True).finish()


def interpret(script: str, *arguments: str) -> tuple[int, str, str]:
    """Run the script in an interpreter of its own, which imports everything anew.

    Returns:
        Its exit status, and what it wrote to standard output and to standard error.
    """
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
    )
    return done.returncode, done.stdout, done.stderr
