"""The one pool of connections: built here from a DSN, or the caller's own."""

import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import psycopg
from psycopg import Connection, pq
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

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
    r"password authentication failed|no password supplied|authentication failed for user|no pg_hba\.conf entry"
    r"|database \".*\" does not exist|role \".*\" does not exist|is not permitted to log in"
    r"|permission denied for database|server does not support SSL|certificate"
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


class CallersPool:
    """A pool that the caller opened and will close."""

    connecting = 0
    failing = False

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


class OwnPool:
    """A pool built from a DSN: opened at first use, in every process anew, and closed by ``close``.

    Attributes:
        connecting: How many connects are under way.
        failing: Whether the last connect failed.
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
        _own_pools.add(self)

    def _start(self) -> None:
        self.connecting = 0
        self.failing = False
        self.failures = 0
        self._last_error: Exception | None = None
        self._opening = threading.Lock()
        # Of a connection class the pool uses only ``connect``, which is replaced here.
        self._pool = ConnectionPool("", connection_class=cast(type[Connection[Any]], self), open=False, **self._options)

    def restart_in_child(self) -> None:
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
            dsn = self._dsn() if callable(self._dsn) else self._dsn
            given = {**_environment(), **_parse(dsn), **kwargs}
            defaults = {} if "service" in given else {key: v for key, v in _DEFAULTS.items() if key not in given}
            settings = {**defaults, **kwargs, "autocommit": True, "client_encoding": "utf8"}
            connection: Connection[Any] = self._connection_class.connect(dsn, **settings)
        except Exception as error:
            self._last_error = error
            self.failing = True
            self.failures += 1
            raise
        finally:
            self.connecting -= 1
        self.failing = False
        return connection

    def unreachable(self) -> UnreachableError:
        """Say why no connect succeeds."""
        error = self._last_error
        if not isinstance(error, psycopg.Error):
            # Such an error may quote what the credentials were read from.
            return UnreachableError(f"no DSN to connect with: {type(error).__name__} in the callable that gives it")
        reason = " ".join(str(error).split())
        return UnreachableError(reason, permanent=_PERMANENT.search(reason) is not None)

    def close(self) -> None:
        """Close the pool for good."""
        self._closed = True
        self._pool.close()


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
        self._source: CallersPool | OwnPool
        if isinstance(source, ConnectionPool):
            self._source = CallersPool(source, pool_options)
        else:
            self._source = OwnPool(source, pool_options)

    @contextmanager
    def checkout(self) -> Iterator[Connection[Any]]:
        """Give a connection in autocommit and take it back as it was.

        Raises:
            UnreachableError: The server cannot be reached, or the pool was busy for its whole ``timeout``.
        """
        pool = self._source.pool()
        connection = self._getconn(pool)
        autocommit = connection.autocommit
        try:
            if not autocommit:
                connection.autocommit = True
            yield connection
        finally:
            if not autocommit and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
                connection.autocommit = False
            pool.putconn(connection)

    def discard_lost(self, *, all_idle: bool = False) -> None:
        """Replace idle connections, after one was found lost: those that are lost too, or all of them."""
        pool = self._source.pool()
        if not all_idle:
            pool.check()
            return
        for _ in range(pool.get_stats().get("pool_available", 0)):
            try:
                connection = pool.getconn(timeout=0.001)
            except PoolTimeout:
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
            wait = _WAIT_FAILING if self._source.failing else _WAIT_BUSY
            try:
                return pool.getconn(timeout=max(min(wait, busy_until - time.monotonic()), 0.001))
            except PoolTimeout:
                if self._source.failures > failures:
                    raise self._source.unreachable() from None
                if time.monotonic() >= busy_until:
                    raise self._no_connection_in_time(pool) from None
            except TooManyRequests as error:
                raise UnreachableError(f"{error}; raise max_waiting or max_size", permanent=True) from None
            except PoolClosed:
                raise UnreachableError("the pool of connections is closed; build a new one", permanent=True) from None

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
    try:
        return conninfo_to_dict(dsn)
    except psycopg.Error:
        raise ValueError(
            "the DSN cannot be parsed; give postgresql://user:password@host:port/database, with reserved "
            "characters percent-encoded, or key=value pairs"
        ) from None


def _environment() -> dict[str, Any]:
    """What libpq takes from environment variables and from the service file that they name."""
    return {option.keyword.decode(): option.val for option in pq.Conninfo.get_defaults() if option.val}


def _restart_in_child() -> None:
    for own_pool in list(_own_pools):
        own_pool.restart_in_child()


_own_pools: "weakref.WeakSet[OwnPool]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_restart_in_child)
