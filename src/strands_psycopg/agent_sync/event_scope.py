"""Writes that belong to one event are stored together, after the event's callbacks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class EventScope:
    """Knows whether the current thread is handling an event.

    Callbacks of an event run one after another in one thread. What they ask to be written is stored after the block;
    what is asked for elsewhere, by an application or by another thread, is written at once.
    """

    def __init__(self) -> None:
        self._thread: int | None = None

    @contextmanager
    def handling_event(self) -> Iterator[None]:
        """Run the callbacks of an event in this block."""
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    @property
    def is_handling_event(self) -> bool:
        """Whether this thread is in the block."""
        return self._thread == threading.get_ident()
