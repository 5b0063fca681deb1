"""Turns that outlive the main thread: nothing of them is lost."""

import pytest

from strands_psycopg import PostgresSessionRepository
from support import processes
from support.agents import build

_SCRIPT = """
import asyncio, atexit, sys, threading
from concurrent.futures import thread as executors
from strands_psycopg import PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import build
from support.waiting import wait_until

dsn, start, way, opened = sys.argv[1:]
asked = threading.Event()

class LateModel(ScriptedModel):
    async def stream(self, *arguments, **options):
        asked.set()
        while not executors._shutdown:
            await asyncio.sleep(0.01)
        async for event in super().stream(*arguments, **options):
            yield event

repository = PostgresSessionRepository(dsn)
if opened == "opened":
    repository.read_session("s")

def take_turn():
    if start == "later":
        wait_until(lambda: executors._shutdown)
    agent = build(repository, model=LateModel([("ok",)]))
    if way == "agent()":
        agent("hello")
    else:
        asyncio.run(agent.invoke_async("hello"))
    if start != "at exit":
        with repository.lease("s", wait=0):
            agent.state.set("key", "value")
            agent._session_manager.sync_agent(agent)
    repository.close()

if start == "at exit":
    atexit.register(take_turn)
else:
    threading.Thread(target=take_turn).start()
    if start == "before":
        asked.wait(60)
"""


@pytest.mark.parametrize(
    ("start", "way", "opened"),
    [
        ("before", "agent()", "unopened"),
        ("before", "invoke_async", "unopened"),
        # Strands' own agent() needs an executor, which Python refuses then.
        ("later", "invoke_async", "opened"),
        ("at exit", "invoke_async", "opened"),
    ],
)
def test_turn_that_goes_on_after_the_main_thread_has_ended_is_stored(
    dsn: str, start: str, way: str, opened: str
) -> None:
    # The crew's processes end as those of an interpreter of their own do; one of the latter shows that.
    if (start, way) == ("before", "agent()"):
        status, _, errors = processes.interpret(_SCRIPT, dsn, start, way, opened)
    else:
        status, _, errors = processes.start(_SCRIPT, dsn, start, way, opened, complete=True).finish()

    assert (status, errors) == (0, "")
    with PostgresSessionRepository(dsn) as repository:
        assert [each["content"][0]["text"] for each in build(repository).messages] == ["hello", "ok"]
