"""Behaviour that every Strands storage must have, tested on ours and on Strands' own."""

import asyncio
import itertools
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from strands_psycopg import PostgresSessionRepository, PostgresStorage

storages = pytest.importorskip("strands.storage", reason="strands-agents before 1.48 has no storage")
pytest.importorskip("strands.storage.search", reason="strands-agents before 1.54 has no search")

import strands.storage.search.keyword  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from strands.types.exceptions import StorageError  # noqa: E402
from strands.types.session import Session, SessionType  # noqa: E402

from support.scale import scale  # noqa: E402

T = TypeVar("T")

try:
    storages.storage._normalize_key("a\\b")
    BACKSLASHES = []  # before strands-agents 1.56
except StorageError:
    BACKSLASHES = ["a\\b", "..\\a"]


def run(awaitable: Awaitable[T]) -> T:
    """Run in a new event loop, as each ``agent()`` call does."""

    async def wait() -> T:
        return await awaitable

    return asyncio.run(wait())


@pytest.fixture(
    params=[
        "postgres",
        "postgres with a prefix",
        "a view of it",
        "guarded",
        "of a session, in a lease",
        "memory",
        "files",
    ]
)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    kind: str = request.param
    if kind == "memory":
        yield storages.InMemoryStorage()
    elif kind == "files":
        yield storages.LocalFileStorage(str(tmp_path))
    else:
        repository: PostgresSessionRepository = request.getfixturevalue("repository")
        if kind == "of a session, in a lease":
            repository.create_session(Session("s", SessionType.AGENT))
            with repository.lease("s"):
                yield repository.storage("s")
            return
        prefix = "a/prefix/" if kind == "postgres with a prefix" else ""
        storage = PostgresStorage(repository, prefix=prefix, guard_overwrites=kind == "guarded")
        yield storage.namespace("a view") if kind == "a view of it" else storage


VALUES = [b"", b"\0", b"\xff\xfe\0", bytes(range(256)) * 5000, b"x" * 32_768, b"x" * 32_769]


def test_what_is_written_is_read(storage: Any) -> None:
    run(storage.write("session/1/state.json", b'{"b": 1, "a": 2}'))
    assert run(storage.read("session/1/state.json")) == b'{"b": 1, "a": 2}'


def test_bytes_come_back_as_they_were(storage: Any) -> None:
    for number, data in enumerate(VALUES):
        run(storage.write(f"k{number}", data))
        assert run(storage.read(f"k{number}")) == data


@settings(max_examples=scale(15, 30), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.binary(max_size=200))
def test_any_bytes_come_back_as_they_were(storage: Any, head: bytes, times: int, tail: bytes) -> None:
    data = head * times + tail
    run(storage.write("k", data))
    assert run(storage.read("k")) == data


def test_a_value_is_stored_as_it_was_when_the_write_began(storage: Any) -> None:
    data = bytearray(b"first")
    run(storage.write("k", data))
    data[0] = 0
    assert run(storage.read("k")) == b"first"


def test_reading_a_missing_value_returns_none_and_deleting_it_is_no_error(storage: Any) -> None:
    assert run(storage.read("missing")) is None
    run(storage.delete("missing"))
    assert run(storage.list("missing")) == []


SIZES = [3, 9000, 300_000]


def test_the_last_write_wins_for_all_combinations_of_sizes(storage: Any) -> None:
    for before, after in itertools.product(SIZES, SIZES):
        run(storage.write("k", bytes(before)))
        run(storage.write("k", b"\1" * after))
        assert run(storage.read("k")) == b"\1" * after
        assert run(storage.list("")) == ["k"]
        run(storage.delete("k"))


def test_what_is_deleted_is_gone(storage: Any) -> None:
    for size in SIZES:
        run(storage.write("k", bytes(size)))
        run(storage.write("other", bytes(size)))
        run(storage.delete("k"))
        assert run(storage.read("k")) is None
        assert run(storage.list("")) == ["other"]
        assert run(storage.read("other")) == bytes(size)
        run(storage.delete("other"))


def test_slashes_are_normalised(storage: Any) -> None:
    for key in ["//foo///bar//", "/foo/bar", "foo/bar/"]:
        run(storage.write(key, key.encode()))
        assert run(storage.list("")) == ["foo/bar"]
        assert run(storage.read("foo/bar")) == key.encode()
        run(storage.delete(key + "/"))
        assert run(storage.list("")) == []


BAD_KEYS = ["", "/", "//", "../etc/passwd", "a/../b", "a/..", *BACKSLASHES]


def test_bad_keys_are_refused_by_every_method(storage: Any) -> None:
    for key in BAD_KEYS:
        for method in (lambda key: storage.write(key, b"1"), storage.read, storage.delete):
            with pytest.raises(StorageError):
                run(method(key))
    assert run(storage.list("")) == []


def test_bad_prefixes_are_refused(storage: Any) -> None:
    for prefix in ["..", "a/../b", *(["a\\"] if BACKSLASHES else [])]:
        with pytest.raises(StorageError):
            run(storage.list(prefix))


def test_dots_that_are_no_parent_are_part_of_a_key(storage: Any) -> None:
    for key in ["a..b", "...", ".hidden", "a/.b"]:
        run(storage.write(key, b"1"))
    assert run(storage.list("")) == ["...", ".hidden", "a..b", "a/.b"]


# Keys that locales sort in different orders.
KEYS = [
    "B",
    "Z",
    "_",
    "a",
    "a b",
    "a%",
    "a-b",
    "a.b",
    "a/b",
    "a/b/c",
    "a0",
    "aB",
    "a_b",
    "b",
    "ä",
    "ab",
    "é",
    "中",
    "𝄞",
    "\uffff",
]


def test_listing_is_sorted_as_python_sorts(storage: Any) -> None:
    # A file and a folder of the same name cannot both exist.
    keys = [key for key in KEYS if key not in ("a", "a/b")]
    for key in keys:
        run(storage.write(key, b"1"))
    assert run(storage.list("")) == sorted(keys)


def test_a_prefix_has_no_wildcards(storage: Any) -> None:
    keys = [key for key in KEYS if key not in ("a", "a/b")]
    for key in keys:
        run(storage.write(key, b"1"))
    for prefix in ["a", "a/", "a/b", "/a/", "//a", "a%", "a_", "é", "\uffff", "𝄞", "x", ""]:
        normalised = "/".join(part for part in prefix.split("/") if part) + ("/" if prefix.endswith("a/") else "")
        assert run(storage.list(prefix)) == sorted(key for key in keys if key.startswith(normalised))


def test_a_namespace_is_a_view_of_the_keys_below_it(storage: Any) -> None:
    view = storage.namespace("memory//agent/")
    run(view.write("notes.md", b"1"))
    run(storage.write("memory/agent2", b"2"))
    assert run(storage.read("memory/agent/notes.md")) == b"1"
    assert run(view.list("")) == ["notes.md"]
    assert run(view.list("no")) == ["notes.md"]
    assert run(view.namespace("deep").list("")) == []
    run(view.namespace("deep").write("k", b"3"))
    assert run(view.list("")) == ["deep/k", "notes.md"]
    run(view.delete("deep/k"))
    run(view.delete("notes.md"))
    assert run(storage.list("")) == ["memory/agent2"]


def test_an_empty_namespace_is_the_storage_itself(storage: Any) -> None:
    run(storage.namespace("").write("k", b"1"))
    assert run(storage.list("")) == ["k"]


def test_a_bad_namespace_is_refused(storage: Any) -> None:
    with pytest.raises(StorageError):
        storage.namespace("../other")


def found(storage: Any, query: str) -> list[str]:
    return [result.key for result in run(storage.search(query))]


def test_search_finds_values_by_words_of_their_text_and_key(storage: Any) -> None:
    run(storage.write("dark-mode.md", b"Enable it in the settings."))
    run(storage.write("deploy.md", "Blue/green, to PRODUCTION: Größe 3.10".encode()))
    run(storage.write("empty.md", b""))
    assert found(storage, "Dark, please") == ["dark-mode.md"]
    assert found(storage, "production") == ["deploy.md"]
    assert found(storage, "GRÖSSE größe") == ["deploy.md"]
    assert found(storage, "10") == ["deploy.md"]
    assert found(storage, "what is the settings") == ["dark-mode.md"]
    if hasattr(strands.storage.search.keyword, "STOP_WORDS"):  # from strands-agents 1.62
        assert found(storage, "the in it") == []
        assert found(storage, "md") == []
    assert found(storage, "prod") == []
    assert found(storage, "") == []
    assert found(storage, "?!") == []


def test_search_ranks_values_with_more_of_the_words_first(storage: Any) -> None:
    run(storage.write("one", b"apple tree"))
    run(storage.write("two", b"apple pear tree"))
    run(storage.write("three", b"plum tree"))
    results = run(storage.search("apple pear"))
    assert [result.key for result in results] == ["two", "one"]
    assert results[0].score > results[1].score > 0
    assert [result.data for result in results] == [b"apple pear tree", b"apple tree"]


def test_search_finds_current_values_only(storage: Any) -> None:
    run(storage.write("k", b"apple"))
    run(storage.write("k", b"pear"))
    assert found(storage, "apple") == []
    assert found(storage, "pear") == ["k"]
    run(storage.delete("k"))
    assert found(storage, "pear") == []


def test_a_namespace_searches_its_own_values_only(storage: Any) -> None:
    view = storage.namespace("memory/agent")
    run(storage.write("other/memory-agent-notes.md", b"blue"))
    run(view.write("deploy.md", b"blue green deploys"))
    run(view.write("theme.md", b"dark mode"))
    if isinstance(storage, PostgresStorage) or hasattr(strands.storage.search.keyword, "STOP_WORDS"):
        assert found(view, "memory agent deploy") == ["deploy.md"]  # not by the namespace's own name
    assert found(view, "blue") == ["deploy.md"]


def test_many_calls_at_once(storage: Any) -> None:
    async def work() -> Any:
        await asyncio.gather(*(storage.write(f"k/{number}", b"%d" % number * 5000) for number in range(30)))
        return await asyncio.gather(*(storage.read(f"k/{number}") for number in range(30)))

    assert run(work()) == [b"%d" % number * 5000 for number in range(30)]
