"""Values that expire, and the purge of old ones."""

import asyncio
import random
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
import pytest
from strands.types.session import Session, SessionType

from strands_psycopg import PostgresSessionRepository, PostgresStorage, StorageConflictError, StoragePurgeResult
from strands_psycopg.batches import batches
from strands_psycopg.storage import purging
from support.storage import NO_CHUNKS, OF_SESSIONS, SCOPED, Tables, chunks, needs_storage, values
from support.tables import one

pytestmark = needs_storage

T = TypeVar("T")

Connection = psycopg.Connection[Any]

SIZES = {"small": b"an apple", "large": b"an apple " + random.Random(2).randbytes(60_000).hex().encode()}

sizes = pytest.mark.parametrize("value", SIZES.values(), ids=SIZES)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def expire(connection: Connection, key: str = "%", tables: Tables = SCOPED) -> None:
    query = f"UPDATE {tables.values} SET expires_at = now() - interval '1 microsecond' WHERE key LIKE %s"
    assert connection.execute(query.encode(), [key]).rowcount


def age(connection: Connection, key: str, tables: Tables = SCOPED) -> None:
    query = f"UPDATE {tables.values} SET updated_at = updated_at - interval '1 day' WHERE key LIKE %s"
    assert connection.execute(query.encode(), [key]).rowcount


def lifetimes(connection: Connection, tables: Tables = SCOPED) -> dict[str, timedelta | None]:
    return dict(connection.execute(f"SELECT key, expires_at - updated_at FROM {tables.values}".encode()).fetchall())


def refused(storage: PostgresStorage, value: bytes) -> None:
    with pytest.raises(StorageConflictError):
        run(storage.write("k", value))


@pytest.mark.parametrize("tables", [SCOPED, OF_SESSIONS], ids=["of a scope", "of a session"])
def test_a_write_sets_when_a_value_expires(
    repository: PostgresSessionRepository, connection: Connection, tables: Tables
) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    week, forever = (
        repository.storage("s", expires_in=expires_in)
        if tables is OF_SESSIONS
        else PostgresStorage(repository, expires_in=expires_in)
        for expires_in in (timedelta(days=7), None)
    )
    for key, value in SIZES.items():
        for suffix in ("", " then large", " then forever", " then small"):
            run(week.namespace("n").write(key + suffix, value))
        run(week.write(f"n/{key} then large", SIZES["large"]))
        run(week.write(f"n/{key} then small", SIZES["small"]))
        run(forever.write(f"n/{key} then forever", value))
    expected = {
        f"n/{key}{suffix}": None if suffix == " then forever" else timedelta(days=7)
        for key in SIZES
        for suffix in ("", " then large", " then forever", " then small")
    }
    assert lifetimes(connection, tables) == expected
    run(PostgresStorage(repository, expires_in=0.5).write("half a second", b"1"))
    assert lifetimes(connection)["half a second"] == timedelta(seconds=0.5)


@sizes
def test_a_value_that_has_expired_is_not_found(
    repository: PostgresSessionRepository, connection: Connection, value: bytes
) -> None:
    storage = PostgresStorage(repository, expires_in=3600)
    run(storage.write("k", value))
    run(storage.write("other", SIZES["small"]))
    assert len(run(storage.search("apple"))) == (2 if value == SIZES["small"] else 1)

    expire(connection, "k")

    assert run(storage.read("k")) is None
    assert run(storage.list("")) == ["other"]
    assert [hit.key for hit in run(storage.search("apple"))] == ["other"]
    run(storage.write("k", value[::-1]))
    assert run(storage.read("k")) == value[::-1]
    assert chunks(connection).unused == 0


@sizes
@pytest.mark.parametrize("after", SIZES.values(), ids=SIZES)
def test_to_a_guard_a_value_that_has_expired_is_missing(
    repository: PostgresSessionRepository, connection: Connection, value: bytes, after: bytes
) -> None:
    storage, other = (PostgresStorage(repository, guard_overwrites=True, expires_in=60) for _ in range(2))
    run(other.write("k", value))
    expire(connection)

    assert run(storage.read("k")) is None
    run(storage.write("k", after))
    assert run(storage.read("k")) == after
    refused(other, value)

    expire(connection)
    run(other.delete("k"))
    assert values(connection) == {}
    assert chunks(connection) == NO_CHUNKS


@sizes
def test_a_value_that_the_guard_found_missing_must_still_be_missing_or_expired(
    repository: PostgresSessionRepository, connection: Connection, value: bytes
) -> None:
    storage, other = (PostgresStorage(repository, guard_overwrites=True, expires_in=60) for _ in range(2))
    assert run(storage.read("k")) is None
    run(other.write("k", value))
    refused(storage, value)
    expire(connection)
    run(storage.write("k", b"mine"))
    assert values(connection) == {"k": b"mine"}


def test_a_guard_lets_a_storage_replace_its_own_value_until_it_is_purged(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    storage = PostgresStorage(repository, guard_overwrites=True, expires_in=60)
    run(storage.write("k", b"1"))
    expire(connection)
    run(storage.write("k", b"2"))
    expire(connection)
    storage.purge()
    refused(storage, b"3")


@pytest.mark.parametrize("tables", [SCOPED, OF_SESSIONS], ids=["of a scope", "of a session"])
def test_a_purge_deletes_expired_and_idle_values_of_its_storage_with_their_chunks(
    repository: PostgresSessionRepository, connection: Connection, tables: Tables
) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_session(Session("t", SessionType.AGENT))
    if tables is OF_SESSIONS:
        storage, other = repository.storage("s"), repository.storage("t")
    else:
        storage, other = PostgresStorage(repository), PostgresStorage(repository, prefix="t")
    large = SIZES["large"]
    for each in (storage, other):
        for number in range(3):
            run(each.write(f"expired {number}", large))
            run(each.write(f"n/idle {number}", SIZES["small"]))
        run(each.write("n/kept", large[:30_000]))
        run(each.write("n/idle large", large[30_000:]))
    expire(connection, "expired %", tables)
    age(connection, "n/idle %", tables)
    before = values(connection, tables)

    expired, idle = StoragePurgeResult(3, 3 * len(large)), StoragePurgeResult(4, 3 * 8 + len(large) - 30_000)
    assert storage.purge(idle_for=timedelta(hours=25)) == StoragePurgeResult(3, 3 * len(large))
    assert storage.namespace("n").purge(dry_run=True, idle_for=3600) == idle
    assert storage.namespace("n").purge() == StoragePurgeResult()
    assert storage.namespace("n").purge(idle_for=3600, batch_size=1) == idle
    assert storage.purge(idle_for=3600) == StoragePurgeResult()
    assert other.purge(dry_run=True) == expired

    gone = {f"expired {number}" for number in range(3)} | {f"n/idle {number}" for number in range(3)} | {"n/idle large"}
    assert values(connection, tables) == {key: value for key, value in before.items() if key not in gone}
    assert (chunks(connection, tables).unused, chunks(connection, tables).miscounted) == (0, 0)
    assert chunks(connection, tables).size < 30_000 + 40_000 + len(large) + 40_000


def test_a_purge_keeps_what_is_being_written_or_was_renewed_meanwhile(
    repository: PostgresSessionRepository,
    connection: Connection,
    watcher: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = PostgresStorage(repository)
    for key in ("locked", "old", "renewed"):
        run(storage.write(key, SIZES["large"]))
    expire(connection)

    def renew(*arguments: Any) -> Any:
        connection.execute("UPDATE strands_storage SET expires_at = NULL WHERE key = 'renewed'")
        return batches(*arguments)

    monkeypatch.setattr(purging, "batches", renew)
    with watcher.transaction():
        watcher.execute("SELECT true FROM strands_storage WHERE key = 'locked' FOR UPDATE")
        assert storage.purge() == StoragePurgeResult(1, len(SIZES["large"]))
    assert values(connection).keys() == {"locked", "renewed"}
    assert run(storage.list("")) == ["renewed"]
    assert run(storage.read("renewed")) == SIZES["large"]


def test_a_purge_deletes_large_values_in_transactions_of_their_own(
    repository: PostgresSessionRepository, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = PostgresStorage(repository)
    for number in range(4):
        run(storage.write(f"{number}", SIZES["large"]))
    expire(connection)
    monkeypatch.setattr(purging, "_MAX_BATCH_BYTES", 2 * len(SIZES["large"]))
    transactions = one(connection, "SELECT pg_current_xact_id()::text::bigint")
    assert storage.purge() == StoragePurgeResult(4, 4 * len(SIZES["large"]))
    assert one(connection, "SELECT pg_current_xact_id()::text::bigint") - transactions - 1 == 2
    assert chunks(connection) == NO_CHUNKS


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), timedelta(days=36_501)], ids=repr)
def test_times_must_be_positive_and_less_than_a_century(seconds: Any) -> None:
    with pytest.raises(ValueError, match="expires_in must be more than 0 seconds and at most 36,500 days"):
        PostgresStorage("postgresql://localhost/nowhere", expires_in=seconds)
    storage = PostgresStorage("postgresql://localhost/nowhere")
    with pytest.raises(ValueError, match="idle_for must be more than 0 seconds and at most 36,500 days"):
        storage.purge(idle_for=seconds)


@pytest.mark.parametrize("batch_size", [0, 10_001, True, 1.5])
def test_a_batch_size_must_be_in_range(batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be an integer from 1 to 10000"):
        PostgresStorage("postgresql://localhost/nowhere").purge(batch_size=batch_size)
