"""Blocking work off the event loop, in threads of our own.

A loop's default executor would do, but Strands makes a new event loop for each ``agent()`` call, and starting and
joining a default executor with each of them costs more than the work.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from strands_psycopg.process_forks import after_fork_in_child

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Threads mostly wait, for a connection or for an answer; idle ones are reused before new ones start.
_MAX_THREADS = 64


def _start() -> None:
    """Give this process an executor; after a fork the child has none of the parent's threads."""
    global _executor
    _executor = ThreadPoolExecutor(max_workers=_MAX_THREADS, thread_name_prefix="strands-psycopg")


_executor: ThreadPoolExecutor
_start()
after_fork_in_child(_start)


async def run(work: Callable[[], _T]) -> _T:
    """Run ``work`` in a thread, with the caller's context variables, and give its result.

    A cancellation, however often it is repeated, waits until ``work`` has ended and is raised then, so that a write
    is never left under way behind the caller's back.

    Raises:
        Exception: Whatever ``work`` raises.
        asyncio.CancelledError: The caller was cancelled; ``work`` has ended. If it failed, its error is the cause.
    """
    future = asyncio.wrap_future(_executor.submit(contextvars.copy_context().run, work))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError as cancellation:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        failure = future.exception()
        if failure is not None:
            logger.warning("error=<%s> | work failed while its caller was being cancelled", failure)
            raise cancellation from failure
        raise
