"""A PostgreSQL database that may be away for a while: statements, retries and errors.

Every statement given to it must be safe to repeat, since a lost connection leaves open whether it was carried out.
"""

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import Connection, Cursor, errors, sql
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import ConnectionPool
from typing_extensions import LiteralString

from strands_psycopg.clock import ServerClock
from strands_psycopg.connections import Connections, UnreachableError
from strands_psycopg.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    SchemaError,
    SessionNotFoundError,
    StrandsPsycopgError,
)
from strands_psycopg.watchdog import watchdog

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")

# Connection lost (08xxx), server going down or starting, idle session ended, too many connections, serialization
# failure, deadlock, lock not available.
_RETRIED = {"57P01", "57P02", "57P03", "57P05", "25P03", "53300", "40001", "40P01", "55P03"}

# What a repeated attempt gets at least, however little is left of retry_timeout.
_SHORTEST_RESPONSE_TIMEOUT = 10.0

# See ``Database.write``.
_IN_TIME = "now() <= to_timestamp(%(deadline)s)"
_STILL_IN_TIME = "clock_timestamp() <= to_timestamp(%(deadline)s)"
_SERVER_TIME = "extract(epoch FROM now())"
_TELL_TIME = "SELECT extract(epoch FROM now())"

# Parameters for a statement of ``Database.write`` in a transaction, which cannot land late: its client must commit.
UNTIMED = {"deadline": float("inf")}

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


@dataclass(frozen=True)
class Answer:
    """What a statement returned.

    Attributes:
        rows: The rows, as tuples.
        repeated: An earlier attempt failed, and may have been carried out all the same.
    """

    rows: list[tuple[Any, ...]]
    repeated: bool


class _Attempt(NamedTuple):
    """One of the times that a statement is sent.

    Attributes:
        repeated: An earlier one failed, and may have been carried out all the same.
        given_up_at: When its connection counts as lost, on the clock of ``time.monotonic``.
    """

    repeated: bool
    given_up_at: float


class Database:
    """Runs statements on one pool, in one schema, for objects of one prefix.

    Args:
        source: A DSN, a callable that returns one, or the caller's ``ConnectionPool``.
        schema: Where the tables are; ``public`` if None.
        table_prefix: What the name of every table begins with.
        retry_timeout: For how many seconds a statement is tried again after a failure that may mend.
        response_timeout: After how many seconds without an answer a connection counts as lost.
        pool_options: Arguments for the pool that is built if ``source`` is not one.

    Attributes:
        schema: As given.
        table_prefix: As given.
        response_timeout: As given.

    Raises:
        TypeError: ``source`` is of a wrong type, or a pool that comes with options.
        ValueError: An argument is out of range, or the DSN cannot be parsed.
    """

    def __init__(
        self,
        source: str | Callable[[], str] | ConnectionPool[Connection[Any]],
        *,
        schema: str | None,
        table_prefix: str,
        retry_timeout: float,
        response_timeout: float,
        pool_options: dict[str, Any],
    ) -> None:
        self.schema = _name("schema", "public" if schema is None else schema)
        self.table_prefix = _name("table_prefix", table_prefix)
        if not retry_timeout >= 0:
            raise ValueError(f"retry_timeout must be 0 or more seconds, not {retry_timeout}")
        if not response_timeout > 0:
            raise ValueError(f"response_timeout must be more than 0 seconds, not {response_timeout}")
        self._retry_timeout = retry_timeout
        self.response_timeout = response_timeout
        self._connections = Connections(source, pool_options)
        self._clock = ServerClock()

    def statement(self, template: LiteralString) -> bytes:
        """Compose a statement: each ``{name}`` becomes the table of that name, with schema and prefix.

        But for ``{in_time}``, ``{still_in_time}`` and ``{server_time}``, which ``write`` explains.
        """
        fields = {field for _, field, _, _ in Formatter().parse(template) if field}
        tables = {field: sql.Identifier(self.schema, self.table_prefix + field) for field in fields}
        times = {
            "in_time": sql.SQL(_IN_TIME),
            "still_in_time": sql.SQL(_STILL_IN_TIME),
            "server_time": sql.SQL(_SERVER_TIME),
        }
        return sql.SQL(template).format(**{**tables, **times}).as_bytes(None)

    def fetch(
        self,
        operation: str,
        statement: bytes,
        parameters: Mapping[str, object],
        *,
        binary: bool = False,
        prepare: bool | None = None,
    ) -> Answer:
        """Run one statement, which is one round trip and one commit, and give its rows.

        Args:
            operation: What is being done, for errors and log lines; never a message's content.
            statement: What ``statement`` composed.
            parameters: Its named parameters.
            binary: Whether values are to be sent in PostgreSQL's binary form, which halves a ``bytea``.
            prepare: False if the best plan depends on the parameters, so that the server makes one each time.

        Raises:
            DatabaseUnavailableError: The database could not be reached within ``retry_timeout``.
            SchemaError: A table is missing.
            SessionNotFoundError: A foreign key found no parent.
            DatabaseError: The server refused the statement for another reason.
        """

        def work(connection: Connection[Any], attempt: _Attempt) -> Answer:
            with _cursor(connection) as cursor:
                cursor.execute(statement, parameters, binary=binary, prepare=prepare)
                return Answer(cursor.fetchall() if cursor.description else [], attempt.repeated)

        return self._run(operation, work, self.response_timeout)

    def write(self, operation: str, statement: bytes, parameters: Mapping[str, object]) -> Answer:
        """Run one statement that stores something, in time or not at all.

        A server that stood still carries out what it was sent when it goes on, though that attempt was given up and
        repeated, and newer writes have followed. So the statement must store nothing unless ``{in_time}``, and begin
        its only row with ``{server_time}`` if it was allowed to store, with NULL if it was not. A process's first
        write is always in time, since nothing is known of the server's clock before.

        So does one that waited for a lock on a row, after newer writes that waited for it too. Unless it can tell by
        the row that others have written it, it must ask ``{still_in_time}`` where it has the lock.

        Args:
            operation: As in ``fetch``.
            statement: As in ``fetch``.
            parameters: As in ``fetch``; ``deadline`` is added.

        Raises:
            StrandsPsycopgError: As in ``fetch``.
        """

        def work(connection: Connection[Any], attempt: _Attempt) -> Answer:
            with _cursor(connection) as cursor:
                while True:
                    sent_at = time.monotonic()
                    deadline = self._clock.at(attempt.given_up_at)
                    cursor.execute(statement, {**parameters, "deadline": deadline})
                    rows = cursor.fetchall()
                    if rows[0][0] is not None:
                        self._clock.learn(float(rows[0][0]), sent_at)
                        return Answer(rows, attempt.repeated)
                    # If it came too late, though it is waited for, somebody has set the clock.
                    sent_at = time.monotonic()
                    told = float(cursor.execute(_TELL_TIME).fetchall()[0][0])
                    self._clock.learn(told, sent_at)
                    if told <= deadline:
                        return Answer(rows, attempt.repeated)

        return self._run(operation, work, self.response_timeout)

    def learn_time(self) -> None:
        """Ask for the server's time, unless it is known: before a first ``write`` that must not land late.

        Raises:
            StrandsPsycopgError: As in ``fetch``.
        """

        def work(connection: Connection[Any], _attempt: _Attempt) -> None:
            with _cursor(connection) as cursor:
                sent_at = time.monotonic()
                self._clock.learn(float(cursor.execute(_TELL_TIME).fetchall()[0][0]), sent_at)

        if not self._clock.known:
            self._run("asking for the time", work, self.response_timeout)

    def transact(
        self, operation: str, work: Callable[[Cursor[TupleRow]], _T], *, response_timeout: float | None = None
    ) -> _T:
        """Run several statements in one transaction.

        Args:
            operation: As in ``fetch``.
            work: Runs statements on the cursor that it is given; it is called again at a retry.
            response_timeout: Seconds for the whole transaction, instead of those of the constructor.

        Raises:
            StrandsPsycopgError: As in ``fetch``.
        """

        def transaction(connection: Connection[Any], _attempt: _Attempt) -> _T:
            with connection.transaction(), _cursor(connection) as cursor:
                return work(cursor)

        return self._run(
            operation, transaction, self.response_timeout if response_timeout is None else response_timeout
        )

    def pool_stats(self) -> dict[str, int]:
        """Give the figures of the pool's ``get_stats``."""
        return self._connections.stats()

    def close(self) -> None:
        """Close the pool, unless it is the caller's."""
        self._connections.close()

    def _run(self, operation: str, work: Callable[[Connection[Any], "_Attempt"], _T], response_timeout: float) -> _T:
        give_up_at = time.monotonic() + self._retry_timeout
        sent = False
        read_only_since = float("inf")
        for attempt, pause in enumerate(_pauses(), start=1):
            failure: Exception
            started = time.monotonic()
            if attempt > 1 and response_timeout < float("inf"):
                response_timeout = min(response_timeout, max(give_up_at - started, _SHORTEST_RESPONSE_TIMEOUT))
            try:
                with self._connections.checkout() as connection:
                    try:
                        this = _Attempt(sent, time.monotonic() + response_timeout)
                        with watchdog.watch(connection, response_timeout):
                            return work(connection, this)
                    except psycopg.Error as error:
                        failure, reason = error, _reason(error)
                        retryable = _is_retryable(error, connection)
                        if isinstance(error, errors.ReadOnlySqlTransaction):
                            # After a failover the pool may still be connected to the old primary.
                            retryable = self._connections.first_served(connection) < read_only_since
                            read_only_since = min(read_only_since, time.monotonic())
                            connection.close()
                        sent = True
                        # A server that ends a connection says why. Otherwise nobody can tell what the others are worth.
                        suspicious = connection.closed and error.sqlstate in (None, "25006")
            except UnreachableError as error:
                failure, reason, retryable, suspicious = error, str(error), not error.permanent, False
            # A traceback prints its causes, and what the server adds to its message holds row values.
            failure.args = (reason,)
            if not retryable:
                raise _translate(operation, reason, failure) from failure
            if time.monotonic() + pause >= give_up_at:
                raise DatabaseUnavailableError(
                    f"{operation}: the database was away for the {self._retry_timeout:g} s of retry_timeout: {reason}"
                ) from failure
            logger.warning(
                "attempt=<%d>, pause=<%.2f>, error=<%s> | %s failed, retrying", attempt, pause, reason, operation
            )
            if suspicious:
                self._connections.discard_idle()
            time.sleep(pause)
        raise AssertionError("the pauses never end")


def _name(argument: str, value: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        # Not quoted, since what was given by mistake may be a DSN.
        raise ValueError(f"{argument} must match [a-z_][a-z0-9_]{{0,39}}")
    return value


def _cursor(connection: Connection[Any]) -> Cursor[TupleRow]:
    """A plain server-side-binding cursor for tuples, whatever the factories of a caller's pool are."""
    return Cursor(connection, row_factory=tuple_row)


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _is_retryable(error: psycopg.Error, connection: Connection[Any]) -> bool:
    if error.sqlstate is not None:
        return error.sqlstate in _RETRIED or error.sqlstate.startswith("08")
    return connection.closed or type(error) is psycopg.OperationalError


def _reason(error: psycopg.Error) -> str:
    """The server's or libpq's own words, without what could hold a row's values."""
    if error.sqlstate is None:
        return " ".join(str(error).split())
    if error.sqlstate[:2] in ("22", "23"):
        return f"SQLSTATE {error.sqlstate} ({type(error).__name__})"
    return f"{error.diag.message_primary} (SQLSTATE {error.sqlstate})"


def _translate(operation: str, reason: str, error: Exception) -> StrandsPsycopgError:
    match error:
        case UnreachableError():
            return DatabaseUnavailableError(f"{operation}: {reason}")
        case errors.UndefinedTable() | errors.UndefinedColumn() | errors.InvalidSchemaName():
            return SchemaError(
                f"{operation}: the tables are missing or of an older version; call ensure_schema() or run "
                f"'strands-psycopg migrate' first ({reason})"
            )
        case errors.ForeignKeyViolation():
            return SessionNotFoundError(f"{operation}: the session or agent that it belongs to does not exist")
        case errors.InvalidSqlStatementName() | errors.DuplicatePreparedStatement():
            advice = 'behind a pooler pass kwargs={"prepare_threshold": None}'
        case errors.UndefinedObject():
            advice = "name one that the database has, or create it"
        case errors.InsufficientPrivilege():
            advice = "grant the role what the README lists under roles"
        case errors.ReadOnlySqlTransaction():
            advice = "the server takes no writes; connect to the primary (target_session_attrs=read-write)"
        case errors.QueryCanceled():
            advice = "the statement was cancelled, by a statement_timeout or by an administrator"
        case _:
            advice = "the database refused the statement"
    return DatabaseError(f"{operation}: {reason}; {advice}", sqlstate=getattr(error, "sqlstate", None))
