"""Storages that refuse to overwrite what they have not seen."""

import asyncio
import itertools
import os
import random
import signal
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
import pytest
from strands import Agent

from strands_psycopg import PostgresSessionRepository, PostgresStorage, PostgresStorageError, StorageConflictError
from strands_psycopg.scripted_model import ScriptedModel
from support.storage import NO_CHUNKS, chunks, needs_storage, values
from support.tables import blocked
from support.waiting import wait_until

pytestmark = needs_storage

T = TypeVar("T")

Connection = psycopg.Connection[Any]

SMALL, LARGE = b"small", random.Random(8).randbytes(60_000)

# Different values of a size that is stored inline, and of one that is stored in chunks.
SIZES = {"small": [SMALL, b"small too", b"small again"], "large": [LARGE, LARGE[::-1], LARGE + b"more"]}


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def put(storage: PostgresStorage, value: bytes | None, key: str = "k") -> None:
    run(storage.delete(key) if value is None else storage.write(key, value))


def refused(storage: PostgresStorage, value: bytes | None, key: str = "k") -> StorageConflictError:
    with pytest.raises(StorageConflictError) as caught:
        put(storage, value, key)
    return caught.value


@pytest.fixture
def storage(repository: PostgresSessionRepository) -> PostgresStorage:
    return PostgresStorage(repository, guard_overwrites=True)


@pytest.fixture
def other(repository: PostgresSessionRepository) -> PostgresStorage:
    """The storage of another process, as far as the guard is concerned."""
    return PostgresStorage(repository, guard_overwrites=True)


sizes = pytest.mark.parametrize("size", SIZES)


@sizes
@pytest.mark.parametrize("others_size", SIZES)
@pytest.mark.parametrize("seen", ["read", "missing", "written", "overwritten", "deleted"])
def test_a_key_that_another_writer_has_written_since_is_neither_overwritten_nor_deleted(
    storage: PostgresStorage, other: PostgresStorage, connection: Connection, size: str, others_size: str, seen: str
) -> None:
    before, _, after = SIZES[size]
    if seen != "missing":
        put(other if seen == "read" else storage, before)
    if seen in ("read", "missing"):
        assert run(storage.read("k")) == (before if seen == "read" else None)
    elif seen != "written":
        put(storage, after if seen == "overwritten" else None)
    others = SIZES[others_size][1]
    put(other, others) if seen in ("read", "missing") else put_unseen(other, others)
    stored = values(connection), chunks(connection)

    refused(storage, after)
    refused(storage, None)
    refused(storage, SIZES[others_size][2])

    assert (values(connection), chunks(connection)) == stored
    assert stored[0] == {"k": others}
    assert stored[1].unused == 0


def put_unseen(storage: PostgresStorage, value: bytes | None) -> None:
    run(storage.read("k"))
    put(storage, value)


@sizes
@pytest.mark.parametrize("deleted_size", SIZES)
def test_a_key_that_another_writer_has_deleted_since_is_not_written_and_may_be_deleted(
    storage: PostgresStorage, other: PostgresStorage, connection: Connection, size: str, deleted_size: str
) -> None:
    put(storage, SIZES[deleted_size][0])
    put(other, None)

    refused(storage, SIZES[size][1])
    assert (values(connection), chunks(connection)) == ({}, NO_CHUNKS)

    put(storage, None)
    put(storage, SIZES[size][1])
    assert values(connection) == {"k": SIZES[size][1]}


@sizes
def test_another_writers_value_is_not_taken_for_the_own_one_because_it_is_equal(
    storage: PostgresStorage, other: PostgresStorage, size: str
) -> None:
    value = SIZES[size][0]
    put(storage, value)
    put(other, value)
    refused(storage, value)


@sizes
@pytest.mark.parametrize("change", ["write", "delete"])
def test_a_key_that_was_never_read_or_written_is_changed_without_a_check(
    storage: PostgresStorage, other: PostgresStorage, connection: Connection, size: str, change: str
) -> None:
    put(other, SIZES[size][0])
    after = SIZES[size][1] if change == "write" else None
    put(storage, after)
    assert values(connection) == ({"k": after} if after else {})


@sizes
def test_a_key_is_refused_until_it_is_read_again(storage: PostgresStorage, other: PostgresStorage, size: str) -> None:
    mine, others, newer = SIZES[size]
    put(storage, mine)
    put(other, others)
    for _ in range(3):
        refused(storage, newer)

    assert run(storage.read("k")) == others
    put(storage, newer)

    assert run(storage.read("k")) == newer
    refused(other, others)


def test_a_search_and_a_list_are_no_reads(storage: PostgresStorage, other: PostgresStorage) -> None:
    put(storage, b"apple")
    put(other, b"apple pie")
    assert [hit.data for hit in run(storage.search("apple"))] == [b"apple pie"]
    assert run(storage.list("")) == ["k"]
    refused(storage, b"apple tart")


def test_a_search_and_a_list_of_an_unseen_key_are_no_reads(storage: PostgresStorage, other: PostgresStorage) -> None:
    put(other, b"apple")
    assert len(run(storage.search("apple"))) == len(run(storage.list(""))) == 1
    put(other, b"apple pie")
    put(storage, b"apple tart")


def test_a_storage_and_its_namespaces_see_the_same(storage: PostgresStorage, other: PostgresStorage) -> None:
    view = storage.namespace("a").namespace("b")
    put(other, b"1", "a/b/k")
    assert run(storage.read("a/b/k")) == b"1"
    put(view, b"2")
    put(storage, b"3", "a/b/k")
    assert run(storage.namespace("a").read("b/k")) == b"3"
    assert run(other.read("a/b/k")) == b"3"
    put(other.namespace("a"), None, "b/k")
    assert refused(view, b"4").key == "a/b/k"


@sizes
def test_a_storage_without_a_guard_overwrites_and_one_with_it_notices(
    repository: PostgresSessionRepository, storage: PostgresStorage, size: str
) -> None:
    plain = PostgresStorage(repository)
    first, second, third = SIZES[size]
    put(storage, first)
    put(plain, second)
    refused(storage, third)
    put(plain, third)
    assert run(plain.read("k")) == third


def test_the_error_names_the_key_and_says_what_to_do(repository: PostgresSessionRepository) -> None:
    storage, other = (PostgresStorage(repository, prefix="p", guard_overwrites=True) for _ in range(2))
    put(storage, b"1", "a/k")
    put(other, b"2", "a/k")
    for error, operation in [(refused(storage, b"3", "a//k"), "writing"), (refused(storage, None, "a/k"), "deleting")]:
        assert isinstance(error, PostgresStorageError)
        assert error.key == "a/k"
        assert str(error) == (
            f"{operation} 'a/k' of storage 'p': another writer has written or deleted the value since this storage "
            "last read or wrote it; nothing was stored. To continue from what is stored, build a new session manager "
            "and agent; hold a lease to keep other writers away"
        )
        assert error.__cause__ is None


def test_a_storage_is_not_in_its_own_way(storage: PostgresStorage, connection: Connection) -> None:
    contents = [*SIZES["small"], *SIZES["large"], None]
    for before, after in itertools.product(contents, contents):
        put(storage, before)
        put(storage, after)
        assert run(storage.read("k")) == after
        put(storage, before)
        assert values(connection) == ({"k": before} if before else {})
    assert chunks(connection).unused == 0


def test_one_storage_works_from_many_event_loops_at_once(storage: PostgresStorage) -> None:
    contents = [*SIZES["small"], *SIZES["large"], None]

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(8):
            put(storage, chance.choice(contents))
            assert run(storage.read("k")) in contents

    with ThreadPoolExecutor() as executor:
        for done in [executor.submit(work, number) for number in range(12)]:
            done.result()


@pytest.mark.parametrize("before", ["missing", *SIZES])
def test_of_writers_at_once_that_have_seen_the_same_exactly_one_wins(
    repository: PostgresSessionRepository, connection: Connection, before: str
) -> None:
    contents = [*SIZES["small"][1:], *SIZES["large"][1:]]
    storages = [PostgresStorage(repository, guard_overwrites=True) for _ in contents]
    start = threading.Barrier(len(storages))

    def write(storage: PostgresStorage, value: bytes) -> bytes | None:
        start.wait()
        try:
            put(storage, value)
        except StorageConflictError:
            return None
        return value

    with ThreadPoolExecutor() as executor:
        for _ in range(20):
            connection.execute("DELETE FROM strands_storage")
            if before != "missing":
                put(PostgresStorage(repository), SIZES[before][0])
            for storage in storages:
                run(storage.read("k"))
            random.shuffle(contents)
            results = [
                done.result()
                for done in [executor.submit(write, *each) for each in zip(storages, contents, strict=True)]
            ]
            (winner,) = [result for result in results if result is not None]
            assert values(connection) == {"k": winner}


@sizes
@pytest.mark.parametrize("before", SIZES)
@pytest.mark.parametrize("change", ["update", "delete"])
def test_a_write_that_waits_for_another_writer_sees_what_that_one_has_done(
    storage: PostgresStorage, connection: Connection, watcher: Connection, size: str, before: str, change: str
) -> None:
    put(storage, SIZES[before][0])
    query = {
        "update": "UPDATE strands_storage SET write_id = gen_random_uuid()",
        "delete": "DELETE FROM strands_storage",
    }
    with ThreadPoolExecutor() as executor:
        with connection.transaction():
            connection.execute(query[change].encode())
            write = executor.submit(refused, storage, SIZES[size][1])
            wait_until(lambda: blocked(watcher) == 1)
        write.result()
    assert values(connection) == ({"k": SIZES[before][0]} if change == "update" else {})


@sizes
def test_a_write_of_a_missing_key_that_waits_for_another_writer_sees_what_that_one_has_created(
    storage: PostgresStorage, connection: Connection, watcher: Connection, size: str
) -> None:
    assert run(storage.read("k")) is None
    with ThreadPoolExecutor() as executor:
        with connection.transaction():
            connection.execute(
                "INSERT INTO strands_storage (scope, key, data, size, write_id, updated_at) "
                "VALUES ('', 'k', 'theirs', 6, gen_random_uuid(), now())"
            )
            write = executor.submit(refused, storage, SIZES[size][0])
            wait_until(lambda: blocked(watcher) == 1)
        write.result()
    assert values(connection) == {"k": b"theirs"}


def test_every_write_has_a_write_id_of_its_own(
    repository: PostgresSessionRepository, storage: PostgresStorage, connection: Connection
) -> None:
    found = set()
    for each, size in itertools.product([storage, PostgresStorage(repository)], SIZES):
        put(each, SIZES[size][0], f"{size}")
        found |= {write_id for (write_id,) in connection.execute("SELECT write_id FROM strands_storage")}
    assert len(found) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_is_another_writer_that_saw_what_its_parent_had_seen(
    direct_dsn: str, connection: Connection, watcher: Connection
) -> None:
    with PostgresStorage(direct_dsn, guard_overwrites=True) as storage, ThreadPoolExecutor() as executor:
        put(storage, b"before")
        with connection.transaction():
            connection.execute("SELECT true FROM strands_storage WHERE key = 'k' FOR UPDATE")
            write = executor.submit(put, storage, b"parent's")
            wait_until(lambda: blocked(watcher) == 1)
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                try:
                    refused(storage, b"child's")
                    assert run(storage.read("k")) == b"parent's"
                    put(storage, b"child's")
                except BaseException:
                    os._exit(1)
                os._exit(0)
        write.result()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert values(connection) == {"k": b"child's"}
        refused(storage, b"parent's")


def snapshot_agent(storage: PostgresStorage, *replies: str) -> Agent:
    from strands.session import SnapshotSessionManager

    manager = SnapshotSessionManager(session_id="s", storage=storage, snapshot_trigger=lambda **_: True)
    model = ScriptedModel([[reply] for reply in replies])
    return Agent(model=model, session_manager=manager, callback_handler=None)


def said(agent: Agent) -> list[str]:
    return [content["text"] for message in agent.messages for content in message["content"]]


@pytest.mark.parametrize("length", [1, 40_000])
def test_of_two_snapshot_managers_of_a_session_the_overtaken_one_raises(
    storage: PostgresStorage, other: PostgresStorage, length: int
) -> None:
    text = "a" * length
    overtaken = snapshot_agent(storage, text, "lost", "lost again")
    overtaken("one")
    winner = snapshot_agent(other, "won", "again")
    assert said(winner) == ["one", text]
    winner("two")

    for _ in range(2):
        with pytest.raises(StorageConflictError) as caught:
            overtaken("three")
        assert caught.value.key == "session/s/scopes/agent/default/snapshots/snapshot_latest.json"
    winner("four")

    assert said(snapshot_agent(storage)) == ["one", text, "two", "won", "four", "again"]


def test_after_a_conflict_a_new_snapshot_manager_on_the_same_storage_continues(
    storage: PostgresStorage, other: PostgresStorage
) -> None:
    overtaken = snapshot_agent(storage, "a", "lost")
    overtaken("one")
    snapshot_agent(other, "b")("two")
    with pytest.raises(StorageConflictError):
        overtaken("three")

    snapshot_agent(storage, "c")("four")

    assert said(snapshot_agent(other)) == ["one", "a", "two", "b", "four", "c"]


def test_of_two_snapshot_managers_of_a_new_session_the_second_raises(
    storage: PostgresStorage, other: PostgresStorage
) -> None:
    first, second = snapshot_agent(storage, "a"), snapshot_agent(other, "b")
    first("one")
    with pytest.raises(StorageConflictError):
        second("two")
    assert said(snapshot_agent(other)) == ["one", "a"]


def test_a_snapshot_manager_deletes_its_session_and_begins_it_anew(
    storage: PostgresStorage, other: PostgresStorage, connection: Connection
) -> None:
    agent = snapshot_agent(storage, "a", "b")
    agent("one")
    elsewhere = snapshot_agent(other, "lost")
    run(agent._session_manager.delete_session())  # type: ignore[union-attr]
    assert values(connection) == {}
    with pytest.raises(StorageConflictError):
        elsewhere("two")
    agent("three")
    assert said(snapshot_agent(other)) == ["one", "a", "three", "b"]
