"""A lease: one writer of a session at a time, who cannot write any more once someone else has taken over."""

import asyncio
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from psycopg import sql
from psycopg_pool import ConnectionPool
from strands import Agent
from strands.types.content import Message
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import (
    LeaseLostError,
    PostgresSessionManager,
    PostgresSessionRepository,
    SessionBusyError,
    telemetry,
)
from strands_psycopg.lease import Lease
from strands_psycopg.scripted_model import ScriptedModel
from support import processes
from support.agents import build
from support.multi_agents import Team
from support.proxy import Proxy
from support.tables import Connection, blocked, contents, one, texts
from support.waiting import until, wait_until
from support.writes import store_with_message

Write = Callable[[PostgresSessionRepository], object]

RENEWER = "strands-psycopg-leases"

BOTH_WAYS = pytest.mark.parametrize("way", ["with", "async with"])


@pytest.fixture
def other(dsn: str, pool_options: dict[str, Any]) -> Iterator[PostgresSessionRepository]:
    """Another process's repository, as far as leases can tell."""
    with PostgresSessionRepository(dsn, **pool_options) as other:
        yield other


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


def hold(way: str, lease: Lease, inside: Callable[[], object]) -> None:
    """Call ``inside`` in the block of a lease."""

    async def hold_async() -> None:
        async with lease:
            inside()

    if way == "with":
        with lease:
            inside()
    else:
        asyncio.run(hold_async())


def rows(connection: Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT session_id, term::text FROM strands_leases ORDER BY 1").fetchall()


def expire(connection: Connection) -> None:
    """Make every lease expire now, as if its holder had not renewed it for its ttl."""
    connection.execute("UPDATE strands_leases SET expires_at = now() - interval '1 ms'")


def expiry(connection: Connection) -> datetime:
    at: datetime = one(connection, "SELECT expires_at FROM strands_leases")
    return at


def renewers() -> int:
    return sum(thread.name == RENEWER for thread in threading.enumerate())


def fail() -> None:
    pytest.fail("the block was entered")


# Holding


@BOTH_WAYS
def test_session_is_held_in_the_block_and_free_after_it(
    repository: PostgresSessionRepository, connection: Connection, way: str
) -> None:
    lease = repository.lease("s")
    inside: list[list[tuple[str, str]]] = []
    assert rows(connection) == []

    hold(way, lease, lambda: inside.append(rows(connection)))

    assert inside == [[("s", str(lease.term))]]
    assert rows(connection) == []


@BOTH_WAYS
def test_session_is_free_after_an_exception_which_passes(
    repository: PostgresSessionRepository, connection: Connection, way: str
) -> None:
    inside: list[list[tuple[str, str]]] = []

    def raise_in_block() -> None:
        inside.append(rows(connection))
        raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        hold(way, repository.lease("s"), raise_in_block)

    assert len(inside[0]) == 1
    assert rows(connection) == []


@BOTH_WAYS
def test_error_for_a_held_session_says_since_when_and_until_when(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection, way: str
) -> None:
    with repository.lease("s", ttl=600):
        with pytest.raises(SessionBusyError) as busy:
            hold(way, other.lease("s", wait=0), fail)
        since, until = connection.execute(
            "SELECT date_trunc('second', acquired_at), date_trunc('second', expires_at) FROM strands_leases"
        ).fetchall()[0]

    assert busy.value.session_id == "s"
    assert datetime.fromisoformat(busy.value.since.replace("Z", "+00:00")) == since
    assert datetime.fromisoformat(busy.value.until.replace("Z", "+00:00")) == until
    assert str(busy.value) == (
        f"session 's' has been held by another writer since {busy.value.since} (until {busy.value.until} at least) "
        "and was not released within 0 s; try again later or wait longer"
    )


def test_other_sessions_are_not_held(repository: PostgresSessionRepository, other: PostgresSessionRepository) -> None:
    with repository.lease("s"), other.lease("t", wait=0):
        pass


@BOTH_WAYS
def test_second_lease_in_the_same_process_waits_like_anyone(repository: PostgresSessionRepository, way: str) -> None:
    with repository.lease("s"), pytest.raises(SessionBusyError):
        hold(way, repository.lease("s", wait=0), fail)


@pytest.mark.parametrize("second", ["with", "async with"])
@pytest.mark.parametrize("first", ["with", "async with"])
def test_lease_can_be_entered_once(
    repository: PostgresSessionRepository,
    connection: Connection,
    thread: ThreadPoolExecutor,
    first: str,
    second: str,
) -> None:
    lease = repository.lease("s")

    def enter_again() -> None:
        # In another thread, since there is an event loop in this one.
        with pytest.raises(RuntimeError, match=r"entered only once; call lease\(\) for another"):
            thread.submit(hold, second, lease, fail).result()
        assert rows(connection) == [("s", str(lease.term))]

    hold(first, lease, enter_again)

    assert rows(connection) == []
    with pytest.raises(RuntimeError, match="entered only once"):
        hold(second, lease, fail)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"wait": -0.1}, "wait must be 0 or more seconds, not -0.1"),
        ({"wait": float("nan")}, "wait must be 0 or more seconds, not nan"),
        ({"ttl": 0}, "ttl must be more than 0 and at most 86400.0 seconds, not 0"),
        ({"ttl": -1}, "ttl must be more than 0 and at most 86400.0 seconds, not -1"),
        ({"ttl": 86_401}, "ttl must be more than 0 and at most 86400.0 seconds, not 86401"),
        ({"ttl": float("nan")}, "ttl must be more than 0 and at most 86400.0 seconds, not nan"),
    ],
)
def test_times_out_of_range_are_refused_before_any_connection(options: dict[str, Any], problem: str) -> None:
    repository = PostgresSessionRepository("host=/nowhere")

    with pytest.raises(ValueError, match=problem):
        repository.lease("s", **options)


def test_session_id_out_of_range_is_refused_before_any_connection() -> None:
    with pytest.raises(ValueError, match="session_id"):
        PostgresSessionRepository("host=/nowhere").lease("a\0b")


# Waiting


def test_wait_of_zero_asks_once(dsn: str, pool_options: dict[str, Any], repository: PostgresSessionRepository) -> None:
    with repository.lease("s"), Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, **pool_options) as other:
        with pytest.raises(SessionBusyError):
            other.lease("s", wait=0).__enter__()
        assert proxy.round_trips == 1


@BOTH_WAYS
def test_waiting_ends_when_the_session_is_free(
    dsn: str,
    pool_options: dict[str, Any],
    repository: PostgresSessionRepository,
    thread: ThreadPoolExecutor,
    way: str,
) -> None:
    happened: list[str] = []
    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, **pool_options) as other:
        with repository.lease("s"):
            waiter = thread.submit(hold, way, other.lease("s", wait=60), partial(happened.append, "entered"))
            wait_until(lambda: proxy.round_trips >= 3)
            happened.append("left")
        waiter.result(30)

    assert happened == ["left", "entered"]


@BOTH_WAYS
def test_waiting_takes_as_long_as_was_asked_for(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, way: str
) -> None:
    started = time.monotonic()

    with repository.lease("s"), pytest.raises(SessionBusyError, match=r"not released within 0\.4 s"):
        hold(way, other.lease("s", wait=0.4), fail)

    assert time.monotonic() - started >= 0.4


@BOTH_WAYS
def test_waiting_holds_no_connection(
    dsn: str,
    pool_options: dict[str, Any],
    repository: PostgresSessionRepository,
    thread: ThreadPoolExecutor,
    way: str,
) -> None:
    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, max_size=1, timeout=1, **pool_options) as other:
        with repository.lease("s"):
            waiter = thread.submit(hold, way, other.lease("s", wait=60), lambda: None)
            wait_until(lambda: proxy.round_trips >= 1)
            for _ in range(50):
                assert other.read_session("s") is None
            assert not waiter.done()
        waiter.result(30)


def test_asynchronous_waiting_leaves_the_event_loop_free(dsn: str, pool_options: dict[str, Any]) -> None:
    async def enter(session_id: str) -> None:
        async with repository.lease(session_id):
            pass

    async def enter_two() -> None:
        entering = [asyncio.create_task(enter(session_id)) for session_id in ("s", "t")]
        # The second one can only ask while the first one waits for its answer.
        await until(lambda: proxy.waiting == 2)
        proxy.release()
        await asyncio.gather(*entering)

    with Proxy(dsn) as proxy, ConnectionPool(proxy.dsn, open=True, min_size=2, **pool_options) as pool:
        pool.wait()
        repository = PostgresSessionRepository(pool)
        proxy.hold()
        asyncio.run(asyncio.wait_for(enter_two(), 30))


@pytest.mark.parametrize("times", [1, 3])
def test_wait_cancelled_between_two_attempts_leaves_nothing_held(
    dsn: str,
    pool_options: dict[str, Any],
    repository: PostgresSessionRepository,
    connection: Connection,
    times: int,
) -> None:
    async def cancel() -> None:
        waiting = asyncio.create_task(other.lease("s", wait=60).__aenter__())
        await until(lambda: proxy.round_trips >= 2)
        for _ in range(times):
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with (
        Proxy(dsn) as proxy,
        PostgresSessionRepository(proxy.dsn, **pool_options) as other,
        repository.lease("s") as lease,
    ):
        asyncio.run(cancel())
        assert rows(connection) == [("s", str(lease.term))]
    assert rows(connection) == []
    wait_until(lambda: renewers() == 0)


@pytest.mark.parametrize("times", [1, 3])
def test_wait_cancelled_when_the_session_has_just_been_taken_leaves_nothing_held(
    dsn: str, pool_options: dict[str, Any], connection: Connection, times: int
) -> None:
    async def cancel() -> None:
        waiting = asyncio.create_task(repository.lease("s").__aenter__())
        await until(lambda: proxy.waiting == 1)
        assert len(rows(connection)) == 1
        for _ in range(times):
            waiting.cancel()
            await asyncio.sleep(0)
        assert not waiting.done()
        proxy.release()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, max_size=1, **pool_options) as repository:
        repository.read_session("s")
        proxy.hold()
        asyncio.run(cancel())

    assert rows(connection) == []
    wait_until(lambda: renewers() == 0)


def test_wait_interrupted_when_the_session_has_just_been_taken_leaves_nothing_held(
    dsn: str, pool_options: dict[str, Any], connection: Connection, thread: ThreadPoolExecutor
) -> None:
    def interrupt() -> None:
        wait_until(lambda: proxy.waiting == 1)
        os.kill(os.getpid(), signal.SIGINT)
        # Until the driver has tried to cancel the statement, in vain.
        wait_until(lambda: proxy.connections == 2)
        proxy.release()

    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, max_size=1, **pool_options) as repository:
        repository.read_session("s")
        proxy.hold()
        interrupter = thread.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            repository.lease("s").__enter__()
        interrupter.result()
        assert rows(connection) == []

    wait_until(lambda: renewers() == 0)


def test_attempt_whose_answer_was_lost_is_repeated_under_its_own_term(
    dsn: str, pool_options: dict[str, Any], connection: Connection
) -> None:
    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, **pool_options) as repository:
        proxy.lose_answers()
        with repository.lease("s", wait=0) as lease:
            assert proxy.round_trips == 2
            assert rows(connection) == [("s", str(lease.term))]


def test_release_whose_answer_was_lost_is_repeated(
    dsn: str, pool_options: dict[str, Any], connection: Connection
) -> None:
    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, **pool_options) as repository:
        with repository.lease("s"):
            proxy.lose_answers()
        assert proxy.round_trips == 3

    assert rows(connection) == []


# Renewal


def test_lease_is_renewed_for_as_long_as_the_block_runs(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    with repository.lease("s", ttl=0.6) as lease:
        first = expiry(connection)
        wait_until(lambda: expiry(connection) > first + timedelta(seconds=1.8))
        assert rows(connection) == [("s", str(lease.term))]
        with pytest.raises(SessionBusyError):
            other.lease("s", wait=0).__enter__()


def test_one_thread_renews_all_leases_and_ends_with_the_last(repository: PostgresSessionRepository) -> None:
    leases = [repository.lease(f"s{number}") for number in range(5)]
    assert renewers() == 0
    for lease in leases:
        lease.__enter__()
        assert renewers() == 1
    for lease in leases[:-1]:
        lease.__exit__(None, None, None)
        assert renewers() == 1

    leases[-1].__exit__(None, None, None)

    wait_until(lambda: renewers() == 0)
    with repository.lease("s"):
        assert renewers() == 1
    wait_until(lambda: renewers() == 0)


def test_all_leases_are_renewed_in_one_statement(repository: PostgresSessionRepository, connection: Connection) -> None:
    def transactions() -> int:
        found: int = one(connection, "SELECT count(DISTINCT xmin::text) FROM strands_leases")
        return found

    leases = [repository.lease(f"s{number}", ttl=6) for number in range(5)]
    for lease in leases:
        lease.__enter__()
    assert transactions() == 5

    wait_until(lambda: transactions() == 1)

    for lease in leases:
        lease.__exit__(None, None, None)


def test_lease_whose_renewal_fails_takes_no_other_with_it(
    repository: PostgresSessionRepository, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a distributed database, of which the node that has one of the leases is lost."""
    connection.execute("CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'lost'; END $$")
    connection.execute(
        "CREATE TRIGGER t BEFORE UPDATE ON strands_leases FOR EACH ROW WHEN (OLD.session_id = 'lost') "
        "EXECUTE FUNCTION fail()"
    )
    with repository.lease("lost", ttl=0.6), repository.lease("kept", ttl=0.6):
        late = expiry_of(connection, "kept") + timedelta(seconds=1.2)
        wait_until(lambda: expiry_of(connection, "kept") > late)
        assert expiry_of(connection, "lost") < late
        assert "leases=<2>" in caplog.text
        assert "leases=<1>" in caplog.text

        connection.execute("DROP FUNCTION fail CASCADE")
        wait_until(lambda: expiry_of(connection, "lost") > late)
        # Both in one statement again.
        wait_until(lambda: one(connection, "SELECT count(DISTINCT xmin::text) FROM strands_leases") == 1)


def test_lease_with_a_short_ttl_beside_one_with_a_long_one_is_renewed(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    with repository.lease("long", ttl=3600), repository.lease("short", ttl=0.6):
        taken = one(connection, "SELECT expires_at FROM strands_leases WHERE session_id = 'short'")
        late = taken + timedelta(seconds=1.2)
        wait_until(lambda: one(connection, "SELECT expires_at FROM strands_leases WHERE session_id = 'short'") > late)


def test_renewal_goes_on_when_a_process_without_free_files_has_some_again(
    dsn: str, pool_options: dict[str, Any], connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (
        PostgresSessionRepository(dsn, retry_timeout=0.5, **pool_options) as repository,
        repository.lease("s", ttl=0.6),
    ):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            wait_until(lambda: "leases not renewed" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        later = expiry(connection) + timedelta(seconds=1.2)
        wait_until(lambda: expiry(connection) > later)


def test_old_term_cannot_release_the_new_one(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    old = repository.lease("s")
    old.__enter__()
    expire(connection)
    with other.lease("s", wait=0) as new:
        old.__exit__(None, None, None)

        assert rows(connection) == [("s", str(new.term))]


def test_lost_lease_is_not_renewed_and_is_logged_once(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(telemetry, "leases_lost", SimpleNamespace(add=counted.append))
    with repository.lease("s", ttl=1):
        expire(connection)
        with other.lease("s", wait=0, ttl=600) as new, repository.lease("t", ttl=0.3):
            taken = expiry_of(connection, "s")
            wait_until(lambda: "session_id=<s> | lease lost: another holder has taken over" in caplog.text)
            later = expiry_of(connection, "t") + timedelta(seconds=1)
            wait_until(lambda: expiry_of(connection, "t") > later)

            assert rows(connection)[0] == ("s", str(new.term))
            assert expiry_of(connection, "s") == taken
    assert caplog.text.count("lease lost") == 1
    assert counted == [1]


def expiry_of(connection: Connection, session_id: str) -> datetime:
    at: datetime = one(connection, "SELECT expires_at FROM strands_leases WHERE session_id = %s", session_id)
    return at


def test_holder_goes_on_after_an_outage_longer_than_its_ttl_in_which_nobody_took_over(
    dsn: str, pool_options: dict[str, Any], connection: Connection
) -> None:
    with (
        Proxy(dsn) as proxy,
        PostgresSessionRepository(proxy.dsn, **pool_options) as repository,
        repository.lease("s", ttl=1) as lease,
    ):
        agent = build(repository, replies=[["one"], ["two"]])
        agent("1")
        proxy.refuse()
        wait_until(lambda: one(connection, "SELECT expires_at < now() FROM strands_leases"))
        proxy.accept()

        agent("2")

        wait_until(lambda: one(connection, "SELECT expires_at > now() FROM strands_leases"))
        assert rows(connection) == [("s", str(lease.term))]
    assert texts(connection) == ["1", "one", "2", "two"]


def test_session_whose_release_failed_is_free_after_its_ttl(
    dsn: str,
    pool_options: dict[str, Any],
    other: PostgresSessionRepository,
    connection: Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse_and_raise() -> None:
        proxy.refuse()
        raise KeyError("of the block")

    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, retry_timeout=0.1, **pool_options) as repository:
        with pytest.raises(KeyError, match="of the block"):
            hold("with", repository.lease("s", ttl=1), refuse_and_raise)
        wait_until(lambda: renewers() == 0)

    assert "session_id=<s>, ttl=<1.0>" in caplog.text
    assert "lease not released, it expires after its ttl" in caplog.text
    until = expiry(connection)
    with other.lease("s"):
        assert one(connection, "SELECT acquired_at FROM strands_leases") >= until


# Writing


def saying(text: str) -> Message:
    return {"role": "user", "content": [{"text": text}]}


def message(index: int, text: str = "hello") -> SessionMessage:
    return SessionMessage(saying(text), index)


def agent_named(agent_id: str, state: str = "first") -> SessionAgent:
    return SessionAgent(agent_id, {"state": state}, {}, {})


def create_agent_with_messages(repository: PostgresSessionRepository) -> None:
    repository._tables.agents.create(
        "s", agent_named("b"), [message(0), message(1)], write_id=uuid4(), term=repository._tables.leases.term("s")
    )


def append_with_state(repository: PostgresSessionRepository) -> None:
    store_with_message(
        repository, "s", agent_named("a", "second"), message(1), term=repository._tables.leases.term("s")
    )


# On the session that ``store`` has stored.
WRITES: dict[str, Write] = {
    "create_agent": lambda repository: repository.create_agent("s", agent_named("b")),
    "create_agent with messages": create_agent_with_messages,
    "create_message": lambda repository: repository.create_message("s", "a", message(1)),
    "create_message and update_agent": append_with_state,
    "update_agent": lambda repository: repository.update_agent("s", agent_named("a", "second")),
    "update_message": lambda repository: repository.update_message("s", "a", message(0, "changed")),
    "create_multi_agent": lambda repository: repository.create_multi_agent("s", Team("n", {})),
    "update_multi_agent": lambda repository: repository.update_multi_agent("s", Team("m", {"state": "second"})),
    "delete_session": lambda repository: repository.delete_session("s"),
}
CREATE_SESSION: dict[str, Write] = {
    "create_session": lambda repository: repository.create_session(Session("new", SessionType.AGENT)),
}


def store(repository: PostgresSessionRepository, connection: Connection) -> None:
    """Store a session with an agent, a message and a multi-agent, last active an hour ago."""
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_agent("s", agent_named("a"))
    repository.create_message("s", "a", message(0))
    repository.create_multi_agent("s", Team("m", {}))
    connection.execute("UPDATE strands_sessions SET updated_at = updated_at - interval '1 hour'")


def session_of(write: str) -> str:
    return "new" if write in CREATE_SESSION else "s"


EACH_WRITE = pytest.mark.parametrize("write", [*CREATE_SESSION, *WRITES])


@EACH_WRITE
def test_holder_writes(repository: PostgresSessionRepository, connection: Connection, write: str) -> None:
    store(repository, connection)
    before = contents(connection)
    with repository.lease(session_of(write)):
        (CREATE_SESSION | WRITES)[write](repository)

    assert contents(connection) != before


@EACH_WRITE
def test_nothing_of_a_write_is_stored_after_a_takeover(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection, write: str
) -> None:
    store(repository, connection)
    session_id = session_of(write)
    with repository.lease(session_id):
        expire(connection)
        with other.lease(session_id, wait=0):
            before = contents(connection)

            with pytest.raises(LeaseLostError, match=r"nothing was stored\. Stop writing, and take a new") as lost:
                (CREATE_SESSION | WRITES)[write](repository)

            assert lost.value.session_id == session_id
            assert contents(connection) == before


def test_nothing_of_a_write_is_stored_after_a_takeover_and_a_release(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    store(repository, connection)
    with repository.lease("s"):
        expire(connection)
        with other.lease("s", wait=0):
            pass
        before = contents(connection)

        with pytest.raises(LeaseLostError):
            WRITES["create_message"](repository)

        assert contents(connection) == before


@EACH_WRITE
def test_nothing_is_stored_by_a_write_that_met_a_takeover_under_way(
    repository: PostgresSessionRepository,
    connection: Connection,
    watcher: Connection,
    thread: ThreadPoolExecutor,
    write: str,
) -> None:
    """The takeover is committed after the write has begun: a check that takes no lock would have passed before."""
    store(repository, connection)
    with repository.lease(session_of(write)):
        with connection.transaction():
            connection.execute("UPDATE strands_leases SET term = gen_random_uuid()")
            before = contents(connection)
            writing = thread.submit((CREATE_SESSION | WRITES)[write], repository)
            wait_until(lambda: blocked(watcher) == 1)

        with pytest.raises(LeaseLostError):
            writing.result(30)

        assert contents(connection) == before


def test_write_that_met_a_takeover_that_was_rolled_back_is_stored(
    repository: PostgresSessionRepository,
    connection: Connection,
    watcher: Connection,
    thread: ThreadPoolExecutor,
) -> None:
    store(repository, connection)
    with repository.lease("s"):
        with connection.transaction(force_rollback=True):
            connection.execute("UPDATE strands_leases SET term = gen_random_uuid()")
            writing = thread.submit(WRITES["create_message"], repository)
            wait_until(lambda: blocked(watcher) == 1)
        writing.result(30)

    assert texts(connection, "s", "a") == ["hello", "hello"]


def test_takeover_waits_for_a_write_that_has_passed_its_check(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    watcher: Connection,
) -> None:
    store(repository, connection)

    def take_over() -> list[str]:
        with other.lease("s", wait=0):
            return texts(watcher, "s", "a")

    with repository.lease("s"), ThreadPoolExecutor(2) as threads:
        expire(connection)
        with connection.transaction(force_rollback=True):
            # The write has to wait for the end of this transaction, since it stores a message with the same index.
            connection.execute(
                "INSERT INTO strands_messages (session_id, agent_id, message_id, message, write_id, created_at, "
                "updated_at) VALUES ('s', 'a', 1, '{}', gen_random_uuid(), now(), now())"
            )
            writing = threads.submit(WRITES["create_message"], repository)
            wait_until(lambda: blocked(watcher) == 1)
            taking_over = threads.submit(take_over)
            wait_until(lambda: blocked(watcher) == 2)

        writing.result(30)
        assert taking_over.result(30) == ["hello", "hello"]


def test_writer_without_a_lease_is_not_stopped_by_one(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    with repository.lease("s"):
        build(other)("1")

    assert texts(connection) == ["1", "ok"]


def test_repository_writes_other_sessions_without_the_term(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    with repository.lease("s"):
        expire(connection)
        with other.lease("s", wait=0):
            build(repository, "t")("1")

    assert texts(connection, "t") == ["1", "ok"]


def test_repository_writes_without_a_term_after_the_block(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    with repository.lease("s"):
        build(repository)("1")
    with other.lease("s"):
        build(repository, replies=[["then"]])("2")

    assert texts(connection) == ["1", "ok", "2", "then"]


def test_write_whose_lease_was_removed_is_refused(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    store(repository, connection)
    with repository.lease("s"):
        connection.execute("DELETE FROM strands_leases")
        before = contents(connection)

        with pytest.raises(LeaseLostError, match="or its lease was deleted"):
            WRITES["create_message"](repository)

        assert contents(connection) == before


# Writing through a manager


def append(agent: Agent, manager: PostgresSessionManager) -> None:
    manager.append_message(saying("next"), agent)


def sync(agent: Agent, manager: PostgresSessionManager) -> None:
    agent.state.set("changed", True)
    manager.sync_agent(agent)


def run_a_turn(agent: Agent, manager: PostgresSessionManager) -> None:
    agent("a turn")


def redact(agent: Agent, manager: PostgresSessionManager) -> None:
    manager.redact_latest_message(saying("[removed]"), agent)


def build_another_agent(agent: Agent, manager: PostgresSessionManager) -> None:
    Agent(agent_id="b", session_manager=manager, model=ScriptedModel([["ok"]]))


def build_another_agent_with_messages(agent: Agent, manager: PostgresSessionManager) -> None:
    messages = [saying("given")]
    Agent(agent_id="b", messages=messages, session_manager=manager, model=ScriptedModel([["ok"]]))


def initialize_a_multi_agent(agent: Agent, manager: PostgresSessionManager) -> None:
    manager.initialize_multi_agent(Team("n", {}))


def sync_a_multi_agent(agent: Agent, manager: PostgresSessionManager) -> None:
    manager.sync_multi_agent(TEAM)


TEAM = Team("m", {})

MANAGER_WRITES = (
    append,
    sync,
    run_a_turn,
    redact,
    build_another_agent,
    build_another_agent_with_messages,
    initialize_a_multi_agent,
    sync_a_multi_agent,
)
EACH_MANAGER_WRITE = pytest.mark.parametrize("write", MANAGER_WRITES, ids=lambda write: write.__name__)


def build_all(repository: PostgresSessionRepository) -> tuple[Agent, PostgresSessionManager]:
    """Build a manager with an agent that has had a turn and a multi-agent."""
    manager = PostgresSessionManager("s", repository)
    agent = Agent(session_manager=manager, model=ScriptedModel([["ok"]]), callback_handler=None)
    agent("first")
    manager.initialize_multi_agent(TEAM)
    return agent, manager


@EACH_MANAGER_WRITE
def test_manager_in_the_block_writes(
    repository: PostgresSessionRepository,
    connection: Connection,
    write: Callable[[Agent, PostgresSessionManager], None],
) -> None:
    with repository.lease("s"):
        agent, manager = build_all(repository)
        before = contents(connection)

        write(agent, manager)

        assert contents(connection) != before


@EACH_MANAGER_WRITE
def test_manager_stores_nothing_after_a_takeover_and_refuses_all_that_follows(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    write: Callable[[Agent, PostgresSessionManager], None],
) -> None:
    with repository.lease("s"):
        agent, manager = build_all(repository)
        connection.execute("UPDATE strands_sessions SET updated_at = updated_at - interval '1 hour'")
        expire(connection)
        with other.lease("s", wait=0):
            before = contents(connection)
            with pytest.raises(LeaseLostError) as first:
                write(agent, manager)
            assert contents(connection) == before

        # Nobody holds the session any more, but the manager has failed.
        before = contents(connection)
        for each in (append, sync, run_a_turn, redact, sync_a_multi_agent):
            with pytest.raises(LeaseLostError) as later:
                each(agent, manager)
            assert later.value is first.value
        assert contents(connection) == before


def test_turn_after_a_takeover_does_not_reach_its_model(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    model = ScriptedModel([["never said"]])
    with repository.lease("s"):
        agent = build(repository, model=model)
        expire(connection)
        with other.lease("s", wait=0):
            build(other)("theirs")
            with pytest.raises(LeaseLostError):
                agent("mine")

    assert model.calls == []
    assert texts(connection) == ["theirs", "ok"]


def test_manager_of_a_lost_lease_does_not_write_under_a_later_one_of_the_process(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    with repository.lease("s"):
        lost = build(repository)
        expire(connection)
        with repository.lease("s", wait=0):
            build(repository, replies=[["theirs"]])
            before = contents(connection)

            with pytest.raises(LeaseLostError):
                lost("mine")

            assert contents(connection) == before
            build(repository, replies=[["new"]])("later")
    assert texts(connection) == ["later", "new"]


# The end of the process, or of the repository


def test_close_frees_the_session_and_ends_the_thread(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    with repository.lease("s"), repository.lease("t"):
        repository.close()

        assert rows(connection) == []
        wait_until(lambda: renewers() == 0)
        with other.lease("s", wait=0):
            pass
    assert rows(connection) == []


def test_close_frees_the_session_though_the_pool_is_the_callers(
    dsn: str, pool_options: dict[str, Any], other: PostgresSessionRepository, connection: Connection
) -> None:
    with ConnectionPool(dsn, open=True, min_size=1, max_size=1, **pool_options) as pool:
        repository = PostgresSessionRepository(pool)
        with repository.lease("s"):
            repository.close()
            assert rows(connection) == []
            with other.lease("s", wait=0) as lease:
                assert rows(connection) == [("s", str(lease.term))]
        with pool.connection() as own:
            assert own.execute("SELECT 1").fetchone() == (1,)
    wait_until(lambda: renewers() == 0)


FORK = """
import os, sys, threading
import psycopg
from support.agents import build
from support.waiting import wait_until
from strands_psycopg import PostgresSessionRepository, SessionBusyError

def renewers():
    return sum(thread.name == "strands-psycopg-leases" for thread in threading.enumerate())

def lease_row():
    with psycopg.connect(sys.argv[1]) as connection:
        return connection.execute("SELECT term, expires_at FROM strands_leases").fetchone()

repository = PostgresSessionRepository(sys.argv[1], kwargs={"prepare_threshold": None})
with repository.lease("s", ttl=0.9) as lease:
    agent = build(repository, replies=[["parent"]])
    child = os.fork()
    if child == 0:
        print("renewing threads in the child:", renewers(), flush=True)
        try:
            repository.lease("s", wait=0).__enter__()
        except SessionBusyError:
            print("busy for the child", flush=True)
    else:
        status = os.waitpid(child, 0)[1]
        term, expires_at = lease_row()
        print("held by the parent:", status == 0 and term == lease.term, flush=True)
        for _ in range(4):
            wait_until(lambda: lease_row()[1] > expires_at)
            expires_at = lease_row()[1]
        agent("after the child")
        print("renewing threads in the parent:", renewers(), flush=True)
# The child, too, leaves the block and closes the repository.
repository.close()
if child == 0:
    os._exit(0)
print("after the parent:", lease_row())
"""


def test_forked_child_neither_holds_nor_frees_the_session(dsn: str, connection: Connection) -> None:
    assert processes.run(FORK, dsn).splitlines() == [
        "renewing threads in the child: 0",
        "busy for the child",
        "held by the parent: True",
        "renewing threads in the parent: 1",
        "after the parent: None",
    ]
    assert texts(connection) == ["after the child", "parent"]


# Clocks


def take_over(other: PostgresSessionRepository, connection: Connection) -> Lease:
    """Make the lease expire and enter a new one; both again where the holder has renewed its own in between."""
    while True:
        expire(connection)
        with suppress(SessionBusyError):
            return other.lease("s", wait=0).__enter__()


def hold_and_take_over(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    """Go through the life of a lease: held, renewed, written under, busy, expired, taken over, freed."""
    now = one(connection, "SELECT clock_timestamp()")
    with repository.lease("s", ttl=0.6) as lease:
        first = expiry(connection)
        assert now < first - timedelta(seconds=0.6) <= one(connection, "SELECT clock_timestamp()")
        wait_until(lambda: expiry(connection) > first + timedelta(seconds=0.7))
        assert rows(connection) == [("s", str(lease.term))]
        build(repository)("mine")
        with pytest.raises(SessionBusyError) as busy:
            other.lease("s", wait=0).__enter__()
        since = datetime.fromisoformat(busy.value.since.replace("Z", "+00:00"))
        assert since == one(connection, "SELECT date_trunc('second', acquired_at) FROM strands_leases")
        new = take_over(other, connection)
        assert rows(connection) == [("s", str(new.term))]
        with pytest.raises(LeaseLostError):
            build(repository)("mine again")
        build(other)("theirs")
        new.__exit__(None, None, None)
    assert rows(connection) == []
    assert texts(connection) == ["mine", "ok", "theirs", "ok"]


@pytest.mark.parametrize("offset", [-3600, 3600])
def test_applications_clock_does_not_matter(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    offset: int,
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + offset)

    hold_and_take_over(repository, other, connection)


@pytest.mark.parametrize("zone", ["Pacific/Apia", "Asia/Kathmandu", "<odd>-13:45"])
def test_servers_time_zone_does_not_matter(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection, zone: str
) -> None:
    set_for_database(connection, "timezone", zone)
    set_for_database(connection, "datestyle", "SQL, DMY")
    set_for_database(connection, "intervalstyle", "sql_standard")

    hold_and_take_over(repository, other, connection)


@pytest.mark.parametrize("clocks_go", ["forward", "back"])
def test_day_on_which_clocks_change_has_24_hours(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    connection: Connection,
    clocks_go: str,
) -> None:
    soon = datetime.now(timezone.utc) + timedelta(hours=12)
    day = soon.timetuple().tm_yday - 1
    changes = f"{day}/{soon.hour}", f"{(day + 180) % 365}/0"
    summer_time = ",".join(changes if clocks_go == "forward" else reversed(changes))
    set_for_database(connection, "timezone", f"<winter>0<summer>,{summer_time}")

    with repository.lease("s", ttl=86_400):
        assert one(connection, "SELECT extract(epoch FROM expires_at) - extract(epoch FROM acquired_at) "
                   "FROM strands_leases") == 86_400  # fmt: skip
        connection.execute("UPDATE strands_leases SET expires_at = now() + interval '10 s'")
        with pytest.raises(SessionBusyError):
            other.lease("s", wait=0, ttl=86_400).__enter__()
        expire(connection)
        with other.lease("s", wait=0, ttl=86_400):
            pass


def set_for_database(connection: Connection, name: str, value: str) -> None:
    """Set an option for all connections that are made from now on."""
    statement = sql.SQL("ALTER DATABASE {} SET {} = {}")
    connection.execute(statement.format(sql.Identifier(connection.info.dbname), sql.Identifier(name), value))
