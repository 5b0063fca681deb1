"""Blocking work off the event loop, in the threads of one executor per process.

It is not a loop's default executor, because Strands creates a new event loop for each ``agent()`` call, and starting
and joining a default executor for each of them costs more than the work.
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

# Threads mostly wait for a connection or a result; idle ones are reused before new ones start.
_MAX_THREADS = 64


def _create_executor() -> None:
    """Create this process's executor; a forked child has none of its parent's threads."""
    global _executor
    _executor = ThreadPoolExecutor(max_workers=_MAX_THREADS, thread_name_prefix="strands-psycopg")


_executor: ThreadPoolExecutor
_create_executor()
after_fork_in_child(_create_executor)


async def run(work: Callable[[], _T]) -> _T:
    """Run ``work`` in a thread, with the caller's context variables, and return its result.

    If the caller is cancelled, even repeatedly, the cancellation is raised only when ``work`` has ended, so that no
    write continues after this call.

    Raises:
        Exception: What ``work`` raised.
        asyncio.CancelledError: The caller was cancelled and ``work`` has ended. If ``work`` failed, its error is the
            cause.
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
