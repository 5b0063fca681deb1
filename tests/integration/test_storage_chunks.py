"""Large values: deduplication, deletion of unused chunks, and what a growing conversation costs on the server."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

import psycopg
import pytest

from strands_psycopg import DatabaseError, PostgresSessionRepository, PostgresStorage, PostgresStorageError
from support.scale import TORTURE
from support.snapshots import PLAIN, PUT, conversation, size, written
from support.storage import NO_CHUNKS, chunks, needs_storage

pytestmark = needs_storage

T = TypeVar("T")

Connection = psycopg.Connection[Any]

VALUE = random.Random(3).randbytes(300_000)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


@pytest.fixture
def storage(repository: PostgresSessionRepository) -> PostgresStorage:
    return PostgresStorage(repository)


def test_equal_values_are_stored_once_in_a_storage_and_its_namespaces(
    storage: PostgresStorage, connection: Connection
) -> None:
    run(storage.write("a", VALUE))
    once = chunks(connection)
    assert once.size == len(VALUE)
    run(storage.write("b", VALUE))
    run(storage.namespace("deep").write("c", VALUE))
    assert chunks(connection) == once


def test_storages_with_different_prefixes_share_no_chunks(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    first, second = PostgresStorage(repository, prefix="1"), PostgresStorage(repository, prefix="2")
    run(first.write("k", VALUE))
    run(second.write("k", VALUE))
    assert chunks(connection).size == 2 * len(VALUE)
    run(first.delete("k"))
    assert run(second.read("k")) == VALUE


def test_a_new_version_stores_only_what_is_new(storage: PostgresStorage, connection: Connection) -> None:
    run(storage.write("1", VALUE))
    before = chunks(connection)
    run(storage.write("2", VALUE[20_000:] + b"one more message" * 60))
    assert chunks(connection).size - before.size < 100_000
    assert run(storage.read("1")) == VALUE
    assert run(storage.read("2")) == VALUE[20_000:] + b"one more message" * 60


def test_equal_chunks_of_one_value_are_stored_once(storage: PostgresStorage, connection: Connection) -> None:
    run(storage.write("k", bytes(2_000_000)))
    assert chunks(connection).size < 400_000
    assert run(storage.read("k")) == bytes(2_000_000)


@pytest.mark.parametrize("after", [b"small", VALUE[::-1], VALUE + b"more"], ids=["small", "another", "longer"])
def test_replacing_a_value_deletes_the_chunks_that_it_no_longer_uses(
    storage: PostgresStorage, connection: Connection, after: bytes
) -> None:
    run(storage.write("k", VALUE))
    run(storage.write("k", after))
    remaining = chunks(connection)
    assert (remaining.size, remaining.unused, remaining.miscounted) == (len(after) if len(after) > 32_768 else 0, 0, 0)


def test_deleting_the_last_value_that_uses_a_chunk_deletes_the_chunk(
    storage: PostgresStorage, connection: Connection
) -> None:
    versions = [VALUE[start : start + 200_000] for start in range(0, 100_000, 10_000)]
    for number, version in enumerate(versions):
        run(storage.write(f"{number}", version))
    for number, version in enumerate(versions):
        assert run(storage.read(f"{number}")) == version
        run(storage.delete(f"{number}"))
        assert chunks(connection).unused == chunks(connection).miscounted == 0
    assert chunks(connection) == NO_CHUNKS


def test_deleting_many_values_at_once_leaves_no_chunks(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    storage = PostgresStorage(repository)

    async def work() -> None:
        await asyncio.gather(*(storage.write(f"{number}", VALUE + b"%d" % number) for number in range(40)))
        await asyncio.gather(*(storage.delete(f"{number}") for number in range(40)))

    run(work())
    assert chunks(connection) == NO_CHUNKS


def test_a_missing_chunk_is_an_error(storage: PostgresStorage, connection: Connection) -> None:
    run(storage.write("k", VALUE))
    connection.execute("DELETE FROM strands_chunks WHERE chunk_id = (SELECT chunk_ids[3] FROM strands_storage)")
    with pytest.raises(PostgresStorageError, match="chunks of the value are missing") as caught:
        run(storage.read("k"))
    assert isinstance(caught.value.__cause__, DatabaseError)
    run(storage.write("k", VALUE))
    assert run(storage.read("k")) == VALUE


# The share falls with the length of the conversation.
TURNS, SHARE = (1000, 0.05) if TORTURE else (160, 0.4)


@pytest.mark.new_pages
def test_an_immutable_snapshot_each_turn_takes_a_fraction_of_plain_storage(
    storage: PostgresStorage, connection: Connection
) -> None:
    connection.execute(PLAIN)
    snapshots = conversation(TURNS)
    for turn, data in enumerate(snapshots):
        run(storage.write(f"immutable_history/snapshot_{turn:04}.json", data))
        connection.execute(PUT, (f"immutable_history/snapshot_{turn:04}.json", data))
    assert size(connection, "strands_storage", "strands_chunks") <= SHARE * size(connection, "plain")
    for turn in (0, TURNS // 2, TURNS - 1):
        assert run(storage.read(f"immutable_history/snapshot_{turn:04}.json")) == snapshots[turn]


@pytest.mark.new_pages
def test_saving_a_megabyte_with_one_new_message_writes_a_tenth_of_the_wal(
    storage: PostgresStorage, connection: Connection
) -> None:
    connection.execute(PLAIN)
    before, after = conversation(1000, last=2)
    # Written in advance, since the first change of a page after a checkpoint logs the whole page.
    run(storage.write("snapshot_latest.json", before))
    connection.execute(PUT, ("snapshot_latest.json", before))
    start = written(connection)
    run(storage.write("snapshot_latest.json", after))
    ours = written(connection) - start
    start = written(connection)
    connection.execute(PUT, ("snapshot_latest.json", after))
    assert ours <= (written(connection) - start) / 10
