"""UUIDs of version 7 (RFC 9562), which sort by time: ids of snapshots and memories.

The 12 bits after the milliseconds are a counter (section 6.2, method 1), so that ids sort in the order in which one
process has drawn them. When the counter is exhausted, it borrows from the next millisecond.
"""

import secrets
import threading
import time
from uuid import UUID

_COUNTER_BITS = 12

# Milliseconds and counter of the latest id, as one number.
_latest = 0


class _OfThread(threading.local):
    """The latest id of each thread, since another thread may overwrite that of the process with an earlier one."""

    latest = 0


_of_thread = _OfThread()


def uuid7() -> UUID:
    """Return a new id."""
    global _latest
    latest = max(_latest + 1, _of_thread.latest + 1, (time.time_ns() // 1_000_000) << _COUNTER_BITS)
    _latest = _of_thread.latest = latest
    milliseconds, counter = divmod(latest, 1 << _COUNTER_BITS)
    return UUID(int=milliseconds << 80 | 7 << 76 | counter << 64 | 0b10 << 62 | secrets.randbits(62))
