"""Servers that stop answering without hanging up: the watchdog counts their connections as lost."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository
from strands_psycopg.embedded import Server
from support.agents import build, dump
from support.proxy import Proxy
from support.retries import Retries
from support.stopping import stopped
from support.tables import blocked, contents, texts
from support.waiting import wait_until
from support.writes import WRITES, Write

Connection = psycopg.Connection[Any]

OF_THE_POOL = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'strands-psycopg' ORDER BY pid
"""


EVERYONE = "SELECT pid FROM pg_stat_activity"

# What a busy machine may add before a thread that is due runs.
SLACK = 5.0


def everyone(look: Connection) -> list[int]:
    """Return the processes of the whole server, but for its first."""
    return [pid for (pid,) in look.execute(EVERYONE).fetchall()]


def backends(look: Connection) -> list[int]:
    return [pid for (pid,) in look.execute(OF_THE_POOL).fetchall()]


@pytest.mark.parametrize("write", WRITES, ids=str)
def test_late_landing_of_a_first_attempt_changes_nothing(
    write: Write, own_dsn: str, look: Connection, retries: Retries
) -> None:
    with PostgresSessionRepository(own_dsn, response_timeout=0.5) as repository:
        write.prepare(repository, "s")
        first = backends(look)
        with stopped(*first):
            write.act(repository, "s")
            assert len(retries()) == 1
            write.follow(repository, "s")
            newest = contents(look)

        wait_until(lambda: not set(first) & set(backends(look)))
        assert contents(look) == newest


def test_late_landing_during_a_turn_changes_nothing(own_dsn: str, look: Connection, retries: Retries) -> None:
    with PostgresSessionRepository(own_dsn, response_timeout=0.5) as repository:
        agent = build(repository)
        agent("first")
        first = backends(look)
        with stopped(*first):
            agent("second")
            agent("third")
            assert len(retries()) == 1
            newest = contents(look)

        wait_until(lambda: not set(first) & set(backends(look)))
        assert contents(look) == newest
        assert dump(build(repository)) == dump(agent)
        agent("fourth")
    assert texts(look) == ["first", "ok", "second", "ok", "third", "ok", "fourth", "ok"]


def test_one_stopped_backend_costs_one_response_timeout_however_many_are_idle(
    own_dsn: str, look: Connection, retries: Retries
) -> None:
    with PostgresSessionRepository(own_dsn, response_timeout=0.5, min_size=8) as repository:
        agent = build(repository)
        wait_until(lambda: len(backends(look)) >= 8)
        with stopped(*backends(look)):
            agent("hello")
            assert len(retries()) == 1
    assert texts(look) == ["hello", "ok"]


def test_turn_goes_on_when_a_stopped_server_does(
    own_server: Server, own_dsn: str, look: Connection, retries: Retries
) -> None:
    with (
        PostgresSessionRepository(own_dsn, response_timeout=0.5, kwargs={"connect_timeout": 2}) as repository,
        ThreadPoolExecutor() as executor,
    ):
        agent = build(repository)
        with stopped(own_server.pid, *everyone(look)):
            turn = executor.submit(agent, "hello")
            wait_until(lambda: len(retries()) >= 2)
            assert not turn.done()
        turn.result()
        assert dump(build(repository)) == dump(agent)
    assert texts(look) == ["hello", "ok"]


def test_stopped_server_is_given_up_in_time_and_nothing_acknowledged_is_lost(
    own_server: Server, own_dsn: str, look: Connection
) -> None:
    retry_timeout, connect_timeout = 2.0, 2.0
    with PostgresSessionRepository(
        own_dsn, retry_timeout=retry_timeout, response_timeout=0.5, min_size=8, kwargs={"connect_timeout": 2}
    ) as repository:
        agent = build(repository)
        agent("first")
        wait_until(lambda: len(backends(look)) >= 8)
        acknowledged = texts(look)
        first = backends(look)
        with stopped(own_server.pid, *everyone(look)):
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailableError, match=r"timeout|timed out") as raised:
                agent("perhaps")
            assert time.monotonic() - began < retry_timeout + connect_timeout + SLACK
        with pytest.raises(DatabaseUnavailableError) as refused:
            agent("refused")
        assert refused.value is raised.value

        # The server has what was sent to it before it was given up, and may store it now.
        wait_until(lambda: not set(first) & set(backends(look)))
        assert acknowledged == ["first", "ok"]
        assert texts(look) in (acknowledged, [*acknowledged, "perhaps"])
        before = texts(look)
        build(repository)("next")
    assert texts(look) == [*before, "next", "ok"]


def test_turn_goes_on_when_a_proxy_that_stopped_answering_does(
    own_dsn: str, look: Connection, retries: Retries
) -> None:
    with (
        Proxy(own_dsn) as proxy,
        PostgresSessionRepository(proxy.dsn, response_timeout=0.5, kwargs={"connect_timeout": 2}) as repository,
        ThreadPoolExecutor() as executor,
    ):
        agent = build(repository)
        proxy.hold()
        turn = executor.submit(agent, "hello")
        wait_until(lambda: len(retries()) >= 2)
        assert not turn.done()
        proxy.release()
        turn.result()
        assert dump(build(repository)) == dump(agent)
    assert texts(look) == ["hello", "ok"]


def test_statement_that_waits_for_a_lock_past_response_timeout_stores_one_row(
    own_dsn: str, look: Connection, retries: Retries
) -> None:
    with PostgresSessionRepository(own_dsn, response_timeout=0.5) as repository, ThreadPoolExecutor() as executor:
        agent = build(repository)
        with psycopg.connect(own_dsn) as locker:
            locker.execute("SELECT FROM strands_agents FOR UPDATE")
            turn = executor.submit(agent, "hello")
            wait_until(lambda: len(retries()) == 1 and blocked(look) == 2)
        turn.result()
        assert dump(build(repository)) == dump(agent)
    assert texts(look) == ["hello", "ok"]


def test_answer_in_time_leaves_the_connection_as_it_is(own_dsn: str, look: Connection, retries: Retries) -> None:
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn, response_timeout=5, max_size=1) as repository:
        repository.read_session("s")
        first = backends(look)
        proxy.delay = 0.3
        for _ in range(3):
            repository.read_session("s")
        assert backends(look) == first
    assert retries() == []
