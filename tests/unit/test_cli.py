import sys
from importlib import metadata

import pytest

from strands_psycopg import demo
from strands_psycopg.cli import main, output
from strands_psycopg.errors import EmbeddedPostgresError
from strands_psycopg.printable import printable


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"strands-psycopg {metadata.version('strands-psycopg')}\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["upgrade"],
        ["status", "--sql"],
        ["migrate", "--sql", "--json"],
        ["migrate", "--dsn"],
        ["status", "--table", "crm_"],
        ["stats", "--days", "many"],
        ["report"],
        ["report", "--html"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(argv)
    assert capsys.readouterr().err.startswith("usage: strands-psycopg ")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("show -id", "SESSION; write -- before one that begins with a hyphen"),
        ("purge --idle-for -1d", "expected one argument; write = before one that begins with a hyphen"),
        ("export --all --to=", "--to: must not be empty"),
        ("export --all --files=", "--files: must not be empty"),
        ("import --from=", "--from: must not be empty"),
        ("import --files=", "--files: must not be empty"),
        ("storage get key --to=", "--to: must not be empty"),
        ("memories import --store s --from=", "--from: must not be empty"),
        ("report --html=", "--html: must not be empty"),
        ("sessions --limit 0", "--limit: must be a whole number from 1 to 1000, not '0'"),
        ("memories list --store s --limit 1001", "--limit: must be a whole number from 1 to 1000, not '1001'"),
        ("memories search --store s tea --limit -1", "--limit: must be a whole number from 1 to 1000, not '-1'"),
        ("sessions --limit x", "--limit: must be a whole number from 1 to 1000, not 'x'"),
        ("memories --store notes", "followed by their options"),
    ],
)
def test_wrong_usage_says_what_to_write(capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(command.split())
    assert capsys.readouterr().err.endswith(f"{message}\n")


@pytest.mark.parametrize("command", [[], ["status"], ["show"], ["fork", "a"], ["export"]], ids=str)
@pytest.mark.parametrize("dsn", ["postgresql://app:sesame@db/agents", "host=db password='open sesame'"])
def test_a_misplaced_dsn_is_not_quoted(capsys: pytest.CaptureFixture[str], command: list[str], dsn: str) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main([*command, dsn])
    written = capsys.readouterr()
    assert written.err.endswith(": pass a DSN with --dsn\n")
    assert "sesame" not in written.err + written.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dsn", "postgresql://app:se@same@db/agents"], "the DSN has more than one '@'"),
        (["--dsn", "postgresql+psycopg://app:sesame@db/agents"], "the DSN cannot be parsed"),
        (["--schema", "Office"], "schema must match [a-z_][a-z0-9_]{0,39}"),
        (["--table-prefix", "crm-"], "table_prefix must match [a-z_][a-z0-9_]{0,39}"),
    ],
    ids=str,
)
def test_a_wrong_value_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["status", *options]) == 2
    written = capsys.readouterr().err
    assert written.startswith(f"strands-psycopg: error: {message}")
    assert written.count("\n") == 1
    assert "same" not in written


def test_a_long_error_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EmbeddedPostgresError("the server did not start:\nFATAL:  no space left\n")

    monkeypatch.setattr(demo, "run", fail)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "strands-psycopg: error: the server did not start: FATAL: no space left\n"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("sesions", "there is no command 'sesions'; did you mean sessions?"),
        ("memories lst", "there is no action 'lst'; did you mean list?"),
        ("xyzzy", "there is no command 'xyzzy'; the commands are migrate, status, "),
    ],
)
def test_mistyped_command_is_answered_with_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str], command: str, text: str
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(command.split())
    assert f"error: {text}" in capsys.readouterr().err.replace("'migrate'", "migrate").replace("'status'", "status")


@pytest.mark.parametrize(
    "text", ["\u0646\u0645\u06cc\u200c\u062e\u0648", "👩\u200d🚀", "a\xa0b", "全\u3000角", "½", "e\u0301", "\U000e0067"]
)
def test_text_of_any_language_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb\x07", r"a\x1b[2Jb\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb\u2066c\u2069", r"a\u202eb\u2066c\u2069"),
        ("a\u2028b\nc", r"a\u2028b\nc"),
        ("\ud800", r"\ud800"),
    ],
)
def test_characters_that_control_a_terminal_or_the_direction_of_text_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text, keep=text) == text


_ROWS = [("user-4711-" + "x" * 20, "2", "14", "Three days in Rome", "2026-11-28 10:00")]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (120, f"{_ROWS[0][0]}       2        14  {_ROWS[0][3]}  2026-11-28 10:00"),
        (85, f"{_ROWS[0][0]}        14  {_ROWS[0][3]}  2026-11-28 10:00"),
        (40, f"{_ROWS[0][0]}  {_ROWS[0][3]}  2026-11-28 10:00"),
    ],
)
def test_narrow_table_loses_numbers_but_no_id_text_or_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, line: str
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    header = ("session", "agents", "messages", "title", "last activity")
    output.print_table(header, _ROWS, right=("agents", "messages"), drop=("agents", "messages"))
    assert capsys.readouterr().out.splitlines()[1].rstrip() == line
