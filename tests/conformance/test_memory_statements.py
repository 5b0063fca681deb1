"""The numbers of statements, round trips and commits of a memory store's calls, by libpq's trace of the connection."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest

from strands_psycopg import PostgresMemoryStore, PostgresSessionRepository, SchemaError
from support.distribution import distribute_vectors
from support.memories import DIMENSIONS, embed_trigrams, needs_memory
from support.wire import ONE, Wire

pytestmark = [
    needs_memory,
    pytest.mark.skipif(sys.platform != "linux", reason="psycopg gives access to libpq's trace on Linux only"),
]

Call = Callable[[PostgresMemoryStore, str], Coroutine[Any, Any, object]]

CALLS: dict[str, Call] = {
    "add": lambda store, _: store.add("coffee", {"kind": "taste"}),
    "add again": lambda store, _: store.add("tea"),
    "search": lambda store, _: store.search("tea"),
    "list": lambda store, _: store.list(),
    "forget": lambda store, memory_id: store.forget(memory_id),
    "forget nothing": lambda store, _: store.forget(metadata={"kind": "none"}),
}


@pytest.fixture(params=["words", "vectors"])
def stored(
    request: pytest.FixtureRequest, dsn: str, distributed_dsn: str | None
) -> Iterator[tuple[Wire, PostgresMemoryStore, str]]:
    """A store with a memory, which has been used before, and its only connection."""
    wire = Wire()
    vectors: dict[str, Any] = {"embed": embed_trigrams, "dimensions": DIMENSIONS}
    options: dict[str, Any] = {"min_size": 1, "max_size": 1, "configure": wire.configure}
    with PostgresSessionRepository(dsn, kwargs={"prepare_threshold": None}, **options) as repository:
        store = PostgresMemoryStore("notes", repository, **(vectors if request.param == "vectors" else {}))
        try:
            store.ensure_schema()
        except SchemaError as error:
            pytest.skip(str(error))
        if distributed_dsn is not None and request.param == "vectors":
            distribute_vectors(dsn)
        yield wire, store, asyncio.run(store.add("tea"))


@pytest.mark.parametrize("call", CALLS)
def test_call_is_one_statement_one_round_trip_and_one_commit(
    stored: tuple[Wire, PostgresMemoryStore, str], call: str
) -> None:
    wire, store, memory_id = stored
    expected = ONE
    if call == "add again" and store._embedder is not None:
        # Two more look why nothing was stored: whether it is late, and which memory has its vector already.
        expected = (3, ["I"] * 3)
    if call.startswith("forget") and store._embedder is None:
        # One more looks for the table of vectors, of which other stores may have some for these memories.
        expected = (2, ["I"] * 2)
    assert wire.during(lambda: asyncio.run(CALLS[call](store, memory_id)))[1:] == expected


def test_every_statement_names_the_owner_of_each_table(stored: tuple[Wire, PostgresMemoryStore, str]) -> None:
    """As a distributed database requires: an equality with a parameter, or a column that is inserted."""
    wire, store, memory_id = stored

    async def all_calls() -> None:
        for call in CALLS.values():
            await call(store, memory_id)
        memory_id_of_coffee = (await store.list()).memories[0].memory_id
        await store.add("coffee", {"kind": "habit"})
        await store.update(memory_id_of_coffee, content="cocoa", metadata={})
        lines = [line async for line in store.export_lines()]
        await store.import_lines(lines)
        with suppress(TypeError):  # a store of words does not embed
            await store.embed_missing()

    statements = [text for text in wire.during(lambda: asyncio.run(all_calls())).sent if "strands_memor" in text]
    assert len(statements) > 8
    for text in statements:
        filtered = text.count('"public"."strands_memor') - text.count('INSERT INTO "public"."strands_memor')
        assert text.count("owner = $") >= filtered, text
