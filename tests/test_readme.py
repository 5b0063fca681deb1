"""Every README: its code runs as it stands, its figures and versions are those of their sources, its links exist."""

import ast
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

import nox
import pytest
from packaging.requirements import Requirement
from psycopg.conninfo import conninfo_to_dict

from benchmarks.results import Results
from benchmarks.tables import memories, summary, tables
from strands_psycopg.cli import _build_parser
from support import catalog
from support.crew import Crew
from support.tables import Connection

TESTS = Path(__file__).parent
ROOT = TESTS.parent
README = ROOT / "README.md"
BENCHMARKS = TESTS / "benchmarks" / "README.md"
RECIPES = TESTS / "recipes" / "README.md"
PAGES = [README, *sorted(TESTS.rglob("README.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=name)

DSN = "postgresql://localhost/agents"

# An agent that is built without a model gets one that needs no network.
RUN = """
import os, sys, warnings
import strands.agent.agent
from strands_psycopg.scripted_model import ScriptedModel

file, code, folder = sys.argv[1:]
os.chdir(folder)
warnings.simplefilter("error")
strands.agent.agent.BedrockModel = lambda **_: ScriptedModel([["Hello!"]])
exec(compile(code, file, "exec"), {"__name__": "__main__"})
"""

_BLOCK = re.compile(
    r"^(?:<!--\s*(?:not run:(?P<reason>.*?)|needs (?P<needs>.*?))-->\s*?\n\s*)?"
    r"^(?P<indent> *)```(?P<language>python|diff)\b[^\n]*\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of Python in a Markdown file, or one side of a diff; if not run, then for that reason."""

    line: int
    code: str
    reason: str | None


def blocks(file: Path) -> list[Block]:
    text = file.read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        reason = match["reason"] or missing(match["needs"])
        line = text.count("\n", 0, match.start("code")) + 1
        sides = [code] if match["language"] == "python" else [side_of(code, "-"), side_of(code, "+")]
        found += [Block(line, side, reason and reason.strip()) for side in sides]
    return found


def side_of(diff: str, sign: str) -> str:
    """The code before (``-``) or after (``+``) a diff, with an empty line for each that the other side has."""
    return "".join(line[1:] if line[0] in (" ", sign) else "\n" for line in diff.splitlines(keepends=True))


def missing(needs: str | None) -> str | None:
    """Return what a block needs, ``strands-agents>=1.54``, if it is not installed."""
    if needs is None:
        return None
    requirement = Requirement(needs)
    return None if version(requirement.name) in requirement.specifier else f"needs {needs}"


def arguments(page: Path, block: Block, dsn: str, folder: Path) -> tuple[str, str, str]:
    """What ``RUN`` needs to run a block in a folder, with its DSN replaced; errors tell the line in the page."""
    # A URL, since the other form may hold quotation marks.
    code = block.code.replace(DSN, "postgresql://?" + urlencode(conninfo_to_dict(dsn)))
    return str(page), "\n" * (block.line - 1) + code, str(folder)


class Done(NamedTuple):
    """How a process has ended, and the lines that it has printed."""

    status: int
    output: list[str]
    errors: str


def run(crew: Crew, *arguments: str) -> Done:
    """Run a block in a process of its own."""
    member = crew.start(RUN, *arguments, complete=True)
    try:
        output = member.lines()
        return Done(member.end(), output, member.errors())
    finally:
        member.close()


@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(page, each, id=f"{name(page)}:{each.line}") for page in PAGES for each in blocks(page)],
)
def test_blocks_of_the_pages_run(page: Path, block: Block, crew: Crew, dsn: str, tmp_path: Path) -> None:
    if block.reason is not None:
        pytest.skip(block.reason)
    done = run(crew, *arguments(page, block, dsn, tmp_path))
    assert (done.status, done.errors) == (0, "")


def test_the_quick_start_runs_in_a_fresh_interpreter(dsn: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", RUN, *arguments(README, blocks(README)[0], dsn, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", [README, RECIPES], ids=name)
def test_there_are_blocks_to_run(page: Path) -> None:
    assert [each for each in blocks(page) if each.reason is None]


def test_the_queries_of_the_recipes_run(connection: Connection) -> None:
    queries = re.findall(r"^```sql\n(.*?)^```$", RECIPES.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(queries) == 2
    for query in queries:
        assert connection.execute(query.encode()).fetchall() == []


def test_the_recipes_list_every_table(direct_dsn: str) -> None:
    listed = re.findall(r"^    (strands_\w+)", RECIPES.read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(catalog.tables(direct_dsn))


def prose(page: Path) -> str:
    """A page's text without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path, program: str) -> list[list[str]]:
    """The arguments of each call of a program, in the page's shell blocks and in code within its text."""
    text = page.read_text("utf-8")
    lines = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()
    lines += [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", prose(page))]
    calls = [call for line in lines for call in line.split(" && ")]
    pattern = re.compile(rf"(?:\S*/)?{re.escape(program)} ")
    return [shlex.split(call, comments=True)[1:] for call in calls if pattern.match(call)]


@each_page
def test_the_command_line_knows_the_commands_of_the_pages(page: Path) -> None:
    for arguments in commands(page, "strands-psycopg"):
        _build_parser().parse_args(arguments)


@each_page
def test_nox_knows_the_sessions_of_the_pages(page: Path) -> None:
    functions = ast.walk(ast.parse((ROOT / "noxfile.py").read_text("utf-8")))
    sessions = {each.name for each in functions if isinstance(each, ast.FunctionDef) and each.decorator_list}
    for option, session, *_ in commands(page, "nox"):
        assert option == "-s"
        assert session.partition("(")[0].partition("-")[0] in sessions


def test_there_are_commands_to_check() -> None:
    assert commands(README, "strands-psycopg")
    assert commands(TESTS / "README.md", "nox")


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

```diff
 import sys
-print("before", file=sys.stderr)
+print("after")

```
'''


def test_blocks_are_found_and_run(crew: Crew, dsn: str, tmp_path: Path) -> None:
    page = tmp_path / "PAGE.md"
    page.write_text(PAGE)

    agent, in_list, endless, future, failing, before, after = blocks(page)
    assert [each.line for each in (agent, in_list, endless, future, failing)] == [4, 18, 24, 29, 34]
    assert [each.line for each in (before, after)] == [39, 39]
    assert (agent.reason, in_list.reason, failing.reason) == (None, None, None)
    assert (endless.reason, future.reason) == ("it has no end", "needs pytest>=1000")

    done = {each: run(crew, *arguments(page, each, dsn, tmp_path)) for each in (agent, in_list, failing, before, after)}
    assert done[agent] == Done(0, ["Hello!", ""], "")
    assert done[in_list].output[0].startswith("postgresql://?")
    assert (done[failing].status, done[failing].output) == (1, ["first"])
    assert f'File "{page}", line 35' in done[failing].errors
    assert "ValueError: second" in done[failing].errors
    assert done[before] == Done(0, [], "before\n")
    assert done[after] == Done(0, ["after"], "")


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


def lowest(project: str) -> str:
    found = re.search(r">=([\d.]+)", LOWEST[project])
    assert found
    return found[1]


@pytest.mark.parametrize("project", LOWEST)
def test_the_readme_states_the_versions_of_the_project(project: str) -> None:
    assert stated(project, README.read_text("utf-8")) == {lowest(project)}


@each_page
@pytest.mark.parametrize("project", LOWEST)
def test_no_page_states_other_versions(project: str, page: Path) -> None:
    assert stated(project, re.sub(r"<!--.*?-->", "", page.read_text("utf-8"))) <= {lowest(project)}


def test_the_classifiers_begin_with_the_lowest_python() -> None:
    assert f">={nox.project.python_versions(PROJECT)[0]}" == PROJECT["project"]["requires-python"]


TESTED = PROJECT["tool"]["strands-psycopg"]["tested"]


def table(heading: str, text: str) -> list[dict[str, list[str]]]:
    """The rows of the table below a heading, by column; a cell lists what its commas part."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], [cell.split(", ") for cell in line], strict=True)) for line in lines[2:]]


RESULTS = Results.read(TESTS / "benchmarks" / "results.json")


def test_the_pages_have_the_figures_that_were_measured() -> None:
    assert summary(RESULTS) in README.read_text("utf-8")
    page = BENCHMARKS.read_text("utf-8")
    for each in tables(RESULTS):
        assert each in page
    assert memories(Results.read(TESTS / "benchmarks" / "memories.json")) in page


def test_the_benchmarks_name_the_versions_that_were_measured() -> None:
    page = " ".join(BENCHMARKS.read_text("utf-8").split())
    for each in ("Python", "PostgreSQL", "strands-agents", "psycopg"):
        assert f"{each} {RESULTS.facts[each]}" in page
    peers = re.findall(r'"(strands-[\w-]+)(?:\[\w+\])?==([\d.]+)"', (ROOT / "noxfile.py").read_text("utf-8"))
    assert len(peers) == 4
    for peer, measured in peers:
        assert f"{peer} {measured}" in page


def test_the_tests_readme_lists_the_combinations_that_were_run() -> None:
    page = (TESTS / "README.md").read_text("utf-8")
    assert table("Which combinations were run", page) == list(TESTED.values())


@pytest.mark.parametrize("project", ["Python", "PostgreSQL", "strands-agents"])
def test_the_lowest_versions_are_among_those_that_were_run(project: str) -> None:
    assert lowest(project) in {version for each in TESTED.values() for version in each[project]}


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").split()) < 2000


def headings(page: Path, level: str = "#+") -> list[str]:
    return re.findall(rf"^{level} (.+)$", prose(page), re.MULTILINE)


def anchor(heading: str) -> str:
    """What GitHub makes of a heading that is the only one of its text."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [README, BENCHMARKS, RECIPES], ids=name)
def test_the_contents_list_every_section(page: Path) -> None:
    contents = "\n".join(f"- [{each}](#{anchor(each)})" for each in headings(page, "##"))
    assert f"\n\n{contents}\n\n" in prose(page)


def links(page: Path) -> list[tuple[Path, str]]:
    """The file and the anchor, if any, of every link that stays within the project."""
    targets = map(urlsplit, re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)))
    return [(page.parent.joinpath(each.path or page).resolve(), each.fragment) for each in targets if not each.scheme]


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    assert links(page)
    for target, fragment in links(page):
        assert target.exists(), target
        assert not fragment or fragment in map(anchor, headings(target)), (target, fragment)


@each_page
def test_what_a_page_links_to_is_in_the_sdist(page: Path) -> None:
    build = PROJECT["tool"]["hatch"]["build"]
    for target in [page, *(target for target, _ in links(page))]:
        path = target.relative_to(ROOT)
        places = {f"/{each.as_posix()}" for each in (path, *path.parents)}
        assert places & set(build["targets"]["sdist"]["include"]), target
        assert not places & set(build["exclude"]), target


def test_every_page_is_linked_from_the_readme() -> None:
    assert set(PAGES) - {README} <= {target for target, _ in links(README)}
