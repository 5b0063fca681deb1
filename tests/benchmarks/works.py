"""The work of sessions, done by each contender alike; each function returns the seconds of every repetition."""

import asyncio
import gc
import itertools
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from strands import Agent

from benchmarks.model import build, conversation, text

_WARM_UP = 8

Measured = dict[str, list[float]]


class Contender(Protocol):
    """Something that keeps sessions. It may have a method of a work's name, which then takes that function's place."""

    def manager(self, session_id: str) -> Any:
        """Return a session manager for a new agent; None for an agent without a session."""

    def close(self) -> None:
        """Return everything back."""


_numbers = itertools.count()


def new_session() -> str:
    """Return an id that was not used yet."""
    return f"session-{time.time_ns()}-{next(_numbers)}"


def timed(call: Callable[[], object], count: int) -> list[float]:
    """Repeat a call after a few that do not count."""
    seconds = []
    for number in range(_WARM_UP + count):
        began = time.perf_counter()
        call()
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - began)
    return seconds


def turns(contender: Contender, *, count: int, tool: bool = False, full: bool = False, loop: bool = True) -> Measured:
    """Turns of a live agent, on one event loop or each by ``agent()``, which makes a loop of its own."""
    agent = build(
        contender.manager(new_session()),
        calls_tool=tool,
        window=40 if full else 1_000_000,
        messages=conversation(40) if full else None,
    )
    if not loop:
        return {"seconds": timed(lambda: agent(text(25)), count)}

    async def main() -> list[float]:
        seconds = []
        for number in range(_WARM_UP + count):
            began = time.perf_counter()
            await agent.invoke_async(text(25))
            if number >= _WARM_UP:
                seconds.append(time.perf_counter() - began)
        return seconds

    return {"seconds": asyncio.run(main())}


def requests(contender: Contender, *, count: int, messages: int = 40) -> Measured:
    """Requests that build the agent of a session of so many messages anew and have it take a turn."""
    sessions = [new_session() for _ in range(_WARM_UP + count)]
    before = conversation(messages)
    without = contender.manager("nobody") is None
    for session_id in () if without else sessions:
        build(contender.manager(session_id), window=40, messages=list(before))
    waiting = iter(sessions)
    prompt = text(25)

    def request() -> None:
        manager = contender.manager(next(waiting))
        build(manager, window=40, messages=list(before) if without else None)(prompt)

    return {"seconds": timed(request, count)}


_long_sessions: dict[int, str] = {}


def _long_session(contender: Contender, messages: int) -> str:
    if messages not in _long_sessions:
        _long_sessions[messages] = new_session()
        build(contender.manager(_long_sessions[messages]), messages=conversation(messages))
    return _long_sessions[messages]


def restores(contender: Contender, *, messages: int, count: int) -> Measured:
    """Agents built anew with all messages of a long session."""
    session_id = _long_session(contender, messages)
    seconds = []
    for _ in range(count + 1):
        gc.collect()
        began = time.perf_counter()
        agent = build(contender.manager(session_id))
        seconds.append(time.perf_counter() - began)
        assert len(agent.messages) == messages
    return {"seconds": seconds[1:]}


def memory_of_restore(contender: Contender, *, messages: int) -> Measured:
    """Bytes at the highest while an agent is restored, and those of what there is afterwards, as Python counts them."""
    session_id = _long_session(contender, messages)
    build(contender.manager(session_id))
    gc.collect()
    tracemalloc.start()
    agent = build(contender.manager(session_id))
    peak = tracemalloc.get_traced_memory()[1]
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(agent.messages) == messages
    return {"peak": [float(peak)], "kept": [float(kept)]}


def crowd(contender: Contender, *, agents: int, count: int) -> Measured:
    """Many agents at once on one event loop; also the CPU seconds of a turn, and the longest step on the loop."""
    built = [build(contender.manager(new_session()), window=1_000_000) for _ in range(agents)]
    prompt = text(25)
    seconds: list[float] = []

    async def take_turns(agent: Agent, number: int) -> None:
        for _ in range(number):
            began = time.perf_counter()
            await agent.invoke_async(prompt)
            seconds.append(time.perf_counter() - began)

    async def main() -> tuple[float, float, float]:
        await asyncio.gather(*(take_turns(agent, 2) for agent in built))
        seconds.clear()
        # To look through what all the imports have left, as Python does now and then, takes tens of milliseconds.
        gc.collect()
        gc.freeze()
        began, worked = time.perf_counter(), time.process_time()
        with _longest_step() as longest:
            await asyncio.gather(*(take_turns(agent, count) for agent in built))
        return time.perf_counter() - began, time.process_time() - worked, max(longest)

    took, worked, held = asyncio.run(main())
    gc.unfreeze()
    slowest = statistics.quantiles(seconds, n=100)[-1]
    return {
        "seconds": seconds,
        "slowest in 100": [slowest],
        "held": [held],
        "rate": [len(seconds) / took],
        "CPU": [worked / len(seconds)],
    }


@contextmanager
def _longest_step() -> Iterator[list[float]]:
    """Yield a list that gets the durations of the steps that the loop runs in this block, from one wait to the next."""
    steps: list[float] = []
    run = asyncio.Handle._run

    def timed_run(handle: asyncio.Handle) -> None:
        began = time.perf_counter()
        run(handle)
        steps.append(time.perf_counter() - began)

    asyncio.Handle._run = timed_run  # type: ignore[assignment, method-assign]
    try:
        yield steps
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]
