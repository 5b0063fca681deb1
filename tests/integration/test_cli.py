import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.cli import main
from strands_psycopg.cli import options as options_module
from strands_psycopg.migrator import packaged_migrations
from strands_psycopg.repository import status as status_module
from support import agents, catalog, processes

LATEST = len(packaged_migrations())
APPLIED = "".join(f"applied {migration.version:04} {migration.name}\n" for migration in packaged_migrations())
NOTHING = "no migrations are pending\n"

MAIN = "import sys; from strands_psycopg.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(autouse=True)
def _no_database_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PG") or name == "DATABASE_URL":
            monkeypatch.delenv(name)


def status(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["status", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def rows(described: dict[str, Any]) -> dict[str, int]:
    return {table["name"]: table["rows"] for table in described["tables"]}


def test_migrate_prints_what_it_applied(capsys: pytest.CaptureFixture[str], empty_dsn: str) -> None:
    assert main(["migrate", "--dsn", empty_dsn]) == 0
    assert capsys.readouterr() == (APPLIED, "")
    assert main(["migrate", "--dsn", empty_dsn]) == 0
    assert capsys.readouterr() == (NOTHING, "")


def test_migrate_prints_what_it_applied_as_json(capsys: pytest.CaptureFixture[str], empty_dsn: str) -> None:
    applied = [{"version": migration.version, "name": migration.name} for migration in packaged_migrations()]
    assert main(["migrate", "--json", "--dsn", empty_dsn]) == 0
    assert json.loads(capsys.readouterr().out) == {"applied": applied}
    assert main(["migrate", "--json", "--dsn", empty_dsn]) == 0
    assert json.loads(capsys.readouterr().out) == {"applied": []}


@pytest.mark.parametrize("options", [[], ["--schema", "select", "--table-prefix", "crm_"]], ids=str)
def test_nothing_is_pending_after_the_printed_sql(
    capsys: pytest.CaptureFixture[str], empty_dsn: str, options: list[str]
) -> None:
    assert main(["migrate", "--sql", *options]) == 0
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(capsys.readouterr().out.encode())
    assert main(["migrate", "--dsn", empty_dsn, *options]) == 0
    assert capsys.readouterr().out == NOTHING


def test_the_sql_for_an_empty_database_needs_no_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, empty_dsn: str
) -> None:
    assert main(["migrate", "--sql", "--dsn", empty_dsn]) == 0
    of_empty_database = capsys.readouterr().out
    monkeypatch.setenv("PGHOST", "/nowhere")
    assert main(["migrate", "--sql"]) == 0
    assert capsys.readouterr().out == of_empty_database


def test_no_sql_is_printed_where_nothing_is_pending(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    assert main(["migrate", "--sql", "--dsn", dsn]) == 0
    assert capsys.readouterr().out == "-- no migrations are pending\n"
    monkeypatch.setenv("DATABASE_URL", dsn)
    assert main(["migrate", "--sql"]) == 0
    assert capsys.readouterr().out == "-- no migrations are pending\n"


def test_status_counts_rows_and_bytes(
    capsys: pytest.CaptureFixture[str],
    dsn: str,
    repository: PostgresSessionRepository,
    connection: psycopg.Connection[Any],
) -> None:
    agents.build(repository, "a")("hello")
    agents.build(repository, "b")
    code, described = status(capsys, "--dsn", dsn)
    size = connection.execute("SELECT pg_total_relation_size('strands_messages')").fetchone()
    assert code == 0
    assert described["ready"] is True
    assert described["pool"].keys() == {"min_size", "max_size", "size", "available", "waiting"}
    assert (described["pool"]["min_size"], described["pool"]["max_size"]) == (0, 10)
    assert 1 <= described["connections"] <= described["max_connections"]
    assert described["schema_version"] == described["latest_version"] == LATEST
    assert rows(described) == {
        "strands_sessions": 2,
        "strands_agents": 2,
        "strands_messages": 2,
        "strands_message_variants": 0,
        "strands_checkpoints": 0,
        "strands_multi_agents": 0,
        "strands_leases": 0,
        "strands_storage": 0,
        "strands_chunks": 0,
        "strands_session_storage": 0,
        "strands_session_chunks": 0,
        "strands_memories": 0,
    }
    assert size is not None
    assert described["tables"][2]["bytes"] == size[0] > 0


def test_status_reads_well(
    capsys: pytest.CaptureFixture[str],
    dsn: str,
    repository: PostgresSessionRepository,
    connection: psycopg.Connection[Any],
) -> None:
    agents.build(repository)("hello")
    assert main(["status", "--dsn", dsn]) == 0
    server, database, in_use, tables, version, empty, head, *counts = capsys.readouterr().out.splitlines()
    info = connection.info
    assert server.startswith("server    PostgreSQL ")
    assert server.endswith(f" on {info.host}, port {info.port}")
    assert database == f"database  {info.dbname}, as {info.user}"
    assert re.fullmatch(r"in use    \d+ of \d+ connections", in_use)
    assert tables == "tables    strands_* in schema public"
    assert version == f"version   {LATEST} of {LATEST}, up to date"
    assert empty == ""
    assert head.split() == ["table", "rows", "size"]
    assert [line.split()[:2] for line in counts[:3]] == [
        ["strands_sessions", "1"],
        ["strands_agents", "1"],
        ["strands_messages", "2"],
    ]
    assert counts[-1].startswith("total ")
    assert counts[-1].endswith(" kB")
    assert len({len(line) for line in [head, *counts]}) == 1


def test_status_says_about_where_it_estimates(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dsn: str,
    connection: psycopg.Connection[Any],
) -> None:
    connection.execute(
        "INSERT INTO strands_sessions (session_id, session_type, write_id, created_at, updated_at) "
        "SELECT n, 'AGENT', gen_random_uuid(), now(), now() "
        "FROM generate_series(1, 1234) AS n"
    )
    connection.execute("VACUUM ANALYZE strands_sessions")
    monkeypatch.setattr(status_module, "_MAX_COUNTED_BYTES", 0)
    assert main(["status", "--dsn", dsn]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:-2] for line in lines[7:9]] == [["about", "1,234"], ["0"]]


def test_status_fails_where_migrations_are_pending(capsys: pytest.CaptureFixture[str], empty_dsn: str) -> None:
    assert main(["status", "--dsn", empty_dsn]) == 1
    names = ", ".join(migration.name for migration in packaged_migrations())
    written = capsys.readouterr()
    assert written.out.splitlines()[4:] == [f"version   0 of {LATEST}, pending: {names}; run 'strands-psycopg migrate'"]
    assert written.err == ""


def test_status_fails_where_a_table_is_missing(
    capsys: pytest.CaptureFixture[str], dsn: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("DROP TABLE strands_multi_agents")
    assert main(["status", "--dsn", dsn]) == 1
    assert "missing: strands_multi_agents" in capsys.readouterr().out.splitlines()[4]
    code, described = status(capsys, "--dsn", dsn)
    assert (code, described["ready"], described["missing"]) == (1, False, ["strands_multi_agents"])
    assert rows(described) == dict.fromkeys(
        (
            "strands_sessions",
            "strands_agents",
            "strands_messages",
            "strands_message_variants",
            "strands_checkpoints",
            "strands_leases",
            "strands_storage",
            "strands_chunks",
            "strands_session_storage",
            "strands_session_chunks",
            "strands_memories",
        ),
        0,
    )


def test_status_fails_where_the_database_is_newer(
    capsys: pytest.CaptureFixture[str], dsn: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("INSERT INTO strands_migrations VALUES (9999, 'future', '', now())")
    assert main(["status", "--dsn", dsn]) == 1
    line = capsys.readouterr().out.splitlines()[4]
    assert line.startswith(f"version   9999 of {LATEST}, the database is at version 9999 (future), newer than")
    assert status(capsys, "--dsn", dsn)[1]["ready"] is False


def test_schema_and_prefix_say_which_tables(capsys: pytest.CaptureFixture[str], empty_dsn: str) -> None:
    options = ["--schema", "select", "--table-prefix", "crm_"]
    assert main(["migrate", "--dsn", empty_dsn, *options]) == 0
    capsys.readouterr()
    code, described = status(capsys, "--dsn", empty_dsn, *options)
    assert (code, described["schema"], described["table_prefix"]) == (0, "select", "crm_")
    assert set(rows(described)) == {f"crm_{name}" for name in catalog.TABLES if name != "migrations"}
    code, described = status(capsys, "--dsn", empty_dsn)
    assert (code, rows(described)) == (1, {})


def test_database_url_names_the_database(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    monkeypatch.setenv("PGHOST", "/nowhere")
    assert status(capsys)[1]["database"] == conninfo_to_dict(dsn)["dbname"]


def test_the_option_goes_before_database_url(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "host=/nowhere")
    assert status(capsys, "--dsn", dsn)[1]["database"] == conninfo_to_dict(dsn)["dbname"]


@pytest.mark.parametrize("options", [[], ["--dsn", ""]], ids=str)
def test_libpqs_variables_name_the_database_otherwise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dsn: str, options: list[str]
) -> None:
    for name, value in conninfo_to_dict(dsn).items():
        monkeypatch.setenv({"dbname": "PGDATABASE"}.get(name, f"PG{name.upper()}"), str(value))
    if not options:
        monkeypatch.setenv("DATABASE_URL", "")
    assert status(capsys, *options)[1]["database"] == conninfo_to_dict(dsn)["dbname"]


@pytest.mark.parametrize(
    ("options", "variable", "has_hint"),
    [
        ([], None, True),
        (["--dsn", ""], None, True),
        (["--dsn", "host=/nowhere"], None, False),
        ([], "DATABASE_URL", False),
        ([], "PGHOST", False),
    ],
    ids=str,
)
def test_error_without_a_database_has_a_hint(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    variable: str | None,
    has_hint: bool,
) -> None:
    monkeypatch.setattr(options_module, "RETRY_TIMEOUT", 0)
    # libpq's own default would find a server that runs here.
    monkeypatch.setenv("PGPORT", "1")
    if variable:
        monkeypatch.setenv(variable, {"PGHOST": "/nowhere"}.get(variable, "host=/nowhere"))
    assert main(["sessions", *options]) == 1
    written = capsys.readouterr()
    assert written.err.startswith("strands-psycopg: error: listing sessions: could not connect within")
    assert written.err.endswith("; no database was specified: use --dsn or set DATABASE_URL\n") is has_hint
    assert written.err.count("\n") == 1


def test_an_unreachable_database_is_one_line() -> None:
    # In a separate process, where only the command configures logging.
    script = f"from strands_psycopg.cli import options; options.RETRY_TIMEOUT = 0.2\n{MAIN}"
    dsn = "postgresql://app:sesame@/agents?host=/nowhere"
    code, written, errors = processes.start(script, "status", "--dsn", dsn).finish()
    assert (code, written) == (1, "")
    assert errors.startswith("strands-psycopg: error: inspecting the schema: could not connect within 0.2 s")
    assert errors.count("\n") == 1
    assert "sesame" not in errors


def test_an_error_of_the_library_is_one_line(
    capsys: pytest.CaptureFixture[str], dsn: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("DROP TABLE strands_migrations")
    assert main(["migrate", "--dsn", dsn]) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith('strands-psycopg: error: "public"."strands_sessions" exists without ')
    assert written.err.count("\n") == 1


@pytest.mark.parametrize(
    "run",
    [
        "runpy.run_module('strands_psycopg', run_name='__main__', alter_sys=True)",
        f"runpy.run_path({str(Path(sys.executable).with_name('strands-psycopg'))!r}, run_name='__main__')",
    ],
    ids=["module", "script"],
)
def test_the_command_is_a_script_and_a_module(empty_dsn: str, run: str) -> None:
    status, written, errors = processes.start(f"import runpy; {run}", "status", "--dsn", empty_dsn).finish()
    assert (status, errors) == (1, "")
    assert f"version   0 of {LATEST}" in written


# Buffered, so that the output is written only at the end.
TO_A_CLOSED_PIPE = f"""
import os, sys
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
sys.stdout.reconfigure(write_through=False)
{MAIN}
"""


def test_a_closed_pipe_is_no_error() -> None:
    assert processes.start(TO_A_CLOSED_PIPE, "migrate", "--sql").finish() == (1, "", "")


def test_ctrl_c_ends_a_command_quietly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"host=127.0.0.1 port={silent.getsockname()[1]}"
        process = processes.start(MAIN, "status", "--dsn", dsn)
        waiting, _ = silent.accept()
        with waiting:
            process.signal(signal.SIGINT)
            assert process.finish() == (130, "", "")


def test_options_of_the_database_stand_before_or_after_the_command(
    capsys: pytest.CaptureFixture[str], empty_dsn: str
) -> None:
    assert main(["--dsn", empty_dsn, "--table-prefix", "crm_", "migrate", "--schema", "office"]) == 0
    capsys.readouterr()
    assert (
        main(["--dsn", "host=nowhere", "--schema", "office", "status", "--dsn", empty_dsn, "--table-prefix=crm_"]) == 0
    )
    assert "tables    crm_* in schema office\n" in capsys.readouterr().out
