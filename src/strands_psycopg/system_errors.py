"""Errors of the operating system, with advice."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

_THREADS = "raise the limit on processes and threads (ulimit -u, or the container's pids limit)"
_FULL = "free some space, or choose another place"
_DESCRIPTORS = "close files and connections, or raise the limit on open files (ulimit -n)"
_PERMISSION = "choose a place with write permission"

_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another place",
    errno.EMFILE: _DESCRIPTORS,
    errno.ENFILE: _DESCRIPTORS,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOENT: "check the path; its directory must exist",
    errno.EEXIST: "remove it, or choose another name",
    errno.EISDIR: "name a file, not a directory",
    errno.ENOTDIR: "check the path; a part of it is a file",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: f"{_THREADS}, or try again later",
}

NO_THREAD = f"no thread can be started; {_THREADS}"

# These say nothing about the file itself: the next one would fail, too.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}


def explain(error: OSError) -> str:
    """Return what an error of the operating system says, with advice if there is any."""
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0)
    return f"{reason}; {advice}" if advice else reason


def is_exhausted(error: OSError) -> bool:
    """Return whether a resource of the process or the machine has run out, so that any file would fail."""
    return error.errno in _EXHAUSTED


class ResourceLimitError(Exception):
    """The operating system refused a file or a thread; the message says which limit to raise."""


@contextmanager
def translate_limits() -> Iterator[None]:
    """Raise a ``ResourceLimitError`` in place of errors of a block that opens files or starts threads."""
    try:
        yield
    except OSError as error:
        raise ResourceLimitError(explain(error)) from error
    except RuntimeError as error:  # what Python raises if a thread cannot be started
        raise ResourceLimitError(NO_THREAD) from error


def file_limit_error() -> OSError | None:
    """Return the error of opening a file now, or None if that is possible."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error
    return None


def is_shutting_down(error: RuntimeError) -> bool:
    """Return whether a thread could not be started because the main thread has ended, as since Python 3.12."""
    return "interpreter shutdown" in str(error)
