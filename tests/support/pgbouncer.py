"""PgBouncer before a PostgreSQL server: each transaction may be on another connection."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn, Ping

from support.waiting import wait_until

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
MISSING = "needs pgbouncer, from Debian's package of that name"

_CONFIGURATION = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = trust
auth_file = users
auth_user = {user}
pool_mode = {pool_mode}
default_pool_size = {pool_size}
max_client_conn = 500
logfile = log
"""


class PgBouncer:
    """A PgBouncer for the time of its ``with`` block, on a port of 127.0.0.1.

    Args:
        dsn: The server's, of any database.
        pool_size: How many connections to the server it makes for each database and role.
        pool_mode: When it takes a connection to the server from a client.
    """

    def __init__(self, dsn: str, *, pool_size: int = 2, pool_mode: str = "transaction") -> None:
        self._server = conninfo_to_dict(dsn)
        self._pool_size = pool_size
        self._pool_mode = pool_mode

    def __enter__(self) -> "PgBouncer":
        assert PROGRAM is not None, MISSING
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        host, port = self._server["host"], self._server.get("port") or 5432
        settings = {
            "host": host,
            "port": port,
            "own_port": self._port,
            "pool_size": self._pool_size,
            "pool_mode": self._pool_mode,
            "user": self._server["user"],
        }
        (self._folder / "configuration").write_text(_CONFIGURATION.format(**settings))
        (self._folder / "users").write_text(f'"{self._server["user"]}" "{self._server.get("password") or ""}"\n')
        user, group = _account(str(host))
        for path in (self._folder, *self._folder.iterdir()):
            os.chown(path, user, group)
        # It refuses to run as root.
        self._process = subprocess.Popen(
            [PROGRAM, "-q", "configuration"],
            cwd=self._folder,
            user=user,
            group=group,
            extra_groups=[] if os.geteuid() == 0 else None,
        )
        wait_until(lambda: self._process.poll() is not None or self._answers())
        assert self._process.poll() is None, (self._folder / "log").read_text()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)

    def through(self, dsn: str) -> str:
        """Return the DSN by which a database of the server is reached through this PgBouncer."""
        return make_conninfo(dsn, host="127.0.0.1", port=self._port, sslmode="disable", gssencmode="disable")

    def _answers(self) -> bool:
        dsn = make_conninfo(self.through(""), user=str(self._server["user"]), dbname="postgres")
        return bool(PGconn.ping(dsn.encode()) == Ping.OK)


def _account(host: str) -> tuple[int, int]:
    """User and group who may use the server's socket, where this process is root."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if host.startswith("/"):
        status = Path(host).stat()
        return status.st_uid, status.st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid
