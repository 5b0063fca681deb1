"""The one pool of connections: built here from a DSN, or the caller's own."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg import Connection, pq
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from strands_psycopg.process_forks import after_fork_in_child

# libpq's own defaults would notice a dead link after two hours.
_DEFAULTS: dict[str, str | int] = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "strands-psycopg",
}

# A failed connect carries no SQLSTATE. Only these refusals are known not to mend by themselves.
_PERMANENT = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry"
    r"|database \".*\" does not exist|role \".*\" does not exist|is not permitted to log in"
    r"|permission denied for database|server does not support SSL|certificate"
    r"|invalid port number|invalid sslmode value|definition of service"
    r"|no such user|no such database|unsupported startup parameter"  # PgBouncer's
)

# How long one wait for a connection lasts before the pool is asked again: a pool whose connect failed tries again
# only when it is asked. Waits are short while connects fail, long while the pool is merely busy.
_WAIT_FAILING = 0.2
_WAIT_BUSY = 1.0


class UnreachableError(Exception):
    """No connection could be had.

    Attributes:
        permanent: Trying again will not help.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class ExternalPool:
    """A pool that the caller opened and will close."""

    connecting = 0

    def __init__(self, pool: ConnectionPool[Connection[Any]], pool_options: dict[str, Any]) -> None:
        if pool_options:
            raise TypeError(f"pool options {sorted(pool_options)} beside a pool; give them to that pool instead")
        self._pool = pool

    def pool(self) -> ConnectionPool[Connection[Any]]:
        """Give the pool."""
        return self._pool

    @property
    def failures(self) -> int:
        """How many connects have failed so far."""
        return self._pool.get_stats().get("connections_errors", 0)

    def unreachable(self) -> UnreachableError:
        """Say why no connect succeeds."""
        return UnreachableError("the pool cannot connect to the server; its logger 'psycopg.pool' says why")

    def close(self) -> None:
        """Leave the pool open."""


class ManagedPool:
    """A pool built from a DSN: opened at first use, in every process anew, and closed by ``close``.

    Attributes:
        connecting: How many connects are under way.
        failures: How many connects have failed so far.
    """

    def __init__(self, dsn: str | Callable[[], str], pool_options: dict[str, Any]) -> None:
        if isinstance(dsn, str):
            _parse(dsn)
        elif not callable(dsn):
            raise TypeError(
                f"conninfo must be a DSN, a callable that gives one or a ConnectionPool, not {type(dsn).__name__}"
            )
        self._dsn = dsn
        self._options = dict(pool_options)
        self._connection_class = self._options.pop("connection_class", Connection)
        self._options.setdefault("min_size", 1)
        self._options.setdefault("max_size", max(10, self._options["min_size"]))
        # The pool's own backoff would outlast an outage by far; retrying is the database layer's.
        self._options.setdefault("reconnect_timeout", 0.0)
        self._closed = False
        self._of_parents: list[ConnectionPool[Connection[Any]]] = []
        self._start()
        after_fork_in_child(self._restart_in_child)

    def _start(self) -> None:
        self.connecting = 0
        self.failures = 0
        self._last_error: Exception | None = None
        self._opening = threading.Lock()
        # Of a connection class the pool uses only ``connect``, which is replaced here.
        self._pool = ConnectionPool("", connection_class=cast(type[Connection[Any]], self), open=False, **self._options)

    def _restart_in_child(self) -> None:
        """Leave the parent's pool and its sockets alone and start with a pool of this process."""
        if not self._closed:
            # Kept, because collecting it would try to end threads that this process does not have.
            self._of_parents.append(self._pool)
            self._start()

    def pool(self) -> ConnectionPool[Connection[Any]]:
        """Give the pool, opened unless it has been closed."""
        if self._pool.closed and not self._closed:
            with self._opening:
                if not self._closed:
                    self._pool.open()
        return self._pool

    def connect(self, _conninfo: str = "", **kwargs: Any) -> Connection[Any]:
        """Make one connection for the pool, and remember why if it fails."""
        self.connecting += 1
        try:
            dsn = self._current_dsn()
            given = {**_environment(), **_parse(dsn), **kwargs}
            defaults = {} if "service" in given else {key: v for key, v in _DEFAULTS.items() if key not in given}
            settings = {**defaults, **kwargs, "autocommit": True, "client_encoding": "utf8"}
            connection: Connection[Any] = self._connection_class.connect(dsn, **settings)
        except Exception as error:
            self._last_error = error
            self.failures += 1
            raise
        finally:
            self.connecting -= 1
        return connection

    def _current_dsn(self) -> str:
        if isinstance(self._dsn, str):
            return self._dsn
        try:
            return self._dsn()
        except Exception as error:
            kind = type(error).__name__
        # Neither quoted nor chained: it may quote what the credentials were read from, and the pool logs it.
        raise UnreachableError(f"no DSN to connect with: {kind} in the callable that gives it")

    def unreachable(self) -> UnreachableError:
        """Say why no connect succeeds."""
        error = self._last_error
        if isinstance(error, UnreachableError):
            return UnreachableError(str(error))
        if not isinstance(error, psycopg.Error):
            return UnreachableError(f"no connection can be made with the DSN: {type(error).__name__}")
        reason = " ".join(str(error).split())
        return UnreachableError(reason, permanent=_PERMANENT.search(reason) is not None)

    def close(self) -> None:
        """Close the pool for good."""
        self._closed = True
        # Per worker thread; one that waits for a server that does not answer would hold up a Ctrl-C.
        self._pool.close(timeout=1.0)


class Connections:
    """Hands out connections of one pool, and tells a busy pool from an unreachable server.

    Args:
        source: A DSN, a callable that gives one for each connect, or the caller's pool.
        pool_options: Arguments for the pool that is built unless ``source`` is one.

    Raises:
        TypeError: ``source`` is none of these, or a caller's pool comes with options.
        ValueError: The DSN cannot be parsed, or an option is out of range.
    """

    def __init__(
        self, source: str | Callable[[], str] | ConnectionPool[Connection[Any]], pool_options: dict[str, Any]
    ) -> None:
        self._source: ExternalPool | ManagedPool
        if isinstance(source, ConnectionPool):
            self._source = ExternalPool(source, pool_options)
        else:
            self._source = ManagedPool(source, pool_options)
        self._failures_when_served = 0
        self._first_served: WeakKeyDictionary[Connection[Any], float] = WeakKeyDictionary()

    @contextmanager
    def checkout(self) -> Iterator[Connection[Any]]:
        """Give a connection in autocommit and take it back as it was.

        Raises:
            UnreachableError: The server cannot be reached, or the pool was busy for its whole ``timeout``.
        """
        pool = self._source.pool()
        connection = self._getconn(pool)
        self._first_served.setdefault(connection, time.monotonic())
        autocommit = connection.autocommit
        try:
            if not autocommit:
                connection.autocommit = True
            yield connection
        finally:
            if not autocommit and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
                connection.autocommit = False
            pool.putconn(connection)

    def first_served(self, connection: Connection[Any]) -> float:
        """Tell when a connection was first handed out, on the clock of ``time.monotonic``."""
        return self._first_served[connection]

    def stats(self) -> dict[str, int]:
        """Give the pool's own figures, by its own names."""
        return self._source.pool().get_stats()

    def discard_idle(self) -> None:
        """Close idle connections, which may be as dead as one that was just lost, so that no call has to find out."""
        pool = self._source.pool()
        for _ in range(pool.get_stats().get("pool_available", 0)):
            try:
                connection = pool.getconn(timeout=0.01)
            except (PoolTimeout, TooManyRequests, PoolClosed):
                return
            connection.close()
            pool.putconn(connection)

    def close(self) -> None:
        """Close the pool, unless it is the caller's."""
        self._source.close()

    def _getconn(self, pool: ConnectionPool[Connection[Any]]) -> Connection[Any]:
        busy_until = time.monotonic() + pool.timeout
        while True:
            failures = self._source.failures
            failing = failures > self._failures_when_served
            wait = _WAIT_FAILING if failing else _WAIT_BUSY
            try:
                connection = pool.getconn(timeout=max(min(wait, busy_until - time.monotonic()), 0.001))
            except PoolTimeout:
                # A caller's pool may be pausing between two connects, for longer than its timeout.
                if self._source.failures > failures or (failing and not self._source.connecting):
                    raise self._source.unreachable() from None
                if time.monotonic() >= busy_until:
                    raise self._no_connection_in_time(pool) from None
            except TooManyRequests as error:
                raise UnreachableError(f"{error}; raise max_waiting or max_size", permanent=True) from None
            except PoolClosed:
                raise UnreachableError("the pool of connections is closed; build a new one", permanent=True) from None
            else:
                if not _hung_up(connection):
                    self._failures_when_served = max(self._failures_when_served, failures)
                    return connection
                pool.putconn(connection)
                if time.monotonic() >= busy_until:
                    raise UnreachableError(f"the server closes every connection for {pool.timeout:g} s now")

    def _no_connection_in_time(self, pool: ConnectionPool[Connection[Any]]) -> UnreachableError:
        if self._source.connecting:
            return UnreachableError(f"connecting to the server takes over {pool.timeout:g} s")
        return UnreachableError(
            f"all {pool.max_size} connections of the pool were in use for {pool.timeout:g} s; "
            "raise max_size or timeout, or lower the load",
            permanent=True,
        )


def _parse(dsn: str) -> dict[str, Any]:
    """Parse a DSN. The errors quote none of it, since what is misplaced may be the password."""
    authority = re.match(r"postgres(?:ql)?://([^/?#]*)", dsn)
    if authority and authority[1].count("@") > 1:
        raise ValueError("the DSN has more than one '@' before its path; percent-encode the password ('@' is %40)")
    with suppress(psycopg.Error):
        return conninfo_to_dict(dsn)
    # Not chained to the driver's error, which quotes the DSN.
    raise ValueError(
        "the DSN cannot be parsed; give postgresql://user:password@host:port/database, with reserved "
        "characters percent-encoded, or key=value pairs"
    )


def _hung_up(connection: Connection[Any]) -> bool:
    """Tell, without a round trip, whether the server has closed an idle connection."""
    try:
        # Twice, since the first may find the server's last words, and only the second the end.
        connection.pgconn.consume_input()
        connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False


def _environment() -> dict[str, Any]:
    """What libpq takes from environment variables and from the service file that they name."""
    return {option.keyword.decode(): option.val for option in pq.Conninfo.get_defaults() if option.val}
