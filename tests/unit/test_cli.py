from importlib import metadata

import pytest

from strands_psycopg import demo
from strands_psycopg.cli import main
from strands_psycopg.errors import EmbeddedPostgresError


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
