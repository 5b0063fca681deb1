"""Connections whose server process serves one test after the other.

A new server process takes longer to read the catalog than most tests take for all the rest.
"""

import os
from typing import Any, ClassVar

import psycopg
from psycopg import pq
from typing_extensions import Self

_PROCESS = os.getpid()
_CLOSED = pq.PGconn.connect_start(b"-")  # not a connection string

# What was done is counted at the end of it, and tests that look for connections do not find this one.
_AT_REST = b"SET application_name = ''; SELECT pg_stat_force_next_flush()"


class KeptConnection(psycopg.Connection[Any]):
    """The class of a pool's connections; each subclass keeps one, for the first ``connect`` of a later test.

    Attributes:
        keeps: Whether the next one that is closed is kept; set at the end of a test, reset by ``connect``.
    """

    keeps: ClassVar[bool]
    _kept: ClassVar[list[pq.abc.PGconn]]
    _settings: ClassVar[object]

    def __init_subclass__(cls) -> None:
        cls.keeps, cls._kept, cls._settings = False, [], None

    @classmethod
    def subclass(cls) -> "type[KeptConnection]":
        """Return a new subclass, which has kept none yet."""

        class Kept(cls):  # type: ignore[valid-type, misc]
            pass

        return Kept

    @classmethod
    def connect(cls, conninfo: str = "", **settings: Any) -> Self:
        """Return the connection that was kept, unless it is lost or has other settings, or a new one."""
        requested = conninfo, settings, [option.val for option in pq.Conninfo.get_defaults()]
        pgconn = cls._kept.pop() if cls._kept and os.getpid() == _PROCESS else None
        cls.keeps = False
        if pgconn and cls._settings == requested and _execute(pgconn, b"RESET application_name"):
            connection = cls(pgconn)
            connection.autocommit = settings.get("autocommit", False)
            return connection
        cls._settings = requested
        return super().connect(conninfo, **settings)

    def close(self) -> None:
        """Close it, or keep it for a later test."""
        pgconn, cls = self.pgconn, type(self)
        if cls.keeps and not cls._kept and _execute(pgconn, b"DISCARD ALL") and _execute(pgconn, _AT_REST):
            cls._kept.append(pgconn)
            self.pgconn = _CLOSED
        else:
            super().close()

    @classmethod
    def kept_pid(cls) -> int:
        """Return the id of the server process that is kept, 0 if there is none."""
        return cls._kept[0].backend_pid if cls._kept else 0

    @classmethod
    def close_kept(cls) -> None:
        """Close the connection that is kept."""
        while cls._kept:
            cls._kept.pop().finish()


def _execute(pgconn: pq.abc.PGconn, command: bytes) -> bool:
    """Return whether a connection is in no transaction and executes a command."""
    return pgconn.transaction_status == pq.TransactionStatus.IDLE and pgconn.exec_(command).status in (
        pq.ExecStatus.COMMAND_OK,
        pq.ExecStatus.TUPLES_OK,
    )
