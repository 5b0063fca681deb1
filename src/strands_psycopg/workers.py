"""Threads that work for callers that must not: coroutines, which would block their event loop, and the main thread.

Python runs signal handlers in the main thread, between any two of its instructions, and they may raise, as Ctrl-C does.
So nothing that holds a lock or a connection runs there: a caller in the main thread waits for a worker. If it is
interrupted and the worker does not end soon, its connection is shut down. The interrupt is raised when it has ended.
"""

import _thread
import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from strands_psycopg.calls import Call
from strands_psycopg.errors import DatabaseUnavailableError
from strands_psycopg.process_forks import after_fork_in_child
from strands_psycopg.system_errors import NO_THREAD, is_shutting_down
from strands_psycopg.watchdog import watchdog

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_Queue = SimpleQueue["tuple[Call[Any], float] | None"]

# Threads mostly wait for a connection or a result; idle ones are reused before new ones start.
_MAX_THREADS = 64

# For how many seconds a call may go on after its caller was interrupted. Most end in that time, with a known outcome.
_GRACE = 0.5

# After how many seconds a cancelled caller looks for the end of its call by itself.
_LOST_CALLBACK = 0.1

# For how many seconds at most an interrupted caller waits for its call, which may be reading from a terminal.
_MAX_WAIT_AFTER_INTERRUPT = 5.0


class Workers:
    """The worker threads of one database; callers that wait for another database do not keep them busy.

    Threads start on demand and end with ``close`` or with this object. They do not keep the process alive, and go on
    working when the main thread has ended. A forked child has none of its parent's.

    Args:
        max_wait: For how many seconds a call waits for a free thread before it is refused.
    """

    def __init__(self, max_wait: float) -> None:
        self._max_wait = max_wait
        self._reset()
        after_fork_in_child(self._reset)

    def _reset(self) -> None:
        self._calls: _Queue = SimpleQueue()
        self._unfinished: set[Call[Any]] = set()
        self._threads: list[int] = []
        weakref.finalize(self, self._calls.put, None).atexit = False

    def run(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` and return its result: in this thread, or in a worker if this is the main thread.

        If a signal handler raises meanwhile, ``work`` has half a second to end by itself. Then the statement that it is
        waiting for is ended, whose outcome is unknown.

        Raises:
            DatabaseUnavailableError: No thread can be started, or none was free for ``max_wait``.
            BaseException: What ``work`` raised; or what a signal handler raised, when ``work`` has ended.
        """
        if threading.current_thread() is not threading.main_thread():
            return work()
        ended = threading.Lock()
        ended.acquire()
        call = Call(work, ended.release)
        try:
            self._submit(call)
            ended.acquire()
        except BaseException:
            if call.claim():
                self._unfinished.discard(call)
            elif not (call.has_ended or ended.acquire(timeout=_GRACE)):
                call.interrupt()
                watchdog.wake()
                ended.acquire(timeout=_MAX_WAIT_AFTER_INTERRUPT)
            raise
        return call.result()

    async def run_async(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` in a worker and return its result.

        If the caller is cancelled, even repeatedly, the cancellation is raised only when ``work`` has ended, so that no
        write continues after this call.

        Raises:
            DatabaseUnavailableError: As ``run``.
            Exception: What ``work`` raised.
            asyncio.CancelledError: The caller was cancelled, and ``work`` has ended or will never begin. If ``work``
                failed, its error is the cause.
        """
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        def notify() -> None:
            # If a signal handler has ended the loop, nobody waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(end)

        call = Call(work, notify)
        self._submit(call)
        try:
            await ended
        except asyncio.CancelledError as cancellation:
            if call.claim():
                self._unfinished.discard(call)
                raise
            while not call.has_ended:
                # Another one, since this one is cancelled.
                ended = loop.create_future()
                # A signal handler may have interrupted the callback that ends the future.
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([ended], timeout=_LOST_CALLBACK)
            if call.error is not None:
                logger.warning("error=<%s> | work failed while its caller was being cancelled", call.error)
                raise cancellation from call.error
            raise
        return call.result()

    def close(self) -> None:
        """End the threads, after what they were given; later calls start new ones."""
        calls = self._calls
        self._reset()
        calls.put(None)

    def _submit(self, call: Call[Any]) -> None:
        """Queue a call for the threads.

        Raises:
            DatabaseUnavailableError: There is none, and none can be started.
        """
        self._unfinished.add(call)
        if len(self._threads) < min(len(self._unfinished), _MAX_THREADS):
            try:
                # Not by ``Thread.start``, which waits for the thread, and leaves it hanging if it is interrupted.
                self._threads.append(_thread.start_new_thread(_work, (self._calls, self._unfinished)))
            except RuntimeError as error:
                if not self._threads:
                    return self._carry_out_here(call, error)
        self._calls.put((call, time.monotonic() + self._max_wait))

    def _carry_out_here(self, call: Call[Any], error: RuntimeError) -> None:
        """Carry out a call in this thread if the interpreter is shutting down."""
        call.claim()
        self._unfinished.discard(call)
        if not is_shutting_down(error):
            raise DatabaseUnavailableError(f"waiting for the database: {NO_THREAD}") from error
        call.carry_out()
        call.end()


def _work(calls: _Queue, unfinished: set[Call[Any]]) -> None:
    threading.current_thread().name = "strands-psycopg"
    while (queued := calls.get()) is not None:
        call, deadline = queued
        if call.claim():
            if time.monotonic() < deadline:
                call.carry_out()
            else:
                call.error = DatabaseUnavailableError(
                    f"all {_MAX_THREADS} threads have been waiting for the database, so no statement was sent; "
                    "try again later, or lower the load"
                )
            # First, so that a caller that goes on at once finds this thread free.
            unfinished.discard(call)
            call.end()
        del queued, call
    calls.put(None)  # for the other threads
