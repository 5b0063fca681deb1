"""Detection of servers that do not respond to a statement, and the end of statements whose caller was interrupted.

The kernel of a stopped or overloaded server still acknowledges packets, so no TCP setting detects this.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

from psycopg import Connection, OperationalError

from strands_psycopg.calls import Call, current_call
from strands_psycopg.process_forks import after_fork_in_child
from strands_psycopg.system_errors import is_shutting_down, translate_limits

# The queue accepts no infinite timeout.
_MAX_QUEUE_TIMEOUT = 3600.0


class _Watch:
    """One statement that is waiting for a response.

    Attributes:
        descriptor: The descriptor of the connection's socket.
        deadline: When to shut the socket down, on the clock of ``time.monotonic``.
        call: The call that the statement belongs to, if it is one of a worker.
        is_expired: Whether the socket was shut down.
    """

    def __init__(self, descriptor: int, deadline: float, call: Call[Any] | None) -> None:
        self.descriptor = descriptor
        self.deadline = deadline
        self.call = call
        self.is_expired = False


class Watchdog:
    """Shuts down the socket of a connection whose server does not respond in time, or whose caller was interrupted.

    The thread that waits for the response then finds its connection lost. One thread per process watches all
    connections; it starts with the first statement.
    """

    def __init__(self) -> None:
        self._reset()
        after_fork_in_child(self._reset)

    def _reset(self) -> None:
        # Never taken in the main thread (see ``workers``).
        self._lock = threading.Lock()
        self._watches: set[_Watch] = set()
        self._next_wakeup = float("inf")
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._is_running = False

    @contextmanager
    def watch(self, connection: Connection[Any], seconds: float) -> Iterator[None]:
        """Shut down the connection's socket if the block has not ended after ``seconds``.

        Raises:
            OperationalError: The socket was shut down. This replaces the driver's error, which says that the server
                closed the connection.
            ResourceLimitError: There is no free file descriptor, or no thread can be started.
        """
        with translate_limits():
            self._start()
            # A duplicate: libpq closes its own descriptor when it finds the connection lost, and the number could
            # belong to another socket before the watchdog uses it.
            descriptor = os.dup(connection.fileno())
        watch = _Watch(descriptor, time.monotonic() + seconds, current_call())
        try:
            with self._lock:
                self._watches.add(watch)
                is_early = watch.deadline < self._next_wakeup
            if is_early or (watch.call is not None and watch.call.interrupted):
                self.wake()
            yield
        except OperationalError as error:
            # An error with an SQLSTATE came from the server, before the socket was shut down.
            if not watch.is_expired or error.sqlstate is not None:
                raise
            raise OperationalError(f"the server did not respond within {seconds:g} s") from error
        finally:
            with self._lock:
                self._watches.discard(watch)
            os.close(watch.descriptor)

    def wake(self) -> None:
        """Look at all connections now; for callers that have interrupted a call, in any thread."""
        self._wakeups.put(None)

    def _start(self) -> None:
        if self._is_running:
            return
        with self._lock:
            if not self._is_running:
                try:
                    threading.Thread(target=self._run, name="strands-psycopg-watchdog", daemon=True).start()
                except RuntimeError as error:
                    if not is_shutting_down(error):
                        raise
                else:
                    self._is_running = True

    def _run(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                for watch in list(self._watches):
                    if watch.deadline <= now or (watch.call is not None and watch.call.interrupted):
                        self._watches.discard(watch)
                        watch.is_expired = True
                        _shut_down(watch.descriptor)
                self._next_wakeup = min((watch.deadline for watch in self._watches), default=float("inf"))
            with suppress(Empty):
                self._wakeups.get(timeout=min(self._next_wakeup - now, _MAX_QUEUE_TIMEOUT))


def _shut_down(descriptor: int) -> None:
    borrowed = socket.socket(fileno=descriptor)
    try:
        borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the connection was lost at the same moment, which the waiting thread notices by itself
    finally:
        borrowed.detach()


watchdog = Watchdog()
