"""Log records of psycopg and psycopg_pool that repeat what this package logs or raises: they become DEBUG records."""

import logging
import threading
from weakref import WeakSet

# The names of pools begin with this, unless the caller has named one.
POOL_NAME_PREFIX = "strands-psycopg-"


class _PoolFilter(logging.Filter):
    """Turns the warnings of psycopg_pool about pools of this package into DEBUG records.

    There are several for each failed connection attempt. The reason is in the log lines and errors of the statements
    that wait for a connection.

    Attributes:
        connections: The connections of these pools.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connections: WeakSet[object] = WeakSet()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record."""
        subject = record.args[0] if isinstance(record.args, tuple) and record.args else None
        is_own = subject.startswith(POOL_NAME_PREFIX) if isinstance(subject, str) else subject in self.connections
        return not is_own or _demote_warning(record)


class _DriverFilter(logging.Filter):
    """Turns psycopg's warnings about errors that it ignores into DEBUG records, in threads that use a connection.

    They follow an error that the statement's own error or log line reports.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record."""
        is_own = getattr(thread_state, "uses_connection", False) and str(record.msg).startswith("error ignored")
        return not is_own or _demote_warning(record)


def _demote_warning(record: logging.LogRecord) -> bool:
    """Turn a warning into a DEBUG record; return whether to log it."""
    if record.levelno != logging.WARNING:
        return True
    record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
    return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


# Its attribute ``uses_connection`` says whether the thread has checked out a connection.
thread_state = threading.local()

pool_filter = _PoolFilter()
logging.getLogger("psycopg.pool").addFilter(pool_filter)
logging.getLogger("psycopg").addFilter(_DriverFilter())
