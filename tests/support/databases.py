"""Databases for one test or a few, which are dropped afterwards."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo


class Databases:
    """Creates databases on a server, and drops them.

    Args:
        dsn: Any database of the server.
        suffix: A part of their names, so that several processes can use one server.
    """

    def __init__(self, dsn: str, suffix: str) -> None:
        self._dsn = dsn
        self._suffix = suffix
        self._numbers = itertools.count()

    def __enter__(self) -> "Databases":
        self._connection = psycopg.connect(self._dsn, autocommit=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    @contextmanager
    def create(self, name: str, template: str = "template1") -> Iterator[str]:
        """Yield the DSN of a new database whose name begins with ``name``, a copy of the one named ``template``."""
        name = f"{name}_{self._suffix}_{next(self._numbers)}"
        names = sql.Identifier(name), sql.Identifier(template)
        # Copying files is faster than writing all pages to the log. PostgreSQL 14 does nothing else.
        strategy = sql.SQL("STRATEGY file_copy" if self._connection.info.server_version >= 150000 else "")
        self._connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} {}").format(*names, strategy))
        try:
            yield make_conninfo(self._dsn, dbname=name)
        finally:
            self._connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(names[0]))
