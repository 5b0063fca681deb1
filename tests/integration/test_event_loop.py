"""A turn under asyncio: the loop goes on while the database is slow, and a cancelled turn leaves nothing half done."""

import asyncio
import contextvars
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.hooks import AfterInvocationEvent

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel
from strands_psycopg.workers import Workers
from support.agents import LOOK_UP, build, dump, look_up
from support.proxy import Proxy
from support.waiting import until

UNPREPARED: dict[str, Any] = {"kwargs": {"prepare_threshold": None}}


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with Proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: Proxy) -> Iterator[PostgresSessionRepository]:
    """A repository that reaches the database through the proxy, and gives up soon."""
    with PostgresSessionRepository(proxy.dsn, retry_timeout=0, response_timeout=10, **UNPREPARED) as repository:
        yield repository


@pytest.fixture
def hops(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What has been run off the loop."""
    run, hops = Workers.run_async, list[object]()

    async def count(workers: Workers, work: Callable[[], object]) -> object:
        hops.append(work)
        return await run(workers, work)

    monkeypatch.setattr(Workers, "run_async", count)
    return hops


class Ticker:
    """A coroutine that ticks beside others."""

    async def __aenter__(self) -> "Ticker":
        self.ticks: list[float] = []
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            self.ticks.append(time.monotonic())
            await asyncio.sleep(0.002)

    @property
    def longest_gap(self) -> float:
        return max(later - earlier for earlier, later in itertools.pairwise(self.ticks))


def new_agent(repository: PostgresSessionRepository) -> Agent:
    return build(repository)


def agent_with_a_tool(repository: PostgresSessionRepository) -> Agent:
    return build(repository, replies=LOOK_UP, tools=[look_up])


def agent_with_a_megabyte_of_new_state(repository: PostgresSessionRepository) -> Agent:
    agent = build(repository)
    agent("1")
    agent.state.set("notes", [{"number": number, "text": "x" * 90} for number in range(8_000)])
    return agent


def agent_with_a_full_window(repository: PostgresSessionRepository) -> Agent:
    agent = build(repository, conversation_manager=SlidingWindowConversationManager(window_size=2))
    agent("1")
    return agent


@pytest.mark.parametrize(
    ("make", "answers"),
    [(new_agent, 2), (agent_with_a_tool, 4), (agent_with_a_megabyte_of_new_state, 2), (agent_with_a_full_window, 2)],
)
def test_loop_goes_on_while_every_answer_is_held_back(
    proxy: Proxy,
    far: PostgresSessionRepository,
    make: Callable[[PostgresSessionRepository], Agent],
    answers: int,
    record_property: Callable[[str, object], None],
) -> None:
    agent = make(far)
    before = proxy.round_trips

    async def turn() -> Ticker:
        async with Ticker() as ticker:
            proxy.delay = 0.5
            await agent.invoke_async("hello")
            proxy.delay = 0
        return ticker

    ticker = asyncio.run(turn())

    record_property("longest gap between ticks in ms", round(ticker.longest_gap * 1000, 1))
    assert proxy.round_trips - before == answers  # the pool may also be connecting once more
    for since, until_ in proxy.held:
        assert sum(since < tick < until_ for tick in ticker.ticks) > 20
    assert dump(build(far)) == dump(agent)


def test_each_event_with_something_to_write_is_one_hop_and_one_statement(
    proxy: Proxy, far: PostgresSessionRepository, hops: list[object]
) -> None:
    agent = build(far, replies=LOOK_UP, tools=[look_up])
    hops.clear()
    before = proxy.round_trips

    agent("How is the weather in Köln?")

    # Its four messages: the prompt and the tool's result with the agent's state.
    assert (len(hops), proxy.round_trips - before) == (4, 4)
    assert dump(build(far)) == dump(agent)


@pytest.mark.parametrize("length", [1, 10_000])
def test_what_a_full_window_drops_needs_no_statement_and_no_hop(
    proxy: Proxy, far: PostgresSessionRepository, hops: list[object], length: int
) -> None:
    agent = agent_with_a_full_window(far)
    agent.state.set("notes", "x" * length)
    agent("2")
    hops.clear()
    before = proxy.round_trips

    agent("3")

    assert (len(hops), proxy.round_trips - before) == (2, 2)
    assert dump(build(far)) == dump(agent)


def change_state_at_the_end(agent: Agent) -> None:
    def change(event: AfterInvocationEvent) -> None:
        event.agent.state.set("turns", 1)

    agent.hooks.add_callback(AfterInvocationEvent, change)


def test_new_state_at_the_end_of_a_turn_is_one_hop_and_one_statement(
    proxy: Proxy, far: PostgresSessionRepository, hops: list[object]
) -> None:
    agent = agent_with_a_full_window(far)
    change_state_at_the_end(agent)
    hops.clear()
    before = proxy.round_trips

    agent("2")

    assert (len(hops), proxy.round_trips - before) == (3, 3)
    assert dump(build(far)) == dump(agent)


def test_hook_with_nothing_to_write_stays_on_the_loop(
    repository: PostgresSessionRepository, hops: list[object]
) -> None:
    agent = build(repository)
    agent("1")
    hops.clear()

    asyncio.run(agent.hooks.invoke_callbacks_async(AfterInvocationEvent(agent=agent)))

    assert hops == []


def test_turn_of_a_restored_agent_needs_no_more_statements_than_its_messages(
    proxy: Proxy, far: PostgresSessionRepository
) -> None:
    build(far)("1")
    agent = build(far)
    before = proxy.round_trips

    agent("2")

    assert proxy.round_trips - before == 2


async def cause_of_cancellation(agent: Agent) -> BaseException | None:
    """Make the agent take a turn that will be cancelled; return the cause. Up to Python 3.10, a task's end hides it."""
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await agent.invoke_async("How is the weather in Köln?")
    return cancelled.value.__cause__


async def cancelled_while_held(proxy: Proxy, turn: "asyncio.Task[Any]", times: int) -> None:
    """Cancel the turn while the answer to its write is held; it must go on waiting for it."""
    await until(lambda: proxy.waiting)
    for _ in range(times):
        turn.cancel()
        for _ in range(20):
            await asyncio.sleep(0.001)
    assert not turn.done()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("message", [0, 1, 2, 3])
def test_turn_cancelled_during_a_write_ends_after_it_and_memory_and_database_agree(
    proxy: Proxy, far: PostgresSessionRepository, message: int, times: int
) -> None:
    agent = build(far, replies=LOOK_UP, tools=[look_up])

    async def main() -> None:
        proxy.hold(after=message)
        turn = asyncio.create_task(agent.invoke_async("How is the weather in Köln?"))
        await cancelled_while_held(proxy, turn, times)
        proxy.release()
        with pytest.raises(asyncio.CancelledError):
            await turn
        assert turn.cancelled()

    asyncio.run(main())

    assert len(agent.messages) == message + 1
    assert dump(build(far)) == dump(agent)


def test_turn_cancelled_during_its_last_sync_ends_after_it(proxy: Proxy, far: PostgresSessionRepository) -> None:
    agent = agent_with_a_full_window(far)
    change_state_at_the_end(agent)

    async def main() -> None:
        proxy.hold(after=2)
        turn = asyncio.create_task(agent.invoke_async("2"))
        await cancelled_while_held(proxy, turn, 1)
        proxy.release()
        with pytest.raises(asyncio.CancelledError):
            await turn

    asyncio.run(main())

    assert agent.conversation_manager.removed_message_count == 2
    assert dump(build(far)) == dump(agent)


@pytest.mark.parametrize("message", [0, 1, 2, 3])
def test_turn_cancelled_during_a_write_that_fails_is_cancelled_because_of_it_and_the_manager_refuses(
    proxy: Proxy, far: PostgresSessionRepository, message: int
) -> None:
    agent = build(far, replies=LOOK_UP, tools=[look_up])

    async def main() -> BaseException | None:
        proxy.hold(after=message)
        turn = asyncio.create_task(cause_of_cancellation(agent))
        await cancelled_while_held(proxy, turn, 1)
        proxy.cut()
        proxy.release()
        return await turn

    failure = asyncio.run(main())

    assert isinstance(failure, DatabaseUnavailableError)
    with pytest.raises(DatabaseUnavailableError) as refused:
        agent("Hello?")
    assert refused.value is failure


def test_turn_cancelled_during_its_model_call_is_cancelled_though_its_last_sync_fails(
    proxy: Proxy, far: PostgresSessionRepository
) -> None:
    class Waiting(ScriptedModel):
        async def stream(self, *arguments: Any, **kwargs: Any) -> Any:
            called.set()
            await asyncio.Event().wait()
            yield

    agent = build(far, model=Waiting([]))
    called = asyncio.Event()

    async def main() -> BaseException | None:
        turn = asyncio.create_task(cause_of_cancellation(agent))
        await called.wait()
        agent.state.set("mood", "bad")
        proxy.refuse()
        turn.cancel()
        return await turn

    assert isinstance(asyncio.run(main()), DatabaseUnavailableError)


def test_context_variables_reach_the_thread_that_writes(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "strands_psycopg.database")
    request = contextvars.ContextVar("request", default="none")
    seen: list[tuple[str, bool]] = []

    class Request(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.getMessage().endswith("retrying"):
                seen.append((request.get(), threading.current_thread() is loop_thread))
            return True

    note, logger = Request(), logging.getLogger("strands_psycopg.database")

    async def main(agent: Agent) -> None:
        request.set("request 7")
        await agent.invoke_async("1")

    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        agent = build(repository)
        proxy.lose_answers()
        logger.addFilter(note)
        loop_thread = threading.current_thread()
        try:
            asyncio.run(main(agent))
        finally:
            logger.removeFilter(note)
        assert seen == [("request 7", False)]
        assert dump(build(repository)) == dump(agent)
