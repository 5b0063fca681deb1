"""Waiting for a condition, with a deadline."""

import asyncio
import time
from collections.abc import Callable, Iterator

# So long that only a condition that never becomes true exceeds it, on a busy machine too.
_DEADLINE = 60


def wait_until(condition: Callable[[], object], *, seconds: float = _DEADLINE) -> None:
    """Return as soon as the condition is true, which it must be in time."""
    for pause in _pauses(seconds):
        if condition():
            return
        time.sleep(pause)


async def until(condition: Callable[[], object], *, seconds: float = _DEADLINE) -> None:
    """Return as soon as the condition is true, which it must be in time, letting the event loop run meanwhile."""
    for pause in _pauses(seconds):
        if condition():
            return
        await asyncio.sleep(pause)


def _pauses(seconds: float) -> Iterator[float]:
    deadline = time.monotonic() + seconds
    pause = 0.002
    while time.monotonic() < deadline:
        yield pause
        pause = min(1.5 * pause, 0.02)
    raise AssertionError("the condition did not come true in time")
