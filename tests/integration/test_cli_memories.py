"""The command that lists, searches, forgets, exports and imports memories, as a user calls it."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strands_psycopg import PostgresMemoryStore, PostgresSessionRepository
from strands_psycopg.cli import main
from support.memories import needs_memory

pytestmark = needs_memory

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], dsn: str) -> Run:
    """Return a function that runs an action on alice's notes and returns its exit code, output and errors."""

    def run(action: str, *arguments: str, owner: str = "alice") -> tuple[int, str, str]:
        code = main(["memories", action, "--store", "notes", "--owner", owner, "--dsn", dsn, *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def ids(repository: PostgresSessionRepository) -> list[str]:
    """The ids of three memories of alice's, oldest first."""

    async def add() -> list[str]:
        store = PostgresMemoryStore("notes", repository, owner="alice")
        facts: list[tuple[str, dict[str, Any] | None]] = [
            ("likes tea", {"kind": "taste"}),
            ("likes\ngreen \x1b[1m tea", None),
            ("lives in Rome " + "x" * 200, {"kind": "place"}),
        ]
        return [await store.add(content, metadata) for content, metadata in facts]

    return asyncio.run(add())


def test_without_an_action_the_stores_are_listed(
    ids: list[str], repository: PostgresSessionRepository, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = [PostgresMemoryStore(name, repository, owner=owner) for name, owner in [("notes", "bob"), ("\x1b", None)]]
    for store in stores:
        asyncio.run(store.add("tea"))

    assert main(["memories", "--dsn", dsn]) == 0
    header, nobodys, notes = capsys.readouterr().out.splitlines()
    assert header.split() == ["store", "owners", "memories", "size", "newest"]
    assert nobodys.split()[:5] == ["\\x1b", "0", "1", "3", "bytes"]
    assert notes.split()[:5] == ["notes", "2", "4", "246", "bytes"]

    # An option may stand on either side of the action.
    assert main(["memories", "--owner", "", "--dsn", dsn]) == 2
    capsys.readouterr()
    assert main(["memories", "--owner", "alice", "--json", "--dsn", dsn]) == 0
    [store_of_alice] = json.loads(capsys.readouterr().out)["stores"]
    newest = store_of_alice.pop("updated_at")
    assert store_of_alice == {"name": "notes", "owners": 1, "memories": 3, "bytes": 243}
    assert main(["memories", "--owner", "alice", "--json", "list", "--store", "notes", "--dsn", dsn]) == 0
    assert json.loads(capsys.readouterr().out)["memories"][0]["updated_at"] == newest


def test_store_or_owner_without_memories_is_named(run: Run, ids: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for action in (["list"], ["search", "tea"], ["export"]):
        code, _, err = run(*action, "--store", "note")
        assert (code, err) == (1, "there is no memory store 'note'; did you mean 'notes'?\n")
        code, _, err = run(*action, "--store", "xyz", "--owner", "al\x1b")
        assert (code, err) == (1, "there is no memory store 'xyz'; 'strands-psycopg memories' lists the stores\n")
        code, _, err = run(*action, owner="bob")
        assert (code, err) == (0, "bob has no memories in store 'notes'; other owners have 3\n")
    assert run("search", "unheard", "--owner", "alice") == (0, "memory  score  text\n", "")
    code, out, err = run("forget", "--older-than", "0s", "--store", "note")
    assert (code, out) == (0, "forgot 0 memories\n")
    assert err == "there is no memory store 'note'; did you mean 'notes'?\n"


def test_list_shows_a_page_newest_first(run: Run, ids: list[str]) -> None:
    code, out, err = run("list", "--limit", "2")

    header, *rows = out.splitlines()
    assert (code, header.split()) == (0, ["memory", "updated", "text"])
    assert [row.split()[0] for row in rows] == ids[:0:-1]
    assert rows[0].endswith("x...")
    assert "\\x1b" in rows[1]
    assert err == f"next page: --before {ids[1]}\n"
    assert run("list", "--before", ids[1])[1].splitlines()[1].endswith("likes tea")
    assert run("list", owner="bob")[1].splitlines()[1:] == []


def test_list_prints_json(run: Run, ids: list[str]) -> None:
    page = json.loads(run("list", "--json", "--metadata", '{"kind": "taste"}')[1])

    assert page["next"] is None
    [memory] = page["memories"]
    assert (memory["memory_id"], memory["content"], memory["metadata"]) == (ids[0], "likes tea", {"kind": "taste"})


def test_search_shows_the_best_match_first(run: Run, ids: list[str]) -> None:
    rows = run("search", "green tea")[1].splitlines()[1:]
    assert [row.split()[0] for row in rows] == [ids[1], ids[0]]

    assert run("search", " ")[::2] == (
        2,
        "strands-psycopg: error: the query is blank; 'strands-psycopg memories list' lists all memories\n",
    )
    [entry] = json.loads(run("search", "tea", "--metadata", '{"kind": "taste"}', "--limit", "1", "--json")[1])
    assert (entry["content"], entry["metadata"]["_memory_id"]) == ("likes tea", ids[0])


def test_forget_deletes_what_was_selected(run: Run, ids: list[str]) -> None:
    assert run("forget") == (
        2,
        "",
        "strands-psycopg: error: select memories by --id, --older-than or --metadata; --older-than 0s selects all\n",
    )
    assert run("forget", "--older-than", "1h") == (0, "forgot 0 memories\n", "")
    assert run("forget", "--older-than", "1h", "--json") == (0, '{"memories": 0}\n', "")
    assert run("forget", "--id", ids[0]) == (0, "forgot 1 memory\n", "")
    assert run("forget", "--older-than", "0s") == (0, "forgot 2 memories\n", "")


def test_metadata_must_be_a_json_object(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("[]", "{"):
        with pytest.raises(SystemExit):
            run("list", "--metadata", text)
        assert "argument --metadata: must be a JSON object" in capsys.readouterr().err


def test_export_and_import_move_memories(run: Run, ids: list[str], tmp_path: Path) -> None:
    exported = run("export")[1]
    assert [json.loads(line)["memory_id"] for line in exported.splitlines()] == ids
    file = tmp_path / "memories.jsonl"
    file.write_text(exported)

    assert run("import", "--from", str(file), owner="bob") == (0, "imported 3 memories\n", "")
    assert run("import", "--from", str(file), "--json", owner="bob") == (0, '{"memories": 0}\n', "")
    assert run("export", owner="bob")[1] == exported
    code, _, err = run("import", "--from", str(tmp_path / "missing"))
    assert (code, "missing cannot be read" in err) == (1, True)
    file.write_text("")
    code, _, err = run("import", "--from", str(file))
    assert (code, "there is nothing to import: no line was read" in err) == (1, True)
    file.write_text("{}\n")
    assert run("import", "--from", str(file))[2] == "strands-psycopg: error: line 1: the key 'memory_id' is missing\n"


def test_migrate_creates_vectors_if_asked_for(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--dsn", dsn, "--vectors", "3", "--sql"]) == 0
    assert "public.halfvec(3)" in capsys.readouterr().out
    assert main(["migrate", "--dsn", dsn, "--vectors", "3"]) == 0
    assert capsys.readouterr().out == "applied 1001 memory_vectors_3\n"
    assert main(["migrate", "--dsn", dsn, "--vectors", "3"]) == 0
    assert main(["migrate", "--dsn", dsn]) == 0
    assert main(["status", "--dsn", dsn]) == 0
    assert "strands_memory_vectors" in capsys.readouterr().out
    assert main(["migrate", "--dsn", dsn, "--vectors", "4"]) == 1
    assert main(["migrate", "--dsn", dsn, "--vectors", "0"]) == 2
    capsys.readouterr()
    with PostgresMemoryStore("notes", dsn, embed=lambda texts: [[1, 2, 3] for _ in texts], dimensions=3) as store:
        asyncio.run(store.add("tea"))
    assert main(["memories", "export", "--store", "notes", "--dsn", dsn]) == 0
    assert json.loads(capsys.readouterr().out)["embedding"] == [1, 2, 3]
