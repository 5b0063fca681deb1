"""How many threads work for the coroutines of one repository."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from strands.types.session import Session, SessionType

from strands_psycopg import PayloadContext, PostgresSessionRepository, calls, connections
from strands_psycopg.workers import Workers
from support.agents import build
from support.waiting import until

CALLS = 8
CONNECTIONS = 1
THREADS = CONNECTIONS + 2

# So long that only threads that never meet exceed it, on a busy machine too.
DEADLINE = 60


def meet(barrier: threading.Barrier) -> None:
    calls.pause(0)
    barrier.wait()


async def run_all(workers: Workers, work: Callable[[], object]) -> None:
    await asyncio.gather(*(workers.run_async(work) for _ in range(CALLS)))


async def run_until_few_threads_are_left(workers: Workers) -> None:
    while len(workers._threads.identifiers) > THREADS:
        await workers.run_async(int)


def test_calls_share_a_few_more_threads_than_connections() -> None:
    async def work() -> None:
        tasks = [asyncio.create_task(workers.run_async(go_on.wait)) for _ in range(CALLS)]
        await until(lambda: len(workers._threads.unfinished) == CALLS)
        started = len(workers._threads.identifiers)
        go_on.set()
        await asyncio.gather(*tasks)
        assert started == THREADS

    go_on = threading.Event()
    workers = Workers(DEADLINE, lambda: CONNECTIONS)
    asyncio.run(work())
    workers.close()


def test_calls_go_on_while_others_pause_and_their_threads_end_afterwards() -> None:
    async def work() -> None:
        await run_all(workers, partial(meet, threading.Barrier(CALLS, timeout=DEADLINE)))
        await asyncio.wait_for(run_until_few_threads_are_left(workers), DEADLINE)
        assert len(workers._threads.identifiers) == THREADS

    workers = Workers(DEADLINE, lambda: CONNECTIONS)
    asyncio.run(work())
    workers.close()


def test_calls_wait_together_for_a_pool_that_is_full_for_long(
    dsn: str, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        workers = repository._database.workers
        with psycopg.connect(dsn) as locker:
            locker.execute("LOCK strands_sessions")
            tasks = [
                asyncio.create_task(workers.run_async(partial(repository.read_session, "s"))) for _ in range(CALLS)
            ]
            await until(lambda: len(workers._threads.stalled) == CALLS - CONNECTIONS)
        assert {read.session_id for read in await asyncio.gather(*tasks) if read} == {"s"}

    monkeypatch.setattr(connections, "_WAIT_WHILE_BUSY", 0.05)
    with PostgresSessionRepository(dsn, max_size=CONNECTIONS) as repository:
        repository.create_session(Session("s", SessionType.AGENT))
        asyncio.run(work())


def test_payload_codecs_of_many_turns_work_at_once(dsn: str) -> None:
    class Codec:
        """Whose documents wait for one another, as they do for a key service."""

        def encode(self, document: Any, context: PayloadContext) -> Any:
            if context.kind == "message":
                barrier.wait()
            return document

        def decode(self, document: Any, context: PayloadContext) -> Any:
            return document

    async def work() -> None:
        await asyncio.gather(*(agent.invoke_async("hello") for agent in agents))

    barrier = threading.Barrier(CALLS, timeout=DEADLINE)
    with PostgresSessionRepository(dsn, max_size=CONNECTIONS, payload_codec=Codec()) as repository:
        agents = [build(repository, f"s{number}") for number in range(CALLS)]
        asyncio.run(work())
