"""Writes that belong to one event are carried out together, when the event's callbacks are through."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Collector:
    """Knows whether the thread that asks for a write is in the middle of an event.

    Callbacks of an event run one after another in one thread. What they ask to be written is collected, and written
    after the block; what is asked for elsewhere, by an application or by another thread, is written at once.
    """

    def __init__(self) -> None:
        self._thread: int | None = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect what this thread asks for in this block."""
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    @property
    def is_collecting(self) -> bool:
        """Whether this thread is in the block."""
        return self._thread == threading.get_ident()
