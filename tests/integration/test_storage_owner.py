"""The storage of a session whose owner is given: the values of other owners' sessions are neither read nor changed."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from strands_psycopg import (
    PostgresSessionManager,
    PostgresSessionRepository,
    PostgresStorage,
    PostgresStorageError,
    SessionNotFoundError,
    SessionOwnerError,
)
from support.storage import OF_SESSIONS, chunks, needs_storage, values

pytestmark = needs_storage

Connection = psycopg.Connection[Any]

SMALL, LARGE = b"an apple", random.Random(7).randbytes(60_000)

WRITES: dict[str, Callable[[PostgresStorage], object]] = {
    "write": lambda storage: asyncio.run(storage.write("small", b"pear")),
    "write new": lambda storage: asyncio.run(storage.write("new", SMALL)),
    "write large": lambda storage: asyncio.run(storage.write("small", LARGE[::-1])),
    "write new large": lambda storage: asyncio.run(storage.write("new", LARGE[::-1])),
    "overwrite large": lambda storage: asyncio.run(storage.write("large", SMALL)),
}

OTHER_CALLS: dict[str, Callable[[PostgresStorage], object]] = {
    "read": lambda storage: asyncio.run(storage.read("small")),
    "read large": lambda storage: asyncio.run(storage.read("large")),
    "read missing": lambda storage: asyncio.run(storage.read("missing")),
    "list": lambda storage: asyncio.run(storage.list()),
    "list nothing": lambda storage: asyncio.run(storage.list("z")),
    "search": lambda storage: asyncio.run(storage.search("apple")),
    "search nothing": lambda storage: asyncio.run(storage.search("pear")),
    "delete": lambda storage: asyncio.run(storage.delete("small")),
    "delete large": lambda storage: asyncio.run(storage.delete("large")),
    "delete missing": lambda storage: asyncio.run(storage.delete("missing")),
    "purge": lambda storage: storage.purge(idle_for=1e-6),
    "count": lambda storage: storage.purge(idle_for=1e-6, dry_run=True),
    "purge nothing": lambda storage: storage.purge(),
}

CALLS = WRITES | OTHER_CALLS


@pytest.fixture
def repository(repository: PostgresSessionRepository) -> PostgresSessionRepository:
    """A repository with a session of Alice, which has a small and a large value."""
    PostgresSessionManager("s", repository, owner="Alice")
    for key, value in {"small": SMALL, "large": LARGE}.items():
        asyncio.run(repository.storage("s").write(key, value))
    return repository


def assert_refused(call: Callable[[PostgresStorage], object], storage: PostgresStorage) -> None:
    with pytest.raises(PostgresStorageError, match="session 's' does not belong to the given owner") as refusal:
        call(storage)
    cause = refusal.value.__cause__
    assert isinstance(cause, SessionOwnerError)
    assert cause.session_id == "s"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_values_of_another_owner_or_of_none_are_neither_read_nor_changed(
    repository: PostgresSessionRepository, connection: Connection, call: Callable[[PostgresStorage], object]
) -> None:
    before = values(connection, OF_SESSIONS), chunks(connection, OF_SESSIONS)
    assert_refused(call, repository.storage("s", owner="Mallory"))
    assert_refused(call, repository.storage("s", owner="Mallory").namespace(""))
    repository.annotate_session("s", owner=None)
    assert_refused(call, repository.storage("s", owner="Alice"))
    assert (values(connection, OF_SESSIONS), chunks(connection, OF_SESSIONS)) == before


def test_it_is_checked_anew_by_each_call_whatever_the_storage_has_seen(repository: PostgresSessionRepository) -> None:
    storage = repository.storage("s", owner="Alice")
    assert asyncio.run(storage.list()) == ["large", "small"]
    assert [asyncio.run(storage.read(key)) for key in ("small", "large", "new")] == [SMALL, LARGE, None]
    repository.annotate_session("s", owner="Bob")
    with repository.lease("s"):
        for call in CALLS.values():
            assert_refused(call, storage)


def test_owner_reads_and_changes_everything(repository: PostgresSessionRepository, connection: Connection) -> None:
    storage = repository.storage("s", owner="Alice")
    assert repr(storage).endswith(" session_id='s' owner='Alice'>")
    assert asyncio.run(storage.read("large")) == LARGE
    assert [hit.key for hit in asyncio.run(storage.search("apple"))] == ["small"]
    asyncio.run(storage.write("small", LARGE))
    asyncio.run(storage.write("large", SMALL))
    assert values(connection, OF_SESSIONS) == {"small": LARGE, "large": SMALL}
    asyncio.run(storage.delete("small"))
    asyncio.run(storage.delete("missing"))
    assert storage.purge(idle_for=1e-6).values == 1
    assert values(connection, OF_SESSIONS) == {}
    assert chunks(connection, OF_SESSIONS).number == 0
    assert asyncio.run(storage.list()) == []
    assert asyncio.run(storage.search("apple")) == []


def test_session_that_does_not_exist_is_nobodys(repository: PostgresSessionRepository) -> None:
    storage = repository.storage("missing", owner="Alice")
    for call in WRITES.values():
        with pytest.raises(PostgresStorageError, match="does not exist") as refusal:
            call(storage)
        assert isinstance(refusal.value.__cause__, SessionNotFoundError)
    for call in OTHER_CALLS.values():
        call(storage)


@pytest.mark.parametrize("owner", ["", "a\0", 5])
def test_owner_must_be_valid(repository: PostgresSessionRepository, owner: Any) -> None:
    with pytest.raises(ValueError, match="owner must"):
        repository.storage("s", owner=owner)
