"""A primary with a standby: two real servers with streaming replication."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from strands_psycopg.embedded import Server
from support.servers import QuickServer, memory
from support.waiting import wait_until


class Pair(NamedTuple):
    """Two servers with one database.

    Attributes:
        primary: The server that takes writes.
        standby: The server that follows it.
        dsn: Whichever of them takes writes.
    """

    primary: Server
    standby: Server
    dsn: str

    def wait_for_every_commit(self) -> None:
        """From now on the primary acknowledges nothing before the standby has it."""
        execute(self.primary.dsn, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        execute(self.primary.dsn, "SELECT pg_reload_conf()")
        wait_until(lambda: execute(self.primary.dsn, "SELECT sync_state FROM pg_stat_replication") == [("sync",)])

    def promote(self) -> None:
        """Make the standby take writes."""
        assert execute(self.standby.dsn, "SELECT pg_promote()") == [(True,)]


@contextmanager
def pair() -> Iterator[Pair]:
    """Run a primary and a standby that has caught up with it."""
    folder = Path(tempfile.mkdtemp(prefix="strands-standby-", dir=memory()))
    folder.chmod(0o711)
    path = folder / "cluster"
    try:
        with QuickServer() as primary:
            _copy(primary, path)
            with Server(path) as standby:
                wait_until(lambda: execute(primary.dsn, "SELECT state FROM pg_stat_replication") == [("streaming",)])
                first, second = conninfo_to_dict(primary.dsn), conninfo_to_dict(standby.dsn)
                dsn = make_conninfo(
                    primary.dsn,
                    host=f"{first['host']},{second['host']}",
                    port=f"{first['port']},{second['port']}",
                    target_session_attrs="read-write",
                )
                yield Pair(primary, standby, dsn)
    finally:
        shutil.rmtree(folder)


def execute(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement on a connection of its own and return its rows."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def _copy(primary: Server, path: Path) -> None:
    """Make a folder that ``Server`` takes for a cluster of its own, and that follows the primary."""
    path.mkdir(mode=0o711)
    (path / "strands-psycopg.lock").touch(mode=0o600)
    shutil.copy(primary.path / "password", path)
    data, owner = path / "data", (primary.path / "data").stat()
    data.mkdir(mode=0o700)
    os.chown(data, owner.st_uid, owner.st_gid)
    arguments = ["-D", str(data), "--write-recovery-conf", "--checkpoint=fast", "--no-sync", "-d", primary.dsn]
    status, output = primary._run_tool(None, "pg_basebackup", *arguments)
    assert status == 0, output
