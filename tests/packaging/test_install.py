"""What is built and installed from here, in fresh environments, migrates a database."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packages

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(file.relative_to(ROOT) for file in (ROOT / "sql").rglob("*.sql"))

MIGRATE = """
import strands_psycopg
from strands_psycopg import PostgresSessionRepository
from strands_psycopg.embedded import postgres
from strands_psycopg.migrator import Migrator, optional_migrations, packaged_migrations

with postgres() as dsn, PostgresSessionRepository(dsn) as repository:
    repository.ensure_schema()
    assert Migrator(repository._database).pending() == []
    assert repository.read_session("s") is None
print(strands_psycopg.__file__)
print(*(f"{each.version:04}_{each.name}.sql" for each in packaged_migrations() + optional_migrations()))
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each thing lies that can be installed."""
    direct, by_sdist = tmp_path_factory.mktemp("direct"), tmp_path_factory.mktemp("by_sdist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", direct, ROOT, cwd=direct)
    run(sys.executable, "-m", "build", "--outdir", by_sdist, ROOT, cwd=by_sdist)
    return {
        "wheel": next(direct.glob("*.whl")),
        "sdist": next(by_sdist.glob("*.tar.gz")),
        "wheel of the sdist": next(by_sdist.glob("*.whl")),
        "checkout": ROOT,
    }


@pytest.mark.parametrize("source", ["wheel", "wheel of the sdist"])
def test_a_wheel_holds_the_package_and_nothing_else(built: dict[str, Path], source: str) -> None:
    modules = [
        file.relative_to(ROOT / "src")
        for file in (ROOT / "src").rglob("*")
        if file.suffix in {".py", ".html", ".css", ".js"}
    ]
    scripts = [Path("strands_psycopg", script) for script in SCRIPTS]

    with zipfile.ZipFile(built[source]) as wheel:
        names = wheel.namelist()
    information = {name.partition(".dist-info/")[2] for name in names if ".dist-info/" in name}

    package = [*modules, *scripts, Path("strands_psycopg/py.typed")]
    assert sorted(name for name in names if ".dist-info/" not in name) == sorted(map(Path.as_posix, package))
    assert information == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def test_the_sdist_holds_the_sources_and_the_tests(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        names = [member.name.partition("/")[2] for member in sdist.getmembers()]

    assert len(names) == len(set(names))
    assert [Path(name) for name in names if name.startswith("sql/")] == SCRIPTS
    assert {"pyproject.toml", "README.md", "LICENSE", "noxfile.py", "tests/conftest.py"} <= set(names)


@pytest.mark.parametrize(
    ("source", "options"), [("wheel", []), ("wheel of the sdist", []), ("sdist", []), ("checkout", ["--editable"])]
)
def test_an_installed_package_migrates_a_database(
    built: dict[str, Path], source: str, options: list[str], tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", *options, f"{built[source]}[embedded]", cwd=tmp_path)

    module, scripts = run(python, "-I", "-c", MIGRATE, cwd=tmp_path).splitlines()

    assert Path(module).is_relative_to(ROOT / "src" if source == "checkout" else environment)
    assert scripts.split() == [script.name for script in SCRIPTS]
    assert run(environment / "bin" / "strands-psycopg", "--version", cwd=tmp_path)
