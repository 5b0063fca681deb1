"""Memory stores on a Citus cluster, with distributed tables: found by words, and by vectors where pgvector is."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import psycopg
import pytest

from strands_psycopg import MemoryExistsError, PostgresMemoryStore, PostgresSessionRepository
from support.memories import needs_memory

pytestmark = [pytest.mark.citus, needs_memory]

Connection: TypeAlias = psycopg.Connection[Any]
Build: TypeAlias = Callable[..., PostgresMemoryStore]
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def found(store: PostgresMemoryStore, query: str) -> list[str]:
    return [entry.content for entry in run(store.search(query))]


def listed(store: PostgresMemoryStore, **options: Any) -> list[tuple[str, object]]:
    return [(memory.content, memory.metadata) for memory in run(store.list(**options)).memories]


def lines(store: PostgresMemoryStore) -> list[str]:
    async def read() -> list[str]:
        return [line async for line in store.export_lines()]

    return run(read())


def test_memories_are_added_merged_edited_found_and_forgotten(
    repository: PostgresSessionRepository, build: Build
) -> None:
    store = build(repository)
    cycling = run(store.add("Alice likes cycling", {"kind": "hobby"}))
    assert run(store.add("Alice likes cycling", {"since": 2020, "kind": "sport"})) == cycling
    allergy = run(store.add("Alice is allergic to peanuts\0"))
    run(build(repository, "bob").add("Bob likes cycling"))
    assert found(store, "cycling")[0] == "Alice likes cycling"
    assert "Bob likes cycling" not in found(store, "who likes cycling")

    run(store.update(cycling, content="Alice likes swimming"))
    run(store.update(allergy, metadata={"kind": "health"}))
    with pytest.raises(MemoryExistsError):
        run(store.update(allergy, content="Alice likes swimming"))
    assert found(store, "swimming")[0] == "Alice likes swimming"
    assert listed(store) == [
        ("Alice is allergic to peanuts\0", {"kind": "health"}),
        ("Alice likes swimming", {"kind": "sport", "since": 2020}),
    ]
    assert listed(store, metadata={"kind": "health"}) == [("Alice is allergic to peanuts\0", {"kind": "health"})]

    assert run(store.forget(metadata={"kind": "sport"})) == 1
    assert run(store.forget(allergy)) == 1
    assert run(store.forget(older_than=0)) == 0
    assert listed(store) == []
    assert listed(build(repository, "bob")) == [("Bob likes cycling", None)]


def test_memories_are_exported_imported_and_erased(repository: PostgresSessionRepository, build: Build) -> None:
    alice, bob = build(repository), build(repository, "bob")
    for number in range(3):
        run(alice.add(f"memory {number}", {"number": number}))
    exported = lines(alice)
    assert run(bob.import_lines(exported)) == 3
    assert run(bob.import_lines(exported)) == 0
    assert lines(bob) == exported
    assert repository.erase(owner="alice").memories == 3
    assert lines(alice) == []
    assert lines(bob) == exported


METHODS: dict[str, Callable[[PostgresMemoryStore, str], Coroutine[Any, Any, object]]] = {
    "add": lambda store, _: store.add("another fact", {"a": 1}),
    "add again": lambda store, _: store.add("a fact", {"b": 1}),
    "update": lambda store, memory_id: store.update(memory_id, content="another fact"),
    "update of metadata": lambda store, memory_id: store.update(memory_id, metadata={"b": 1}),
    "search": lambda store, _: store.search("fact"),
    "list": lambda store, _: store.list(),
    "forget": lambda store, memory_id: store.forget(memory_id),
    "forget by age": lambda store, _: store.forget(older_than=0),
}


@pytest.mark.parametrize("method", METHODS)
def test_method_is_carried_out_by_the_node_of_the_owner(
    logging_repository: PostgresSessionRepository, nodes: list[str], build: Build, method: str
) -> None:
    store = build(logging_repository)
    memory_id = run(store.add("a fact", {"a": 1}))
    nodes.clear()
    run(METHODS[method](store, memory_id))
    assert len(set(nodes)) == 1
