"""Databases for one test or a few, which are dropped afterwards, or emptied and used again."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import tuple_row

from support.kept_connections import KeptConnection

# Those that were just closed have counted what they did when they are gone.
_OTHERS = """
    SELECT true FROM pg_stat_activity WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %d)
"""
_MOMENT = 0.25

_DELETE_ROWS = """
    SELECT string_agg(format('DELETE FROM %I', relname), '; ')
    FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'strands_migrations'
"""

# Like DISCARD ALL, but for the statements that the driver has prepared. What was done is counted at the end of it.
_RESET = """
    CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; UNLISTEN *;
    SELECT pg_advisory_unlock_all(), pg_stat_force_next_flush()
"""

# Whether a copy differs from its template by rows in tables of ours alone. The counters of a new database are zero,
# those of the system's tables too, which count whatever was created, altered, granted or removed. Many pages would
# make other plans, though all rows are deleted.
_ONLY_ROWS_DIFFER = """
    SELECT
        NOT EXISTS (
            SELECT FROM pg_database AS d LEFT JOIN pg_db_role_setting AS s ON s.setdatabase = d.oid
            WHERE datname = current_database() AND (datacl IS NOT NULL OR setconfig IS NOT NULL)
        )
        AND NOT EXISTS (SELECT FROM pg_prepared_statements WHERE from_sql)
        AND bool_and(CASE
            WHEN oid < 16384 OR relname = 'strands_migrations' THEN
                pg_stat_get_tuples_inserted(oid) + pg_stat_get_tuples_updated(oid) + pg_stat_get_tuples_deleted(oid) = 0
            ELSE
                pg_stat_get_vacuum_count(oid) + pg_stat_get_autovacuum_count(oid) = 0
                AND pg_stat_get_analyze_count(oid) + pg_stat_get_autoanalyze_count(oid) = 0
        END)
        AND sum(CASE WHEN oid >= 16384 THEN pg_relation_size(oid) ELSE 0 END) < 1 << 20
    FROM pg_class WHERE (relkind = 'r' OR oid >= 16384 AND relkind IN ('t', 'i')) AND NOT relisshared
"""


class Databases:
    """Creates databases on a server, and drops them.

    Args:
        dsn: Any database of the server.
        suffix: A part of their names, so that several processes can use one server.
        start: Called before each connect, to start the server if a test has stopped it.
        application_name: The name by which the server knows the connections that are kept here.

    Attributes:
        can_reuse: Whether ``reuse`` uses any again; set on entering the block.
    """

    can_reuse: bool

    def __init__(
        self, dsn: str, suffix: str, start: Callable[[], None] = lambda: None, application_name: str = ""
    ) -> None:
        self._dsn = dsn
        self._suffix = suffix
        self._start = start
        self._application_name = application_name
        self._numbers = itertools.count()
        self._emptied: dict[str, list[_Copy]] = {}
        self._in_use: dict[str, _Copy] = {}

    def __enter__(self) -> "Databases":
        self._connect()
        # Before that, counters come late.
        self.can_reuse = self._connection.info.server_version >= 150000
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for copy in itertools.chain(*self._emptied.values()):
            copy.drop()
        self._connection.close()

    @contextmanager
    def create(self, name: str, template: str = "template1") -> Iterator[str]:
        """Yield the DSN of a new database whose name begins with ``name``, a copy of the one named ``template``."""
        name = f"{name}_{self._suffix}_{next(self._numbers)}"
        names = sql.Identifier(name), sql.Identifier(template)
        # Copying files is faster than writing all pages to the log. PostgreSQL 14 does nothing else.
        strategy = sql.SQL("STRATEGY file_copy" if self._connection.info.server_version >= 150000 else "")
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} {}").format(*names, strategy))
        try:
            yield make_conninfo(self._dsn, dbname=name)
        finally:
            self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(names[0]))

    @contextmanager
    def reuse(self, name: str, template: str) -> Iterator[str]:
        """Yield the DSN of a database like a new copy of ``template``, which has no rows but those of the ledger.

        Like all that a test can do in one but fill tables and leave them: it may be a copy in which an earlier test did
        no more, and their pages are not as new.
        """
        if not self.can_reuse:
            with self.create(name, template) as dsn:
                yield dsn
            return
        emptied = self._emptied.setdefault(template, [])
        while emptied and not emptied[-1].is_connected():
            emptied.pop().drop()
        copy = emptied.pop() if emptied else _Copy(self, name, template)
        self._in_use[copy.dsn] = copy
        try:
            yield copy.dsn
        finally:
            del self._in_use[copy.dsn]
            if copy.is_emptied():
                emptied.append(copy)
            else:
                copy.drop()

    @contextmanager
    def connect(self, dsn: str) -> Iterator[psycopg.Connection[Any]]:
        """Yield a connection in autocommit; to one that is reused the first time that which has counted its rows."""
        copy = self._in_use.get(dsn)
        if copy and not copy.is_lent:
            yield copy.lend()
        else:
            with self.connection(dsn) as connection:
                yield connection

    def connection_class(self, dsn: str) -> type[KeptConnection] | None:
        """Return the class for a pool's connections to one that is reused; for others None."""
        copy = self._in_use.get(dsn)
        return None if copy is None else copy.connection_class

    def connection(self, dsn: str) -> psycopg.Connection[Any]:
        """Return a new connection in autocommit."""
        return psycopg.connect(dsn, autocommit=True, application_name=self._application_name)

    def _connect(self) -> None:
        self._start()
        self._connection = self.connection(self._dsn)

    def _execute(self, statement: sql.Composed) -> None:
        if not _is_connected(self._connection):
            self._connect()
        self._connection.execute(statement)


class _Copy:
    """A copy of a migrated database, and a connection to it.

    Attributes:
        dsn: Its DSN.
        is_lent: Whether the test that uses it has that connection.
        connection_class: The class of further connections, one of which may be kept.
    """

    def __init__(self, databases: Databases, name: str, template: str) -> None:
        with ExitStack() as stack:
            self.dsn = stack.enter_context(databases.create(name, template))
            self._connection = stack.enter_context(closing(databases.connection(self.dsn)))
            self._delete_rows = str(self._value(_DELETE_ROWS)).encode()
            self.is_lent = False
            self.connection_class = KeptConnection.subclass()
            stack.callback(self.connection_class.close_kept)
            self._stack = stack.pop_all()

    def is_emptied(self) -> bool:
        """Delete all rows of ours and return True if it is as it was then, and nobody is connected any more."""
        deadline = time.monotonic() + _MOMENT
        try:
            self._take_back()
            while self._value(_OTHERS % self.connection_class.kept_pid()):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.001)
            if not self._value(_ONLY_ROWS_DIFFER):
                return False
            self._connection.execute(self._delete_rows)
        except psycopg.OperationalError:  # a test has ended all connections
            return False
        return True

    def lend(self) -> psycopg.Connection[Any]:
        """Return its connection, for the use of a test."""
        self.is_lent = True
        return self._connection

    def _take_back(self) -> None:
        """Make the connection that was lent like a new one, and count what the test has done with it."""
        if self.is_lent:
            self._connection.rollback()
            self._connection.autocommit = True
            self._connection.row_factory = tuple_row
            self._connection.execute(_RESET)
            self.is_lent = False

    def is_connected(self) -> bool:
        """Return whether the server has not been restarted since."""
        return _is_connected(self._connection)

    def drop(self) -> None:
        """Drop it, whoever is connected."""
        self._stack.close()

    def _value(self, query: str) -> Any:
        row = self._connection.execute(query.encode()).fetchone()
        return row and row[0]


def _is_connected(connection: psycopg.Connection[Any]) -> bool:
    try:
        connection.execute("SELECT true")
    except psycopg.OperationalError:
        return False
    return True
