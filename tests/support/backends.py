"""Server processes that outlive the connections of one test, since to start one takes longer than most tests."""

import os
from collections.abc import Generator, Mapping
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

# So many serve most tests.
_MOST = 3

# Like DISCARD ALL. What was done is counted at the end of it.
RESET = """
    CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; UNLISTEN *;
    SELECT pg_advisory_unlock_all(), pg_stat_force_next_flush()
"""
_RESET = f"DEALLOCATE ALL; {RESET}".encode()

# What a connection has that is closed.
_CLOSED = pq.PGconn.connect_start(b"")
_CLOSED.finish()


class Backends:
    """Those of one database, for tests that follow each other.

    Args:
        connection: One to the database, by the address that the others must have too.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._address = connection.pgconn.host, connection.pgconn.port
        self._pid = os.getpid()
        self._free: list[tuple[str, pq.abc.PGconn]] = []
        self._returned: list[tuple[str, pq.abc.PGconn]] = []

    def take(self, conninfo: str) -> pq.abc.PGconn | None:
        """Return one that was started with these settings, as new; None if there is none."""
        for number, (settings, backend) in enumerate(self._free):
            if settings == conninfo:
                del self._free[number]
                return backend
        return None

    def put(self, conninfo: str, backend: pq.abc.PGconn) -> bool:
        """Keep one that a test has closed, if it can be used by another; return whether it is kept."""
        keep = (
            os.getpid() == self._pid
            and len(self._returned) < _MOST
            and (backend.host, backend.port) == self._address
            and backend.transaction_status == pq.TransactionStatus.IDLE
        )
        if keep:
            self._returned.append((conninfo, backend))
        return keep

    def reset(self) -> list[int]:
        """Make those of the last test like new ones; return the ids of all processes that are kept.

        Raises:
            psycopg.OperationalError: Some process has ended.
        """
        while self._returned:
            _, backend = self._returned[-1]
            if backend.exec_(_RESET).status != pq.ExecStatus.TUPLES_OK:
                raise psycopg.OperationalError("a process that a test has used is not as it was")
            self._free.append(self._returned.pop())
        return [backend.backend_pid for _, backend in self._free]

    def finish(self) -> None:
        """End all."""
        for _, backend in self._free + self._returned:
            backend.finish()
        self._free, self._returned = [], []


def keeping(databases: Mapping[str, Backends]) -> type[psycopg.Connection[Any]]:
    """Return a class of connections that take the backends of these databases, by name, and put them back."""

    class KeepingConnection(psycopg.Connection[Any]):
        _settings: str

        @classmethod
        def _connect_gen(cls, conninfo: str = "", **options: Any) -> Generator[Any, Any, Any]:
            backends = databases.get(str(conninfo_to_dict(conninfo).get("dbname")))
            backend = backends and backends.take(conninfo)
            connection = cls(backend) if backend else (yield from super()._connect_gen(conninfo, **options))
            connection._settings = conninfo
            return connection

        def close(self) -> None:
            if self.closed:
                return
            backends = databases.get(self.pgconn.db.decode())
            if backends and backends.put(self._settings, self.pgconn):
                self.pgconn = _CLOSED
            super().close()

    return KeepingConnection
