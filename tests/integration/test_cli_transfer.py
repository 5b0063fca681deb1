import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from strands.session import FileSessionManager
from strands.types.session import Session, SessionType

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.cli import main, options
from strands_psycopg.repository.window import Window
from strands_psycopg.transfer import export_session, session_ids
from support import agents, processes, transfers
from support.crew import Process
from support.storage import has_storage, needs_storage
from support.tables import blocked, one
from support.waiting import wait_until

MAIN = "import sys; from strands_psycopg.cli import main; sys.exit(main(sys.argv[1:]))"

COUNTS = {"sessions": 1, **transfers.COUNTS}
TWO = f"2 sessions, 4 agents, 28 messages, 4 multi-agents, 6 checkpoints{', 8 stored values' if has_storage else ''}\n"
OMITTED = {"windows_omitted": 0, "checkpoints_omitted": 0, "values_omitted": 0}
NOTHING = {"unchanged": 0, "gaps_closed": 0, **OMITTED, "skipped": []}


@pytest.fixture(autouse=True)
def _no_database_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PG") or name == "DATABASE_URL":
            monkeypatch.delenv(name)


@pytest.fixture
def other_dsn(empty_dsn: str) -> str:
    """Return the DSN of another migrated database."""
    with PostgresSessionRepository(empty_dsn) as repository:
        repository.ensure_schema()
    return empty_dsn


def exported(repository: PostgresSessionRepository, *ids: str) -> str:
    return "".join(line for session_id in ids for line in export_session(repository, session_id))


def stored(connection: psycopg.Connection[Any]) -> list[tuple[str, int]]:
    """Return the sessions with their numbers of messages."""
    return connection.execute(
        "SELECT s.session_id, count(m) FROM strands_sessions AS s LEFT JOIN strands_messages AS m USING (session_id) "
        "GROUP BY s.session_id ORDER BY 1"
    ).fetchall()


def test_sessions_move_through_a_file(
    capsys: pytest.CaptureFixture[str],
    repository: PostgresSessionRepository,
    dsn: str,
    other_dsn: str,
    tmp_path: Path,
) -> None:
    for session_id in ("a-1", "a-2", "b"):
        transfers.fill(repository, session_id)
    file = str(tmp_path / "sessions.jsonl")
    assert main(["export", "--prefix", "a-", "--to", file, "--dsn", dsn]) == 0
    assert capsys.readouterr() == (f"exported {TWO}", "")
    assert main(["import", "--from", file, "--dsn", other_dsn]) == 0
    assert capsys.readouterr() == (f"imported {TWO}", "")
    with PostgresSessionRepository(other_dsn) as other:
        assert exported(other, *session_ids(other)) == exported(repository, "a-1", "a-2") == Path(file).read_text()
    assert main(["import", "--from", file, "--dsn", other_dsn]) == 0
    assert capsys.readouterr().out == (
        "imported 0 sessions, 0 agents, 0 messages, 0 multi-agents\n2 sessions unchanged\n"
    )


def test_json_output_has_the_counts(
    capsys: pytest.CaptureFixture[str],
    repository: PostgresSessionRepository,
    dsn: str,
    other_dsn: str,
    tmp_path: Path,
) -> None:
    transfers.fill(repository)
    file = str(tmp_path / "sessions.jsonl")
    assert main(["export", "s", "--to", file, "--json", "--dsn", dsn]) == 0
    assert json.loads(capsys.readouterr().out) == COUNTS | NOTHING | {"failures": {}}
    assert main(["import", "--from", file, "--json", "--dsn", other_dsn]) == 0
    assert json.loads(capsys.readouterr().out) == COUNTS | NOTHING | {"failures": {}}


def test_sessions_move_through_a_pipe(repository: PostgresSessionRepository, dsn: str, other_dsn: str) -> None:
    transfers.fill(repository)
    transfers.fill(repository, "t")
    code, lines, errors = processes.start(MAIN, "export", "--all", "--dsn", dsn).finish()
    assert (code, errors) == (0, "")
    assert lines == exported(repository, "s", "t")
    import_ = processes.start(MAIN, "import", "--from", "-", "--dsn", other_dsn)
    import_.write(lines)
    assert import_.finish() == (
        0,
        f"imported {TWO}",
        "",
    )


def test_sessions_move_through_files(
    capsys: pytest.CaptureFixture[str], repository: PostgresSessionRepository, dsn: str, other_dsn: str, tmp_path: Path
) -> None:
    transfers.fill(repository, documents=transfers.IN_FILES)
    messages = 2 * len(transfers.IN_FILES)
    folder = str(tmp_path / "files")
    assert main(["export", "--all", "--files", folder, "--dsn", dsn]) == 0
    assert main(["export", "s", "s", "--files", folder, "--dsn", dsn]) == 0
    assert main(["import", "--files", folder, "--dsn", other_dsn]) == 0
    assert capsys.readouterr() == (
        f"exported 1 session, 2 agents, {messages} messages, 2 multi-agents\n"
        "exported 0 sessions, 0 agents, 0 messages, 0 multi-agents\n1 session unchanged\n"
        f"imported 1 session, 2 agents, {messages} messages, 2 multi-agents\n",
        "",
    )
    with PostgresSessionRepository(other_dsn) as other:
        assert transfers.restored(other) == transfers.restored(repository)


def test_windows_and_checkpoints_that_files_cannot_hold_are_counted(
    capsys: pytest.CaptureFixture[str], repository: PostgresSessionRepository, dsn: str, tmp_path: Path
) -> None:
    agents.build(repository)("hello")
    transfers.store_window(repository, "s", "default", Window((), 1))
    transfers.store_checkpoint(repository, "s", "default", 2, Window((), None), {})
    assert main(["export", "s", "--files", str(tmp_path), "--dsn", dsn]) == 0
    assert capsys.readouterr() == (
        "exported 1 session, 1 agent, 2 messages, 0 multi-agents\n"
        "1 window left out: files hold the log only\n"
        "1 checkpoint left out: files have no place for them\n",
        "",
    )


@needs_storage
def test_values_that_files_cannot_hold_are_counted(
    capsys: pytest.CaptureFixture[str], repository: PostgresSessionRepository, dsn: str, tmp_path: Path
) -> None:
    agents.build(repository)("hello")
    for key in ("a", "b"):
        asyncio.run(repository.storage("s").write(key, b"1"))
    assert main(["export", "s", "--files", str(tmp_path), "--dsn", dsn]) == 0
    assert capsys.readouterr() == (
        "exported 1 session, 1 agent, 2 messages, 0 multi-agents\n"
        "2 stored values left out: files have no place for them\n",
        "",
    )


def test_sessions_that_files_cannot_hold_are_reported_and_the_rest_is_exported(
    capsys: pytest.CaptureFixture[str], repository: PostgresSessionRepository, dsn: str, tmp_path: Path
) -> None:
    for session_id in ("a", "a/\x1b[31m", "b", "c"):
        repository.create_session(Session(session_id, SessionType.AGENT))
    (tmp_path / "session_b").mkdir()
    assert main(["export", "--all", "--files", str(tmp_path), "--dsn", dsn]) == 1
    written = capsys.readouterr()
    assert written.out == "exported 2 sessions, 0 agents, 0 messages, 0 multi-agents\n"
    first, second = written.err.splitlines()
    assert first.startswith(r"failed: the session id 'a/\x1b[31m' cannot be used as a file name")
    assert second.startswith(f"failed: exporting session 'b': {tmp_path}/session_b already exists with other content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["session_a", "session_b", "session_c"]
    assert main(["export", "a", "a/\x1b[31m", "--files", str(tmp_path), "--json", "--dsn", dsn]) == 1
    described = json.loads(capsys.readouterr().out)
    assert list(described["failures"]) == ["a/\x1b[31m"]
    assert described["unchanged"] == 1


def test_bad_files_are_named_and_the_rest_is_imported(
    capsys: pytest.CaptureFixture[str], dsn: str, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    for session_id in ("a", "b\x1b[31m"):
        FileSessionManager(session_id, str(tmp_path)).create_agent(session_id, transfers.agent("x"))
    bad = tmp_path / "session_b\x1b[31m/session.json"
    bad.write_text("{")
    assert main(["import", "--files", str(tmp_path), "--dsn", dsn]) == 1
    written = capsys.readouterr()
    assert written.out == "imported 1 session, 1 agent, 0 messages, 0 multi-agents\n"
    reason = f"{tmp_path}/session_b\\x1b[31m/session.json is not JSON: Expecting property name"
    assert written.err.startswith(f"failed: {reason}")
    assert written.err.endswith("; repair or remove it, or skip bad files (--skip-bad)\n")
    assert written.err.count("\n") == 1
    assert main(["import", "--files", str(tmp_path), "--json", "--dsn", dsn]) == 1
    described = json.loads(capsys.readouterr().out)
    assert list(described["failures"]) == ["b\x1b[31m"]
    assert (described["sessions"], described["unchanged"]) == (0, 1)
    assert main(["import", "--files", str(tmp_path), "--skip-bad", "--dsn", dsn]) == 0
    written = capsys.readouterr()
    assert written.err.startswith(f"skipped: {reason}")
    assert written.out.endswith("1 session unchanged\n")
    assert stored(connection) == [("a", 0)]


def test_closed_gaps_are_reported(capsys: pytest.CaptureFixture[str], dsn: str, tmp_path: Path) -> None:
    files = FileSessionManager("s", str(tmp_path))
    files.create_agent("s", transfers.agent("a"))
    for index in (1, 3):
        files.create_message("s", "a", transfers.message(index))
    assert main(["import", "--files", str(tmp_path), "--dsn", dsn]) == 0
    assert capsys.readouterr().out.endswith("\n2 gaps in message indexes closed\n")


def test_s3_is_a_source(
    capsys: pytest.CaptureFixture[str], dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import boto3  # type: ignore[import-untyped]
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        body = json.dumps({"session_type": "AGENT", "created_at": "2025-01-02T03:04:05+00:00"})
        client.put_object(Bucket="bucket", Key="a/b/session_s/session.json", Body=body.encode())
        assert main(["import", "--s3", "s3://bucket/a/b", "--dsn", dsn]) == 0
        assert main(["import", "--s3", "s3://nowhere", "--dsn", dsn]) == 1
    written = capsys.readouterr()
    assert written.out == "imported 1 session, 0 agents, 0 messages, 0 multi-agents\n"
    assert written.err == "strands-psycopg: error: s3://nowhere/ cannot be read: NoSuchBucket\n"


def test_tables_dsn_is_retried_as_long_as_dsn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    monkeypatch.setattr(options, "RETRY_TIMEOUT", 0.2)
    monkeypatch.setenv("PGHOST", "/nowhere")
    # An empty DSN is libpq's environment, as one of --dsn is, and not the target.
    for tables in ("host=/nowhere", ""):
        arguments = ["--tables-of", "strands-postgresql-session-manager", "--tables-dsn", tables]
        assert main(["import", *arguments, "--dsn", dsn]) == 1
        assert "could not connect within 0.2 s" in capsys.readouterr().err


def test_schema_and_prefix_say_which_tables(repository: PostgresSessionRepository, dsn: str, tmp_path: Path) -> None:
    transfers.fill(repository)
    file = str(tmp_path / "sessions.jsonl")
    tables = ["--schema", "select", "--table-prefix", "crm_", "--dsn", dsn]
    assert main(["migrate", *tables]) == 0
    assert main(["export", "s", "--to", file, "--dsn", dsn]) == 0
    assert main(["import", "--from", file, *tables]) == 0
    with PostgresSessionRepository(dsn, schema="select", table_prefix="crm_") as other:
        assert exported(other, "s") == exported(repository, "s")


@pytest.mark.parametrize(
    "argv",
    [
        ["export"],
        ["export", "s", "--all"],
        ["export", "--all", "--prefix", "s"],
        ["export", "s", "--json"],
        ["export", "s", "--to", "x", "--files", "y"],
        ["import"],
        ["import", "--from", "-", "--files", "x"],
        ["import", "--from", "-", "--skip-bad"],
        ["import", "--files", "x", "--tables-schema", "y"],
        ["import", "--tables-of", "strands-session-sql"],
        ["import", "--tables-dsn", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(argv)
    assert capsys.readouterr().err.startswith(f"usage: strands-psycopg {argv[0]}")


@pytest.mark.parametrize("option", ["--tables-dsn", "--tables-schema"])
def test_tables_options_require_tables_of(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["import", "--files", "x", option, "y"])
    assert capsys.readouterr().err.endswith(": error: --tables-dsn and --tables-schema require --tables-of\n")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["import", "--s3", "bucket/prefix"], 2, "--s3 must be s3://BUCKET or s3://BUCKET/PREFIX, not 'bucket/prefix'"),
        (
            [
                "import",
                "--tables-of",
                "strands-postgresql-session-manager",
                "--tables-dsn",
                "postgresql://app:se@same@db/agents",
            ],
            2,
            "the DSN has more than one '@'",
        ),
        (
            ["import", "--tables-of", "strands-postgresql-session-manager", "--tables-schema", "Sales"],
            2,
            "schema must match",
        ),
        (
            ["import", "--from", "{tmp_path}/missing"],
            1,
            "{tmp_path}/missing cannot be read: No such file or directory; check",
        ),
        (["import", "--files", "{tmp_path}/missing"], 1, "the directory {tmp_path}/missing cannot be read: No such"),
        (["import", "--from", "{tmp_path}/latin"], 1, "{tmp_path}/latin is not UTF-8"),
        (["import", "--from", "{tmp_path}/text"], 1, "line 1 belongs to no session; only the output of export"),
        (
            ["import", "--tables-of", "strands-postgresql-session-manager"],
            1,
            "the schema 'public' has no tables sessions, agents and messages",
        ),
        (["export", "missing"], 1, "reading session 'missing': the session does not exist"),
        (["export", "missing", "--to", "{tmp_path}/new"], 1, "reading session 'missing': the session does not exist"),
        (["export", "--all", "--to", "{tmp_path}/text"], 1, "{tmp_path}/text cannot be written: File exists; remove"),
        (["export", "--all", "--to", "{tmp_path}"], 1, "{tmp_path} cannot be written: Is a directory; name a file"),
        (["export", "--all", "--to", "{tmp_path}/x/y"], 1, "{tmp_path}/x/y cannot be written: No such file"),
        (["export", "--all", "--files", "{tmp_path}/text"], 1, "exporting session 'a' to {tmp_path}/text: File exists"),
    ],
    ids=str,
)
def test_failure_is_one_line(
    capsys: pytest.CaptureFixture[str],
    repository: PostgresSessionRepository,
    dsn: str,
    tmp_path: Path,
    argv: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "latin").write_bytes(b"\xe9\n")
    (tmp_path / "text").write_text("text\n")
    repository.create_session(Session("a", SessionType.AGENT))
    assert main([*(each.format(tmp_path=tmp_path) for each in argv), "--dsn", dsn]) == code
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(f"strands-psycopg: error: {message.format(tmp_path=tmp_path)}")
    assert written.err.count("\n") == 1
    assert "same@" not in written.err
    assert (tmp_path / "text").read_text() == "text\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin", "text"]


def start_import(dsn: str, folder: Path, connection: psycopg.Connection[Any]) -> Process:
    """Import one session of a folder, then start to import all, and block in the middle of the second one."""
    first = FileSessionManager("a", str(folder / "sessions"))
    first.create_agent("a", transfers.agent("x"))
    first.create_message("a", "x", transfers.message(0))
    assert main(["import", "--files", str(folder / "sessions"), "--dsn", dsn]) == 0
    for session_id in ("b", "c"):
        more = FileSessionManager(session_id, str(folder / "sessions"))
        more.create_agent(session_id, transfers.agent("x"))
        for index in range(3):
            more.create_message(session_id, "x", transfers.message(index))
    # This lock blocks writers but not readers.
    connection.execute("BEGIN; LOCK TABLE strands_messages IN EXCLUSIVE MODE")
    return processes.start(MAIN, "import", "--files", str(folder / "sessions"), "--dsn", dsn)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)], ids=str)
def test_interrupted_import_leaves_whole_sessions_and_can_be_run_again(
    capsys: pytest.CaptureFixture[str],
    dsn: str,
    connection: psycopg.Connection[Any],
    watcher: psycopg.Connection[Any],
    tmp_path: Path,
    number: signal.Signals,
    status: int,
) -> None:
    process = start_import(dsn, tmp_path, connection)
    wait_until(lambda: blocked(watcher) == 1)
    process.signal(number)
    assert process.finish()[::2] == (status, "")
    connection.execute("ROLLBACK")
    wait_until(lambda: one(watcher, "SELECT count(*) FROM pg_locks WHERE relation = 'strands_messages'::regclass") == 0)
    assert stored(connection) == [("a", 1)]
    capsys.readouterr()
    assert main(["import", "--files", str(tmp_path / "sessions"), "--dsn", dsn]) == 0
    assert capsys.readouterr().out == (
        "imported 2 sessions, 2 agents, 6 messages, 0 multi-agents\n1 session unchanged\n"
    )
    assert stored(connection) == [("a", 1), ("b", 3), ("c", 3)]


def test_interrupted_stream_leaves_whole_sessions_in_the_database(
    repository: PostgresSessionRepository, other_dsn: str
) -> None:
    transfers.fill(repository)
    transfers.fill(repository, "t")
    process = processes.start(MAIN, "import", "--from", "-", "--dsn", other_dsn)
    process.write(exported(repository, "s", "t")[:-100])
    with psycopg.connect(other_dsn, autocommit=True) as connection:
        wait_until(lambda: stored(connection) == [("s", 14)])
        process.signal(signal.SIGINT)
        assert process.finish() == (130, "", "")
        assert stored(connection) == [("s", 14)]


def test_interrupted_export_leaves_whole_sessions_in_its_file(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any], dsn: str, tmp_path: Path
) -> None:
    transfers.fill(repository, "a")
    for agent_id in ("a", "b"):
        if agent_id == "a":
            repository.create_session(Session("b", SessionType.AGENT))
        repository.create_agent("b", transfers.agent(agent_id))
    connection.execute(
        "INSERT INTO strands_messages SELECT 'b', 'a', n, '{}', NULL, NULL, NULL, write_id, created_at, updated_at "
        "FROM strands_sessions, generate_series(0, 59999) AS n WHERE session_id = 'b'"
    )
    file = tmp_path / "sessions.jsonl"
    process = processes.start(MAIN, "export", "--all", "--to", str(file), "--dsn", dsn)
    wait_until(lambda: file.exists() and file.stat().st_size > 2**18)
    process.signal(signal.SIGINT)
    assert process.finish() == (130, "", "")
    assert file.read_text() == exported(repository, "a")


def test_export_that_fails_leaves_alone_what_its_output_is_appended_to(
    monkeypatch: pytest.MonkeyPatch, repository: PostgresSessionRepository, dsn: str, tmp_path: Path
) -> None:
    transfers.fill(repository)
    path = tmp_path / "sessions.jsonl"
    for session_id, code in (("s", 0), ("missing", 1)):
        # As a shell does for >>: the position is unknown before the first write.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "w") as file:
            monkeypatch.setattr(sys, "stdout", file)
            assert main(["export", session_id, "--dsn", dsn]) == code
    assert path.read_text() == exported(repository, "s")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("notes.txt", "has no session_* directories; name a manager's storage_dir"),
        ("session.json", "it is a session itself, so name its parent"),
    ],
)
def test_directory_without_sessions_is_refused(
    capsys: pytest.CaptureFixture[str],
    dsn: str,
    tmp_path: Path,
    file: str,
    text: str,
) -> None:
    (tmp_path / file).touch()
    assert main(["import", "--files", str(tmp_path), "--dsn", dsn]) == 1
    written = capsys.readouterr()
    assert text in written.err
    assert written.out == ""


def test_empty_file_is_refused(capsys: pytest.CaptureFixture[str], dsn: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert main(["import", "--from", str(tmp_path / "empty"), "--dsn", dsn]) == 1
    assert "there is nothing to import: no line was read" in capsys.readouterr().err


def test_missing_tables_are_told_before_a_missing_source(
    capsys: pytest.CaptureFixture[str], empty_dsn: str, tmp_path: Path
) -> None:
    assert main(["import", "--files", str(tmp_path / "nowhere"), "--dsn", empty_dsn]) == 1
    assert "the tables are missing" in capsys.readouterr().err
