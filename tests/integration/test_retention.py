"""Purges: which sessions go, and that nobody who is at work notices."""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from strands.types.session import Session, SessionAgent, SessionType

from strands_psycopg import PostgresSessionRepository, PurgeResult, SessionConflictError, SessionNotFoundError
from strands_psycopg.repository import retention
from strands_psycopg.repository.agents import AgentChange
from strands_psycopg.repository.window import Variant, Window
from support import agents, writes
from support.agents import build
from support.multi_agents import Team
from support.pausing import pause_before
from support.retries import Retries
from support.tables import blocked, contents, one, store_values, texts
from support.waiting import wait_until
from support.writes import message, store_with_message

Connection = psycopg.Connection[Any]

MONTH = timedelta(days=30)

# A session with two agents of three messages each, and a team.
EACH = PurgeResult(sessions=1, agents=2, messages=6, multi_agents=1)


def times(count: int) -> PurgeResult:
    return PurgeResult(count * EACH.sessions, count * EACH.agents, count * EACH.messages, count * EACH.multi_agents)


def fill(repository: PostgresSessionRepository, *session_ids: str) -> None:
    for session_id in session_ids:
        repository.create_session(Session(session_id, SessionType.AGENT))
        for agent_id in ("a", "b"):
            repository.create_agent(session_id, SessionAgent(agent_id, {}, {}))
            for index in range(3):
                repository.create_message(session_id, agent_id, message(index, "hello"))
        repository.create_multi_agent(session_id, Team("m", {}))


def age(connection: Connection, session_id: str, seconds: float) -> None:
    """Set the last activity of a session to so many seconds ago."""
    connection.execute(
        "UPDATE strands_sessions SET updated_at = now() - make_interval(secs => %s) WHERE session_id = %s",
        [float(seconds), session_id],
    )


def add_lease(connection: Connection, session_id: str, seconds: float) -> None:
    """Add the lease of a holder that died; it expired so many seconds ago."""
    connection.execute(
        "INSERT INTO strands_leases (session_id, term, acquired_at, expires_at) "
        "VALUES (%s, gen_random_uuid(), now() - interval '2 days', now() - make_interval(secs => %s))",
        [session_id, float(seconds)],
    )


def left(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT session_id FROM strands_sessions ORDER BY 1")]


@pytest.fixture
def other(dsn: str, pool_options: dict[str, Any]) -> Iterator[PostgresSessionRepository]:
    with PostgresSessionRepository(dsn, **pool_options) as repository:
        yield repository


def test_idle_sessions_go_with_all_that_is_in_them(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository, "active")
    before = contents(connection)
    fill(repository, "idle 1", "idle 2")
    for session_id in ("idle 1", "idle 2"):
        age(connection, session_id, MONTH.total_seconds() + 61)
    age(connection, "active", MONTH.total_seconds() + 50)
    active = contents(connection)

    assert repository.purge_sessions(idle_for=MONTH) == times(2)

    after = contents(connection)
    assert all(set(after[table]) <= set(active[table]) for table in after)
    assert {table: len(rows) for table, rows in after.items()} == {table: len(rows) for table, rows in before.items()}
    assert left(connection) == ["active"]
    assert repository.purge_sessions(idle_for=MONTH) == PurgeResult()


@pytest.mark.parametrize("delete", ["purge", "session", "agent"])
def test_other_forms_of_messages_and_checkpoints_go_with_their_agent(
    repository: PostgresSessionRepository, connection: Connection, delete: str
) -> None:
    agent = build(repository)
    agent("hello")
    agents.save_checkpoint(agent)
    agent.messages[0]["content"] = [{"text": "edited"}]
    agents.save_checkpoint(agent)
    store_values(connection, "s", "value")
    add_lease(connection, "s", 0)
    assert [len(contents(connection)[table]) for table in ("strands_message_variants", "strands_checkpoints")] == [1, 2]

    if delete == "purge":
        age(connection, "s", 7200)
        assert repository.purge_sessions(idle_for=3600) == PurgeResult(sessions=1, agents=1, messages=2)
    elif delete == "session":
        repository.delete_session("s")
    else:
        repository.delete_agent("s", "default")
    left_over = {table for table, rows in contents(connection).items() if rows}
    of_session = {"strands_sessions", "strands_leases", "strands_session_storage", "strands_session_chunks"}
    assert left_over == (of_session if delete == "agent" else set())


def test_deletion_does_not_rely_on_foreign_keys(
    repository: PostgresSessionRepository, connection: Connection, direct_dsn: str
) -> None:
    """Nor does a purge, for example where a logical replica of the database is purged."""
    options: dict[str, Any] = {"kwargs": {"options": "-c session_replication_role=replica"}}
    with PostgresSessionRepository(direct_dsn, **options) as without_keys:
        for session_id in ("s", "t"):
            agent = build(repository, session_id)
            agent("hello")
            agents.save_checkpoint(agent)
            store_values(connection, session_id, "value")
            add_lease(connection, session_id, 0)
        age(connection, "t", 7200)
        without_keys.delete_session("s")
        without_keys.purge_sessions(idle_for=3600)
    assert [table for table, rows in contents(connection).items() if rows] == []


def test_leases_that_expired_a_day_ago_go_with_any_purge(
    repository: PostgresSessionRepository, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_MAX_BATCH_SIZE", 2)
    for number in range(5):
        add_lease(connection, f"dead {number}", 90_000)
    add_lease(connection, "expired", 80_000)
    add_lease(connection, "held", -60)

    assert repository.purge_sessions(idle_for=MONTH, batch_size=1, dry_run=True) == PurgeResult()
    assert one(connection, "SELECT count(*) FROM strands_leases") == 7
    assert repository.purge_sessions(idle_for=MONTH, batch_size=1) == PurgeResult()
    assert connection.execute("SELECT session_id FROM strands_leases ORDER BY 1").fetchall() == [
        ("expired",),
        ("held",),
    ]


def test_purge_is_of_the_sessions_of_an_owner_or_with_some_metadata(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    for session_id, owner, tier in [
        ("a", "Alice", "gold"),
        ("b", "Alice", "tin"),
        ("c", "Bob", "gold"),
        ("d", None, ""),
    ]:
        repository.create_session(Session(session_id, SessionType.AGENT), owner=owner, metadata={"tier": tier, "n": 1})
        age(connection, session_id, 7200)

    def purge(**options: Any) -> list[str]:
        found = repository.purge_sessions(idle_for=3600, dry_run=True, **options).sessions
        assert repository.purge_sessions(idle_for=3600, **options).sessions == found
        return left(connection)

    assert purge(owner="Carol") == ["a", "b", "c", "d"]
    assert purge(owner="Alice", metadata={"tier": "gold"}) == ["b", "c", "d"]
    assert purge(metadata={"tier": "gold"}) == ["b", "d"]
    assert purge(owner="Alice") == ["d"]


@pytest.mark.parametrize(("seconds", "gone"), [(3600 + 50, False), (3600 + 61, True)])
def test_minute_by_which_the_last_activity_may_be_later_is_waited_for(
    repository: PostgresSessionRepository, connection: Connection, seconds: float, gone: bool
) -> None:
    fill(repository, "s")
    age(connection, "s", seconds)
    assert repository.purge_sessions(idle_for=3600, dry_run=True).sessions == gone
    assert repository.purge_sessions(idle_for=3600).sessions == gone


def test_dry_run_only_counts(repository: PostgresSessionRepository, connection: Connection) -> None:
    fill(repository, "one", "other", "active")
    for session_id in ("one", "other"):
        age(connection, session_id, 7200)
    before = contents(connection)
    for batch_size in (1, 2, 3, 1000):
        assert repository.purge_sessions(idle_for=3600, dry_run=True, batch_size=batch_size) == times(2)
    assert contents(connection) == before


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 6, 1000])
def test_every_idle_session_is_found_whatever_the_size_of_batches(
    repository: PostgresSessionRepository, connection: Connection, batch_size: int
) -> None:
    fill(repository, *"abcdef")
    # All at one time, so that ids decide where a batch ends.
    connection.execute("UPDATE strands_sessions SET updated_at = '2020-01-01'")
    batches = list(repository._tables.retention.purge(idle_for=3600, batch_size=batch_size, dry_run=False))
    assert [batch.sessions for batch in batches] == [min(batch_size, 6 - start) for start in range(0, 6, batch_size)]
    assert sum(batches, PurgeResult()) == times(6)
    assert left(connection) == []


def test_sessions_with_many_messages_are_taken_fewer_at_a_time(
    repository: PostgresSessionRepository, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_BATCH_MESSAGES", 13)
    fill(repository, *"abcde")
    for index in range(3, 20):
        repository.create_message("c", "a", message(index, "hello"))
    for number, session_id in enumerate("abcde"):
        age(connection, session_id, 7200 - number)
    batches = list(repository._tables.retention.purge(idle_for=3600, batch_size=1000, dry_run=False))
    assert [(batch.sessions, batch.messages) for batch in batches] == [(2, 12), (1, 23), (2, 12)]


@pytest.mark.parametrize("idle_for", [0, -1, timedelta(0), timedelta(days=-1), math.nan, math.inf, timedelta.max])
def test_time_out_of_range_is_refused(repository: PostgresSessionRepository, idle_for: Any) -> None:
    with pytest.raises(ValueError, match="idle_for must be more than 0 seconds"):
        repository.purge_sessions(idle_for=idle_for)


@pytest.mark.parametrize("batch_size", [0, -1, 10_001, True, 1.0])
def test_size_out_of_range_is_refused(repository: PostgresSessionRepository, batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be an integer from 1 to 10000"):
        repository.purge_sessions(idle_for=1, batch_size=batch_size)


def test_leased_session_stays_until_its_lease_is_over(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository, "held", "held here", "expired", "free")
    for session_id in left(connection):
        age(connection, session_id, 7200)
    connection.execute(
        "INSERT INTO strands_leases VALUES ('expired', gen_random_uuid(), now() - interval '1 h', now())"
    )
    with other.lease("held"), repository.lease("held here"):
        assert repository.purge_sessions(idle_for=3600, dry_run=True) == times(2)
        assert repository.purge_sessions(idle_for=3600) == times(2)
        assert left(connection) == ["held", "held here"]
        assert one(connection, "SELECT count(*) FROM strands_leases") == 2
    assert repository.purge_sessions(idle_for=3600) == times(2)
    assert contents(connection)["strands_leases"] == []


# Beside others.


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a purge for as long as a test likes."""
    monkeypatch.setattr(retention, "_IDLE_TIMEOUT", "SET LOCAL idle_in_transaction_session_timeout = 0")


WAKERS: dict[str, Callable[[PostgresSessionRepository], object]] = {
    "create_message": lambda repository: repository.create_message("s", "a", message(3, "awake")),
    "update_and_append": lambda repository: store_with_message(
        repository, "s", SessionAgent("a", {}, {}), message(3, "awake")
    ),
    "store_variant": lambda repository: repository._tables.agents.store(
        "s",
        AgentChange("a", None, Window((1,), 3), variants=[Variant(1, None, message(0, "awake").message)]),
        write_id=uuid4(),
    ),
    "save_checkpoint": lambda repository: writes.save_checkpoint(repository, "s"),
    "update_agent": lambda repository: repository.update_agent("s", SessionAgent("a", {"awake": True}, {})),
    "create_agent": lambda repository: repository.create_agent("s", SessionAgent("new", {}, {})),
    "update_multi_agent": lambda repository: repository.update_multi_agent("s", Team("m", {"awake": True})),
    "create_multi_agent": lambda repository: repository.create_multi_agent("s", Team("new", {})),
}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("waker", WAKERS)
def test_session_that_becomes_active_while_its_messages_are_being_deleted_stays(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    waker: str,
) -> None:
    fill(repository, "before", "s", "then")
    for session_id in left(connection):
        age(connection, session_id, 7200)
    reached, go = pause_before(monkeypatch, repository._tables.retention._lock_agents)
    with ThreadPoolExecutor() as threads:
        purge = threads.submit(repository.purge_sessions, idle_for=3600)
        assert reached.wait(30)
        # It does not wait for the purge, which waits for it.
        WAKERS[waker](other)
        awake = contents(connection)
        go.set()
        assert purge.result(30) == times(2)
    assert left(connection) == ["s"]
    after = contents(connection)
    assert all(set(after[table]) <= set(awake[table]) for table in after)
    assert len(texts(connection, agent_id="a")) >= 3


@pytest.mark.usefixtures("patient")
def test_session_that_is_leased_while_its_messages_are_being_deleted_stays(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(repository, "before", "s", "then")
    for session_id in left(connection):
        age(connection, session_id, 7200)
    reached, go = pause_before(monkeypatch, repository._tables.retention._acquire_leases)
    with ThreadPoolExecutor() as threads:
        purge = threads.submit(repository.purge_sessions, idle_for=3600)
        assert reached.wait(30)
        with other.lease("s", wait=0):
            go.set()
            assert purge.result(30) == times(2)
            assert texts(connection, agent_id="a") == ["hello"] * 3
    assert left(connection) == ["s"]


@pytest.mark.usefixtures("patient")
def test_who_wants_to_hold_a_session_that_is_going_gets_it_when_it_is_gone(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    watcher: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(repository, "s")
    age(connection, "s", 7200)
    reached, go = pause_before(monkeypatch, repository._tables.retention._delete_sessions)

    def hold() -> str:
        with other.lease("s", wait=0):
            return build(other)("hello").stop_reason

    with ThreadPoolExecutor() as threads:
        purge = threads.submit(repository.purge_sessions, idle_for=3600)
        assert reached.wait(30)
        held = threads.submit(hold)
        wait_until(lambda: blocked(watcher))
        go.set()
        assert purge.result(30) == EACH
        assert held.result(30) == "end_turn"
    assert texts(connection) == ["hello", "ok"]
    assert texts(connection, agent_id="a") == []


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("waker", WAKERS)
def test_who_writes_to_a_session_that_is_going_is_told_that_it_is_gone(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    watcher: Connection,
    monkeypatch: pytest.MonkeyPatch,
    waker: str,
) -> None:
    fill(repository, "s")
    age(connection, "s", 7200)
    reached, go = pause_before(monkeypatch, repository._tables.retention._delete_leases)
    with ThreadPoolExecutor() as threads:
        purge = threads.submit(repository.purge_sessions, idle_for=3600)
        assert reached.wait(30)
        write = threads.submit(WAKERS[waker], other)
        wait_until(lambda: blocked(watcher))
        go.set()
        assert purge.result(30) == EACH
        # An update that waited for the row takes its deletion for somebody else's write.
        with pytest.raises((SessionNotFoundError, SessionConflictError)):
            write.result(30)
    assert all(rows == [] for rows in contents(connection).values())


@pytest.mark.parametrize(
    "locked",
    [
        "SELECT FROM strands_sessions WHERE session_id = 's' FOR UPDATE",
        "SELECT FROM strands_sessions WHERE session_id = 's' FOR KEY SHARE",
        "SELECT FROM strands_agents WHERE session_id = 's' FOR NO KEY UPDATE",
        "SELECT FROM strands_agents WHERE session_id = 's' FOR KEY SHARE",
        "SELECT FROM strands_messages WHERE session_id = 's' FOR UPDATE",
        "SELECT FROM strands_multi_agents WHERE session_id = 's' FOR UPDATE",
        "INSERT INTO strands_leases VALUES ('s', gen_random_uuid(), now(), now())",
    ],
)
def test_session_that_is_locked_is_not_waited_for_long(
    repository: PostgresSessionRepository, connection: Connection, watcher: Connection, locked: str
) -> None:
    fill(repository, *"abs")
    for session_id in "abs":
        age(connection, session_id, 7200)
    with connection.transaction():
        connection.execute(locked.encode())
        assert repository.purge_sessions(idle_for=3600) == times(2)
        assert left(watcher) == ["s"]
    assert repository.purge_sessions(idle_for=3600) == EACH


def test_purge_that_stands_still_holds_nobody_up_for_long(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(repository, "s")
    age(connection, "s", 7200)
    reached, go = pause_before(monkeypatch, repository._tables.retention._delete_leases)
    with ThreadPoolExecutor() as threads:
        purge = threads.submit(repository.purge_sessions, idle_for=3600)
        assert reached.wait(30)
        other.create_message("s", "a", message(3, "awake"))
        go.set()
        assert purge.result(60) == PurgeResult()
    assert texts(connection, agent_id="a") == ["hello", "hello", "hello", "awake"]


@pytest.mark.usefixtures("patient")
def test_purges_take_turns(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    watcher: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(repository, "s")
    age(connection, "s", 7200)
    reached, go = pause_before(monkeypatch, repository._tables.retention._delete_leases)
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with ThreadPoolExecutor() as threads:
        first = threads.submit(repository.purge_sessions, idle_for=3600)
        assert reached.wait(30)
        second = threads.submit(other.purge_sessions, idle_for=3600)
        wait_until(lambda: one(watcher, waiting))
        go.set()
        assert (first.result(30), second.result(30)) == (EACH, PurgeResult())


def test_purges_at_once_share_the_work(
    repository: PostgresSessionRepository,
    dsn: str,
    pool_options: dict[str, Any],
    connection: Connection,
    retries: Retries,
) -> None:
    fill(repository, *(f"s-{number}" for number in range(24)))
    connection.execute("UPDATE strands_sessions SET updated_at = '2020-01-01'")
    start = threading.Barrier(4)

    def purge(batch_size: int) -> PurgeResult:
        with PostgresSessionRepository(dsn, **pool_options) as mine:
            mine.read_session("s")
            start.wait(30)
            return mine.purge_sessions(idle_for=3600, batch_size=batch_size)

    with ThreadPoolExecutor() as threads:
        shares = list(threads.map(purge, [1, 2, 3, 5]))
    assert sum(shares, PurgeResult()) == times(24)
    assert left(connection) == []
    assert retries() == []


def test_purges_and_writers_at_once_agree_on_what_is_left(
    repository: PostgresSessionRepository,
    dsn: str,
    pool_options: dict[str, Any],
    connection: Connection,
    retries: Retries,
) -> None:
    names = [f"s-{number:02}" for number in range(40)]
    fill(repository, *names)
    connection.execute("UPDATE strands_sessions SET updated_at = '2020-01-01'")
    start = threading.Barrier(5)

    def append(mine: PostgresSessionRepository, name: str) -> None:
        mine.create_message(name, "a", message(3, "awake"))

    def append_with_state(mine: PostgresSessionRepository, name: str) -> None:
        store_with_message(mine, name, SessionAgent("b", {}, {}), message(3, "awake"))

    def hold(mine: PostgresSessionRepository, name: str) -> None:
        with mine.lease(name):
            mine.update_agent(name, SessionAgent("a", {"awake": True}, {}))

    def write(act: Callable[[PostgresSessionRepository, str], None]) -> set[str]:
        written = set()
        with PostgresSessionRepository(dsn, **pool_options) as mine:
            mine.read_session("s")
            start.wait(30)
            # From the other end, so that they meet the purges.
            for name in reversed(names):
                try:
                    act(mine, name)
                except (SessionNotFoundError, SessionConflictError):
                    continue
                written.add(name)
        return written

    def purge(batch_size: int) -> PurgeResult:
        with PostgresSessionRepository(dsn, **pool_options) as mine:
            mine.read_session("s")
            start.wait(30)
            return mine.purge_sessions(idle_for=3600, batch_size=batch_size)

    with ThreadPoolExecutor() as threads:
        purges = [threads.submit(purge, batch_size) for batch_size in (3, 7)]
        writers = [threads.submit(write, act) for act in (append, append_with_state, hold)]
        purged = sum((each.result(60) for each in purges), PurgeResult())
        appended, appended_with_state, held = (each.result(60) for each in writers)

    survivors = left(connection)
    assert purged == times(len(names) - len(survivors))
    assert appended | appended_with_state | held == set(survivors)
    for name in survivors:
        assert texts(connection, name, "a") == ["hello"] * 3 + ["awake"] * (name in appended)
        assert texts(connection, name, "b") == ["hello"] * 3 + ["awake"] * (name in appended_with_state)
    # Nobody was the victim of a deadlock.
    assert retries() == []


def test_agent_that_holds_its_session_goes_on_beside_a_purge(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    with repository.lease("s"):
        agent = build(repository)
        agent("one")
        age(connection, "s", 7200)
        assert other.purge_sessions(idle_for=3600) == PurgeResult()
        agent("two")
    assert texts(connection) == ["one", "ok", "two", "ok"]
    age(connection, "s", 7200)
    assert other.purge_sessions(idle_for=3600) == PurgeResult(1, 1, 4, 0)
