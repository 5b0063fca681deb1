"""Waiting for a condition, with a deadline."""

import asyncio
import time
from collections.abc import Callable

_DEADLINE = 30


def wait_until(condition: Callable[[], object], *, seconds: float = _DEADLINE) -> None:
    """Return as soon as the condition is true, which it must be in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)


async def until(condition: Callable[[], object], *, seconds: float = _DEADLINE) -> None:
    """Return as soon as the condition is true, which it must be in time, letting the event loop run meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.002)
