"""Storages and owners on a Citus cluster, with distributed tables."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import uuid4

import psycopg
import pytest
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import LeaseLostError, PostgresSessionRepository, PostgresStorage, SessionOwnerError
from strands_psycopg.errors import PostgresStorageError
from strands_psycopg.repository.erasure import ErasureResult
from strands_psycopg.repository.retention import PurgeResult
from strands_psycopg.storage.purging import StoragePurgeResult
from strands_psycopg.transfer import export_session, import_session
from support.storage import NO_CHUNKS, OF_SESSIONS, SCOPED, chunks, needs_storage

pytestmark = [pytest.mark.citus, needs_storage]

Connection: TypeAlias = psycopg.Connection[Any]

SMALL = b"small words"
LARGE = bytes(range(256)) * 400


def create(repository: PostgresSessionRepository, session_id: str, **annotations: Any) -> None:
    repository.create_session(Session(session_id, SessionType.AGENT), **annotations)
    repository.create_agent(session_id, SessionAgent("a", {}, {}))
    message = SessionMessage({"role": "user", "content": [{"text": "hello"}]}, 0)
    repository.create_message(session_id, "a", message)


def put(storage: PostgresStorage, values: dict[str, bytes]) -> None:
    for key, data in values.items():
        asyncio.run(storage.write(key, data))


def contents(storage: PostgresStorage) -> dict[str, bytes | None]:
    return {key: asyncio.run(storage.read(key)) for key in asyncio.run(storage.list())}


STORAGES: dict[str, Callable[[PostgresSessionRepository], PostgresStorage]] = {
    "of a session": lambda repository: repository.storage("s"),
    "with a prefix and owner": lambda repository: PostgresStorage(repository, prefix="p", owner="alice"),
    "guarded": lambda repository: PostgresStorage(repository, prefix="p", guard_overwrites=True),
}


@pytest.mark.parametrize("kind", STORAGES)
def test_values_are_written_replaced_found_and_deleted(
    repository: PostgresSessionRepository, connection: Connection, kind: str
) -> None:
    create(repository, "s")
    storage = STORAGES[kind](repository)
    put(storage, {"k": SMALL, "l": LARGE})
    put(storage, {"k": LARGE + b"more", "l": SMALL, "m": LARGE, "n": SMALL})
    put(storage, {"k": LARGE})
    assert contents(storage) == {"k": LARGE, "l": SMALL, "m": LARGE, "n": SMALL}
    assert [each.key for each in asyncio.run(storage.search("words"))] == ["l", "n"]
    assert asyncio.run(storage.namespace("l").list()) == []
    for key in ("k", "l", "m", "n", "n"):
        asyncio.run(storage.delete(key))
    assert contents(storage) == {}
    assert chunks(connection, OF_SESSIONS if kind == "of a session" else SCOPED) == NO_CHUNKS


@pytest.mark.parametrize("kind", STORAGES)
def test_old_and_expired_values_are_purged(
    repository: PostgresSessionRepository, connection: Connection, kind: str
) -> None:
    create(repository, "s")
    storage = STORAGES[kind](repository)
    tables = OF_SESSIONS if kind == "of a session" else SCOPED
    put(storage, {"k": SMALL, "l": LARGE, "kept": SMALL})
    past = f"UPDATE {tables.values} SET updated_at = '2020-01-01' WHERE key IN ('k', 'l')"
    connection.execute(past.encode())
    found = StoragePurgeResult(2, len(SMALL) + len(LARGE))
    assert storage.purge(idle_for=timedelta(days=1), dry_run=True) == found
    assert storage.purge(idle_for=timedelta(days=1)) == found
    connection.execute(f"UPDATE {tables.values} SET expires_at = '2020-01-01'".encode())
    assert contents(storage) == {}
    assert storage.purge() == StoragePurgeResult(1, len(SMALL))
    assert chunks(connection, tables) == NO_CHUNKS


def test_values_are_forked_exported_imported_and_deleted_with_their_session(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    create(repository, "s", owner="alice", metadata={"a": 1})
    put(repository.storage("s"), {"k": SMALL, "l": LARGE})
    with pytest.raises(SessionOwnerError):
        repository.fork_session("s", "fork", owner="bob")
    repository.fork_session("s", "fork", owner="alice")
    import_session(repository, list(export_session(repository, "s")), session_id="copy")
    for session_id in ("s", "fork", "copy"):
        assert contents(repository.storage(session_id)) == {"k": SMALL, "l": LARGE}
    assert len(repository.list_sessions(owner="alice", metadata={"a": 1}).sessions) == 3
    assert repository.list_sessions(owner="bob").sessions == []
    with pytest.raises(SessionOwnerError):
        repository.delete_session("s", owner="bob")
    for session_id in ("s", "fork", "copy"):
        repository.delete_session(session_id, owner="alice")
    assert chunks(connection, OF_SESSIONS) == NO_CHUNKS


def test_lost_lease_fences_values(repository: PostgresSessionRepository, connection: Connection) -> None:
    create(repository, "s")
    with repository.lease("s"):
        storage = repository.storage("s")
        put(storage, {"k": SMALL, "l": LARGE})
        connection.execute("UPDATE strands_leases SET term = %s WHERE session_id = 's'", [uuid4()])
        for key, data in (("k", b"other"), ("l", LARGE + b"other")):
            with pytest.raises(PostgresStorageError) as caught:
                asyncio.run(storage.write(key, data))
            assert isinstance(caught.value.__cause__, LeaseLostError)
            with pytest.raises(PostgresStorageError):
                asyncio.run(storage.delete(key))
        with pytest.raises(PostgresStorageError):
            storage.purge(idle_for=0.000001)
    assert contents(repository.storage("s")) == {"k": SMALL, "l": LARGE}


def test_purge_by_owner_and_metadata_deletes_values(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    for number in range(6):
        owner = "alice" if number % 2 else "bob"
        create(repository, f"s{number}", owner=owner, metadata={"number": number})
        put(repository.storage(f"s{number}"), {"k": SMALL, "l": LARGE})
    connection.execute("UPDATE strands_sessions SET updated_at = '2020-01-01'")
    day = timedelta(days=1)
    assert repository.purge_sessions(idle_for=day, owner="bob", metadata={"number": 2}) == PurgeResult(1, 1, 1, 0)
    assert repository.purge_sessions(idle_for=day, owner="alice") == PurgeResult(3, 3, 3, 0)
    assert [each.session_id for each in repository.list_sessions(prefix="s").sessions] == ["s4", "s0"]
    assert repository.purge_sessions(idle_for=day) == PurgeResult(2, 2, 2, 0)
    assert chunks(connection, OF_SESSIONS) == NO_CHUNKS


def test_erasure_deletes_everything_of_an_owner(repository: PostgresSessionRepository, connection: Connection) -> None:
    for owner in ("alice", "bob"):
        for number in range(4):
            create(repository, f"{owner}{number}", owner=owner)
            put(repository.storage(f"{owner}{number}"), {"k": SMALL})
        for prefix in ("", "p", "p/q"):
            put(PostgresStorage(repository, prefix=prefix, owner=owner), {"k": SMALL, "l": LARGE})
    put(PostgresStorage(repository, prefix="p"), {"k": SMALL})
    with repository.lease("alice0"):
        found = repository.erase(owner="alice", dry_run=True)
        assert repository.erase(owner="alice") == found
    assert (found.sessions, found.agents, found.messages, found.session_storage) == (4, 4, 4, 4)
    assert (found.leases, found.storage) == (1, 6)
    assert repository.erase(owner="alice", dry_run=True) == ErasureResult()
    assert len(repository.list_sessions(owner="bob").sessions) == 4
    for prefix in ("", "p", "p/q"):
        assert contents(PostgresStorage(repository, prefix=prefix, owner="bob")) == {"k": SMALL, "l": LARGE}
    assert contents(PostgresStorage(repository, prefix="p")) == {"k": SMALL}
