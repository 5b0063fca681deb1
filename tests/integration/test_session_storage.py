"""The storage of a session, whose values belong to it."""

import asyncio
import json
import random
import tracemalloc
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
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
    SessionExistsError,
    SessionNotFoundError,
    StorageConflictError,
)
from strands_psycopg.errors import BadFileError
from strands_psycopg.transfer import TransferResult, export_session, import_session
from support import processes
from support.agents import build, dump, save_checkpoint
from support.payloads import ScramblingCodec
from support.storage import NO_CHUNKS, OF_SESSIONS, chunks, needs_storage, values
from support.tables import blocked, one
from support.waiting import wait_until

pytestmark = [needs_storage, pytest.mark.filterwarnings("ignore:context_window_limit is not set:UserWarning")]

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
    repository: PostgresSessionRepository,
    connection: Connection,
    value: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = repository.storage("missing")
    missing(storage, "k", value)
    assert run(storage.read("k")) is None
    missing(storage, "k", value)
    run(storage.delete("k"))
    assert (run(storage.list("")), run(storage.search("apple"))) == ([], [])
    # Nothing of psycopg's, which would be printed if the application configures no logging.
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []
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


needs_stash = pytest.mark.skipif(
    find_spec("strands._context_manager") is None, reason="strands-agents before 1.62 has no stash"
)


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


REPLIES = [[{"name": "weigh", "input": {"thing": "x"}}], ["done"], ["again"]]


@needs_stash
def test_an_agent_offloads_to_its_session_and_is_restored_in_another_process(
    repository: PostgresSessionRepository, connection: Connection, direct_dsn: str
) -> None:
    agent = managed(repository, replies=REPLIES)
    agent("weigh x")
    agent("again")
    assert "10007 kg" not in dump(agent)
    assert any("10007 kg" in text for text in stashed(agent).values())
    assert all(key.startswith("context/s/scopes/agent/default/") for key in values(connection, OF_SESSIONS))

    expected = [dump(agent), list(stashed(agent).values())]

    assert json.loads(processes.run(RESTORE, direct_dsn)) == expected

    assert len(stashed(agent)) == len(expected[1]) + 2
    repository.delete_session("s")
    assert (values(connection, OF_SESSIONS), chunks(connection, OF_SESSIONS)) == ({}, NO_CHUNKS)


@needs_stash
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


@needs_stash
def test_a_deleted_agent_leaves_neither_stash_nor_snapshots_and_others_keep_theirs(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    for agent_id in ("a", "a2"):
        managed(repository, replies=REPLIES, agent_id=agent_id)("weigh x")
    storage = repository.storage("s")
    kept = {"context/s/scopes/agent/ab", "session/s/scopes/multiAgent/a/k", "context/t/scopes/agent/a/k", "a/k"}
    for key in ("session/s/scopes/agent/a/snapshots/snapshot_latest.json", *kept):
        run(storage.write(key, LARGE))
    run(repository.storage("t").write("context/s/scopes/agent/a/k", LARGE))
    kept |= {"t/context/s/scopes/agent/a/k"}
    before = values(connection, OF_SESSIONS)
    stash = {key for key in before if key.startswith("context/s/scopes/agent/a2/")}
    assert stash

    repository.delete_agent("s", "a")

    assert values(connection, OF_SESSIONS) == {key: before[key] for key in kept | stash}
    assert chunks(connection, OF_SESSIONS)[2:] == (0, 0)
    with pytest.raises(SessionNotFoundError):
        repository.delete_agent("s", "a")


STORED = """
    INSERT INTO strands_session_storage (session_id, key, chunk_ids, size, write_id, updated_at)
    SELECT session_id, 'kept', chunk_ids, size, write_id, updated_at FROM strands_session_storage
"""
REPLACED = "UPDATE strands_session_storage SET chunk_ids = NULL, data = '' WHERE key = 'kept'"


@pytest.mark.parametrize(("statement", "more"), [(STORED, 1), (REPLACED, -1)], ids=["stores", "replaces"])
def test_deleted_agents_chunks_are_counted_though_another_uses_them_meanwhile(
    repository: PostgresSessionRepository, connection: Connection, watcher: Connection, statement: str, more: int
) -> None:
    build(repository, "s", agent_id="a")
    storage = repository.storage("s")
    run(storage.write("session/s/scopes/agent/a/snapshots/snapshot_latest.json", LARGE))
    if statement == REPLACED:
        run(storage.write("kept", LARGE))
    with ThreadPoolExecutor() as threads:
        with connection.transaction():
            connection.execute(statement.encode())
            connection.execute("UPDATE strands_session_chunks SET reference_count = reference_count + %s", [more])
            deletion = threads.submit(repository.delete_agent, "s", "a")
            wait_until(lambda: blocked(watcher))
        deletion.result()

    assert list(values(watcher, OF_SESSIONS)) == ["kept"]
    assert chunks(watcher, OF_SESSIONS)[2:] == (0, 0)


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


def stored(connection: Connection, session_id: str) -> list[Any]:
    """Return the values of a session, without what an import draws anew."""
    return [row[:5] for row in fingerprint(connection, session_id)]


@needs_stash
def test_values_are_exported_and_imported_with_their_session(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = managed(repository, replies=REPLIES)
    agent("weigh x")
    storage = repository.storage("s", text_search_config="english", expires_in=3600)
    contents = {"empty": b"", "houses": b"running", "large": LARGE, "larger": LARGE + bytes(range(256))}
    for key, value in contents.items():
        run(storage.write(key, value))
    run(storage.write("expired", SMALL))
    connection.execute("UPDATE strands_session_storage SET expires_at = now() WHERE key = 'expired'")
    connection.execute("UPDATE strands_session_storage SET updated_at = updated_at - interval '1 day'")
    number = len(run(storage.list("")))

    lines = list(export_session(repository, "s"))
    assert import_session(repository, lines) == TransferResult(unchanged=1)
    assert import_session(repository, lines, session_id="copy").values == number
    assert import_session(repository, lines, session_id="copy") == TransferResult(unchanged=1)

    copy = repository.storage("copy", text_search_config="english")
    assert {key: run(copy.read(key)) for key in contents} == contents
    assert [hit.key for hit in run(copy.search("run"))] == ["houses"]
    assert stashed(managed(repository, "copy")) == stashed(agent)
    expected = [row for row in stored(connection, "s") if row[0] != "expired"]
    assert stored(connection, "copy") == [(row[0].replace("/s/", "/copy/"), *row[1:]) for row in expected]
    assert chunks(connection, OF_SESSIONS).unused == 0

    run(copy.write("one more", b"1"))
    with pytest.raises(SessionExistsError):
        import_session(repository, lines, session_id="copy")
    run(copy.delete("one more"))
    run(copy.write("houses", b"built"))
    with pytest.raises(SessionExistsError):
        import_session(repository, lines, session_id="copy")


def test_exported_values_are_those_of_one_moment(repository: PostgresSessionRepository) -> None:
    storage = repository.storage("s")
    for key in ("deleted", "overwritten"):
        run(storage.write(key, LARGE))
    lines = export_session(repository, "s")
    run(storage.delete("deleted"))
    run(storage.write("overwritten", SMALL))
    run(storage.write("new", SMALL))
    assert import_session(repository, lines, session_id="copy").values == 2
    copy = repository.storage("copy")
    assert [run(copy.read(key)) for key in ("deleted", "new", "overwritten")] == [LARGE, None, LARGE]


def test_values_are_exported_as_a_payload_codec_decodes_them_or_as_they_are_stored(
    dsn: str, pool_options: dict[str, Any], repository: PostgresSessionRepository, connection: Connection
) -> None:
    codec = ScramblingCodec()
    with PostgresSessionRepository(dsn, payload_codec=codec, **pool_options) as scrambled:
        contents = {"a": SMALL, "context/s/scopes/k": LARGE}
        for key, value in contents.items():
            run(scrambled.storage("s").write(key, value))
        plain, raw = (list(export_session(scrambled, "s", raw=raw)) for raw in (False, True))
        before = stored(connection, "s")
        assert import_session(repository, plain, session_id="plain").values == 2
        assert [hit.key for hit in run(repository.storage("plain").search("apple"))] == ["a"]
        assert run(repository.storage("plain").read("context/plain/scopes/k")) == LARGE
        codec.clear()
        assert import_session(scrambled, plain, session_id="copy").values == 2
        keys = {"a": "a", "context/s/scopes/k": "context/copy/scopes/k"}
        assert codec.encoded == {PayloadContext("copy", None, "storage", key): 1 for key in keys.values()}
        copy = scrambled.storage("copy")
        assert {key: run(copy.read(keys[key])) for key in contents} == contents

        run(repository.storage("t").write("a", SMALL))
        import_session(scrambled, export_session(repository, "t"), session_id="encrypted")
        assert "apple" not in str(fingerprint(connection, "encrypted"))
        assert "apple" in str(fingerprint(connection, "t"))

        scrambled.delete_session("s")
        codec.clear()
        assert import_session(scrambled, raw).values == 2
        assert (codec.encoded, stored(connection, "s")) == ({}, before)
        assert {key: run(scrambled.storage("s").read(key)) for key in contents} == contents


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"key": "k"', '"key": ""', "line 2 cannot be read: key must be a string of up to 2048 bytes"),
        ('"key": "k"', '"key": "a\\u0000"', "line 2 cannot be read: key must be a string of up to 2048 bytes"),
        ('"key": "k"', '"key": 5', "line 2 cannot be read: key must be a string of up to 2048 bytes"),
        ('"data": "', '"data": "*', "line 2 cannot be read: "),
        ('"data": "', '"date": "', "line 2 lacks 'data'"),
        ('"search_vector": ', '"search_vector": 5, "x": ', "line 2 cannot be read: search_vector must be the text of"),
        (
            '"search_vector": "',
            '"search_vector": "\'a secret',
            "line 2 cannot be read: search_vector must be the text of",
        ),
        ('"updated_at": "', '"updated_at": "x', "line 2 cannot be read: updated_at is not a time"),
        ('"expires_at": "', '"expires_at": "x', "line 2 cannot be read: expires_at is not a time"),
    ],
)
def test_a_bad_value_is_named(repository: PostgresSessionRepository, old: str, new: str, reason: str) -> None:
    run(repository.storage("s", expires_in=60).write("k", SMALL))
    lines = list(export_session(repository, "s"))
    assert old in lines[1]
    with pytest.raises(BadFileError) as caught:
        import_session(repository, [lines[0], lines[1].replace(old, new, 1), lines[2]], session_id="copy")
    assert reason in str(caught.value)
    assert repository.read_session("copy") is None


def test_export_and_import_of_many_values_take_little_memory(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    storage = repository.storage("s")
    run(storage.write("k", LARGE * 20))
    connection.execute(
        "INSERT INTO strands_session_storage (session_id, key, chunk_ids, size, write_id, updated_at) "
        "SELECT session_id, key || n, chunk_ids, size, write_id, updated_at "
        "FROM strands_session_storage, generate_series(1, 29) AS n"
    )
    tracemalloc.start()
    try:
        assert import_session(repository, export_session(repository, "s"), session_id="copy").values == 30
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # All of them have 36 MB.
    assert peak < 24 * 2**20


@sizes
def test_writer_whose_lease_went_away_with_the_session_finds_no_session(
    repository: PostgresSessionRepository, dsn: str, value: bytes
) -> None:
    with repository.lease("s"):
        storage = repository.storage("s")
        run(storage.write("k", value))
        with PostgresSessionRepository(dsn) as other:
            other.delete_session("s")
        missing(storage, "k", value)
        missing(storage, "new", value)
