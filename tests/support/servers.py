"""Servers for tests: quick to start and to fill, from the embedded programs or from those installed somewhere."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from strands_psycopg import embedded
from strands_psycopg.embedded import Server

_MEMORY = Path("/dev/shm")
_ROOM = 4 << 30
_CLUSTERS = "STRANDS_PSYCOPG_TEST_CLUSTERS"

# What the kernel has been given survives every crash of the server alone. The rest makes connections cheaper and spares
# the server what no test needs.
_SETTINGS = """
fsync = off
full_page_writes = off
autovacuum = off
jit = off
shared_buffers = 32MB
update_process_title = off
"""


def memory() -> str | None:
    """Return a folder whose files are in memory, if it has room and programs may run from it."""
    usable = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM
    return str(_MEMORY) if usable and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC else None


def remember_access() -> None:
    """Ask only once whether the account that runs servers for root may enter a place, since to ask forks this process.

    A fork of so large a process takes as long as a tenth of a server's start.
    """
    ask, granted = embedded._can_access, set[object]()

    def can_access(account: tuple[int, int] | None, path: Path) -> bool:
        if (account, path) not in granted and ask(account, path):
            granted.add((account, path))
        return (account, path) in granted

    embedded._can_access = can_access


@contextmanager
def shared_clusters() -> Iterator[None]:
    """Share what ``initdb`` makes among the quick servers of this process and of those that it starts."""
    with tempfile.TemporaryDirectory(prefix="strands-clusters-", dir=memory()) as folder:
        os.environ[_CLUSTERS] = folder
        yield
        del os.environ[_CLUSTERS]


class QuickServer(Server):
    """A temporary server whose files are in memory, if that has room, and that syncs nothing to disk.

    Its cluster is a copy of one that was made for another, with the same password.

    Args:
        pg_ctl: Which programs to run: those beside this one. None: the embedded ones.
        port: As for ``Server``.
    """

    def __init__(self, pg_ctl: Path | None = None, *, port: int | None = None) -> None:
        super().__init__(port=port)
        self._pg_ctl = pg_ctl

    def __enter__(self) -> "QuickServer":
        super().__enter__()
        if self._port is not None:
            self._hash_once()
        return self

    def _hash_once(self) -> None:
        """Spare clients the 4096 iterations that a connection with a password takes, longer than all the rest of it."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            if connection.info.server_version >= 160000:
                connection.execute("SET scram_iterations = 1")
                password = sql.Literal(connection.info.password)
                connection.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(password))

    def configure(self, **settings: str) -> None:
        """Change settings that need no restart."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for name, value in settings.items():
                connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            connection.execute("SELECT pg_reload_conf()")

    def _find_binaries(self) -> tuple[Path, Path]:
        if self._pg_ctl is None:
            return super()._find_binaries()
        programs = self._pg_ctl.absolute().parent
        return programs.parent, programs

    def _prepare_folder(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if folder := memory():
                patch.setattr(tempfile, "tempdir", folder)
            super()._prepare_folder()

    def _create_cluster(self, lock: int) -> None:
        shared = Path(os.environ[_CLUSTERS], "embedded" if self._pg_ctl is None else "given")
        with open(f"{shared}.lock", "w") as file:  # noqa: PTH123
            fcntl.flock(file, fcntl.LOCK_EX)
            if not shared.exists():
                super()._create_cluster(lock)
                with (self.path / "data" / "postgresql.conf").open("a") as settings:
                    settings.write(_SETTINGS)
                shared.mkdir()
                _copy(self.path, shared)
                return
        _copy(shared, self.path)


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source / "data", source / "password", target], check=True)
