"""Memory stores under faults: lost connections, killed and stopped writers, processes that add at once.

In every case a text is stored once or not at all, with its vector, and what was acknowledged is there.
"""

import asyncio
import itertools
import os
import signal
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from strands_psycopg import PostgresMemoryStore, PostgresSessionRepository
from support.crew import Crew
from support.memories import DIMENSIONS, embed_trigrams, needs_memory
from support.proxy import Proxy
from support.retries import Retries
from support.stopping import stopped
from support.tables import Connection, blocked, one
from support.waiting import wait_until

pytestmark = needs_memory

VECTORS: dict[str, Any] = {"embed": embed_trigrams, "dimensions": DIMENSIONS}

_WITHOUT_VECTOR = """
    SELECT content FROM strands_memories LEFT JOIN strands_memory_vectors USING (owner, store, memory_id)
    WHERE embedding IS NULL
"""


@pytest.fixture
def own_dsn(own_dsn: str) -> str:
    """A fresh, migrated database with vectors."""
    with PostgresMemoryStore("notes", own_dsn, **VECTORS) as store:
        store.ensure_schema()
    return own_dsn


_METADATA = "SELECT metadata FROM strands_memories WHERE content = %s"

_END_BLOCKED = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


def exported(store: PostgresMemoryStore) -> list[str]:
    async def read() -> list[str]:
        return [line async for line in store.export_lines()]

    return asyncio.run(read())


def stored(look: Connection) -> list[str]:
    """Return the contents, oldest first, each of which must have its vector."""
    assert look.execute(_WITHOUT_VECTOR).fetchall() == []
    return [content for (content,) in look.execute("SELECT content FROM strands_memories ORDER BY memory_id")]


def backends(look: Connection) -> list[int]:
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name <> 'look'"
    return [pid for (pid,) in look.execute(query).fetchall()]


CALLS: dict[str, tuple[Callable[[PostgresMemoryStore, str], Coroutine[Any, Any, object]], dict[str, object]]] = {
    "add": (lambda store, _: store.add("second", {"a": 1}), {"first": {"a": 1}, "second": {"a": 1}}),
    "merge": (lambda store, _: store.add("first", {"b": 2}), {"first": {"a": 1, "b": 2}}),
    "update": (lambda store, first: store.update(first, content="edited"), {"edited": {"a": 1}}),
    "forget": (lambda store, first: store.forget(first), {}),
}


@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize("call", CALLS)
def test_call_is_done_once_whichever_round_trip_is_lost(
    call: str, lost: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    run, expected = CALLS[call]
    with Proxy(own_dsn) as proxy, PostgresMemoryStore("notes", proxy.dsn, **VECTORS) as store:
        lose = proxy.lose_requests if lost == "request" else proxy.lose_answers
        for number in itertools.count():
            look.execute("DELETE FROM strands_memories")
            first = asyncio.run(store.add("first", {"a": 1}))
            lose(after=number)
            asyncio.run(run(store, first))
            lose(0)
            assert {content: one(look, _METADATA, content) for content in stored(look)} == expected
            if len(retries()) == number:
                break
        assert number >= (4 if call in ("merge", "update") else 1)


@pytest.mark.parametrize("options", [VECTORS, {}], ids=["vectors", "words"])
def test_add_that_arrives_late_does_not_bring_back_what_was_forgotten(
    own_dsn: str, look: Connection, retries: Retries, options: dict[str, Any]
) -> None:
    with PostgresMemoryStore("notes", own_dsn, response_timeout=0.5, **options) as store:
        asyncio.run(store.add("first"))
        first = backends(look)
        with stopped(*first):
            asyncio.run(store.add("second"))
            assert len(retries()) == 1
            asyncio.run(store.forget(older_than=0))
        wait_until(lambda: not set(first) & set(backends(look)))
        assert stored(look) == []


def test_memory_without_its_vector_is_never_seen(own_dsn: str, look: Connection, retries: Retries) -> None:
    with PostgresMemoryStore("notes", own_dsn, **VECTORS) as store, ThreadPoolExecutor(1) as executor:
        first = asyncio.run(store.add("first"))
        lines = [line.replace("first", "third").replace(first[-12:], "0" * 12) for line in exported(store)]
        calls: list[tuple[Coroutine[Any, Any, object], list[str]]] = [
            (store.update(first, content="edited"), ["edited"]),
            (store.add("second"), ["edited", "second"]),
            (store.import_lines(lines), ["third", "edited", "second"]),
        ]
        for number, (call, expected) in enumerate(calls, start=1):
            before = stored(look)
            with psycopg.connect(own_dsn, application_name="look") as locker:
                locker.execute("LOCK TABLE strands_memory_vectors IN SHARE MODE")
                running = executor.submit(asyncio.run, call)
                wait_until(lambda: blocked(look) == 1)
                assert stored(look) == before
                look.execute(_END_BLOCKED)
                wait_until(lambda: len(retries()) == number and blocked(look) == 1)  # noqa: B023
                assert stored(look) == before
            running.result()
            assert sorted(stored(look)) == sorted(expected)


ADD = """
import asyncio, sys
from strands_psycopg import PostgresMemoryStore
from support.memories import DIMENSIONS, embed_trigrams

async def main(store):
    for number in range(int(sys.argv[2])):
        await store.add(f"fact {number}", {sys.argv[3]: number})
        print(number, flush=True)

with PostgresMemoryStore("notes", sys.argv[1], embed=embed_trigrams, dimensions=DIMENSIONS) as store:
    ready()
    asyncio.run(main(store))
"""


def test_processes_that_add_the_same_facts_at_once_store_each_once(own_dsn: str, look: Connection, crew: Crew) -> None:
    with crew.of(2, ADD, own_dsn, "20") as members:
        for member in members:
            member.release()
        assert [member.lines()[-1] for member in members] == ["19", "19"]

    assert sorted(stored(look)) == sorted(f"fact {number}" for number in range(20))
    merged = look.execute("SELECT content, metadata FROM strands_memories").fetchall()
    assert all(metadata == dict.fromkeys("01", int(content[5:])) for content, metadata in merged)


def test_killed_writer_leaves_all_that_was_acknowledged_and_nothing_half(
    own_dsn: str, look: Connection, crew: Crew
) -> None:
    with crew.of(1, ADD, own_dsn, "100000") as [writer]:
        writer.release()
        wait_until(lambda: len(stored(look)) > 5)
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = len(writer.lines())

    wait_until(lambda: not backends(look))
    facts = stored(look)
    assert facts == [f"fact {number}" for number in range(len(facts))]
    assert len(facts) in (acknowledged, acknowledged + 1)


def test_cancelled_add_has_ended_when_its_cancellation_is_raised(own_dsn: str, look: Connection) -> None:
    async def main(store: PostgresMemoryStore) -> None:
        with ThreadPoolExecutor(1) as executor, psycopg.connect(own_dsn, application_name="look") as locker:
            locker.execute("LOCK TABLE strands_memories")
            add = asyncio.create_task(store.add("fact"))
            await asyncio.get_running_loop().run_in_executor(executor, wait_until, lambda: blocked(look))
            add.cancel()
            locker.commit()
            with pytest.raises(asyncio.CancelledError):
                await add
        assert stored(look) == ["fact"]

    with PostgresSessionRepository(own_dsn) as repository:
        asyncio.run(main(PostgresMemoryStore("notes", repository, **VECTORS)))
