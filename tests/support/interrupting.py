"""A process whose main thread is interrupted at random moments of its work, by signals whose handler raises."""

import asyncio
import faulthandler
import os
import random
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from strands import Agent
from strands.types.session import Session, SessionType

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository, PostgresStorage
from support.agents import build, dump, manager_of
from support.waiting import wait_until

_DEADLINE = 60
_REPLIES = [("ok",)] * 4


class Interrupted(KeyboardInterrupt):
    """What the signal handler raises; event loops pass on no other."""


class Interrupter:
    """Interrupts the main thread once in a block of work.

    Attributes:
        at: Where it was interrupted last, for the failure of a test.
    """

    def __init__(self) -> None:
        self.at: list[str] = []
        self._armed = False
        signal.signal(signal.SIGALRM, self._handle)

    def interrupt(self, work: Callable[[], object], *, seconds: float) -> bool:
        """Do the work, interrupted at a random moment of its first ``seconds``; return whether it was."""
        self.at = []
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, seconds))
            work()
        except BaseException:
            if not self.at:
                raise
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        return bool(self.at)

    def _handle(self, _signal: int, frame: types.FrameType | None) -> None:
        if self._armed:
            self._armed = False
            while frame:
                self.at.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                frame = frame.f_back
            raise Interrupted


class Jobs:
    """The kinds of work to interrupt, by name: each takes a fresh session's id."""

    def __init__(self, repository: PostgresSessionRepository) -> None:
        self._repository = repository
        self.agent: Agent | None = None

    def turn(self, session_id: str) -> Callable[[], object]:
        """A turn on an event loop in the main thread."""
        agent = self._agent(session_id)
        return lambda: asyncio.run(agent.invoke_async("second"))

    def turn_in_thread(self, session_id: str) -> Callable[[], object]:
        """A turn for which the main thread waits."""
        agent = self._agent(session_id)
        return lambda: agent("second")

    def synchronous_writes(self, session_id: str) -> Callable[[], object]:
        """Writes of a manager outside of any event."""
        agent = self._agent(session_id)

        def write() -> None:
            for number in range(4):
                agent.state.set("number", number)
                manager_of(agent).sync_agent(agent)

        return write

    def building(self, session_id: str) -> Callable[[], object]:
        """Building an agent."""
        return lambda: build(self._repository, session_id)

    def lease(self, session_id: str) -> Callable[[], object]:
        """A lease's block, with a variable that outlives it."""

        def hold() -> None:
            with self._repository.lease(session_id, ttl=60, wait=0) as self.last_lease:
                pass

        return hold

    def calls(self, session_id: str) -> Callable[[], object]:
        """A repository's methods."""

        def call() -> None:
            self._repository.create_session(Session(session_id, SessionType.AGENT))
            for _ in range(5):
                self._repository.read_session(session_id)

        return call

    def storage(self, session_id: str) -> Callable[[], object]:
        """A write of a value."""
        storage, value = PostgresStorage(self._repository), os.urandom(20_000)
        return lambda: asyncio.run(storage.write(session_id, value))

    def _agent(self, session_id: str) -> Agent:
        self.agent = build(self._repository, session_id, _REPLIES)
        self.agent("first")
        return self.agent


def main(dsn: str, job: str, number: str) -> None:
    """Interrupt a kind of work ``number`` times, and check after each that nothing hangs, is lost or stays held.

    Prints after each how many times the signal came before the work had ended.
    """
    faulthandler.dump_traceback_later(20 * _DEADLINE, exit=True)
    # Loops and coroutines that are cut off complain when they are collected.
    sys.unraisablehook = lambda _: None
    interrupter = Interrupter()
    hits = 0
    with PostgresSessionRepository(dsn, max_size=4, retry_timeout=20, kwargs={"prepare_threshold": None}) as repository:
        jobs = Jobs(repository)
        for each in range(int(number)):
            session_id = f"{job}-{each}"
            work = getattr(jobs, job)(session_id)
            hits += interrupter.interrupt(work, seconds=0.01)
            try:
                _check(repository, jobs, session_id)
            except BaseException:
                print("interrupted at", interrupter.at, file=sys.stderr)
                raise
            print(hits, flush=True)


def _check(repository: PostgresSessionRepository, jobs: Jobs, session_id: str) -> None:
    wait_until(lambda: not any("ThreadPool" in each.name for each in threading.enumerate()))
    _in_thread(lambda: repository.read_session(session_id))
    pool = repository._database._connections._source.pool()
    wait_until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"])
    # Sooner than it would expire: it was released.
    held = b"SELECT count(*) FROM public.strands_leases"
    wait_until(lambda: repository._database.fetch("counting leases", held, {}).rows == [(0,)], seconds=30)
    if jobs.agent is None:
        return
    agent, jobs.agent = jobs.agent, None
    try:
        _in_thread(lambda: manager_of(agent).sync_agent(agent))
    except DatabaseUnavailableError:
        return  # it was interrupted, and refuses from now on
    restored = _in_thread(lambda: build(repository, session_id))
    assert dump(restored) == dump(agent), (dump(restored), dump(agent))


def _in_thread(work: Callable[[], Any]) -> Any:
    """Return the result of work in another thread, which must end in time."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="check")
    future = executor.submit(work)
    started = time.monotonic()
    try:
        return future.result(_DEADLINE)
    except TimeoutError:
        if time.monotonic() - started >= _DEADLINE:
            faulthandler.dump_traceback()
            os._exit(1)
        raise
    finally:
        executor.shutdown(wait=False)
