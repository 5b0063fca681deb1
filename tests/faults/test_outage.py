"""A server that is away, for less and for more than ``retry_timeout``."""

import asyncio
import logging
import re
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository, outage
from strands_psycopg.embedded import Server
from support.agents import build, dump
from support.proxy import Proxy
from support.retries import Retries
from support.tables import texts
from support.waiting import until, wait_until

Connection = psycopg.Connection[Any]

RETRY_TIMEOUT = 2.0

# What a busy machine may add before a thread that is due runs.
SLACK = 5.0


def test_manager_refuses_after_a_long_outage_and_a_new_one_sees_what_was_acknowledged(
    own_server: Server, own_dsn: str, retries: Retries, caplog: pytest.LogCaptureFixture
) -> None:
    with PostgresSessionRepository(own_dsn, retry_timeout=RETRY_TIMEOUT) as repository:
        agent = build(repository)
        agent("first")
        acknowledged = dump(agent)
        own_server.stop()

        began = time.monotonic()
        with pytest.raises(DatabaseUnavailableError) as raised:
            agent("lost")
        assert RETRY_TIMEOUT / 2 < time.monotonic() - began < RETRY_TIMEOUT + SLACK

        tried = len(retries())
        with pytest.raises(DatabaseUnavailableError) as refused:
            agent("refused")
        frames = len(traceback.extract_tb(refused.value.__traceback__))
        own_server.start()
        with pytest.raises(DatabaseUnavailableError) as refused_again:
            agent("refused, too")
        assert refused.value is refused_again.value is raised.value
        # Nor does what it refers to grow with each refusal.
        assert len(traceback.extract_tb(refused_again.value.__traceback__)) == frames
        assert len(retries()) == tried

        again = build(repository)
        assert dump(again) == acknowledged
        again("second")
    with psycopg.connect(own_dsn) as look:
        assert texts(look) == ["first", "ok", "second", "ok"]

    assert str(raised.value).startswith(
        "storing message 2 of agent 'default' in session 's': could not connect within the 2 s of retry_timeout: "
    )
    # On a busy machine, the last attempt may have met the server while it stopped.
    assert any(reason in str(raised.value) for reason in ("Connection refused", "server closed the connection"))
    password = str(conninfo_to_dict(own_dsn)["password"])
    assert password not in "".join(traceback.format_exception(raised.value)) + caplog.text


def test_each_retry_is_logged_and_pauses_grow_by_chance(own_dsn: str, retries: Retries) -> None:
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn, retry_timeout=4) as repository:
        repository.read_session("s")
        proxy.refuse()
        with pytest.raises(DatabaseUnavailableError):
            repository.read_session("s")

    logged = retries()
    assert [retry.attempt for retry in logged] == list(range(1, len(logged) + 1))
    assert {retry.operation for retry in logged} == {"reading session 's'"}
    assert all("refused" in retry.error for retry in logged[1:])
    # Each pause lies between a half of its longest and that, which doubles.
    shares = [retry.pause / (0.05 * 2 ** (retry.attempt - 1)) for retry in logged[:6]]
    assert len(shares) >= 4
    assert all(0.5 <= share <= 1.0 for share in shares)
    assert len(set(shares)) > 1


def test_turn_during_a_short_outage_waits_and_goes_on(own_dsn: str, look: Connection, retries: Retries) -> None:
    with (
        Proxy(own_dsn) as proxy,
        PostgresSessionRepository(proxy.dsn) as repository,
        ThreadPoolExecutor() as executor,
    ):
        agent = build(repository)
        proxy.refuse()
        turn = executor.submit(agent, "hello")
        wait_until(lambda: len(retries()) >= 3)
        assert not turn.done()
        proxy.accept()
        turn.result()
        assert dump(build(repository)) == dump(agent)
    assert texts(look) == ["hello", "ok"]


def test_event_loop_goes_on_during_an_outage(own_dsn: str, look: Connection, retries: Retries) -> None:
    ticks: list[int] = []

    async def tick() -> None:
        while True:
            ticks.append(len(retries()))
            await asyncio.sleep(0.001)

    async def converse() -> None:
        ticking = asyncio.create_task(tick())
        proxy.refuse()
        turn = asyncio.create_task(agent.invoke_async("hello"))
        await until(lambda: len(retries()) >= 3)
        proxy.accept()
        await turn
        ticking.cancel()

    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        agent = build(repository)
        asyncio.run(converse())
    # It ticked between any two attempts, and many times.
    assert set(ticks) >= {0, 1, 2, 3}
    assert ticks.count(1) + ticks.count(2) > 20
    assert texts(look) == ["hello", "ok"]


def test_server_that_is_away_is_not_taken_for_a_full_pool(own_dsn: str, look: Connection, retries: Retries) -> None:
    # A caller's pool tries again after pauses of its own, which may be longer than its timeout.
    with Proxy(own_dsn) as proxy, ConnectionPool(proxy.dsn, min_size=1, timeout=0.5, open=True) as pool:
        repository = PostgresSessionRepository(pool)
        agent = build(repository)
        with ThreadPoolExecutor() as executor:
            proxy.refuse()
            turn = executor.submit(agent, "hello")
            wait_until(lambda: len(retries()) >= 6 or turn.done())
            assert not turn.done()
            proxy.accept()
            turn.result()
    assert texts(look) == ["hello", "ok"]


def test_repository_first_used_during_an_outage_works_when_it_is_over(
    own_dsn: str, look: Connection, retries: Retries
) -> None:
    with (
        Proxy(own_dsn) as proxy,
        PostgresSessionRepository(proxy.dsn, min_size=3) as repository,
        ThreadPoolExecutor() as executor,
    ):
        proxy.refuse()
        agent = executor.submit(build, repository)
        wait_until(retries)
        proxy.accept()
        agent.result()("hello")
    assert texts(look) == ["hello", "ok"]


def test_closing_during_an_outage_ends_the_attempts(own_dsn: str, retries: Retries) -> None:
    with Proxy(own_dsn) as proxy, ThreadPoolExecutor() as executor:
        repository = PostgresSessionRepository(proxy.dsn)
        repository.read_session("s")
        proxy.refuse()
        reading = executor.submit(repository.read_session, "s")
        wait_until(retries)
        repository.close()
        with pytest.raises(DatabaseUnavailableError, match="the connection pool is closed"):
            reading.result()


def test_outage_is_few_lines_of_the_log_and_its_end_is_one(
    own_server: Server, own_dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "strands_psycopg.outage")
    monkeypatch.setattr(outage, "_INTERVAL", 1.0)
    with PostgresSessionRepository(own_dsn) as repository, ThreadPoolExecutor(4) as executor:
        repository.read_session("s")
        own_server.stop()
        reading = [executor.submit(repository.read_session, "s") for _ in range(4)]
        wait_until(lambda: len(lines(caplog, logging.WARNING)) >= 2)
        own_server.start()
        for each in reading:
            each.result()

    first, *more = lines(caplog, logging.WARNING)
    assert re.fullmatch(r"failures=<1>, error=<.+> \| reading session 's' failed, retrying; more failures .*", first)
    assert all(int(line.removeprefix("failures=<").partition(">")[0]) > 1 for line in more)
    (recovered,) = lines(caplog, logging.INFO)
    server = conninfo_to_dict(own_dsn)
    assert re.fullmatch(
        rf"attempts=<\d+>, seconds=<\d+\.\d>, outage=<\d+\.\d>, server=<{server['host']}:{server['port']}> \| "
        "reading session 's' succeeded, the database is available again",
        recovered,
    )


def test_pool_has_a_name_of_its_own_and_one_of_the_callers_goes_on_warning(
    own_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(own_dsn) as proxy:
        proxy.refuse()
        with PostgresSessionRepository(proxy.dsn, retry_timeout=0) as repository:
            assert repository._database._connections._source.pool().name.startswith("strands-psycopg-")
            with pytest.raises(DatabaseUnavailableError):
                repository.read_session("s")
        assert [record for record in caplog.records if record.name == "psycopg.pool"] == []

        with (
            ConnectionPool(proxy.dsn, min_size=1, open=True, reconnect_timeout=0) as pool,
            pytest.raises(DatabaseUnavailableError),
        ):
            PostgresSessionRepository(pool, retry_timeout=0).read_session("s")
        assert "error connecting in 'pool-" in caplog.text


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return what was logged at a level, by this package or by psycopg."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]
