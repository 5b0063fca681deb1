"""Errors of the operating system, in words that say what to do."""

import errno

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
    errno.ENOENT: "create its directory first",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "raise the limit on processes and threads (ulimit -u), or try again later",
}

# What does not say anything about the file itself: the next one would fail, too.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}


def explain(error: OSError) -> str:
    """Return what an error of the operating system says, with advice if there is any."""
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0)
    return f"{reason}; {advice}" if advice else reason


def is_exhausted(error: OSError) -> bool:
    """Whether a resource of the process or the machine has run out, whatever file was used."""
    return error.errno in _EXHAUSTED
