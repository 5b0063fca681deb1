"""Pools that are too small for the moment, and pools whose connections all died."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from strands.types.session import Session, SessionType

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository
from strands_psycopg.embedded import Server
from support.agents import build
from support.load import stored
from support.retries import Retries
from support.tables import blocked, texts
from support.waiting import wait_until
from support.writes import agent, message

Connection = psycopg.Connection[Any]

THREADS = 50

# What a busy machine may add before a thread that is due runs.
SLACK = 5.0

POOLED = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'strands-psycopg'"


def pooled(look: Connection) -> int:
    found: int = look.execute(POOLED).fetchall()[0][0]
    return found


def test_pool_of_two_serves_fifty_threads(own_dsn: str, look: Connection, retries: Retries) -> None:
    def converse(number: int) -> None:
        talker = build(repository, f"s{number}")
        barrier.wait()
        for turn in range(2):
            talker(f"ask {turn}")

    barrier = threading.Barrier(THREADS)
    with PostgresSessionRepository(own_dsn, max_size=2) as repository, ThreadPoolExecutor(THREADS) as executor:
        for turn in [executor.submit(converse, number) for number in range(THREADS)]:
            turn.result()
        assert pooled(look) <= 2

    for number in range(THREADS):
        asked = [line for turn in range(2) for line in (f"user: ask {turn}", "assistant: ok")]
        assert stored(look, f"s{number}") == asked
    assert retries() == []


def test_pool_that_is_full_past_its_timeout_is_an_error_in_time_and_recovers(
    own_dsn: str, look: Connection, retries: Retries
) -> None:
    with (
        PostgresSessionRepository(own_dsn, max_size=2, timeout=0.5) as repository,
        ThreadPoolExecutor() as executor,
    ):
        agents = [build(repository, session_id) for session_id in ("a", "b", "c")]
        with psycopg.connect(own_dsn) as locker:
            locker.execute("SELECT FROM strands_agents FOR UPDATE")
            turns = [executor.submit(each, "hello") for each in agents[:2]]
            wait_until(lambda: blocked(look) == 2)
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailableError) as raised:
                agents[2]("lost")
            assert time.monotonic() - began < 0.5 + SLACK
        for turn in turns:
            turn.result()
        with pytest.raises(DatabaseUnavailableError) as refused:
            agents[2]("refused")
        assert refused.value is raised.value
        build(repository, "c")("again")

    assert str(raised.value) == (
        "storing message 0 of agent 'default' in session 'c': all 2 connections of the pool were in use "
        "for 0.5 s; raise max_size or timeout, or lower the load"
    )
    assert retries() == []
    assert [texts(look, session_id) for session_id in ("a", "b", "c")] == [
        ["hello", "ok"],
        ["hello", "ok"],
        ["again", "ok"],
    ]


def test_pool_that_takes_no_more_waiting_calls_is_an_error_at_once(own_dsn: str, look: Connection) -> None:
    with (
        PostgresSessionRepository(own_dsn, max_size=1, max_waiting=1) as repository,
        ThreadPoolExecutor() as executor,
    ):
        repository.create_session(Session("s", SessionType.AGENT))
        repository.create_agent("s", agent("new"))
        with psycopg.connect(own_dsn) as locker:
            locker.execute("SELECT FROM strands_agents FOR UPDATE")
            first = executor.submit(repository.create_message, "s", "a", message(0, "first"))
            wait_until(lambda: blocked(look) == 1)
            pool = repository._database._connections._source.pool()
            reading = executor.submit(repository.read_session, "s")
            wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
            with pytest.raises(DatabaseUnavailableError, match="raise max_waiting or max_size"):
                repository.read_session("s")
        first.result()
        assert reading.result() is not None
    assert texts(look, agent_id="a") == ["first"]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_under_idle_connections_costs_one_retry_at_most(
    mode: Any, own_server: Server, own_dsn: str, retries: Retries
) -> None:
    with PostgresSessionRepository(own_dsn, min_size=8) as repository:
        talker = build(repository)
        pool = repository._database._connections._source.pool()
        # A connection that the server has already may still be on its way into the pool.
        wait_until(lambda: pool.get_stats()["pool_available"] >= 8)
        own_server.stop(mode)
        own_server.start()

        talker("hello")

        assert len(retries()) <= 1
    with psycopg.connect(own_dsn) as look:
        assert texts(look) == ["hello", "ok"]


def test_restart_under_the_callers_pool_costs_one_retry_at_most(
    own_server: Server, own_dsn: str, retries: Retries
) -> None:
    with ConnectionPool(own_dsn, min_size=8, open=True) as pool:
        repository = PostgresSessionRepository(pool)
        talker = build(repository)
        pool.wait()
        own_server.restart()

        talker("hello")

        assert len(retries()) <= 1
    with psycopg.connect(own_dsn) as look:
        assert texts(look) == ["hello", "ok"]


def test_all_threads_recover_from_a_restart(own_server: Server, own_dsn: str, retries: Retries) -> None:
    def converse(number: int) -> None:
        talker = build(repository, f"s{number}")
        for turn in range(12):
            talker(f"ask {turn}")
            done.release()

    done = threading.Semaphore(0)
    with (
        PostgresSessionRepository(own_dsn, max_size=4, max_waiting=20) as repository,
        ThreadPoolExecutor(8) as executor,
    ):
        turns = [executor.submit(converse, number) for number in range(8)]
        for turns_before in (20, 60):
            for _ in range(turns_before):
                assert done.acquire(timeout=60)
            own_server.restart()
        for turn in turns:
            turn.result()

    assert len(retries()) > 0
    with psycopg.connect(own_dsn) as look:
        for number in range(8):
            asked = [line for turn in range(12) for line in (f"user: ask {turn}", "assistant: ok")]
            assert stored(look, f"s{number}") == asked
