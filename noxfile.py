"""Every check by name: ``nox`` runs them all, ``nox -s lint`` one."""

import os
from pathlib import Path

import nox
from packaging.requirements import Requirement

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]

nox.options.sessions = ["tests", "lowest", "lint", "types", "layers", "packages", "browser"]

# A Python that is not installed is skipped; nothing is fetched for it.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"

# pyenv leads to its Pythons through shims, which fail for those that are not activated. So they are found past those.
_PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, sorted(_PYENV.glob("versions/3.*/bin")))])


def _tool(name: str) -> str:
    """Give the dev extra's requirement for a tool, for checks that need nothing else."""
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


@nox.session
def layers(session: nox.Session) -> None:
    session.install(_tool("import-linter"))
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": "src"})


@nox.session
def packages(session: nox.Session) -> None:
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "packages", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "browser", *session.posargs)


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


@nox.session
def torture(session: nox.Session) -> None:
    """Run the fault tests with their full counts."""
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/faults", *session.posargs, env={"STRANDS_TORTURE": "1"})
