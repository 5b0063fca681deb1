"""Statements that a stopped server would leave unanswered for ever.

The kernel of a stopped or overloaded peer goes on acknowledging packets, so no TCP setting finds it.
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
    """Shuts down the socket of a connection whose server has not answered in time.

    The thread that waits for the answer then finds its connection lost. One thread watches for all; it starts
    with the first statement, in each process anew.
    """

    def __init__(self) -> None:
        self._reset()
        after_fork_in_child(self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[object, tuple[float, int]] = {}
        self._wakes_at = float("inf")
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, connection: Connection[Any], seconds: float) -> Iterator[None]:
        """Shut the connection's socket down if the block has not ended after ``seconds``.

        Raises:
            OperationalError: It was; instead of the one that makes it look as if the server had hung up.
        """
        # A duplicate, because libpq closes its own descriptor when it finds the connection lost, and the number
        # could be another socket's by the time the watchdog looks at it.
        line = os.dup(connection.fileno())
        key = object()
        due = time.monotonic() + seconds
        with self._changed:
            self._watched[key] = (due, line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="strands-psycopg-watchdog", daemon=True)
                self._thread.start()
            elif due < self._wakes_at:
                self._changed.notify()
        try:
            yield
        except OperationalError as error:
            with self._changed:
                in_time = key in self._watched
            # An error of the server's own has come before.
            if in_time or error.sqlstate is not None:
                raise
            raise OperationalError(f"the server gave no answer for {seconds:g} s") from error
        finally:
            with self._changed:
                self._watched.pop(key, None)
            os.close(line)

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for key, (due, line) in list(self._watched.items()):
                    if due <= now:
                        del self._watched[key]
                        _shut_down(line)
                self._wakes_at = min((due for due, _ in self._watched.values()), default=float("inf"))
                self._changed.wait(None if self._wakes_at == float("inf") else self._wakes_at - now)


def _shut_down(descriptor: int) -> None:
    line = socket.socket(fileno=descriptor)
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was lost by itself at the same moment, and the waiting thread has noticed too
    finally:
        line.detach()


watchdog = Watchdog()
