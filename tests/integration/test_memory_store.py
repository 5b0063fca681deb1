import asyncio
import json
import math
import threading
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from strands_psycopg import (
    BadFileError,
    DatabaseError,
    Memory,
    MemoryExistsError,
    MemoryNotFoundError,
    PostgresMemoryStore,
    PostgresSessionRepository,
    SchemaError,
)
from support import processes
from support.memories import needs_memory
from support.payloads import ScramblingCodec
from support.tables import Connection, blocked
from support.waiting import until

pytestmark = needs_memory

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


@pytest.fixture
def store(repository: PostgresSessionRepository) -> PostgresMemoryStore:
    return PostgresMemoryStore("notes", repository)


def add(store: PostgresMemoryStore, *contents: str) -> list[str]:
    async def all_of_them() -> list[str]:
        return [await store.add(content) for content in contents]

    return run(all_of_them())


def found(store: PostgresMemoryStore, query: str, **options: Any) -> list[str]:
    return [entry.content for entry in run(store.search(query, options))]  # type: ignore[arg-type]


def memories(store: PostgresMemoryStore, **options: Any) -> list[Memory]:
    return run(store.list(**options)).memories


def contents(store: PostgresMemoryStore) -> list[str]:
    return [memory.content for memory in memories(store)]


def lines(store: PostgresMemoryStore) -> list[str]:
    async def collect() -> list[str]:
        return [line async for line in store.export_lines()]

    return run(collect())


def age(connection: Connection, seconds: float) -> None:
    connection.execute("UPDATE strands_memories SET updated_at = now() - make_interval(secs => %s)", [seconds])


WITHOUT_MEMORY = """
import sys
import strands
sys.modules["strands.memory.types"] = None
import strands_psycopg
try:
    strands_psycopg.PostgresMemoryStore("notes", "postgresql://localhost/nowhere")
except ImportError as error:
    print(error)
"""


def test_building_a_store_on_a_strands_without_memories_raises() -> None:
    message = "PostgresMemoryStore needs strands-agents 1.46 or newer: pip install -U strands-agents\n"
    assert processes.run_younger(WITHOUT_MEMORY) == (0, message, "")


def test_memory_is_found_by_any_of_its_words_with_its_id_score_and_times(store: PostgresMemoryStore) -> None:
    [memory_id] = add(store, "Alice prefers dark-mode")
    add(store, "Bob lives in Rome")

    [entry] = run(store.search("Which MODE does she prefer?"))

    [memory] = [each for each in memories(store) if each.memory_id == memory_id]
    assert (entry.content, entry.store_name) == ("Alice prefers dark-mode", None)
    assert entry.metadata is not None
    assert 0 < entry.metadata.pop("_score") <= 1
    assert entry.metadata == {
        "_memory_id": memory_id,
        "_created_at": memory.created_at,
        "_updated_at": memory.updated_at,
    }


def test_memory_with_more_of_the_words_comes_first(store: PostgresMemoryStore) -> None:
    add(store, "tea", "green tea", "coffee")

    assert found(store, "green tea") == ["green tea", "tea"]
    assert found(store, "green tea", max_search_results=1) == ["green tea"]
    assert found(store, "!? ") == []


def test_results_below_a_floor_are_left_out(store: PostgresMemoryStore, repository: PostgresSessionRepository) -> None:
    add(store, "tea", "green tea")
    scores = [(entry.metadata or {})["_score"] for entry in run(store.search("green tea"))]

    assert found(store, "green tea", min_score=scores[0]) == ["green tea"]
    assert found(PostgresMemoryStore("notes", repository, min_score=1.0), "green tea") == []


@pytest.mark.parametrize("word", ["½", "²", "Größe", "ЖУК", "東京", "ⅷ"])
def test_words_of_any_script_are_found(store: PostgresMemoryStore, word: str) -> None:
    add(store, f"before {word} after", "something else")

    assert found(store, word) == [f"before {word} after"]


def test_search_filters_by_metadata(store: PostgresMemoryStore) -> None:
    run(store.add("tea in the morning", {"kind": "habit", "tags": ["a", "b"]}))
    run(store.add("tea in the evening", {"kind": "plan"}))

    assert found(store, "tea", metadata={"tags": ["b"]}) == ["tea in the morning"]
    assert found(store, "tea", metadata={"kind": "plan", "more": 1}) == []
    assert [memory.content for memory in memories(store, metadata={"kind": "plan"})] == ["tea in the evening"]


def test_stores_and_owners_see_only_their_own(repository: PostgresSessionRepository) -> None:
    stores = [
        PostgresMemoryStore(name, repository, owner=owner) for name in ("a", "b") for owner in (None, "alice", "bob")
    ]
    for number, each in enumerate(stores):
        add(each, f"tea {number}", "the same")

    for number, each in enumerate(stores):
        assert found(each, "tea") == [f"tea {number}"]
        assert contents(each) == ["the same", f"tea {number}"]
    other = memories(stores[0])[0].memory_id
    assert run(stores[1].forget(other)) == 0
    with pytest.raises(MemoryNotFoundError):
        run(stores[1].update(other, content="mine"))
    assert run(stores[1].forget(older_than=0)) == 2
    assert [len(contents(each)) for each in stores] == [2, 0, 2, 2, 2, 2]


ODD = ["NUL \0 inside", "lone \ud800 surrogate", "\ufffd", "  spaces\n\n", "\U0001f600 é", "x" * 100_000 + " end"]


def test_contents_come_back_exactly(store: PostgresMemoryStore) -> None:
    add(store, *ODD)

    assert contents(store) == ODD[::-1]
    assert found(store, "surrogate") == [ODD[1]]
    assert found(store, "inside") == [ODD[0]]


METADATA: dict[str, Any] = {
    "z": 1,
    "a": {"deep": [1.0, -0.0, 1e300, None, True], "\0": "\udc00"},
    "nan": math.nan,
    "bytes": b"\x00\xff",
    "": {"__bytes_encoded__": True, "data": "no base64"},
}


def test_metadata_comes_back_exactly(store: PostgresMemoryStore) -> None:
    for number, metadata in enumerate([METADATA, {}, None, {"b": 1, "a": 2}]):
        run(store.add(f"memory {number}", metadata))

    assert [repr(memory.metadata) for memory in reversed(memories(store))] == [
        repr(METADATA),
        "{}",
        "None",
        "{'b': 1, 'a': 2}",
    ]
    [entry] = run(store.search("0"))
    assert repr({key: (entry.metadata or {})[key] for key in METADATA}) == repr(METADATA)


def test_same_text_is_stored_once_and_refreshed(store: PostgresMemoryStore, connection: Connection) -> None:
    [first] = add(store, "Alice likes tea")
    age(connection, 3600)
    [before] = memories(store)

    assert add(store, "Alice likes tea", "Alice likes tea!")[0] == first

    after = memories(store)[1]
    assert (after.content, after.created_at) == (before.content, before.created_at)
    assert after.updated_at > before.updated_at


def test_metadata_of_a_repeated_text_is_merged(store: PostgresMemoryStore) -> None:
    run(store.add("tea", {"b": 1.0, "a": [1]}))
    run(store.add("tea", {"a": [2], "c": math.inf}))
    run(store.add("tea"))
    run(store.add("tea", {"a": [2]}))
    run(store.add("coffee"))
    run(store.add("coffee", {"a": 1}))

    assert [repr(memory.metadata) for memory in memories(store)] == ["{'a': 1}", "{'b': 1.0, 'a': [2], 'c': inf}"]


def test_store_that_allows_duplicates_stores_a_text_again(repository: PostgresSessionRepository) -> None:
    store = PostgresMemoryStore("notes", repository, allow_duplicates=True)
    ids = add(store, "tea", "tea")

    assert len(set(ids)) == 2
    assert contents(store) == ["tea", "tea"]
    run(store.update(ids[0], content="coffee"))
    run(store.update(ids[1], content="coffee"))
    assert found(store, "coffee") == ["coffee", "coffee"]


def test_update_edits_text_or_metadata(store: PostgresMemoryStore) -> None:
    memory_id = run(store.add("likes \0 tea", {"kind": "taste"}))
    run(store.update(memory_id, content="likes coffee"))
    assert (found(store, "tea"), found(store, "coffee")) == ([], ["likes coffee"])
    assert memories(store)[0].metadata == {"kind": "taste"}

    run(store.update(memory_id, metadata={"kind": "habit"}))
    [memory] = memories(store)
    assert (memory.memory_id, memory.content, memory.metadata) == (memory_id, "likes coffee", {"kind": "habit"})
    assert run(store.add("likes coffee")) == memory_id


def test_update_to_the_text_of_another_memory_is_refused(store: PostgresMemoryStore) -> None:
    first, _ = add(store, "tea", "coffee")

    with pytest.raises(MemoryExistsError, match="another memory has this text already") as refusal:
        run(store.update(first, content="coffee"))

    assert refusal.value.memory_id == first
    assert "coffee" not in str(refusal.value)
    assert contents(store) == ["coffee", "tea"]


def test_update_of_a_missing_memory_is_refused(store: PostgresMemoryStore) -> None:
    missing = "0190b3b0-0000-7000-8000-000000000000"
    with pytest.raises(MemoryNotFoundError, match=missing):
        run(store.update(missing, content="tea"))
    with pytest.raises(ValueError, match="'x' is not the id of a memory"):
        run(store.update("x", content="tea"))


def test_forget_deletes_what_meets_all_conditions(store: PostgresMemoryStore, connection: Connection) -> None:
    first, second = run(store.add("a", {"kind": 1})), run(store.add("b", {"kind": 1}))
    age(connection, 3600)
    run(store.add("c", {"kind": 1}))
    run(store.add("d"))

    assert run(store.forget(first, metadata={"kind": 2})) == 0
    assert run(store.forget(first)) == 1
    assert run(store.forget(first)) == 0
    assert run(store.forget(metadata={"kind": 1}, older_than=timedelta(minutes=59))) == 1
    assert contents(store) == ["d", "c"]
    assert run(store.forget(second)) == 0
    assert run(store.forget(metadata={"kind": 1})) == 1
    assert run(store.forget(older_than=0)) == 1
    with pytest.raises(TypeError, match="older_than=0 forgets all"):
        run(store.forget())
    with pytest.raises(ValueError, match="older_than must be from 0 seconds"):
        run(store.forget(older_than=-1))


def test_forget_works_in_batches(store: PostgresMemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strands_psycopg.memory.entries._FORGET_BATCH", 2)
    add(store, *map(str, range(5)))

    assert run(store.forget(older_than=0)) == 5


def test_list_has_pages_newest_first(store: PostgresMemoryStore) -> None:
    add(store, *map(str, range(5)))

    first = run(store.list(limit=2))
    second = run(store.list(limit=2, before=first.next))
    third = run(store.list(limit=2, before=second.next))

    assert [memory.content for page in (first, second, third) for memory in page.memories] == list("43210")
    assert third.next is None
    with pytest.raises(ValueError, match="limit must be an integer from 1 to 1000"):
        run(store.list(limit=0))


def test_export_and_import_copy_everything(repository: PostgresSessionRepository, store: PostgresMemoryStore) -> None:
    for content in ODD:
        run(store.add(content, METADATA))
    run(PostgresMemoryStore("notes", repository, allow_duplicates=True).add("tea"))
    add(store, "tea")
    exported = lines(store)
    copy = PostgresMemoryStore("copy", repository, owner="alice")

    assert run(copy.import_lines(exported)) == len(ODD) + 2
    assert run(copy.import_lines(exported)) == 0

    assert repr(memories(copy)) == repr(memories(store))
    assert lines(copy) == exported
    assert all(line.isascii() and json.loads(line)["memory_id"] for line in exported)
    assert found(copy, "surrogate") == [ODD[1]]
    assert add(copy, ODD[2])[0] in {memory.memory_id for memory in memories(store)}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "it is not JSON"),
        ("[]", "it is not a memory"),
        ('{"memory_id": "0190b3b0-0000-7000-8000-000000000000"}', "the key 'metadata' is missing"),
        ('{"memory_id": "secret", "content": "secret", "metadata": null}', "it is not a memory: ValueError"),
    ],
)
def test_import_of_a_bad_line_stores_nothing_of_its_batch(store: PostgresMemoryStore, line: str, problem: str) -> None:
    add(store, "tea")
    good = lines(store)[0]
    run(store.forget(older_than=0))

    with pytest.raises(BadFileError, match=problem) as refusal:
        run(store.import_lines([good, "\n", line]))

    assert refusal.value.file == "line 3"
    assert "secret" not in str(refusal.value)
    assert contents(store) == []


def test_missing_tables_are_a_schema_error(empty_dsn: str, pool_options: dict[str, Any]) -> None:
    with PostgresMemoryStore("notes", empty_dsn, **pool_options) as store:
        for call in (store.initialize(), store.add("tea"), store.search("tea"), store.forget(older_than=0)):
            with pytest.raises(SchemaError, match="call ensure_schema"):
                run(call)
        store.ensure_schema()
        run(store.initialize())
        add(store, "tea")
        assert found(store, "tea") == ["tea"]


def test_store_on_a_repository_shares_its_pool_and_leaves_it_open(repository: PostgresSessionRepository) -> None:
    with PostgresMemoryStore("notes", repository) as store:
        add(store, "tea")
    assert repository.read_session("missing") is None
    with pytest.raises(TypeError, match="pass the options to the repository"):
        PostgresMemoryStore("notes", repository, schema="x")


def test_repository_with_a_payload_codec_is_refused() -> None:
    with (
        PostgresSessionRepository("host=db.invalid", payload_codec=ScramblingCodec()) as repository,
        pytest.raises(TypeError, match="would disclose"),
    ):
        PostgresMemoryStore("notes", repository)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name must have 1 to 255"),
        ({"owner": "\0"}, "owner must not contain NUL"),
        ({"owner": ""}, "owner must have 1 to 255"),
        ({"max_search_results": 0}, "max_search_results must be an integer from 1 to 1000, not 0"),
        ({"min_score": 2}, "min_score must be a number from 0 to 1"),
        ({"min_similarity": math.nan}, "min_similarity must be a number from -1 to 1"),
        ({"text_search_config": ""}, "text_search_config must be"),
        ({"dimensions": 2001}, "dimensions must be an integer from 1 to 2000"),
        ({"embed": len}, "embed requires dimensions"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PostgresMemoryStore(**{"name": "notes", "source": "host=db.invalid", **options})


def test_invalid_texts_and_metadata_are_refused(store: PostgresMemoryStore) -> None:
    for content in ("", " \n"):
        with pytest.raises(ValueError, match="must not be empty"):
            run(store.add(content))
    with pytest.raises(TypeError, match="content must be a string, not int"):
        run(store.add(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="metadata must be a dict, not list"):
        run(store.add("tea", []))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not have the key '_score'"):
        run(store.add("tea", {"_score": 1}))
    assert contents(store) == []


def test_store_that_is_not_writable_stores_nothing(repository: PostgresSessionRepository) -> None:
    store = PostgresMemoryStore("notes", repository, writable=False)
    for call in (store.add("tea"), store.forget(older_than=0), store.import_lines([])):
        with pytest.raises(ValueError, match="the store is not writable"):
            run(call)


def test_text_search_config_stems_words(repository: PostgresSessionRepository) -> None:
    store = PostgresMemoryStore("notes", repository, text_search_config="english")
    add(store, "She was running")
    assert found(store, "runs") == ["She was running"]
    missing = PostgresMemoryStore("notes", repository, text_search_config="missing")
    with pytest.raises(DatabaseError, match='text search configuration "missing" does not exist'):
        add(missing, "tea")


def test_event_loop_runs_on_while_a_call_waits(store: PostgresMemoryStore, connection: Connection) -> None:
    add(store, "tea")
    ticked = threading.Event()

    async def main() -> str:
        with connection.transaction():
            connection.execute("LOCK TABLE strands_memories")
            call = asyncio.create_task(store.add("coffee"))
            await until(lambda: blocked(connection))
            ticked.set()
        return await call

    assert run(main())
    assert ticked.is_set()


def test_many_adds_of_one_text_at_once_store_it_once(store: PostgresMemoryStore) -> None:
    async def main() -> list[str]:
        return list(await asyncio.gather(*(store.add("tea", {str(number): number}) for number in range(20))))

    assert len(set(run(main()))) == 1
    [memory] = memories(store)
    assert memory.metadata is not None
    assert {int(key) for key in memory.metadata} == set(range(20))


def test_repr_says_where_it_is() -> None:
    store = PostgresMemoryStore("notes", "postgresql://a:secret@localhost/db", owner="alice")
    assert repr(store) == (
        "<PostgresMemoryStore 'notes' host=localhost dbname=db user=a schema=public table_prefix=strands_ "
        "owner='alice'>"
    )
