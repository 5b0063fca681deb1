"""Servers for tests: quick to start and to fill, from the embedded programs or from those installed somewhere."""

import shutil
import tempfile
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from strands_psycopg.embedded import Server

_MEMORY = Path("/dev/shm")
_ROOM = 4 << 30


class QuickServer(Server):
    """A temporary server whose files are in memory, if that has room, and that syncs nothing to disk.

    Args:
        pg_ctl: Which programs to run: those beside this one. None: the embedded ones.
        port: As for ``Server``.
    """

    def __init__(self, pg_ctl: Path | None = None, *, port: int | None = None) -> None:
        super().__init__(port=port)
        self._pg_ctl = pg_ctl

    def __enter__(self) -> "QuickServer":
        super().__enter__()
        # What the kernel has been given survives every crash of the server alone.
        self.configure(fsync="off", full_page_writes="off")
        return self

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
            if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM:
                patch.setattr(tempfile, "tempdir", str(_MEMORY))
            super()._prepare_folder()
