"""Threads that wait for the database for coroutines, which would block their event loop, and for the main thread.

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

# How many threads there are beyond the connections, unless a call is stalled: so a call is waiting when a connection
# becomes free. More threads would only wait for one in turn, which costs more than the statements themselves.
_SPARE_THREADS = 2

# For how many seconds a call may go on after its caller was interrupted. Most end in that time, with a known outcome.
_GRACE = 0.5

# After how many seconds a cancelled caller looks for the end of its call by itself.
_LOST_CALLBACK = 0.1

# For how many seconds at most an interrupted caller waits for its call, which may be reading from a terminal.
_MAX_WAIT_AFTER_INTERRUPT = 5.0


class _WorkerThreads:
    """The threads of one ``Workers``, which do not refer to it, so that they can end with it.

    Args:
        connections: Returns how many connections the calls share.

    Attributes:
        calls: The calls that no thread has begun, and None when the threads are to end.
        unfinished: All calls that have not ended.
        stalled: Those that have reported a stall.
        identifiers: The identifiers of the threads.
    """

    def __init__(self, connections: Callable[[], int]) -> None:
        self._connections = connections
        self.calls: _Queue = SimpleQueue()
        self.unfinished: set[Call[Any]] = set()
        self.stalled: set[Call[Any]] = set()
        self.identifiers: list[int] = []
        self._ending = threading.Lock()  # never taken in the main thread

    def limit(self) -> int:
        """Return how many threads may run now."""
        return _MAX_THREADS if self.stalled else min(self._connections() + _SPARE_THREADS, _MAX_THREADS)

    def start(self) -> None:
        """Start the threads that are missing.

        Raises:
            RuntimeError: The system refuses one.
        """
        while len(self.identifiers) < min(len(self.unfinished), self.limit()):
            # Not by ``Thread.start``, which waits for the thread, and leaves it hanging if it is interrupted.
            self.identifiers.append(_thread.start_new_thread(_work, (self,)))

    def stall(self, call: Call[Any]) -> None:
        """Allow further threads to start, since a call waits for something other than the result of a statement."""
        self.stalled.add(call)
        with suppress(RuntimeError):
            self.start()

    def end(self, call: Call[Any]) -> None:
        """Forget a call that has ended, or will never begin."""
        self.unfinished.discard(call)
        self.stalled.discard(call)

    def retire(self) -> bool:
        """Return whether this thread must end, since it is one too many; if so, it is no longer counted."""
        if len(self.identifiers) <= self.limit():
            return False
        with self._ending:
            identifier = threading.get_ident()
            # A signal handler may have interrupted the main thread before it counted this one.
            is_one_too_many = len(self.identifiers) > self.limit() and identifier in self.identifiers
            if is_one_too_many:
                self.identifiers.remove(identifier)
            return is_one_too_many


class Workers:
    """The worker threads of one database; callers that wait for another database do not keep them busy.

    Threads start on demand and end with ``close`` or with this object. They do not keep the process alive, and go on
    working when the main thread has ended. A forked child has none of its parent's.

    Args:
        max_wait: For how many seconds a call waits for a free thread before it is refused.
        connections: Returns how many connections the calls share. There are only a few more threads than these, unless
            a call is stalled: it waits long for a connection, for the next attempt, or for a payload codec.
    """

    def __init__(self, max_wait: float, connections: Callable[[], int] = lambda: _MAX_THREADS) -> None:
        self._max_wait = max_wait
        self._connections = connections
        self._reset()
        after_fork_in_child(self._reset)

    def _reset(self) -> None:
        self._threads = _WorkerThreads(self._connections)
        weakref.finalize(self, self._threads.calls.put, None).atexit = False

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
        call = Call(work, ended.release, self._threads.stall)
        try:
            self._submit(call)
            ended.acquire()
        except BaseException:
            if call.claim():
                self._threads.end(call)
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
            # If a signal handler has ended the loop, nobody is waiting.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(end)

        call = Call(work, notify, self._threads.stall)
        self._submit(call)
        try:
            await ended
        except asyncio.CancelledError as cancellation:
            if call.claim():
                self._threads.end(call)
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
        calls = self._threads.calls
        self._reset()
        calls.put(None)

    def _submit(self, call: Call[Any]) -> None:
        """Queue a call for the threads.

        Raises:
            DatabaseUnavailableError: There is none, and none can be started.
        """
        threads = self._threads
        threads.unfinished.add(call)
        try:
            threads.start()
        except RuntimeError as error:
            if not threads.identifiers:
                return self._run_here(call, error)
        threads.calls.put((call, time.monotonic() + self._max_wait))

    def _run_here(self, call: Call[Any], error: RuntimeError) -> None:
        """Run a call in this thread if the interpreter is shutting down."""
        call.claim()
        self._threads.end(call)
        if not is_shutting_down(error):
            raise DatabaseUnavailableError(f"waiting for the database: {NO_THREAD}") from error
        call.run()
        call.end()


def _work(threads: _WorkerThreads) -> None:
    threading.current_thread().name = "strands-psycopg"
    while (queued := threads.calls.get()) is not None:
        call, deadline = queued
        if call.claim():
            if time.monotonic() < deadline:
                call.run()
            else:
                call.error = DatabaseUnavailableError(
                    "all threads have been waiting for the database, so no statement was sent; try again later, or "
                    "lower the load"
                )
            # Before the caller continues, so that its next call finds this thread free.
            threads.end(call)
            call.end()
        del queued, call
        if threads.retire():
            return
    threads.calls.put(None)  # for the other threads
