"""Storages that belong to a session: while its lease is held, their writes carry its term."""

import asyncio
import random
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
import pytest
from strands.types.session import Session, SessionType

from strands_psycopg import LeaseLostError, PostgresSessionRepository, PostgresStorage, PostgresStorageError
from support.storage import OF_SESSIONS, chunks, needs_storage, values
from support.tables import blocked
from support.waiting import wait_until

pytestmark = needs_storage

T = TypeVar("T")

Connection = psycopg.Connection[Any]

SMALL, LARGE = b"small", random.Random(9).randbytes(60_000)

# The value before and after a change; None if there is none.
CHANGES: dict[str, tuple[bytes | None, bytes | None]] = {
    f"{before} to {after}": (contents[before], contents[after])
    for contents in [{"none": None, "small": SMALL, "large": LARGE, "other small": b"s", "other large": LARGE[::-1]}]
    for before in ("none", "small", "large")
    for after in ("none", "other small", "other large")
}

changes = pytest.mark.parametrize("change", CHANGES)

NOWHERE = "postgresql://localhost/nowhere"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def put(storage: PostgresStorage, value: bytes | None, key: str = "k") -> None:
    run(storage.delete(key) if value is None else storage.write(key, value))


def take_over(connection: Connection) -> None:
    assert connection.execute("UPDATE strands_leases SET term = gen_random_uuid()").rowcount == 1


def assert_lease_lost(storage: PostgresStorage, value: bytes | None) -> None:
    with pytest.raises(PostgresStorageError, match="another holder has taken over session 's'") as caught:
        put(storage, value)
    cause = caught.value.__cause__
    assert isinstance(cause, LeaseLostError)
    assert cause.session_id == "s"


@pytest.fixture
def repository(repository: PostgresSessionRepository) -> PostgresSessionRepository:
    """A repository with a session ``s``."""
    repository.create_session(Session("s", SessionType.AGENT))
    return repository


@pytest.fixture
def storage(repository: PostgresSessionRepository) -> PostgresStorage:
    return repository.storage("s")


@pytest.mark.parametrize("session_id", ["", "a\0b", "\ud800", "s" * 256, 5])
def test_a_session_id_must_be_valid(session_id: Any) -> None:
    with PostgresSessionRepository(NOWHERE) as repository, pytest.raises(ValueError, match="session_id must"):
        repository.storage(session_id)


def test_a_storage_of_a_session_shows_it(storage: PostgresStorage) -> None:
    assert repr(storage).endswith(" table_prefix=strands_ session_id='s'>")
    assert repr(storage.namespace("a").namespace("b")).endswith(" session_id='s' namespace='a/b'>")


@changes
def test_a_change_is_made_while_the_lease_is_held_and_without_a_lease(
    repository: PostgresSessionRepository, connection: Connection, change: str
) -> None:
    storage = repository.storage("s")
    before, after = CHANGES[change]
    with repository.lease("s"):
        put(storage, before)
        put(storage, after)
        assert values(connection, OF_SESSIONS) == ({"k": after} if after else {})
    put(storage, before)
    assert values(connection, OF_SESSIONS) == ({"k": before} if before else {})


@changes
def test_after_a_takeover_a_change_is_refused(
    repository: PostgresSessionRepository, connection: Connection, change: str
) -> None:
    storage = repository.storage("s")
    before, after = CHANGES[change]
    put(storage, before)
    stored = values(connection, OF_SESSIONS), chunks(connection, OF_SESSIONS)
    with repository.lease("s"):
        take_over(connection)
        for _ in range(2):
            assert_lease_lost(storage, after)
        assert (values(connection, OF_SESSIONS), chunks(connection, OF_SESSIONS)) == stored
        assert run(storage.read("k")) == before
    put(storage, after)
    assert values(connection, OF_SESSIONS) == ({"k": after} if after else {})


def test_after_a_takeover_views_of_the_storage_are_refused_too(
    repository: PostgresSessionRepository, storage: PostgresStorage, connection: Connection
) -> None:
    view = storage.namespace("view")
    with repository.lease("s"):
        take_over(connection)
        assert_lease_lost(view, SMALL)


def test_a_deleted_lease_is_a_lost_one(
    repository: PostgresSessionRepository, storage: PostgresStorage, connection: Connection
) -> None:
    with repository.lease("s"):
        connection.execute("DELETE FROM strands_leases")
        assert_lease_lost(storage, SMALL)


def test_leases_of_other_sessions_and_of_other_repositories_do_not_count(
    repository: PostgresSessionRepository,
    storage: PostgresStorage,
    dsn: str,
    pool_options: dict[str, Any],
    connection: Connection,
) -> None:
    with repository.lease("t"), PostgresSessionRepository(dsn, **pool_options) as elsewhere, elsewhere.lease("s"):
        connection.execute("UPDATE strands_leases SET term = gen_random_uuid()")
        put(storage, SMALL)
        put(storage, LARGE)
        put(PostgresStorage(elsewhere), SMALL)
        assert_lease_lost(elsewhere.storage("s"), SMALL)


def test_the_lease_of_another_table_prefix_does_not_count(dsn: str, pool_options: dict[str, Any]) -> None:
    with PostgresSessionRepository(dsn, table_prefix="zz_", **pool_options) as repository:
        repository.ensure_schema()
        repository.create_session(Session("s", SessionType.AGENT))
        storage = repository.storage("s")
        with repository.lease("s"):
            put(storage, SMALL)
            put(storage, LARGE)
        assert run(storage.read("k")) == LARGE


@pytest.mark.parametrize("value", [SMALL, LARGE, None], ids=["small", "large", "none"])
@pytest.mark.parametrize("before", [SMALL, LARGE], ids=["small", "large"])
def test_a_takeover_waits_for_a_write_that_has_found_its_lease_held(
    repository: PostgresSessionRepository,
    connection: Connection,
    watcher: Connection,
    before: bytes,
    value: bytes | None,
) -> None:
    storage = repository.storage("s")
    put(storage, before)
    with ThreadPoolExecutor() as executor, repository.lease("s"):
        with connection.transaction():
            connection.execute("SELECT true FROM strands_session_storage WHERE key = 'k' FOR UPDATE")
            write = executor.submit(put, storage, value)
            wait_until(lambda: blocked(watcher) == 1)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                watcher.execute("SELECT true FROM strands_leases FOR UPDATE NOWAIT")
        write.result()
    assert values(connection, OF_SESSIONS) == ({"k": value} if value else {})
