"""Statements on a PostgreSQL database that may be temporarily unavailable, with retries and error translation.

Every statement must be safe to repeat, since after a lost connection it is unknown whether the server executed it.
"""

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from string import Formatter
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import ClientCursor, Connection, Cursor, Pipeline, RawCursor, errors, postgres, sql
from psycopg.adapt import AdaptersMap
from psycopg.dbapi20 import register_dbapi20_adapters
from psycopg.rows import TupleRow, tuple_row
from psycopg.types import TypesRegistry
from psycopg.types.array import register_all_arrays
from psycopg_pool import ConnectionPool
from typing_extensions import LiteralString

from strands_psycopg.binary_parameter import BinaryParameter, BinaryParameterDumper
from strands_psycopg.calls import CallInterruptedError, check_interrupted, pause
from strands_psycopg.clock import ServerClock
from strands_psycopg.connections import Connections, UnreachableError, UnsuitableConnectionError
from strands_psycopg.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    SchemaError,
    SessionNotFoundError,
    StrandsPsycopgError,
)
from strands_psycopg.outage import OutageLog
from strands_psycopg.pool_options import PoolOptions
from strands_psycopg.system_errors import ResourceLimitError
from strands_psycopg.telemetry import current_counts, observe_pool, retries
from strands_psycopg.watchdog import watchdog
from strands_psycopg.workers import Workers

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")

# Connection lost (08xxx), server shutting down or starting, idle session ended, too many connections, serialization
# failure, deadlock, lock not available.
_RETRYABLE = {"57P01", "57P02", "57P03", "57P05", "25P03", "53300", "40001", "40P01", "55P03"}

# Internal and I/O errors. With these a distributed database reports a lost node, until it has noticed that its
# connections to that node are lost. But it may also be a damaged page, which no retry repairs. So they are retried for
# some seconds.
_PERHAPS_RETRYABLE = {"XX000", "58030"}
_PERHAPS_RETRYABLE_TIMEOUT = 5.0

# SQLSTATEs and classes of them whose texts may contain a row's values: data exceptions, constraint violations, errors
# that functions raise, and 42601, which the input of a tsvector has too.
_TEXT_WITH_VALUES = ("22", "23", "38", "P0", "42601")

_ADVICE = {
    "25P04": "the server's transaction_timeout is too short for it; raise it for this role",
    "53100": "free some space on the server's disk",
    "53400": "raise that limit, such as temp_file_limit, for this role",
    "55000": "the database is not in a state that allows it; ask your DBA",
}

# The minimum response timeout of a repeated attempt, however little is left of retry_timeout.
_MIN_RESPONSE_TIMEOUT = 10.0

# See ``Database.write``.
_IN_TIME = "pg_catalog.now() <= pg_catalog.to_timestamp(%(deadline)s)"
_STILL_IN_TIME = "pg_catalog.clock_timestamp() <= pg_catalog.to_timestamp(%(deadline)s)"
_SERVER_TIME = "extract(epoch FROM pg_catalog.now())"
_READ_SERVER_TIME = "SELECT extract(epoch FROM pg_catalog.now())"

_ISO_TIME: LiteralString = """pg_catalog.to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')"""

# A statement must see what was committed while the one before it waited for a lock.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_COMMIT = "COMMIT"

# The deadline for a statement of ``Database.write`` that runs in a transaction: it cannot take effect late, since its
# client must commit.
NO_DEADLINE = {"deadline": float("inf")}

# In seconds, unless the caller passes retry_timeout: in general, and as long as no server has answered at all.
_RETRY_TIMEOUT = 30.0
_FIRST_RETRY_TIMEOUT = 5.0

# The minimum number of seconds for which a statement may wait for a free thread, however short retry_timeout is.
_MIN_THREAD_TIMEOUT = 10.0

_FIRST_PAUSE = 0.05
_MAX_PAUSE = 2.0


@dataclass(frozen=True)
class Result:
    """The result of a statement.

    Attributes:
        rows: The rows, as tuples.
        repeated: Whether an earlier attempt failed, which may have been executed nevertheless.
    """

    rows: list[tuple[Any, ...]]
    repeated: bool


class _Attempt(NamedTuple):
    """One attempt to run a statement.

    Attributes:
        repeated: Whether an earlier attempt failed, which may have been executed nevertheless.
        deadline: When its connection counts as lost, on the clock of ``time.monotonic``.
    """

    repeated: bool
    deadline: float


class PipelinedTransaction:
    """A transaction whose statements are sent without waiting for the results of those before them.

    Args:
        connection: Its connection.
        pipeline: None if each statement waits for its result.

    Attributes:
        cursor: A cursor of its connection. What runs on it waits for its result.
    """

    def __init__(self, connection: Connection[Any], pipeline: Pipeline | None) -> None:
        self.cursor = new_cursor(connection)
        self._pipeline = pipeline

    def send(self, statement: bytes, parameters: Mapping[str, object]) -> Cursor[TupleRow]:
        """Send a statement; return the cursor that will have its result."""
        return new_cursor(self.cursor.connection).execute(statement, parameters)

    def receive(self) -> None:
        """Wait for the results of all statements, in one round trip; none of these statements may be large.

        While the server then waits for the next statement, its idle_in_transaction_session_timeout runs. If results are
        fetched without this method, or at the end of a nested pipeline, it does not: psycopg then sends a Flush
        message, which stops the server's timer. But only with a Flush does psycopg send what did not fit into the
        socket's buffer.
        """
        if self._pipeline is not None:
            self._pipeline.sync()


class Database:
    """Runs statements on one pool, on the tables of one schema and prefix.

    Args:
        source: A DSN, a callable that returns one, or the caller's ``ConnectionPool``.
        schema: The schema of the tables; ``public`` if None.
        table_prefix: The prefix of every table's name.
        retry_timeout: For how many seconds a statement is retried after a retryable failure. None is 30; but 5 as long
            as no server has ever answered this process.
        response_timeout: After how many seconds without a response a connection counts as lost.
        pool_options: Arguments for the pool that is built unless ``source`` is one.

    Attributes:
        schema: The schema of the tables.
        table_prefix: The prefix of every table's name.
        response_timeout: In seconds, as for the constructor.
        workers: The threads that run statements for coroutines and for the main thread.

    Raises:
        TypeError: ``source`` is of a wrong type, or is a pool and combined with options.
        ValueError: An argument is out of range, or the DSN cannot be parsed.
    """

    def __init__(
        self,
        source: str | Callable[[], str] | ConnectionPool[Any],
        *,
        schema: str | None,
        table_prefix: str,
        retry_timeout: float | None,
        response_timeout: float,
        pool_options: PoolOptions,
    ) -> None:
        self.schema = _check_name("schema", "public" if schema is None else schema)
        self.table_prefix = _check_name("table_prefix", table_prefix)
        if retry_timeout is not None and not retry_timeout >= 0:
            raise ValueError(f"retry_timeout must be 0 or more seconds, not {retry_timeout}")
        if not response_timeout > 0:
            raise ValueError(f"response_timeout must be more than 0 seconds, not {response_timeout}")
        self._retry_timeout = _RETRY_TIMEOUT if retry_timeout is None else retry_timeout
        self._first_retry_timeout = _FIRST_RETRY_TIMEOUT if retry_timeout is None else retry_timeout
        self.response_timeout = response_timeout
        self._connections = Connections(source, pool_options)
        observe_pool(self._connections)
        self.workers = Workers(max(self._retry_timeout, _MIN_THREAD_TIMEOUT), self._connections.max_size)
        self._outage = OutageLog()
        self._clock = ServerClock()

    @property
    def address(self) -> str:
        """Where the database is, in the form ``key=value``, without secrets: for display only.

        Host, port, name and user, as far as the DSN has them; ``conninfo=callable``; or the name of the caller's pool.
        """
        return self._connections.address

    def statement(self, template: LiteralString) -> bytes:
        """Compose a statement, in which each ``{name}`` becomes that table's name, with schema and prefix.

        Functions must be qualified with ``pg_catalog``, and arguments of operators must have exactly their types.
        Otherwise a function or operator in another schema of the ``search_path`` may match better, and run.

        Exceptions are ``{in_time}``, ``{still_in_time}`` and ``{server_time}``, which ``write`` explains.
        """
        return _compose(template, self.schema, self.table_prefix)

    def fetch(
        self,
        operation: str,
        statement: bytes,
        parameters: Mapping[str, object],
        *,
        binary: bool = False,
        prepare: bool | None = None,
        retry_timeout: float = float("inf"),
    ) -> Result:
        """Run one statement, in one round trip and one commit.

        Args:
            operation: What is being done, for errors and log lines; never a message's content.
            statement: A statement that ``statement`` has composed.
            parameters: Its named parameters.
            binary: Whether to send values in PostgreSQL's binary format, which halves the size of a ``bytea``.
            prepare: False if the best plan depends on the parameters, so that the server plans each execution.
            retry_timeout: For how many seconds it is retried, if they are fewer than those of the constructor.

        Raises:
            DatabaseUnavailableError: The database could not be reached within ``retry_timeout``.
            SchemaError: A table is missing.
            SessionNotFoundError: A foreign key refers to a missing row.
            DatabaseError: The server refused the statement for another reason.
        """

        def work(connection: Connection[Any], attempt: _Attempt) -> Result:
            with new_cursor(connection) as cursor:
                cursor.execute(statement, parameters, binary=binary, prepare=prepare)
                return Result(cursor.fetchall() if cursor.description else [], attempt.repeated)

        return self._run(operation, work, self.response_timeout, retry_timeout)

    def write(self, operation: str, statement: bytes, parameters: Mapping[str, object]) -> Result:
        """Run one statement that stores something, before a deadline or not at all.

        A server that was stopped for a while executes, when it continues, the statements that it had received, even if
        they have been given up and repeated, and newer writes have followed. So the statement must store nothing unless
        ``{in_time}``. The first column of its only row must be ``{server_time}``, or true, if it was allowed to store;
        otherwise NULL, or there is no row. A process's first write is always in time, since the server's clock is not
        known before.

        A statement that waits for a row lock may likewise be executed after newer writes that wait for the same lock.
        Unless it can see from the row that others have written it, it must check ``{still_in_time}`` once it has the
        lock.

        Arguments are as for ``fetch``; ``deadline`` is added to the parameters.

        Raises:
            StrandsPsycopgError: As in ``fetch``.
        """

        def work(connection: Connection[Any], attempt: _Attempt) -> Result:
            with new_cursor(connection) as cursor:
                if (recorded := current_counts()) is not None and not attempt.repeated:
                    recorded.bytes += sum(len(each) for each in parameters.values() if isinstance(each, str | bytes))
                while True:
                    sent_at = time.monotonic()
                    deadline = self._clock.earliest_at(attempt.deadline)
                    cursor.execute(statement, {**parameters, "deadline": deadline})
                    rows = cursor.fetchall()
                    if rows and (answer := rows[0][0]) is not None:
                        if answer is not True:
                            self._clock.observe(float(answer), sent_at=sent_at)
                        return Result(rows, attempt.repeated)
                    # If the server found the deadline passed, and it has not passed here, the server's clock was set.
                    server_time = self._observe_server_time(cursor)
                    if server_time <= deadline:
                        return Result(rows, attempt.repeated)

        return self._run(operation, work, self.response_timeout)

    def synchronise_clock(self) -> None:
        """Read the server's time unless it is known, before a first ``write`` that must not take effect late.

        Raises:
            StrandsPsycopgError: As in ``fetch``.
        """

        def work(connection: Connection[Any], _attempt: _Attempt) -> None:
            with new_cursor(connection) as cursor:
                self._observe_server_time(cursor)

        if not self._clock.known:
            self._run("reading the server's time", work, self.response_timeout)

    def transact(
        self, operation: str, work: Callable[[Cursor[TupleRow]], _T], *, response_timeout: float | None = None
    ) -> _T:
        """Run several statements in one transaction.

        Args:
            operation: As in ``fetch``.
            work: Runs statements on the cursor that is passed to it; called again for each retry.
            response_timeout: Seconds for the whole transaction, instead of the constructor's value.

        Raises:
            StrandsPsycopgError: As in ``fetch``.
        """

        def transaction(connection: Connection[Any], _attempt: _Attempt) -> _T:
            with connection.transaction(), new_cursor(connection) as cursor:
                return work(cursor)

        return self._run(
            operation, transaction, self.response_timeout if response_timeout is None else response_timeout
        )

    def transact_in_pipeline(self, operation: str, work: Callable[[PipelinedTransaction], _T]) -> _T:
        """Run several statements in one transaction of the isolation level READ COMMITTED, in few round trips.

        Args:
            operation: As in ``fetch``.
            work: Sends statements; called again for each retry. It must have received all results that it depends on,
                since the transaction is committed when it returns.

        Raises:
            StrandsPsycopgError: As in ``fetch``.
        """

        def transaction(connection: Connection[Any], attempt: _Attempt) -> _T:
            try:
                # Not in a transaction block of psycopg's, which would wait for BEGIN alone. And not in a pipeline if it
                # is repeated, since there the server's reason for ending a connection may be lost.
                with nullcontext() if attempt.repeated else connection.pipeline() as pipeline:
                    new_cursor(connection).execute(_BEGIN, prepare=False)
                    result = work(PipelinedTransaction(connection, pipeline))
                    new_cursor(connection).execute(_COMMIT, prepare=False)
            except BaseException:
                with suppress(psycopg.Error):
                    connection.rollback()
                raise
            return result

        return self._run(operation, transaction, self.response_timeout)

    def pool_stats(self) -> dict[str, int]:
        """Return the statistics of the pool's ``get_stats``."""
        return self.workers.run(self._connections.stats)

    def close(self) -> None:
        """Close the pool, unless it is the caller's."""
        self.workers.run(self._connections.close)
        self.workers.close()

    def _observe_server_time(self, cursor: Cursor[TupleRow]) -> float:
        sent_at = time.monotonic()
        server_time = float(cursor.execute(_READ_SERVER_TIME).fetchall()[0][0])
        self._clock.observe(server_time, sent_at=sent_at)
        return server_time

    def _run(
        self,
        operation: str,
        work: Callable[[Connection[Any], _Attempt], _T],
        response_timeout: float,
        retry_timeout: float = float("inf"),
    ) -> _T:
        retry_timeout = min(retry_timeout, self._retry_timeout)
        try:
            return self.workers.run(partial(self._retry, operation, work, response_timeout, retry_timeout))
        except CallInterruptedError:
            raise DatabaseUnavailableError(
                f"{operation}: the call was interrupted, so its outcome is unknown"
            ) from None

    def _retry(
        self,
        operation: str,
        work: Callable[[Connection[Any], _Attempt], _T],
        response_timeout: float,
        retry_timeout: float,
    ) -> _T:
        began = time.monotonic()
        sent = False
        outdated_since = float("inf")
        for number, seconds in enumerate(_pauses(), start=1):
            failure: Exception
            started = time.monotonic()
            if number > 1 and response_timeout < float("inf"):
                remaining = began + retry_timeout - started
                response_timeout = min(response_timeout, max(remaining, _MIN_RESPONSE_TIMEOUT))
            try:
                with self._connections.checkout() as connection:
                    try:
                        attempt = _Attempt(sent, time.monotonic() + response_timeout)
                        with watchdog.watch(connection, response_timeout):
                            self._connections.check(connection)
                            result = work(connection, attempt)
                    except psycopg.Error as error:
                        failure, reason = error, _reason(error)
                        retryable = _is_retryable(error, connection, since=began)
                        if isinstance(error, errors.ReadOnlySqlTransaction | errors.FeatureNotSupported):
                            # After a failover the pool may still be connected to the old primary, and after a column
                            # has changed its type, connections have plans that no longer fit.
                            retryable = self._connections.first_used_at(connection) < outdated_since
                            outdated_since = min(outdated_since, time.monotonic())
                            connection.close()
                        sent = True
                        # A server that ends a connection says why. Without a reason, the idle ones may be lost, too.
                        idle_suspect = connection.closed and error.sqlstate in (None, "25006", "0A000")
                    else:
                        self._record_success(operation, connection, number, time.monotonic() - began)
                        return result
            except UnsuitableConnectionError as error:
                raise DatabaseError(f"{operation}: {error}") from None
            except UnreachableError as error:
                failure, reason, retryable, idle_suspect = error, str(error), not error.permanent, False
            except ResourceLimitError as error:
                failure, reason, retryable, idle_suspect = error, str(error), True, False
            check_interrupted()
            # A traceback shows the causes, and the server's DETAIL contains row values.
            failure.args = (reason,)
            if not retryable:
                raise _translate(operation, reason, failure) from failure
            timeout = retry_timeout
            if isinstance(failure, UnreachableError) and failure.never_answered:
                timeout = min(timeout, self._first_retry_timeout)
            if time.monotonic() + seconds >= began + timeout:
                raise DatabaseUnavailableError(
                    f"{operation}: {_describe_timeout(failure, timeout)}: {reason}"
                ) from failure
            logger.debug(
                "attempt=<%d>, pause=<%.2f>, error=<%s> | %s failed, retrying", number, seconds, reason, operation
            )
            self._outage.failed(operation, reason)
            retries.add(1)
            if idle_suspect:
                self._connections.close_idle()
            pause(seconds)
            check_interrupted()
        raise AssertionError("the pauses never end")

    def _record_success(self, operation: str, connection: Connection[Any], attempts: int, seconds: float) -> None:
        if (recorded := current_counts()) is not None:
            recorded.attempts += attempts
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("attempts=<%d>, milliseconds=<%.2f> | %s succeeded", attempts, seconds * 1000, operation)
        if self._outage.is_open:
            self._outage.succeeded(operation, attempts, seconds, self._connections.server_of(connection))


# Repositories of one schema and prefix have the same statements, which take some milliseconds to compose.
@lru_cache(maxsize=4096)
def _compose(template: LiteralString, schema: str, table_prefix: str) -> bytes:
    fields = {field for _, field, _, _ in Formatter().parse(template) if field}
    tables = {field: sql.Identifier(schema, table_prefix + field) for field in fields}
    times = {
        "in_time": sql.SQL(_IN_TIME),
        "still_in_time": sql.SQL(_STILL_IN_TIME),
        "server_time": sql.SQL(_SERVER_TIME),
    }
    return sql.SQL(template).format(**{**tables, **times}).as_bytes(None)


def iso_time(expression: LiteralString) -> LiteralString:
    """Return the SQL for the text of a time, in Strands' format: ISO 8601 in UTC, with microseconds."""
    return _ISO_TIME.replace("{time}", expression)


def _check_name(argument: str, value: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        # The value is not quoted, since it may be a DSN that was passed by mistake.
        raise ValueError(f"{argument} must match [a-z_][a-z0-9_]{{0,39}}")
    return value


def _own_adapters() -> AdaptersMap:
    """Return psycopg's adapters and ours, made as psycopg makes its own, without those of an application."""
    types = TypesRegistry()
    postgres.register_default_types(types)
    adapters = AdaptersMap(types=types)
    postgres.register_default_adapters(adapters)
    register_dbapi20_adapters(adapters)
    register_all_arrays(adapters)
    adapters.register_dumper(BinaryParameter, BinaryParameterDumper)
    return adapters


_ADAPTERS = _own_adapters()


def new_cursor(connection: Connection[Any]) -> Cursor[TupleRow]:
    """Return a cursor that returns tuples and uses our own adapters.

    It is made by the connection's ``cursor_factory``, where instrumentation hooks in.

    Raises:
        UnsuitableConnectionError: The factory's cursors do not bind parameters on the server.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    if isinstance(cursor, ClientCursor | RawCursor):
        raise UnsuitableConnectionError(
            f"the connection's cursor_factory makes a {type(cursor).__name__}, and statements need parameters that the "
            "server binds; use a factory of psycopg.Cursor or a subclass"
        )
    cursor._adapters = AdaptersMap(_ADAPTERS)
    return cursor


def _describe_timeout(failure: Exception, timeout: float) -> str:
    """Return which timeout has passed, so that a failure is no longer retried."""
    if not isinstance(failure, UnreachableError):
        return f"the database was unavailable for the {timeout:g} s of retry_timeout"
    if not failure.never_answered:
        return f"could not connect within the {timeout:g} s of retry_timeout"
    return (
        f"could not connect within {timeout:g} s, and no server has answered yet (check host and port; an "
        "application can wait longer with retry_timeout=)"
    )


def _pauses() -> Iterator[float]:
    seconds = _FIRST_PAUSE
    while True:
        yield seconds * random.uniform(0.5, 1.0)
        seconds = min(seconds * 2, _MAX_PAUSE)


def _is_retryable(error: psycopg.Error, connection: Connection[Any], *, since: float) -> bool:
    if error.sqlstate == "08P01":
        # Errors of the protocol leave the connection open. PgBouncer also reports its own with this code.
        return connection.closed and "statement pooling mode" not in str(error)
    if error.sqlstate in _PERHAPS_RETRYABLE:
        return not _is_raised_by_function(error) and time.monotonic() < since + _PERHAPS_RETRYABLE_TIMEOUT
    if error.sqlstate is not None:
        return error.sqlstate in _RETRYABLE or error.sqlstate.startswith("08")
    return connection.closed or type(error) is psycopg.OperationalError


def _reason(error: psycopg.Error) -> str:
    """Return the server's or libpq's own message, without anything that could contain a row's values."""
    if error.sqlstate is None:
        return " ".join(str(error).split())
    if (
        _is_raised_by_function(error)
        or error.sqlstate.startswith(_TEXT_WITH_VALUES)
        or not _is_postgresql_sqlstate(error.sqlstate)
    ):
        return f"SQLSTATE {error.sqlstate} ({type(error).__name__}), whose text is in the server's log only"
    return f"{error.diag.message_primary} (SQLSTATE {error.sqlstate})"


def _is_raised_by_function(error: psycopg.Error) -> bool:
    """Return whether a function, such as an operator's trigger, failed; it may raise any text with any SQLSTATE."""
    return "PL/" in (error.diag.context or "")


def _is_postgresql_sqlstate(sqlstate: str) -> bool:
    try:
        errors.lookup(sqlstate)
    except KeyError:
        return False
    return True


_GRANTS = (
    "let the owner of the tables run GRANT USAGE ON SCHEMA schema TO role and GRANT SELECT, INSERT, UPDATE, DELETE ON "
    "ALL TABLES IN SCHEMA schema TO role; a role that migrates needs GRANT CREATE ON SCHEMA schema TO role too"
)


def _translate(operation: str, reason: str, error: Exception) -> StrandsPsycopgError:
    match error:
        case UnreachableError():
            return DatabaseUnavailableError(f"{operation}: {reason}")
        case psycopg.Error() if _is_raised_by_function(error):
            advice = "a function in the database failed or refused it, perhaps that of a trigger on its tables"
        case errors.UndefinedTable() | errors.UndefinedColumn() | errors.InvalidSchemaName():
            return SchemaError(
                f"{operation}: the tables are missing or from an older version; call ensure_schema() or run "
                f"'strands-psycopg migrate' first ({reason})"
            )
        case errors.ForeignKeyViolation():
            return SessionNotFoundError(f"{operation}: the session or agent that it belongs to does not exist")
        case errors.InvalidSqlStatementName() | errors.DuplicatePreparedStatement():
            advice = 'behind a pooler pass kwargs={"prepare_threshold": None}'
        case errors.UndefinedObject():
            advice = "use one that exists in the database, or create it"
        case errors.InsufficientPrivilege():
            advice = _GRANTS
        case errors.ReadOnlySqlTransaction():
            advice = "the server is read-only; connect to the primary (target_session_attrs=read-write)"
        case errors.QueryCanceled():
            advice = "the statement was cancelled, by a statement_timeout or by an administrator"
        case _:
            advice = _ADVICE.get(getattr(error, "sqlstate", None) or "", "the database refused the statement")
    return DatabaseError(f"{operation}: {reason}; {advice}", sqlstate=getattr(error, "sqlstate", None))
