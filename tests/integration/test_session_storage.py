"""The storage of a session, whose values belong to it."""

import asyncio
import json
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

import psycopg
import pytest
from strands import Agent, tool
from strands.types.session import Session, SessionType

from strands_psycopg import (
    PayloadContext,
    PostgresSessionRepository,
    PostgresStorage,
    PostgresStorageError,
    SessionNotFoundError,
    StorageConflictError,
)
from support import processes
from support.agents import build, dump, save_checkpoint
from support.payloads import ScramblingCodec
from support.storage import NO_CHUNKS, OF_SESSIONS, chunks, needs_storage, values
from support.tables import one

pytestmark = needs_storage

T = TypeVar("T")

Connection = psycopg.Connection[Any]

SMALL, LARGE = b"an apple", random.Random(12).randbytes(60_000)

sizes = pytest.mark.parametrize("value", [SMALL, LARGE], ids=["small", "large"])


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


@pytest.fixture
def repository(repository: PostgresSessionRepository) -> PostgresSessionRepository:
    """A repository with the sessions ``s`` and ``t``."""
    for session_id in ("s", "t"):
        repository.create_session(Session(session_id, SessionType.AGENT))
    return repository


def missing(storage: PostgresStorage, key: str, value: bytes) -> None:
    """Check that a value is not stored because there is no session."""
    message = "session '[^']*' does not exist, so nothing was stored; build its session manager"
    with pytest.raises(PostgresStorageError, match=message) as caught:
        run(storage.write(key, value))
    assert isinstance(caught.value.__cause__, SessionNotFoundError)


def test_each_session_has_values_and_chunks_of_its_own(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    first, second = repository.storage("s"), repository.storage("t")
    for storage in (first, second, PostgresStorage(repository), PostgresStorage(repository, prefix="s")):
        run(storage.write("k", LARGE))
        assert run(storage.list("")) == ["k"]
    assert chunks(connection, OF_SESSIONS).size == 2 * len(LARGE)

    run(first.namespace("n").write("k", LARGE + SMALL))
    assert run(first.list("")) == ["k", "n/k"]
    assert chunks(connection, OF_SESSIONS).size < 3 * len(LARGE)
    run(first.delete("k"))
    assert run(first.list("")) == ["n/k"]
    assert run(second.read("k")) == LARGE
    assert len(run(second.search("k"))) == 0


@sizes
def test_a_write_to_a_session_that_does_not_exist_is_refused(
    repository: PostgresSessionRepository, connection: Connection, value: bytes
) -> None:
    storage = repository.storage("missing")
    missing(storage, "k", value)
    assert run(storage.read("k")) is None
    missing(storage, "k", value)
    run(storage.delete("k"))
    assert (run(storage.list("")), run(storage.search("apple"))) == ([], [])
    assert (values(connection, OF_SESSIONS), chunks(connection, OF_SESSIONS)) == ({}, NO_CHUNKS)


@sizes
@pytest.mark.parametrize("before", [SMALL, LARGE], ids=["small before", "large before"])
@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_nothing_of_a_deleted_session_comes_back_to_life(
    repository: PostgresSessionRepository, connection: Connection, value: bytes, before: bytes, seen: bool
) -> None:
    storage = repository.storage("s")
    run((storage if seen else repository.storage("s")).write("k", before))
    repository.delete_session("s")
    assert (values(connection, OF_SESSIONS), chunks(connection, OF_SESSIONS)) == ({}, NO_CHUNKS)
    missing(storage, "k", value)
    run(storage.delete("k"))

    repository.create_session(Session("s", SessionType.AGENT))
    assert run(repository.storage("s").list("")) == []
    if seen:
        run(storage.write("k", value))
        run(repository.storage("s").write("k", before))
        with pytest.raises(StorageConflictError):
            run(storage.write("k", value))


@sizes
def test_a_storage_guards_against_overwriting(repository: PostgresSessionRepository, value: bytes) -> None:
    storage, other = repository.storage("s"), repository.storage("s")
    run(storage.write("k", value))
    run(other.write("k", value))
    with pytest.raises(StorageConflictError, match="writing 'k' of session 's': another writer") as caught:
        run(storage.write("k", value))
    assert caught.value.key == "k"


@sizes
def test_a_change_makes_the_session_active_at_most_once_a_minute(
    repository: PostgresSessionRepository, connection: Connection, value: bytes
) -> None:
    idle = "UPDATE strands_sessions SET updated_at = now() - interval '61 seconds' WHERE session_id = 's'"
    touched = "SELECT updated_at > now() - interval '1 minute' FROM strands_sessions WHERE session_id = 's'"
    version = "SELECT xmin::text FROM strands_sessions WHERE session_id = 's'"
    storage = repository.storage("s")
    for key in ("k", "k", "other"):
        connection.execute(idle)
        run(storage.read("k"))
        assert one(connection, touched) is False
        run(storage.write(key, value))
        assert one(connection, touched) is True
    before = one(connection, version)
    run(storage.write("k", value[::-1]))
    assert one(connection, version) == before
    connection.execute(idle)
    run(storage.delete("nothing"))
    assert one(connection, touched) is False
    run(storage.delete("k"))
    assert one(connection, touched) is True


def test_a_purge_of_sessions_deletes_their_values(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    for session_id in ("s", "t"):
        run(repository.storage(session_id).write("k", LARGE))
    connection.execute("UPDATE strands_sessions SET updated_at = now() - interval '1 day' WHERE session_id = 's'")
    assert repository.purge_sessions(idle_for=3600).sessions == 1
    assert values(connection, OF_SESSIONS) == {"t/k": LARGE}
    assert chunks(connection, OF_SESSIONS).size == len(LARGE)


@tool
def weigh(thing: str) -> str:
    """Return a result that is too long to remain in the context."""
    return f"{thing} weighs " + " ".join(f"{number} kg," for number in range(20_000))


RESTORE = """
import asyncio, json, sys
from strands_psycopg import PostgresSessionRepository
from support.agents import build, dump

with PostgresSessionRepository(sys.argv[1]) as repository:
    agent = build(repository, "s", storage=repository.storage("s"), context_manager="auto")
    stash = agent.context_manager.stash
    async def read():
        return [json.dumps(await stash.retrieve(ref)) for ref in await stash.list()]
    print(json.dumps([dump(agent), asyncio.run(read())]))
    agent("and now?")
"""


def managed(repository: PostgresSessionRepository, session_id: str = "s", **options: Any) -> Agent:
    return build(
        repository, session_id, storage=repository.storage(session_id), context_manager="auto", tools=[weigh], **options
    )


def stashed(agent: Agent) -> dict[str, str]:
    """Return what an agent has stashed, as it finds it."""
    stash: Any = agent.context_manager.stash  # type: ignore[union-attr]

    async def read() -> dict[str, str]:
        return {ref: json.dumps(await stash.retrieve(ref)) for ref in await stash.list()}

    return run(read())


no_limit = pytest.mark.filterwarnings("ignore:context_window_limit is not set:UserWarning")

REPLIES = [[{"name": "weigh", "input": {"thing": "x"}}], ["done"], ["again"]]


@no_limit
def test_an_agent_offloads_to_its_session_and_is_restored_in_another_process(
    repository: PostgresSessionRepository, connection: Connection, direct_dsn: str
) -> None:
    agent = managed(repository, replies=REPLIES)
    agent("weigh x")
    agent("again")
    assert "10007 kg" not in dump(agent)
    assert any("10007 kg" in text for text in stashed(agent).values())
    assert all(key.startswith("context/s/scopes/agent/default/") for key in values(connection, OF_SESSIONS))

    shown, found = json.loads(processes.run(RESTORE, direct_dsn))

    assert shown == dump(agent)
    assert found == list(stashed(agent).values())
    repository.delete_session("s")
    assert (values(connection, OF_SESSIONS), chunks(connection, OF_SESSIONS)) == ({}, NO_CHUNKS)


@no_limit
def test_a_fork_finds_what_its_agents_had_stashed(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = managed(repository, replies=REPLIES)
    agent("weigh x")
    snapshot_id = save_checkpoint(agent)
    agent("again")
    run(repository.storage("s").namespace("session/s/scopes").write("agent/a/snapshots/latest.json", LARGE))
    run(repository.storage("s").write("context/s", SMALL))
    run(repository.storage("s").write("contexts/s/scopes/k", LARGE))

    forks: dict[str, dict[str, Any]] = {
        "whole": {},
        "until": {"until": 2},
        "then": {"snapshot_id": snapshot_id},
        "one": {"agent_id": "default"},
    }
    for name, options in forks.items():
        repository.fork_session("s", name, **options)
        fork = managed(repository, name)
        assert stashed(fork) == stashed(agent)
        storage = repository.storage(name)
        assert run(storage.read(f"session/{name}/scopes/agent/a/snapshots/latest.json")) == LARGE
        assert run(storage.read("context/s")) == SMALL
        assert run(storage.read("contexts/s/scopes/k")) == LARGE
        assert len(run(storage.list(""))) == len(run(repository.storage("s").list("")))


def fingerprint(connection: Connection, session_id: str) -> list[Any]:
    query = """
        SELECT key, size, search_vector::text, updated_at, expires_at, chunk_ids
        FROM strands_session_storage WHERE session_id = %s ORDER BY key
    """
    return connection.execute(query, [session_id]).fetchall()


def test_a_fork_has_the_same_values_and_shares_chunks_with_what_it_writes(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    storage = repository.storage("s", text_search_config="english", expires_in=3600)
    run(storage.write("houses", b"running"))
    run(storage.write("large", LARGE))
    run(storage.write("larger", LARGE + SMALL))
    run(storage.write("empty", b""))
    repository.fork_session("s", "fork")
    assert fingerprint(connection, "fork") == fingerprint(connection, "s")

    fork = repository.storage("fork", text_search_config="english")
    before = chunks(connection, OF_SESSIONS)
    run(fork.write("equal", LARGE))
    assert chunks(connection, OF_SESSIONS) == before
    assert run(fork.read("larger")) == LARGE + SMALL
    assert [hit.key for hit in run(fork.search("run"))] == ["houses"]
    for key in run(fork.list("")):
        run(fork.delete(key))
    assert chunks(connection, OF_SESSIONS) == (before.number / 2, before.size / 2, 0, 0)
    assert run(storage.read("large")) == LARGE


def test_a_fork_with_a_payload_codec_encodes_its_values_for_the_fork(
    dsn: str, pool_options: dict[str, Any], repository: PostgresSessionRepository, connection: Connection
) -> None:
    codec = ScramblingCodec()
    with PostgresSessionRepository(dsn, payload_codec=codec, **pool_options) as scrambled:
        storage = scrambled.storage("s")
        contents = {"a": SMALL, "b": LARGE, "c": b"", "context/s/scopes/k": LARGE + LARGE}
        for key, value in contents.items():
            run(storage.write(key, value))
        codec.clear()
        scrambled.fork_session("s", "fork")
        keys = [*list(contents)[:3], "context/fork/scopes/k"]
        assert codec.decoded == {PayloadContext("s", None, "storage", key): 1 for key in contents}
        assert codec.encoded == {PayloadContext("fork", None, "storage", key): 1 for key in keys}
        fork = scrambled.storage("fork")
        assert [run(fork.read(key)) for key in keys] == list(contents.values())
        assert [run(storage.read(key)) for key in contents] == list(contents.values())
    rows = fingerprint(connection, "fork")
    assert [row[3:5] for row in rows] == [row[3:5] for row in fingerprint(connection, "s")]
    assert chunks(connection, OF_SESSIONS).unused == 0
