"""Other Python processes, with this one's import path."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_DEADLINE = 60


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a process that runs the script with these ``sys.argv[1:]``."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def limited(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    """Kill the process at the end of the block, or when that takes too long: then there is nothing more to read."""
    timer = threading.Timer(_DEADLINE, process.kill)
    timer.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        timer.cancel()


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Wait for a process's end; give its exit status and what it wrote to standard output and standard error."""
    with process:
        try:
            written, errors = process.communicate(timeout=_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, written, errors


def run(script: str, *arguments: str) -> str:
    """Run the script in a process of its own to its end, which must be a success, and give what it printed."""
    status, written, errors = finish(start(script, *arguments))
    assert status == 0, errors
    return written
