"""Server processes that outlive the connections of one test, since to start one takes longer than most tests."""

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

# So many serve most tests.
_MOST = 3

# Like DISCARD ALL, but for the statements that the driver has prepared. What was done is counted at the end of it.
RESET = """
    CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; UNLISTEN *;
    SELECT pg_advisory_unlock_all(), pg_stat_force_next_flush()
"""

# No test that looks for its own connections finds those that it has closed, or that others have.
_RENAME = b"SET application_name = 'closed by a test'"
_RESET = b"DEALLOCATE ALL; " + RESET.encode() + b"; " + _RENAME

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
        self._closed: list[tuple[str, pq.abc.PGconn]] = []

    def take(self, conninfo: str) -> pq.abc.PGconn | None:
        """Return one that was started with these settings, as new; None if there is none."""
        # The sockets of a parent process are not touched.
        while os.getpid() == self._pid:
            backend = next((backend for settings, backend in self._free if settings == conninfo), None)
            if backend is None:
                break
            self._free.remove((conninfo, backend))
            if backend.exec_(b"RESET application_name").status == pq.ExecStatus.COMMAND_OK:
                return backend
            backend.finish()
        return None

    def put(self, conninfo: str, backend: pq.abc.PGconn) -> bool:
        """Keep one whose connection a test closes, if another test can use it; return whether it is kept."""
        keep = (
            os.getpid() == self._pid
            and len(self._closed) < _MOST
            and (backend.host, backend.port) == self._address
            and backend.transaction_status == pq.TransactionStatus.IDLE
        )
        if keep:
            self._closed.append((conninfo, backend))
            # Not waited for, like the end of a connection.
            backend.send_query(_RENAME)
        return keep

    def reset(self) -> list[int]:
        """Make those of the last test like new ones; return the ids of all processes that are kept.

        Raises:
            psycopg.OperationalError: One of them has ended.
        """
        for _, backend in self._closed:
            while backend.get_result():
                pass
            if backend.exec_(_RESET).status != pq.ExecStatus.COMMAND_OK:
                raise psycopg.OperationalError(backend.get_error_message())
        self._free += self._closed
        self._closed = []
        return [backend.backend_pid for _, backend in self._free]

    def finish(self) -> None:
        """End all."""
        for _, backend in self._free + self._closed:
            backend.finish()
        self._free, self._closed = [], []


@contextmanager
def kept(databases: Mapping[str, Backends]) -> Iterator[None]:
    """Let connections of this process to these databases, by name, take backends and put them back."""
    connect: Any = psycopg.Connection._connect_gen
    close = psycopg.Connection.close

    def take_or_connect(cls: Any, /, conninfo: str = "", **options: Any) -> Generator[Any, Any, Any]:
        backends = databases.get(str(conninfo_to_dict(conninfo).get("dbname")))
        backend = backends and backends.take(conninfo)
        connection = cls(backend) if backend else (yield from connect.__func__(cls, conninfo, **options))
        connection._test_settings = conninfo
        return connection

    def put_or_close(self: Any) -> None:
        returns_to_pool = getattr(getattr(self, "_pool", None), "close_returns", False)
        backends = None if self.closed or returns_to_pool else databases.get(self.pgconn.db.decode())
        if backends and backends.put(self._test_settings, self.pgconn):
            self.pgconn = _CLOSED
            self._closed = True
        else:
            close(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Connection, "_connect_gen", classmethod(take_or_connect))
        patch.setattr(psycopg.Connection, "close", put_or_close)
        yield
