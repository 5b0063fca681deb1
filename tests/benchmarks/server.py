"""The server that all contenders share, a database for each, and what it counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import make_conninfo

from strands_psycopg.embedded import postgres
from support.waiting import wait_until


class Counts(NamedTuple):
    """What a database and its server have counted so far."""

    commits: int
    wal: int


class Databases:
    """Databases of one server.

    Attributes:
        version: The server's.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self.version = self._connection.info.parameter_status("server_version")
        self._made: set[str] = set()

    def dsn(self, name: str) -> str:
        """Return the DSN of a database, which is made if it is missing."""
        if name not in self._made:
            self._connection.execute(f'CREATE DATABASE "{name}"'.encode())
            self._made.add(name)
        return make_conninfo(self._dsn, dbname=name)

    def counts(self, name: str) -> Counts:
        """Count, once all who were connected to a database have gone: only then a backend has told everything."""
        gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = %s)"
        wait_until(lambda: self._connection.execute(gone, [name]).fetchall()[0][0])
        query = """
            SELECT xact_commit, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint
            FROM pg_stat_database WHERE datname = %s
        """
        return Counts(*self._connection.execute(query, [name]).fetchall()[0])

    def checkpoint(self) -> None:
        """Make the server write a checkpoint, so that it does not write one during the measurement."""
        self._connection.execute("CHECKPOINT")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def databases() -> Iterator[Databases]:
    """Run a server with its default settings, which wait for the disk at each commit."""
    with postgres() as dsn:
        made = Databases(dsn)
        try:
            yield made
        finally:
            made.close()
