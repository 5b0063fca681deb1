"""A PostgreSQL that is installed somewhere, such as another version than the extra's."""

from pathlib import Path

from strands_psycopg.embedded import Server


class InstalledServer(Server):
    """A temporary server, run like the embedded one from the programs beside this ``pg_ctl``."""

    def __init__(self, pg_ctl: Path) -> None:
        super().__init__()
        self._programs = pg_ctl.absolute().parent

    def _find_binaries(self) -> tuple[Path, Path]:
        return self._programs.parent, self._programs
