"""Storage under faults: lost connections, a silent server, killed and stopped writers, a server that crashes.

In every case a value is either the old or the new one, byte for byte, and no chunk is missing or left behind.
"""

import asyncio
import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from strands.types.session import Session, SessionType

from strands_psycopg import (
    DatabaseUnavailableError,
    LeaseLostError,
    PostgresSessionRepository,
    PostgresStorage,
    PostgresStorageError,
    SessionNotFoundError,
    StorageConflictError,
)
from strands_psycopg.embedded import Server
from support import processes
from support.crew import Crew
from support.proxy import Proxy
from support.retries import Retries
from support.scale import scale
from support.stopping import stopped
from support.storage import NO_CHUNKS, OF_SESSIONS, SCOPED, Tables, chunks, needs_storage, values
from support.tables import Connection, blocked, one
from support.waiting import wait_until

pytestmark = needs_storage

T = TypeVar("T")

SMALL, LARGE = b"small", random.Random(6).randbytes(100_000)

# The value before and after the change; None if there is none.
CHANGES: dict[str, tuple[bytes | None, bytes | None]] = {
    "new small": (None, SMALL),
    "small to small": (b"before", SMALL),
    "new large": (None, LARGE),
    "large to large": (LARGE[50_000:] + LARGE[:30_000], LARGE),
    "large to small": (LARGE, SMALL),
    "small to large": (SMALL, LARGE),
    "delete small": (SMALL, None),
    "delete large": (LARGE, None),
}

changes = pytest.mark.parametrize("change", CHANGES)
guards = pytest.mark.parametrize("guard", [False, True], ids=["plain", "guarded"])


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def put(storage: PostgresStorage, key: str, value: bytes | None) -> None:
    run(storage.delete(key) if value is None else storage.write(key, value))


def assert_clean(look: Connection, tables: Tables = SCOPED) -> None:
    """Check that every value has its chunks and every chunk is in use."""
    assert None not in values(look, tables).values()
    counts = chunks(look, tables)
    assert (counts.unused, counts.miscounted) == (0, 0)


def backends(look: Connection) -> list[int]:
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name <> 'look'"
    return [pid for (pid,) in look.execute(query).fetchall()]


def wait_for_end(look: Connection, backends_before: list[int]) -> None:
    wait_until(lambda: not set(backends_before) & set(backends(look)))


@changes
@pytest.mark.parametrize(
    ("lost", "guard"),
    [("request", False), ("answer", False), ("answer", True)],
    ids=["request", "answer", "answer, guarded"],
)
def test_change_is_made_if_any_round_trip_is_lost(
    change: str, lost: str, guard: bool, own_dsn: str, look: Connection, retries: Retries
) -> None:
    before, after = CHANGES[change]
    with Proxy(own_dsn) as proxy, PostgresStorage(proxy.dsn, guard_overwrites=guard) as storage:
        # Another value uses some of the same chunks.
        put(storage, "other", LARGE[:40_000])
        for position in itertools.count():
            put(storage, "k", before)
            (proxy.lose_requests if lost == "request" else proxy.lose_answers)(after=position)
            put(storage, "k", after)
            assert values(look).get("k") == after
            assert_clean(look)
            if len(retries()) == position:
                break
        # A small value takes at least one round trip, a large one three: lock, upsert and COMMIT.
        assert position >= (1 if "small" in change.split()[-1] and "large" not in change else 3)
        assert values(look)["other"] == LARGE[:40_000]


@changes
@guards
def test_first_attempt_that_arrives_late_changes_nothing(
    change: str, guard: bool, own_dsn: str, look: Connection, retries: Retries
) -> None:
    before, after = CHANGES[change]
    with PostgresStorage(own_dsn, response_timeout=0.5, guard_overwrites=guard) as storage:
        put(storage, "k", before)
        first = backends(look)
        with stopped(*first):
            put(storage, "k", after)
            assert len(retries()) == 1
            put(storage, "k", b"newer")
        wait_for_end(look, first)
        assert values(look) == {"k": b"newer"}
        put(storage, "other", LARGE)
        assert_clean(look)


@pytest.mark.parametrize("change", [change for change in CHANGES if "large" in change])
@guards
def test_late_commit_takes_effect_before_a_newer_write(
    change: str, guard: bool, own_dsn: str, look: Connection, retries: Retries
) -> None:
    before, after = CHANGES[change]
    options: dict[str, Any] = {"response_timeout": 1.0, "kwargs": {"prepare_threshold": None}}
    # To replace or delete a large value with a small one, a first statement fails to do it inline.
    trips_before_commit = 1 + (change == "large to small" or change == "delete large")
    with (
        Proxy(own_dsn) as proxy,
        PostgresStorage(proxy.dsn, guard_overwrites=guard, **options) as storage,
        ThreadPoolExecutor() as executor,
    ):
        put(storage, "k", before)
        first = backends(look)
        proxy.hold(after=trips_before_commit)
        write = executor.submit(put, storage, "k", after)
        wait_until(lambda: proxy.waiting == 1)
        with stopped(*first):
            proxy.release()
            wait_until(lambda: len(retries()) >= 1 and blocked(look) >= 1)
            assert values(look).get("k") == before
        write.result()
        put(storage, "k", b"newer")
        wait_for_end(look, first)
        assert values(look) == {"k": b"newer"}
        put(storage, "other", LARGE)
        assert_clean(look)


@pytest.mark.parametrize("change", ["small to small", "delete small"])
@guards
def test_late_statement_that_waited_for_a_lock_changes_nothing(
    change: str, guard: bool, own_dsn: str, look: Connection, retries: Retries
) -> None:
    before, after = CHANGES[change]
    with (
        PostgresStorage(own_dsn, response_timeout=0.5, guard_overwrites=guard) as storage,
        ThreadPoolExecutor() as executor,
    ):
        put(storage, "k", before)
        first = backends(look)
        with psycopg.connect(own_dsn, application_name="look") as locker:
            locker.execute("UPDATE strands_storage SET updated_at = now()")
            write = executor.submit(put, storage, "k", after)
            wait_until(lambda: blocked(look) == 1)
            with stopped(*first):
                locker.commit()
                write.result()
                assert len(retries()) == 1
                put(storage, "k", b"newer")
        wait_for_end(look, first)
        assert values(look) == {"k": b"newer"}


def test_server_that_stays_silent_is_a_storage_error_and_leaves_the_value_whole(own_dsn: str, look: Connection) -> None:
    options: dict[str, Any] = {"response_timeout": 0.3, "retry_timeout": 1.0, "kwargs": {"connect_timeout": 2}}
    with Proxy(own_dsn) as proxy, PostgresStorage(proxy.dsn, **options) as storage:
        put(storage, "k", LARGE)
        proxy.hold()
        with pytest.raises(PostgresStorageError) as raised:
            put(storage, "k", LARGE[::-1])
        assert isinstance(raised.value.__cause__, DatabaseUnavailableError)
        proxy.release()
        assert run(storage.read("k")) in (LARGE, LARGE[::-1])
        put(storage, "k", LARGE[:50_000])
        assert values(look) == {"k": LARGE[:50_000]}
        assert_clean(look)


def round_trips(change: str) -> int:
    """How many round trips a change takes until it is committed, once the server's clock is known."""
    # To replace or delete a large value with a small one, a first statement fails to do it inline.
    return 4 if change in ("large to small", "delete large") else 3 if "large" in change else 1


@changes
@pytest.mark.parametrize("lost", ["request", "answer"])
def test_write_with_unknown_outcome_is_no_conflict_for_the_next_one(
    change: str, lost: str, own_dsn: str, look: Connection
) -> None:
    before, after = CHANGES[change]
    options: dict[str, Any] = {"retry_timeout": 0, "kwargs": {"prepare_threshold": None}}
    with (
        Proxy(own_dsn) as proxy,
        PostgresStorage(proxy.dsn, guard_overwrites=True, **options) as storage,
        PostgresStorage(own_dsn) as other,
    ):
        lose = proxy.lose_requests if lost == "request" else proxy.lose_answers
        put(storage, "k", None)
        outcomes = set()
        for position in range(round_trips(change)):
            put(storage, "k", before)
            lose(after=position)
            with pytest.raises(PostgresStorageError) as raised:
                put(storage, "k", after)
            assert isinstance(raised.value.__cause__, DatabaseUnavailableError)
            outcomes.add(values(look).get("k") == after)
            put(storage, "k", b"next")
            assert values(look) == {"k": b"next"}
        # A COMMIT of a pipeline takes effect before the message that asks for its end, which the proxy loses.
        if lost == "answer":
            assert outcomes == {False, True} if round_trips(change) > 1 else outcomes == {True}
        put(other, "k", b"other")
        with pytest.raises(StorageConflictError):
            put(storage, "k", b"lost")


@changes
def test_retry_that_finds_another_writers_value_leaves_it_alone(
    change: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    before, after = CHANGES[change]
    options: dict[str, Any] = {"kwargs": {"prepare_threshold": None}}
    with (
        Proxy(own_dsn) as proxy,
        PostgresStorage(proxy.dsn, guard_overwrites=True, **options) as storage,
        PostgresStorage(own_dsn) as other,
        ThreadPoolExecutor() as executor,
    ):
        put(storage, "k", None)
        put(storage, "k", before)
        proxy.hold(after=round_trips(change) - 1)
        write = executor.submit(put, storage, "k", after)
        wait_until(lambda: proxy.waiting == 1)
        assert values(look).get("k") == after
        put(other, "k", b"other")
        proxy.cut()
        proxy.release()
        with pytest.raises(StorageConflictError):
            write.result()
        assert len(retries()) == 1
        assert values(look) == {"k": b"other"}
        assert_clean(look)


@changes
def test_statement_that_arrives_after_a_takeover_changes_nothing(
    change: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    before, after = CHANGES[change]
    options: dict[str, Any] = {"response_timeout": 0.5, "max_size": 2}
    with PostgresSessionRepository(own_dsn, **options) as repository, repository.lease("s"):
        repository.create_session(Session("s", SessionType.AGENT))
        storage = repository.storage("s")
        put(storage, "k", before)
        first = backends(look)
        with stopped(*first):
            look.execute("UPDATE strands_leases SET term = gen_random_uuid()")
            with pytest.raises(PostgresStorageError) as raised:
                put(storage, "k", after)
            assert isinstance(raised.value.__cause__, LeaseLostError)
            assert len(retries()) >= 1
        wait_for_end(look, first)
        assert values(look, OF_SESSIONS) == ({"k": before} if before else {})
        assert_clean(look, OF_SESSIONS)


@pytest.mark.parametrize("change", ["new small", "small to small", "new large", "large to large", "delete large"])
def test_first_attempt_that_arrives_after_its_session_was_deleted_and_created_anew_stores_nothing(
    change: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    before, after = CHANGES[change]
    with (
        PostgresSessionRepository(own_dsn, response_timeout=0.5, max_size=2) as repository,
        PostgresSessionRepository(own_dsn, max_size=1) as elsewhere,
    ):
        repository.create_session(Session("s", SessionType.AGENT))
        storage = repository.storage("s")
        put(storage, "k", before)
        first = backends(look)
        with stopped(*first):
            put(storage, "k", after)
            assert len(retries()) == 1
            elsewhere.delete_session("s")
            elsewhere.create_session(Session("s", SessionType.AGENT))
        wait_for_end(look, first)
        assert (values(look, OF_SESSIONS), chunks(look, OF_SESSIONS)) == ({}, NO_CHUNKS)


@pytest.mark.parametrize("change", [change for change in CHANGES if not change.startswith("delete")])
def test_retry_of_a_write_whose_session_was_deleted_meanwhile_is_refused(
    change: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    before, after = CHANGES[change]
    with (
        PostgresSessionRepository(own_dsn, max_size=2) as elsewhere,
        Proxy(own_dsn) as proxy,
        PostgresSessionRepository(proxy.dsn, kwargs={"prepare_threshold": None}, max_size=2) as repository,
        ThreadPoolExecutor() as executor,
    ):
        elsewhere.create_session(Session("s", SessionType.AGENT))
        storage = repository.storage("s")
        put(storage, "k", None)
        put(storage, "k", before)
        proxy.hold(after=round_trips(change) - 1)
        write = executor.submit(put, storage, "k", after)
        wait_until(lambda: proxy.waiting == 1)
        assert values(look, OF_SESSIONS) == {"k": after}
        elsewhere.delete_session("s")
        proxy.cut()
        proxy.release()
        with pytest.raises(PostgresStorageError) as raised:
            write.result()
        assert isinstance(raised.value.__cause__, SessionNotFoundError)
        assert len(retries()) == 1
        assert (values(look, OF_SESSIONS), chunks(look, OF_SESSIONS)) == ({}, NO_CHUNKS)


STOP_IN_TRANSACTION = """
import asyncio, sys
from strands_psycopg import PostgresStorage
from strands_psycopg.storage import chunk_store

insert_parameters = chunk_store._insert_parameters

def stop(*arguments):
    ready()
    return insert_parameters(*arguments)

chunk_store._insert_parameters = stop
with PostgresStorage(sys.argv[1], response_timeout=2) as storage:
    asyncio.run(storage.write("k", bytes.fromhex(sys.argv[2])))
"""


def test_writer_stopped_in_its_transaction_blocks_others_only_for_a_while(
    crew: Crew, own_dsn: str, look: Connection
) -> None:
    with PostgresStorage(own_dsn, retry_timeout=0) as storage:
        put(storage, "k", LARGE)
        with crew.of(1, STOP_IN_TRANSACTION, own_dsn, LARGE[:40_000].hex()) as [writer]:
            with stopped(writer.pid):
                put(storage, "k", LARGE[::-1])
                assert values(look) == {"k": LARGE[::-1]}
            # The server has ended its transaction, so it retries in a new one.
            writer.release()
            writer.release()
            assert writer.lines() in ([], ["ready"])
            assert writer.end() == 0, writer.errors()
        assert values(look) == {"k": LARGE[:40_000]}
        assert_clean(look)


SAVE = """
import asyncio, sys
from hashlib import sha256
from strands import Agent
from strands.session import SnapshotSessionManager
from strands_psycopg import PostgresStorage
from strands_psycopg.scripted_model import ScriptedModel

dsn, life = sys.argv[1:]

class LoggedStorage(PostgresStorage):
    async def write(self, key, data):
        print("begin", key, sha256(data).hexdigest(), flush=True)
        await super().write(key, data)
        print("end", key, sha256(data).hexdigest(), flush=True)

with LoggedStorage(dsn, guard_overwrites=int(life) % 2) as storage:
    # Different texts in each life, so that it shares no chunks with another.
    text = " ".join(sha256(b"%d" % number + life.encode()).hexdigest() for number in range(400))
    manager = SnapshotSessionManager(
        session_id="s", storage=storage, save_latest_on="message", snapshot_trigger=lambda **_: True
    )
    agent = Agent(model=ScriptedModel([[text]]), session_manager=manager, callback_handler=None)
    while True:
        agent(f"{life}: ")
        del agent.messages[:-4]
"""


def test_process_killed_while_it_saves_leaves_the_old_or_the_new_snapshot(
    crew: Crew, own_dsn: str, look: Connection
) -> None:
    from strands import Agent
    from strands.session import SnapshotSessionManager

    from strands_psycopg.scripted_model import ScriptedModel

    latest = "session/s/scopes/agent/default/snapshots/snapshot_latest.json"
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    known: dict[str, set[str]] = {}
    for life in range(scale(4, 200)):
        writer = crew.start(SAVE, make_conninfo(own_dsn, application_name="writer"), str(life))
        first = writer.line()
        assert first.startswith("begin "), writer.errors()
        # A random moment, so there is no condition to wait for.
        time.sleep(moments.uniform(0, 0.5))
        writer.signal(signal.SIGKILL)
        for line in [first, *writer.lines()]:
            if line.startswith(("begin ", "end ")):
                step, key, digest = line.split()
                known[key] = {digest} if step == "end" else known.get(key, {"none"}) | {digest}
        assert writer.end() == -signal.SIGKILL, writer.errors()
        writer.close()
        # Until its backend has ended, its last write may still be stored.
        wait_until(lambda: one(look, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'writer'") == 0)

        stored = {key: digest_of(value) for key, value in values(look).items()}
        assert stored.keys() - known.keys() <= {key for key in stored if "immutable" in key}, f"seed {seed}"
        for key, digests in known.items():
            assert stored.get(key, "none") in digests, f"{key}, seed {seed}"
        with PostgresStorage(own_dsn, guard_overwrites=bool(life % 2)) as storage:
            manager = SnapshotSessionManager(session_id="s", storage=storage)
            agent = Agent(model=ScriptedModel([["still works"]]), session_manager=manager, callback_handler=None)
            agent(f"check {life}")
            saved = json.loads(values(look)[latest])
            assert saved["data"]["messages"][-1]["content"] == [{"text": "still works"}]
        known[latest] = {digest_of(values(look)[latest])}
        assert_clean(look)


def test_lost_acknowledgement_is_no_conflict_for_a_snapshot_manager(
    own_dsn: str, look: Connection, retries: Retries
) -> None:
    from strands import Agent
    from strands.session import SnapshotSessionManager

    from strands_psycopg.scripted_model import ScriptedModel

    def build(storage: PostgresStorage) -> Agent:
        manager = SnapshotSessionManager(
            session_id="s", storage=storage, save_latest_on="message", snapshot_trigger=lambda **_: True
        )
        return Agent(model=ScriptedModel([["a" * 20_000]] * 20), session_manager=manager, callback_handler=None)

    with Proxy(own_dsn) as proxy, PostgresStorage(proxy.dsn, guard_overwrites=True) as storage:
        agent = build(storage)
        # The first turns are stored inline, later ones in chunks.
        for position in range(12):
            proxy.lose_answers(after=position)
            agent("ask")
            assert len(retries()) == position + 1
        with PostgresStorage(own_dsn, guard_overwrites=True) as elsewhere:
            other = build(elsewhere)
            assert other.messages == agent.messages
            other("overtake")
            with pytest.raises(StorageConflictError):
                agent("ask")
            assert build(elsewhere).messages == other.messages
    assert_clean(look)


def digest_of(value: bytes) -> str:
    return sha256(value).hexdigest()


# Writers of a few overlapping values under a few keys: nearly every chunk is used and released all the time.
SHARE = """
import asyncio, os, random, sys
from strands_psycopg import PostgresStorage

dsn, rounds, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
common = random.Random(7).randbytes(120_000)
contents = [common[start : start + 60_000] for start in range(0, 60_000, 10_000)] + [b"small"]
keys = [f"k{each}" for each in range(4)]
chance = random.Random(number)

async def work(storage, turn):
    key, other, third = chance.sample(keys, 3)
    await storage.write(key, chance.choice(contents))
    value = await storage.read(other)
    assert value is None or value in contents
    await storage.delete(third)
    await storage.write(f"own {number}", contents[turn % 6])
    assert await storage.read(f"own {number}") == contents[turn % 6]

with PostgresStorage(dsn, max_size=2, kwargs={"prepare_threshold": None}) as storage:
    ready()
    for turn in range(rounds):
        asyncio.run(work(storage, turn))
        print(turn, flush=True)
    asyncio.run(storage.delete(f"own {number}"))
"""


@contextmanager
def disturbed(disturbance: Callable[[], object] | None, longest_pause: float) -> Iterator[list[int]]:
    """Call ``disturbance`` at random moments; yield a list that grows by one item per call."""
    finished, calls = threading.Event(), list[int]()

    def disturb() -> None:
        while not finished.wait(random.uniform(0, longest_pause)):
            assert disturbance is not None
            disturbance()
            calls.append(1)

    with ThreadPoolExecutor() as executor:
        disturber = executor.submit(disturb) if disturbance is not None else None
        try:
            yield calls
        finally:
            finished.set()
        if disturber is not None:
            disturber.result()


def share(crew: Crew, dsn: str, rounds: int, disturbance: Callable[[], object] | None, longest_pause: float) -> int:
    """Run four processes that use the same chunks; return how often they were disturbed."""
    with crew.of(4, SHARE, dsn, str(rounds)) as members, disturbed(disturbance, longest_pause) as calls:
        for member in members:
            member.release()
        for member in members:
            assert member.result() == [str(turn) for turn in range(rounds)]
    return len(calls)


def assert_no_chunk_is_missing_or_left_behind(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as look, PostgresStorage(dsn) as storage:
        assert None not in values(look).values()
        assert_clean(look)
        assert not [key for key in values(look) if key.startswith("own")]
        for key in run(storage.list("")):
            run(storage.read(key))
            run(storage.delete(key))
        assert chunks(look) == NO_CHUNKS


def test_processes_that_share_chunks_lose_none_and_leave_none_behind(crew: Crew, own_dsn: str) -> None:
    share(crew, own_dsn, scale(6, 500), None, 0)
    assert_no_chunk_is_missing_or_left_behind(own_dsn)


TERMINATE_ONE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'strands-psycopg' ORDER BY random() LIMIT 1
"""


def test_processes_that_share_chunks_survive_terminated_backends(crew: Crew, own_dsn: str, look: Connection) -> None:
    found: list[Any] = [None]

    def terminate_one() -> None:
        # Not before something was stored since the last time, since on a busy machine nothing ever would be.
        now = look.execute("SELECT key, write_id FROM strands_storage ORDER BY key").fetchall()
        if now != found[-1]:
            look.execute(TERMINATE_ONE)
            found.append(now)

    share(crew, own_dsn, scale(12, 500), terminate_one, 0.05)
    assert len(found) > 4
    assert_no_chunk_is_missing_or_left_behind(own_dsn)


def test_processes_that_share_chunks_survive_server_crashes(crew: Crew, own_server: Server, own_dsn: str) -> None:
    def crash() -> None:
        own_server.crash()
        own_server.start()

    assert share(crew, own_dsn, scale(12, 500), crash, 0.6) > 0
    assert_no_chunk_is_missing_or_left_behind(own_dsn)


def test_processes_that_share_chunks_work_through_pgbouncer(
    crew: Crew, request: pytest.FixtureRequest, direct_dsn: str
) -> None:
    pooled_dsn = request.getfixturevalue("pgbouncer").through(direct_dsn)
    share(crew, pooled_dsn, scale(6, 500), None, 0)
    assert_no_chunk_is_missing_or_left_behind(direct_dsn)


FORK = """
import asyncio, os, sys, warnings
from strands_psycopg import PostgresStorage

# From Python 3.12 on, of a fork beside the threads of a pool.
warnings.simplefilter("ignore", DeprecationWarning)

def use(name):
    for size in (10, 50_000):
        asyncio.run(storage.write(f"{name}/{size}", name.encode() * size))
        assert asyncio.run(storage.read(f"{name}/{size}")) == name.encode() * size

storage = PostgresStorage(sys.argv[1], min_size=2, max_size=2)
view = storage.namespace("view")
use("parent")
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        use(f"child {number}")
        asyncio.run(view.write(f"child {number}", b"seen"))
        sys.exit(0)
    children.append(child)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
use("parent, later")
storage.close()
"""


def test_storage_works_in_forked_children_and_in_their_parent(own_dsn: str, look: Connection) -> None:
    assert processes.start(FORK, own_dsn, complete=True).finish() == (0, "", "")
    names = ["parent", "parent, later", *(f"child {number}" for number in range(4))]
    expected = {f"{name}/{size}": name.encode() * size for name in names for size in (10, 50_000)}
    assert values(look) == expected | {f"view/child {number}": b"seen" for number in range(4)}
    assert_clean(look)


def test_storage_on_a_repository_survives_a_server_crash(own_server: Server, own_dsn: str) -> None:
    with PostgresSessionRepository(own_dsn, max_size=2) as repository, ThreadPoolExecutor() as executor:
        storage = PostgresStorage(repository)
        put(storage, "k", LARGE)
        own_server.crash()
        write = executor.submit(put, storage, "k", LARGE[::-1])
        own_server.start()
        write.result()
        assert run(storage.read("k")) == LARGE[::-1]
