"""Two databases in one process, of which one is away: turns on the other one do not wait for it."""

import asyncio

import pytest

from strands_psycopg import PostgresSessionRepository
from support.agents import build
from support.proxy import Proxy
from support.scale import scale
from support.waiting import until


@pytest.mark.parametrize("fault", ["silent", "refused"])
@pytest.mark.parametrize("number", [10, scale(300, 1000)])
def test_turns_that_wait_for_one_database_hold_up_no_turn_on_another(
    dsn: str, repository: PostgresSessionRepository, fault: str, number: int
) -> None:
    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, max_size=64) as away:
        waiting = build(away, "waiting")
        healthy = build(repository, "healthy")
        calls = [lambda: away.read_session("missing")] * number

        async def work() -> None:
            if fault == "silent":
                proxy.hold()
            else:
                proxy.refuse()
            tasks = [asyncio.create_task(away._database.workers.run_async(call)) for call in calls]
            turn = asyncio.create_task(waiting.invoke_async("away"))
            await until(lambda: len(away._database.workers._threads.unfinished) > number)

            await healthy.invoke_async("hello")

            assert not turn.done()
            assert not any(task.done() for task in tasks)
            if fault == "silent":
                proxy.release()
            else:
                proxy.accept()
            assert set(await asyncio.gather(*tasks)) == {None}
            assert (await turn).stop_reason == "end_turn"

        asyncio.run(work())
