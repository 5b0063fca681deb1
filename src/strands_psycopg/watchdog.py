"""Detection of servers that do not respond to a statement.

The kernel of a stopped or overloaded server still acknowledges packets, so no TCP setting detects this.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection, OperationalError

from strands_psycopg.process_forks import after_fork_in_child


class Watchdog:
    """Shuts down the socket of a connection whose server does not respond in time.

    The thread that waits for the response then finds its connection lost. One thread per process watches all
    connections; it starts with the first statement.
    """

    def __init__(self) -> None:
        self._reset()
        after_fork_in_child(self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[object, tuple[float, int]] = {}
        self._next_wakeup = float("inf")
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, connection: Connection[Any], seconds: float) -> Iterator[None]:
        """Shut down the connection's socket if the block has not ended after ``seconds``.

        Raises:
            OperationalError: The socket was shut down. This replaces the driver's error, according to which the server
                closed the connection.
        """
        # A duplicate: libpq closes its own descriptor when it finds the connection lost, and the number could belong
        # to another socket before the watchdog uses it.
        descriptor = os.dup(connection.fileno())
        key = object()
        deadline = time.monotonic() + seconds
        with self._changed:
            self._watched[key] = (deadline, descriptor)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="strands-psycopg-watchdog", daemon=True)
                self._thread.start()
            elif deadline < self._next_wakeup:
                self._changed.notify()
        try:
            yield
        except OperationalError as error:
            with self._changed:
                in_time = key in self._watched
            # An error with an SQLSTATE came from the server, before the socket was shut down.
            if in_time or error.sqlstate is not None:
                raise
            raise OperationalError(f"the server did not respond within {seconds:g} s") from error
        finally:
            with self._changed:
                self._watched.pop(key, None)
            os.close(descriptor)

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for key, (deadline, descriptor) in list(self._watched.items()):
                    if deadline <= now:
                        del self._watched[key]
                        _shut_down(descriptor)
                self._next_wakeup = min((deadline for deadline, _ in self._watched.values()), default=float("inf"))
                self._changed.wait(None if self._next_wakeup == float("inf") else self._next_wakeup - now)


def _shut_down(descriptor: int) -> None:
    borrowed = socket.socket(fileno=descriptor)
    try:
        borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the connection was lost at the same moment, which the waiting thread notices by itself
    finally:
        borrowed.detach()


watchdog = Watchdog()
