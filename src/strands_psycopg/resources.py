"""Limits of the operating system: files and threads of a process."""

import os
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


def file_limit_error() -> OSError | None:
    """Return the error of opening a file now, or None if that is possible."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error
    return None


def is_shutting_down(error: RuntimeError) -> bool:
    """Whether a thread could not be started because the main thread has ended, after which Python 3.12 starts none."""
    return "interpreter shutdown" in str(error)
