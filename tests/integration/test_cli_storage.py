"""The commands that list leases, and list, print and purge the values of storages, as a user calls them."""

import asyncio
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository, PostgresStorage
from strands_psycopg.cli import main
from support.storage import needs_storage

Run = Callable[..., tuple[int, str, str]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes], dsn: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command, on a terminal if there is an answer, and returns its code and output."""

    def run(*arguments: str, answer: str | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n") if answer is None else Terminal(answer))
        code = main([*arguments, "--dsn", dsn])
        printed, errors = capsysbinary.readouterr()
        return code, printed.decode(), errors.decode()

    return run


@pytest.fixture
def values(repository: PostgresSessionRepository) -> dict[tuple[str, ...], list[str]]:
    """Storages, by the options that name them, with the keys of their values."""
    PostgresSessionManager("s", repository, owner="Alice")
    storages = {
        (): PostgresStorage(repository),
        ("--prefix", "notes"): PostgresStorage(repository, prefix="notes"),
        ("--prefix", "notes", "--owner", "Alice"): PostgresStorage(repository, prefix="notes", owner="Alice"),
        ("--session", "s"): repository.storage("s", expires_in=3600),
    }
    for options, storage in storages.items():
        asyncio.run(storage.write("large", b"x" * 20_000))
        asyncio.run(storage.write(f"own/{len(options)}", " ".join(options).encode() + b"\xff"))
    return {options: ["large", f"own/{len(options)}"] for options in storages}


@needs_storage
def test_list_shows_the_values_of_one_storage(run: Run, values: dict[tuple[str, ...], list[str]]) -> None:
    for options, keys in values.items():
        code, printed, _ = run("storage", "list", *options)
        header, *rows = [line.split() for line in printed.splitlines()]
        assert (code, header, [row[0] for row in rows]) == (0, ["key", "size", "written", "expires"], keys)
        assert rows[0][1:3] == ["19.53", "kB"]
        assert len(rows[0]) == (7 if "--session" in options else 5)
    code, printed, _ = run("storage", "list", "--session", "s", "--owner", "Alice", "--under", "l", "--json")
    (value,) = json.loads(printed)["values"]
    assert (code, value["key"], value["size"]) == (0, "large", 20_000)
    assert value["updated_at"] < value["expires_at"]


@needs_storage
def test_without_an_action_the_storages_are_listed(run: Run, values: dict[tuple[str, ...], list[str]]) -> None:
    code, printed, errors = run("storage")
    header, *rows = [line.split() for line in printed.splitlines()]
    assert (code, errors, header) == (0, "", ["prefix", "owners", "values", "size", "newest"])
    assert [row[:-2] for row in rows] == [
        ["(none)", "0", "2", "19.53", "kB"],
        ["notes", "1", "4", "39.11", "kB"],
    ]
    assert run("storage", "--owner", "")[0] == 2
    [storage] = json.loads(run("storage", "--json", "--owner", "Alice")[1])["storages"]
    newest = storage.pop("updated_at")
    assert storage == {"prefix": "notes", "owners": 1, "values": 2, "bytes": 20_029}
    listed = run("storage", "--json", "--owner", "Alice", "list", "--prefix", "notes")[1]
    assert max(each["updated_at"] for each in json.loads(listed)["values"]) == newest


@needs_storage
def test_get_prints_the_very_bytes_or_writes_a_new_file(
    run: Run,
    values: dict[tuple[str, ...], list[str]],
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    dsn: str,
) -> None:
    for options, (_, key) in values.items():
        assert main(["storage", "get", key, "--dsn", dsn, *options]) == 0
        assert capsysbinary.readouterr() == (" ".join(options).encode() + b"\xff", b"")
    file = tmp_path / "value"
    assert run("storage", "get", "large", "--to", str(file)) == (0, "", "")
    assert file.read_bytes() == b"x" * 20_000
    code, _, errors = run("storage", "get", "large", "--to", str(file))
    assert (code, f"{file} cannot be written: File exists; remove it, or" in errors) == (1, True)
    code, _, errors = run("storage", "get", "large", "--to", str(tmp_path))
    assert (code, f"{tmp_path} cannot be written: Is a directory; name a file" in errors) == (1, True)
    code, printed, errors = run("storage", "get", "missing")
    assert (code, printed) == (1, "")
    assert "there is no value 'missing'; 'strands-psycopg storage list' prints the keys" in errors


@needs_storage
@pytest.mark.parametrize("options", [(), ("--session", "s")], ids=["prefix", "session"])
def test_purge_asks_and_deletes_only_old_values(
    run: Run, values: dict[tuple[str, ...], list[str]], connection: psycopg.Connection[Any], options: tuple[str, ...]
) -> None:
    purge = ("storage", "purge", "--idle-for", "1d", *options)
    for table in ("strands_storage", "strands_session_storage"):
        connection.execute(f"UPDATE {table} SET updated_at = now() - interval '2 days' WHERE key = 'large'".encode())
    question = "Delete 1 value of 19.53 kB? [y/N] "
    assert run(*purge, answer="n\n") == (1, "", question + "nothing was deleted\n")
    assert run(*purge, "--dry-run") == (0, "would delete 1 value of 19.53 kB\n", "")
    assert run(*purge)[0] == 2
    assert run(*purge, answer="y\n") == (0, "deleted 1 value of 19.53 kB\n", question)
    code, printed, _ = run(*purge, "--yes", "--json")
    assert (code, json.loads(printed)) == (0, {"values": 0, "bytes": 0, "dry_run": False})
    for other, keys in values.items():
        listed = json.loads(run("storage", "list", "--json", *other)[1])["values"]
        assert [each["key"] for each in listed] == keys[other == options :]


@needs_storage
@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (("--session", "missing"), 1, "session 'missing' does not exist"),
        (("--session", "s", "--owner", "Bob"), 1, "session 's' does not belong to the given owner"),
        (("--owner", ""), 2, "owner must have 1 to 255 characters, not 0"),
        (("--prefix", "a/../b"), 2, "path segments are not allowed"),
    ],
)
def test_wrong_storage_is_refused(
    run: Run, values: dict[tuple[str, ...], list[str]], options: tuple[str, ...], code: int, problem: str
) -> None:
    for action in (["list"], ["get", "large"], ["purge", "--yes"]):
        refused = run("storage", *action, *options)
        assert refused[:2] == (code, "")
        assert problem in refused[2]


def test_leases_lists_who_holds_which_session_until_when(
    run: Run, repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    assert run("leases") == (0, "session  since  until  term\n", "")
    with repository.lease("long\x1b", ttl=3600) as long, repository.lease("short", ttl=600), repository.lease("dead"):
        connection.execute("UPDATE strands_leases SET expires_at = now() WHERE session_id = 'dead'")
        _, first, second = run("leases")[1].splitlines()
        assert (first.split()[0], second.split()[0]) == ("short", "long\\x1b")
        leases = json.loads(run("leases", "--json")[1])["leases"]
    assert [each["session_id"] for each in leases] == ["short", "long\x1b"]
    assert leases[1]["term"] == str(long.term)
    assert leases[1]["since"] < leases[0]["until"] < leases[1]["until"]
    assert second.split()[1:5] == [*leases[1]["since"][:-1].split("T"), *leases[1]["until"][:-1].split("T")]
