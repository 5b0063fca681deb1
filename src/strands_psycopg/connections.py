"""The connection pool: built from a DSN, or the caller's own."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg import Connection, pq
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from strands_psycopg.calls import check_interrupted, report_stall
from strands_psycopg.connect_refusal import failures_by_host, read_sqlstate
from strands_psycopg.driver_logging import POOL_NAME_PREFIX, pool_filter, thread_state
from strands_psycopg.dsn import format_address, libpq_defaults, parse_dsn
from strands_psycopg.pool_options import PoolOptions, check_pool_options
from strands_psycopg.printable import printable
from strands_psycopg.process_forks import after_fork_in_child
from strands_psycopg.system_errors import ResourceLimitError, explain, file_limit_error, translate_limits
from strands_psycopg.telemetry import PoolUsage

# With libpq's defaults, a dead link would be noticed after two hours.
_DEFAULTS: dict[str, str | int] = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "strands-psycopg",
}

# A failed connection attempt has no SQLSTATE. With these texts, from libpq and from servers whose messages are in
# English, a failure is permanent.
_PERMANENT = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry"
    r"|database \".*\" does not exist|role \".*\" does not exist|is not permitted to log in"
    r"|permission denied for database|server does not support SSL|certificate"
    r"|invalid port number|invalid sslmode value|definition of service"
    r"|socket path .* is too long"
    r"|no such user|no such database|unsupported startup parameter"  # PgBouncer's
)

# The same with these SQLSTATEs, whatever the language: no authorization, no such database, no privilege, and a setting
# that does not exist or has a wrong value.
_PERMANENT_SQLSTATE = re.compile(r"28...|3D000|42501|42704|22023")

# No server has answered, so that the host or port may be wrong. The first two texts are psycopg's, the second one of
# versions before 3.3.
_NO_SERVER = re.compile(
    r"failed to resolve host|Name or service not known|could not translate host name"
    r"|Connection refused|No such file or directory"
    r"|No route to host|Network is unreachable|timeout expired|connection timeout"
)

# In seconds: how long to wait for a connection before requesting it again, since after a failed attempt a pool
# reconnects only at the next request. Waits are short while attempts fail, long while the pool is merely busy.
_WAIT_WHILE_FAILING = 0.2
_WAIT_WHILE_BUSY = 1.0

_CONNECT = getattr(Connection.connect, "__func__", None)

# In seconds, for the connection attempt that finds out why a server refuses others.
_REFUSAL_TIMEOUT = 5.0

_pool_numbers = count(1)


class UnreachableError(Exception):
    """No connection could be obtained.

    Attributes:
        permanent: Whether retrying will not help.
        never_answered: Whether no server has answered yet, since the pool was opened.
    """

    def __init__(self, message: str, *, permanent: bool = False, never_answered: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.never_answered = never_answered


class UnsuitableConnectionError(Exception):
    """Statements cannot be run on this connection as it is set; the message says what to change."""


class _Use:
    """How a connection has been used.

    Attributes:
        since: When it was first checked out, on the clock of ``time.monotonic``.
        checkouts: How often it has been checked out.
    """

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.checkouts = 0


class ExternalPool:
    """A pool that the caller opens and closes.

    Attributes:
        address: The pool's name.
    """

    connecting = 0

    def __init__(self, pool: ConnectionPool[Any], pool_options: PoolOptions) -> None:
        if pool_options:
            raise TypeError(
                f"pool options {sorted(pool_options)} cannot be combined with a pool; pass them to that pool instead"
            )
        self._pool = pool
        self._is_from_parent = False
        self.address = printable(f"pool={pool.name}")
        after_fork_in_child(self._notice_fork)

    def _notice_fork(self) -> None:
        # Two processes on one connection would read each other's answers.
        self._is_from_parent = self._is_from_parent or not self._pool.closed

    def pool(self) -> ConnectionPool[Any]:
        """Return the pool.

        Raises:
            UnreachableError: It was open when this process was forked.
        """
        if self._is_from_parent:
            raise UnreachableError(
                "the pool was open when this process was forked, and its connections are the parent's; build a pool "
                "and a repository in each process",
                permanent=True,
            )
        return self._pool

    def current_pool(self) -> ConnectionPool[Any]:
        """Return the pool, wherever it was opened."""
        return self._pool

    @property
    def failures(self) -> int:
        """The number of failed connection attempts so far."""
        return self._pool.get_stats().get("connections_errors", 0)

    def stop_preparing(self, _connection: Connection[Any]) -> None:
        """Refuse a connection that prepares statements behind a pooler."""
        raise UnsuitableConnectionError(
            "there is a pooler in between, which may lose or mix up prepared statements; build the pool with "
            'kwargs={"prepare_threshold": None}'
        )

    def unreachable_error(self) -> UnreachableError:
        """Return the error that says why no connection attempt succeeds."""
        return UnreachableError("the pool cannot connect to the server; its logger 'psycopg.pool' says why")

    def close(self) -> None:
        """Leave the pool open, since it is the caller's."""


class ManagedPool:
    """A pool built from a DSN: opened at first use, separately in each process, and closed by ``close``.

    Attributes:
        address: Where it connects to, without secrets.
        connecting: The number of connection attempts in progress.
        failures: The number of failed connection attempts so far.
    """

    def __init__(self, dsn: str | Callable[[], str], pool_options: PoolOptions) -> None:
        if isinstance(dsn, str):
            self.address = format_address(parse_dsn(dsn), pool_options.get("kwargs"))
        elif callable(dsn):
            self.address = "conninfo=callable"
        else:
            raise TypeError(
                f"conninfo must be a DSN, a callable that returns one or a ConnectionPool, not {type(dsn).__name__}"
            )
        check_pool_options(pool_options)
        self._dsn = dsn
        self._options: dict[str, Any] = dict(pool_options)
        self._connection_class = self._options.pop("connection_class", Connection)
        self._options.setdefault("name", f"{POOL_NAME_PREFIX}{next(_pool_numbers)}")
        # With a minimum of one, the first call would find that connection not ready yet, and request a second.
        # A maximum of None is the minimum.
        self._options.setdefault("min_size", 1 if self._options.get("max_size", 10) is None else 0)
        self._options.setdefault("max_size", max(10, self._options["min_size"]))
        # The pool's own backoff would outlast an outage by far; retries are the database layer's task.
        self._options.setdefault("reconnect_timeout", 0.0)
        self._closed = False
        self._parent_pools: list[ConnectionPool[Any]] = []
        self._create_pool()
        after_fork_in_child(self._reset_in_child)

    def _create_pool(self) -> None:
        self.connecting = 0
        self.failures = 0
        self._last_error: Exception | None = None
        self._refusal: tuple[str, str | None] = ("", None)
        self._answered = False
        self._opening = threading.Lock()
        self._pool = self._new_pool()

    def _new_pool(self) -> ConnectionPool[Any]:
        # A pool uses nothing but ``connect`` of its connection class; this object provides it.
        connection_class = cast(type[Connection[Any]], self)
        return ConnectionPool("", connection_class=connection_class, open=False, **self._options)

    def _reset_in_child(self) -> None:
        """Create a pool for this process; the parent's pool and its sockets are not touched."""
        if not self._closed:
            # Kept, because its finalizer would try to end threads that this process does not have.
            self._parent_pools.append(self._pool)
            self._create_pool()

    def pool(self) -> ConnectionPool[Any]:
        """Return the pool, opened unless it has been closed."""
        if self._pool.closed and not self._closed:
            with self._opening:
                if not self._closed:
                    self._open()
        return self._pool

    def current_pool(self) -> ConnectionPool[Any]:
        """Return the pool, which may not have been opened."""
        return self._pool

    def _open(self) -> None:
        try:
            with translate_limits():
                self._pool.open()
        except ResourceLimitError:
            # It has started some of its threads, and would never start the rest.
            with suppress(Exception):
                self._pool.close(timeout=0)
            self._pool = self._new_pool()
            raise

    def connect(self, _conninfo: str = "", **kwargs: Any) -> Connection[Any]:
        """Open one connection for the pool; if that fails, keep the reason."""
        self.connecting += 1
        try:
            dsn = self._current_dsn()
            specified = {**libpq_defaults(), **parse_dsn(dsn), **kwargs}
            defaults = {} if "service" in specified else {k: v for k, v in _DEFAULTS.items() if k not in specified}
            settings = {**defaults, **kwargs, "autocommit": True, "client_encoding": "utf8"}
            connection = self._connect(dsn, settings)
        except Exception as error:
            # libpq does not report a lack of file descriptors.
            self._last_error = file_limit_error() or error
            self.failures += 1
            raise
        finally:
            self.connecting -= 1
        self._answered = True
        pool_filter.connections.add(connection)
        return connection

    def _connect(self, dsn: str, settings: Mapping[str, Any]) -> Connection[Any]:
        """Open one connection; if the server refuses it, keep the reason and its SQLSTATE."""
        try:
            connection: Connection[Any] = self._connection_class.connect(dsn, **settings)
        except psycopg.Error as error:
            reason = _one_line(error)
            if reason != self._refusal[0]:
                is_known = _PERMANENT.search(reason) or _NO_SERVER.search(reason) or len(failures_by_host(error)) > 1
                # A connect of a subclass may use other settings.
                is_custom = getattr(self._connection_class.connect, "__func__", None) is not _CONNECT
                sqlstate = None if is_known or is_custom else read_sqlstate(dsn, settings, timeout=_REFUSAL_TIMEOUT)
                self._refusal = (reason, sqlstate)
            raise
        return connection

    def stop_preparing(self, connection: Connection[Any]) -> None:
        """Switch off prepared statements on a connection, unless the pool's options ask for them."""
        if "prepare_threshold" not in (self._options.get("kwargs") or {}):
            connection.prepare_threshold = None

    def _current_dsn(self) -> str:
        if isinstance(self._dsn, str):
            return self._dsn
        try:
            dsn = self._dsn()
        except Exception as error:
            kind = type(error).__name__
        else:
            if isinstance(dsn, str):
                return dsn
            raise UnreachableError(f"the callable must return a DSN, not {type(dsn).__name__}", permanent=True)
        # The error is neither quoted nor chained, since it may contain credentials, and the pool logs it.
        raise UnreachableError(f"no DSN to connect with: {kind} in the callable that returns it")

    def unreachable_error(self) -> UnreachableError:
        """Return the error that says why no connection attempt succeeds."""
        error = self._last_error
        if isinstance(error, UnreachableError):
            return UnreachableError(str(error), permanent=error.permanent)
        if isinstance(error, OSError):
            return UnreachableError(explain(error))
        if not isinstance(error, psycopg.Error):
            return UnreachableError(f"no connection can be made with the DSN: {type(error).__name__}")
        reason = _one_line(error)
        # Another host may be back before long.
        failures = failures_by_host(error)
        never_answered = not self._answered and all(map(_NO_SERVER.search, failures))
        known_reason, sqlstate = self._refusal
        is_refusal = reason == known_reason and sqlstate is not None and _PERMANENT_SQLSTATE.fullmatch(sqlstate)
        permanent = bool(is_refusal) or all(map(_PERMANENT.search, failures))
        return UnreachableError(reason, permanent=permanent, never_answered=never_answered)

    def close(self) -> None:
        """Close the pool permanently."""
        self._closed = True
        # For each worker thread; one that waits for a server that does not respond would delay Ctrl-C.
        self._pool.close(timeout=1.0)


class Connections:
    """Checks out connections of one pool, and distinguishes a busy pool from an unreachable server.

    Args:
        source: A DSN, a callable that returns one for each connection attempt, or the caller's pool.
        pool_options: Arguments for the pool that is built unless ``source`` is one.

    Raises:
        TypeError: ``source`` is none of these, or is a pool and combined with options.
        ValueError: The DSN cannot be parsed, or an option is out of range.
    """

    def __init__(self, source: str | Callable[[], str] | ConnectionPool[Any], pool_options: PoolOptions) -> None:
        self._source: ExternalPool | ManagedPool
        if isinstance(source, ConnectionPool):
            self._source = ExternalPool(source, pool_options)
        else:
            self._source = ManagedPool(source, pool_options)
        self._failures_at_checkout = 0
        self._uses: WeakKeyDictionary[Connection[Any], _Use] = WeakKeyDictionary()

    @property
    def address(self) -> str:
        """Where the connections go, in the form ``key=value``, without secrets: for display only."""
        return self._source.address

    @contextmanager
    def checkout(self) -> Iterator[Connection[Any]]:
        """Yield a connection in autocommit mode; return it to the pool in the mode that it had.

        Raises:
            UnreachableError: The server cannot be reached, or no connection was free within the pool's ``timeout``.
        """
        pool = self._source.pool()
        connection = self._getconn(pool)
        use = self._uses.setdefault(connection, _Use())
        use.checkouts += 1
        autocommit = connection.autocommit
        try:
            if not autocommit:
                connection.autocommit = True
            thread_state.uses_connection = True
            yield connection
        finally:
            thread_state.uses_connection = False
            if not autocommit and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
                connection.autocommit = False
            pool.putconn(connection)

    def first_used_at(self, connection: Connection[Any]) -> float:
        """Return when a connection was first checked out, on the clock of ``time.monotonic``."""
        return self._uses[connection].since

    def server_of(self, connection: Connection[Any]) -> str:
        """Return host and port that a connection was made to, for display."""
        with suppress(psycopg.OperationalError):  # it is closed
            return printable(f"{connection.info.host}:{connection.info.port}")
        return self.address

    def check(self, connection: Connection[Any]) -> None:
        """Check that statements can be run on a connection that is checked out.

        Raises:
            UnsuitableConnectionError: Its settings do not allow it.
            psycopg.Error: The connection is lost.
        """
        _check_encoding(connection)
        # Before it prepares its first statement, it must have shown that it always reaches the same server process.
        # Behind a pooler, the statement may be missing in another process, or be another client's.
        threshold = connection.prepare_threshold
        if threshold is not None and self._uses[connection].checkouts == max(threshold, 1):
            # The result itself, since the application's adapters may make anything of it.
            result = connection.execute("SELECT pg_catalog.pg_backend_pid()", prepare=False).pgresult
            if result is not None and result.get_value(0, 0) != b"%d" % connection.info.backend_pid:
                self._source.stop_preparing(connection)

    def stats(self) -> dict[str, int]:
        """Return the pool's statistics, under its own names."""
        return self._source.pool().get_stats()

    def max_size(self) -> int:
        """Return how many connections the pool may have; it need not be open."""
        return self._source.current_pool().max_size

    def usage(self) -> PoolUsage:
        """Return how much the pool is in use; it need not be open."""
        pool = self._source.current_pool()
        stats = pool.get_stats()
        in_use = 0 if pool.closed else stats.get("pool_size", 0) - stats.get("pool_available", 0)
        return PoolUsage(pool.name, in_use, stats.get("requests_waiting", 0))

    def close_idle(self) -> None:
        """Close idle connections, which may be as dead as the one just lost, before other calls use them."""
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
            check_interrupted()
            failures = self._source.failures
            failing = failures > self._failures_at_checkout
            wait = _WAIT_WHILE_FAILING if failing else min(_WAIT_WHILE_BUSY, pool.timeout / 4)
            try:
                connection = pool.getconn(timeout=max(min(wait, busy_until - time.monotonic()), 0.001))
            except PoolTimeout:
                # An external pool may pause between two attempts for longer than its timeout.
                if self._source.failures > failures or (failing and not self._source.connecting):
                    raise self._source.unreachable_error() from None
                if time.monotonic() >= busy_until:
                    raise self._timeout_error(pool) from None
                report_stall()
            except TooManyRequests as error:
                raise UnreachableError(f"{error}; raise max_waiting or max_size", permanent=True) from None
            except PoolClosed as error:
                reason = "the connection pool is closed; create a new one"
                if isinstance(self._source, ExternalPool) and "not open yet" in str(error):
                    reason = f"{error}; call its open() first"
                raise UnreachableError(reason, permanent=True) from None
            else:
                if not _is_closed_by_server(connection):
                    self._failures_at_checkout = max(self._failures_at_checkout, failures)
                    return connection
                pool.putconn(connection)
                if time.monotonic() >= busy_until:
                    raise UnreachableError(f"the server has been closing every connection for {pool.timeout:g} s")

    def _timeout_error(self, pool: ConnectionPool[Any]) -> UnreachableError:
        if self._source.connecting:
            return UnreachableError(f"connecting to the server takes longer than {pool.timeout:g} s")
        return UnreachableError(
            f"all {pool.max_size} connections of the pool were in use for {pool.timeout:g} s; "
            "raise max_size or timeout, or lower the load",
            permanent=True,
        )


def _one_line(error: psycopg.Error) -> str:
    return " ".join(str(error).split())


def _check_encoding(connection: Connection[Any]) -> None:
    if connection.info.encoding != "utf-8":
        encoding = (connection.pgconn.parameter_status(b"client_encoding") or b"unknown").decode()
        raise UnsuitableConnectionError(
            f"the connection's client_encoding is {encoding}, in which not every text can be sent; set it to UTF8 (in "
            "the DSN, configure=, PGCLIENTENCODING, or by ALTER ROLE or ALTER DATABASE)"
        )


def _is_closed_by_server(connection: Connection[Any]) -> bool:
    """Return whether the server has closed an idle connection; found out without a round trip."""
    try:
        # Twice, since the first may read the server's last message, and only the second the end of the stream.
        connection.pgconn.consume_input()
        connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False
