"""The commands that delete sessions, and everything of an owner, as a user calls them."""

import io
import json
import sys
from collections.abc import Callable

import pytest
from strands.types.session import Session, SessionType

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.cli import main
from support.agents import build

Run = Callable[..., tuple[int, str, str]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], dsn: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command, on a terminal if there is an answer, and returns its code and output."""

    def run(*arguments: str, answer: str | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n") if answer is None else Terminal(answer))
        code = main([*arguments, "--dsn", dsn])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(autouse=True)
def _sessions(repository: PostgresSessionRepository) -> None:
    for session_id in ("one", "two"):
        PostgresSessionManager(session_id, repository, owner="Alice")
    build(repository, "one")("hello")
    repository.create_session(Session("other", SessionType.AGENT), owner="Bob")


def left(repository: PostgresSessionRepository) -> set[str]:
    return {each.session_id for each in repository.list_sessions().sessions}


ALL = {"one", "two", "other"}


def test_delete_asks_on_a_terminal(run: Run, repository: PostgresSessionRepository) -> None:
    question = "Delete session one with 1 agent, 2 messages and 0 multi-agents? [y/N] "
    for answer in ("n\n", "\n", "", "no\n"):
        assert run("delete", "one", answer=answer) == (1, "", question + "nothing was deleted\n")
    assert left(repository) == ALL
    done = "deleted session one with 1 agent, 2 messages and 0 multi-agents\n"
    assert run("delete", "one", answer="y\n") == (0, done, question)
    assert left(repository) == {"two", "other"}


def test_delete_of_several_sessions_without_asking(run: Run, repository: PostgresSessionRepository) -> None:
    counts = "2 sessions with 1 agent, 2 messages and 0 multi-agents\n"
    assert run("delete", "one", "two", "one", "--dry-run") == (0, f"would delete {counts}", "")
    assert left(repository) == ALL
    code, printed, _ = run("delete", "one", "two", "--yes", "--json", "--owner", "Alice")
    document = json.loads(printed)
    assert (code, [each["session_id"] for each in document["sessions"]]) == (0, ["one", "two"])
    assert document["dry_run"] is False
    assert left(repository) == {"other"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["one", "missing"], "session 'missing' does not exist; nothing was deleted"),
        (["one", "other", "--owner", "Alice"], "session 'other' does not belong to the given owner"),
    ],
)
def test_delete_deletes_nothing_if_a_session_is_missing_or_anothers(
    run: Run, repository: PostgresSessionRepository, arguments: list[str], problem: str
) -> None:
    code, _, errors = run("delete", *arguments, "--yes")
    assert code == 1
    assert problem in errors
    assert left(repository) == ALL


@pytest.mark.parametrize("command", [["delete", "one"], ["erase", "--owner", "Alice"]])
def test_without_a_terminal_nothing_is_deleted_unless_told(
    run: Run, repository: PostgresSessionRepository, command: list[str]
) -> None:
    code, printed, errors = run(*command)
    assert (code, printed) == (2, "")
    assert "pass --yes to delete, or --dry-run to only count" in errors
    assert left(repository) == ALL


def test_erase_asks_on_a_terminal_and_counts_each_table(run: Run, repository: PostgresSessionRepository) -> None:
    question = "Delete everything of Alice (2 sessions, 1 agents, 2 messages)? [y/N] "
    assert run("erase", "--owner", "Alice", answer="n\n") == (1, "", question + "nothing was deleted\n")
    assert left(repository) == ALL
    table = "5 rows\ntable     rows\nsessions     2\nagents       1\nmessages     2\n"
    assert run("erase", "--owner", "Alice", "--dry-run") == (0, f"would delete {table}", "")
    assert left(repository) == ALL
    assert run("erase", "--owner", "Alice", answer="y\n") == (0, f"deleted {table}", question)
    assert left(repository) == {"other"}
    assert run("erase", "--owner", "Alice", "--yes") == (
        0,
        "deleted 0 rows\n",
        "nothing is stored under the owner 'Alice'\n",
    )


def test_erase_for_programs(run: Run, repository: PostgresSessionRepository) -> None:
    code, printed, errors = run("erase", "--owner", "Alice", "--yes", "--json")
    assert (code, errors) == (0, "")
    expected = {"sessions": 2, "agents": 1, "messages": 2, "storage": 0, "dry_run": False}
    assert json.loads(printed).items() >= expected.items()


def test_purge_of_an_owners_sessions(run: Run, repository: PostgresSessionRepository) -> None:
    tables = repository._tables.database
    tables.fetch("aging", tables.statement("UPDATE {sessions} SET updated_at = '2020-01-01' RETURNING true"), {})
    code, printed, _ = run("purge", "--idle-for", "1d", "--owner", "Alice", "--metadata", '{"tier": "gold"}')
    assert (code, printed[:18]) == (0, "deleted 0 sessions")
    code, printed, _ = run("purge", "--idle-for", "1d", "--owner", "Alice")
    assert (code, printed[:18]) == (0, "deleted 2 sessions")
    assert left(repository) == {"other"}


@pytest.mark.parametrize("command", [["delete", "one"], ["erase"], ["purge", "--idle-for", "1d"]])
def test_empty_owner_is_wrong_usage(run: Run, command: list[str]) -> None:
    code, printed, errors = run(*command, "--owner", "", "--dry-run")
    assert (code, printed) == (2, "")
    assert "owner must have 1 to 255 characters, not 0" in errors
