"""Limits of the operating system: files and threads of a process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

NO_THREAD = "no thread can be started; raise the limit of threads (ulimit -u, or the container's pids limit)"


class ResourceLimitError(Exception):
    """The operating system refused a file or a thread; the message says which limit to raise."""


@contextmanager
def translate_limits() -> Iterator[None]:
    """Raise a ``ResourceLimitError`` in place of errors of a block that opens files or starts threads."""
    try:
        yield
    except OSError as error:
        raise ResourceLimitError(describe(error)) from error
    except RuntimeError as error:  # which is all that Python tells of threads
        raise ResourceLimitError(NO_THREAD) from error


def describe(error: OSError) -> str:
    """Return what the operating system refused, and what to do about it."""
    reason = error.strerror or type(error).__name__
    return f"{reason}; raise the limit of open files (ulimit -n), or close some"


def is_shutting_down() -> bool:
    """Whether the main thread has ended. Python 3.12 then starts no thread any more."""
    return not threading.main_thread().is_alive()
