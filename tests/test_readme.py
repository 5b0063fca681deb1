"""The README's code blocks run as they stand, and its versions are those of pyproject.toml."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import nox
import pytest
from packaging.requirements import Requirement
from psycopg.conninfo import conninfo_to_dict

from benchmarks.results import Results
from benchmarks.tables import tables

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

DSN = "postgresql://localhost/agents"

# An agent that is built without a model gets one that needs no network.
RUN = """
import sys
import strands.agent.agent
from strands_psycopg.scripted_model import ScriptedModel
strands.agent.agent.BedrockModel = lambda **_: ScriptedModel([["Hello!"]])
exec(compile(sys.stdin.read(), sys.argv[1], "exec"), {"__name__": "__main__"})
"""

_BLOCK = re.compile(
    r"^(?:<!--\s*(?:not run:(?P<reason>.*?)|needs (?P<needs>.*?))-->\s*?\n\s*)?"
    r"^(?P<indent> *)```python\b[^\n]*\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of Python in a Markdown file; if not run, then for that reason."""

    line: int
    code: str
    reason: str | None


def blocks(file: Path) -> list[Block]:
    text = file.read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        reason = match["reason"] or missing(match["needs"])
        found.append(Block(text.count("\n", 0, match.start("code")) + 1, code, reason and reason.strip()))
    return found


def missing(needs: str | None) -> str | None:
    """Give what a block needs, ``strands-agents>=1.54``, if it is not installed."""
    if needs is None:
        return None
    requirement = Requirement(needs)
    return None if version(requirement.name) in requirement.specifier else f"needs {needs}"


def run(file: Path, block: Block, dsn: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a block in a process of its own, with its DSN replaced, in a folder; errors tell the line in the file."""
    # A URL, since the other form may hold quotation marks.
    code = block.code.replace(DSN, "postgresql://?" + urlencode(conninfo_to_dict(dsn)))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(file)],
        input="\n" * (block.line - 1) + code,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )


@pytest.mark.parametrize("block", [pytest.param(each, id=f"line-{each.line}") for each in blocks(README)])
def test_blocks_of_the_readme_run(block: Block, dsn: str, tmp_path: Path) -> None:
    if block.reason is not None:
        pytest.skip(block.reason)
    done = run(README, block, dsn, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_has_blocks_to_run() -> None:
    assert [each for each in blocks(README) if each.reason is None]


def test_the_checks_run_the_readmes_test_command() -> None:
    commands = re.findall(r"^(.*pytest)$", README.read_text("utf-8"), re.MULTILINE)
    assert len(commands) == 1
    assert f"({commands[0]})" in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


PAGE = f'''\
Text with ```python in it.

```python
from strands import Agent
from strands_psycopg import PostgresSessionManager, PostgresSessionRepository

with PostgresSessionRepository("{DSN}") as repository:
    print(Agent(session_manager=PostgresSessionManager("s", repository), callback_handler=None)("Hi"))
```

```sh
python
```

1. In a list:

   ```python
   if __name__ == "__main__":
       print("{DSN}")
   ```

<!-- not run: it has no end -->
```python
while True: ...
```

<!-- needs pytest>=1000 -->
```python
import pytest.of_the_future
```

<!-- needs pytest>=1 -->
```python
print("first")
raise ValueError("second")
```
'''


def test_blocks_are_found_and_run(tmp_path: Path, dsn: str) -> None:
    page = tmp_path / "PAGE.md"
    page.write_text(PAGE)

    agent, in_list, endless, future, failing = blocks(page)
    assert [each.line for each in (agent, in_list, endless, future, failing)] == [4, 18, 24, 29, 34]
    assert (agent.reason, in_list.reason, failing.reason) == (None, None, None)
    assert (endless.reason, future.reason) == ("it has no end", "needs pytest>=1000")

    assert run(page, agent, dsn, tmp_path).stdout == "Hello!\n\n"
    assert run(page, in_list, dsn, tmp_path).stdout.startswith("postgresql://?")
    done = run(page, failing, dsn, tmp_path)
    assert (done.returncode, done.stdout) == (1, "first\n")
    assert f'File "{page}", line 35' in done.stderr
    assert "ValueError: second" in done.stderr


def stated(name: str, text: str) -> set[str]:
    """Every lowest version that a text states for a name: ``Python >= 3.10``, ``| Python | 3.10 and up |``, ..."""
    before = rf"\b{re.escape(name)}`?(?:\[[\w,]+\])?`?(?: version)?"
    version = r"(\d+(?:\.\d+)*)"
    patterns = [
        rf"{before}[\s|`]*(?:>=|≥|from)\s*{version}",
        rf"{before}[\s|`]*{version}(?=\+|,? (?:and|or) (?:up|newer|later|above)| to )",
    ]
    return {found for pattern in patterns for found in re.findall(pattern, text)}


@pytest.mark.parametrize(
    "text",
    [
        *("needs Example >= 1.2.", "needs Example>=1.2,<2", "`Example>=1.2`", "`Example` ≥ 1.2", "Example 1.2 and up"),
        *("Example 1.2+", "| Example | 1.2 and up |", "| `Example` | `>=1.2,<2` |", "| Example[a,b] | >=1.2 |"),
        *("Example 1.2 or newer", "| Example | 1.2 to 1.9 |"),
    ],
)
def test_stated_versions_are_found(text: str) -> None:
    assert stated("Example", text) == {"1.2"}
    assert stated("Other", text) == set()


PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
LOWEST = {
    "Python": PROJECT["project"]["requires-python"],
    "PostgreSQL": PROJECT["tool"]["strands-psycopg"]["postgresql"],
    "strands-agents": PROJECT["project"]["dependencies"][0],
    "psycopg": PROJECT["project"]["dependencies"][1],
}


@pytest.mark.parametrize("name", LOWEST)
def test_the_readme_states_the_versions_of_the_project(name: str) -> None:
    expected = re.search(r">=([\d.]+)", LOWEST[name])
    assert expected
    assert stated(name, re.sub(r"<!--.*?-->", "", README.read_text("utf-8"))) == {expected[1]}


def test_the_classifiers_begin_with_the_lowest_python() -> None:
    assert f">={nox.project.python_versions(PROJECT)[0]}" == PROJECT["project"]["requires-python"]


TESTED = PROJECT["tool"]["strands-psycopg"]["tested"]


def table(heading: str, text: str) -> list[dict[str, list[str]]]:
    """The rows of the table below a heading, by column; a cell lists what its commas part."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], [cell.split(", ") for cell in line], strict=True)) for line in lines[2:]]


def test_the_readme_tells_the_figures_that_were_measured() -> None:
    results = Results.read(ROOT / "tests" / "benchmarks" / "results.json")
    readme = README.read_text("utf-8")
    for each in tables(results):
        assert each in readme


def test_the_readme_lists_the_combinations_that_were_run() -> None:
    assert table("Which combinations were run", README.read_text("utf-8")) == list(TESTED.values())


@pytest.mark.parametrize("name", ["Python", "PostgreSQL", "strands-agents"])
def test_the_lowest_versions_are_among_those_that_were_run(name: str) -> None:
    lowest = re.search(r">=([\d.]+)", LOWEST[name])
    assert lowest
    assert lowest[1] in {version for each in TESTED.values() for version in each[name]}
