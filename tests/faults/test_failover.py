"""A primary that is lost or no longer takes writes: sessions go on on another, or on a fresh connection."""

from collections.abc import AsyncIterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from strands.types.content import Messages
from strands.types.streaming import StreamEvent

from strands_psycopg import DatabaseError, PostgresSessionRepository
from strands_psycopg.embedded import Server
from strands_psycopg.scripted_model import ScriptedModel
from support import replicas
from support.agents import build, dump
from support.load import Load, stored, transcript
from support.replicas import Pair, execute
from support.retries import Retries
from support.scale import scale
from support.tables import texts
from support.waiting import wait_until

Connection = psycopg.Connection[Any]

READ_ONLY = "in a read-only transaction (SQLSTATE 25006)"


@pytest.fixture
def pair() -> Iterator[Pair]:
    with replicas.pair() as pair:
        with PostgresSessionRepository(pair.dsn) as repository:
            repository.ensure_schema()
        yield pair


def test_all_turns_of_four_processes_survive_the_loss_of_a_synchronous_primary(pair: Pair) -> None:
    pair.wait_for_every_commit()
    with Load(pair.dsn, scale(60, 1000)) as load:
        for acknowledged in load:
            if acknowledged == load.turns_each:
                pair.primary.crash()
                pair.promote()

    print(f"{load.acknowledged} turns, 1 failover, {load.retries} retries")
    assert load.retries > 0
    with psycopg.connect(pair.standby.dsn, autocommit=True) as look, PostgresSessionRepository(pair.dsn) as repository:
        for session_id in load.sessions:
            assert stored(look, session_id) == transcript(load.turns_each)
            build(repository, session_id)("and now?")
            assert stored(look, session_id) == [*transcript(load.turns_each), "user: and now?", "assistant: ok"]


def test_turn_under_way_goes_on_on_the_new_primary(pair: Pair, retries: Retries) -> None:
    pair.wait_for_every_commit()

    class LosingModel(ScriptedModel):
        async def stream(self, messages: Messages, *arguments: Any, **kwargs: Any) -> AsyncIterable[StreamEvent]:
            pair.primary.crash()
            promotion.append(executor.submit(promote_after_first_retry))
            async for event in super().stream(messages, *arguments, **kwargs):
                yield event

    def promote_after_first_retry() -> None:
        wait_until(retries)
        pair.promote()

    promotion: list[Any] = []
    with PostgresSessionRepository(pair.dsn) as repository, ThreadPoolExecutor() as executor:
        agent = build(repository, model=LosingModel([["answer"]]))
        agent("ask")
        promotion[0].result()
        assert dump(build(repository)) == dump(agent)
    with psycopg.connect(pair.standby.dsn) as look:
        assert stored(look, "s") == ["user: ask", "assistant: answer"]


class Switch:
    """Lets a server take no writes any more, or take them again, while connections to it live on."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def __call__(self, *, read_only: bool) -> None:
        setting = "on" if read_only else "off"
        execute(self._dsn, f"ALTER SYSTEM SET default_transaction_read_only = {setting}")
        execute(self._dsn, "SELECT pg_reload_conf()")
        wait_until(lambda: execute(self._dsn, "SHOW default_transaction_read_only") == [(setting,)])


def pooled(dsn: str) -> int:
    """Count the connections of the pools to one server."""
    found: int = execute(dsn, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'strands-psycopg'")[0][0]
    return found


def test_connections_to_an_old_primary_that_lives_on_cost_one_retry(pair: Pair, retries: Retries) -> None:
    pair.wait_for_every_commit()
    with PostgresSessionRepository(pair.dsn, min_size=8) as repository:
        agent = build(repository)
        agent("first")
        wait_until(lambda: pooled(pair.primary.dsn) >= 8)
        Switch(pair.primary.dsn)(read_only=True)
        pair.promote()

        agent("second")

        assert [retry.error.endswith(READ_ONLY) for retry in retries()] == [True]
        wait_until(lambda: pooled(pair.primary.dsn) == 0)
        assert dump(build(repository)) == dump(agent)
    with psycopg.connect(pair.standby.dsn) as look:
        assert texts(look) == ["first", "ok", "second", "ok"]


def test_connection_that_was_in_use_when_the_primary_changed_is_no_fresh_one(pair: Pair, retries: Retries) -> None:
    class Pool(ConnectionPool[Connection]):
        """Has a connection given back just before the retry asks for one."""

        in_use: Connection | None = None

        def getconn(self, timeout: float | None = None) -> Connection:
            if retries() and self.in_use is not None:
                connection, self.in_use = self.in_use, None
                return connection
            return super().getconn(timeout)

    pair.wait_for_every_commit()
    with Pool(pair.dsn, min_size=2, open=True) as pool:
        pool.wait()
        repository = PostgresSessionRepository(pool)
        agent = build(repository)
        agent("first")
        pool.in_use = pool.getconn()
        Switch(pair.primary.dsn)(read_only=True)
        pair.promote()

        agent("second")

        assert [retry.error.endswith(READ_ONLY) for retry in retries()] == [True, True]
        assert dump(build(repository)) == dump(agent)
    with psycopg.connect(pair.standby.dsn) as look:
        assert texts(look) == ["first", "ok", "second", "ok"]


def test_server_that_takes_no_writes_is_an_error_after_one_fresh_connection(
    own_server: Server, own_dsn: str, look: Connection, retries: Retries
) -> None:
    switch = Switch(own_dsn)
    with PostgresSessionRepository(own_dsn, min_size=4) as repository:
        agent = build(repository)
        agent("first")
        # Those that the pool opens by itself would be fresh, too.
        wait_until(lambda: pooled(own_dsn) >= 4)
        switch(read_only=True)
        try:
            with pytest.raises(DatabaseError, match="the server is read-only; connect to the primary") as raised:
                agent("lost")
            assert raised.value.sqlstate == "25006"
            assert [retry.error.endswith(READ_ONLY) for retry in retries()] == [True]
            assert texts(look) == ["first", "ok"]
        finally:
            switch(read_only=False)
        with pytest.raises(DatabaseError) as refused:
            agent("refused")
        assert refused.value is raised.value
        build(repository)("second")
    assert texts(look) == ["first", "ok", "second", "ok"]
