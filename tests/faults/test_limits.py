"""Threads and file descriptors that the operating system refuses, at each place where the library asks for one."""

import _thread
import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg_pool import ConnectionPool

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository, PostgresStorage, PostgresStorageError
from strands_psycopg.watchdog import watchdog
from support import processes
from support.agents import build
from support.storage import needs_storage
from support.tables import Connection, texts

_DESCRIPTORS = Path("/proc/self/fd")
_ADVICE = "no thread can be started; raise the limit on processes and threads"


@pytest.fixture
def pool(dsn: str, pool_options: dict[str, Any]) -> Iterator[ConnectionPool]:
    """A pool that has all its threads."""
    with ConnectionPool(dsn, min_size=2, max_size=2, open=True, **pool_options) as pool:
        pool.wait()
        yield pool


@contextmanager
def no_threads(*, after: int = 0) -> Iterator[None]:
    """Refuse to start threads as Python does where the operating system has none left, after so many."""
    left = [after]
    start = _thread.start_new_thread

    def refuse(*arguments: Any) -> int:
        if left[0] == 0:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        return start(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
        # Thread.start has its own name for it, which takes keyword arguments from Python 3.13 on.
        name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
        start_threading = getattr(threading, name)

        def refuse_threading(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
            return start_threading(*arguments, **options)

        patch.setattr(threading, name, refuse_threading)
        yield


@pytest.mark.parametrize("after", range(6))
def test_call_without_threads_is_refused_by_name_and_works_later(
    dsn: str, pool_options: dict[str, Any], after: int
) -> None:
    watchdog._reset()
    with PostgresSessionRepository(dsn, retry_timeout=0, **pool_options) as repository:
        with no_threads(after=after), pytest.raises(DatabaseUnavailableError, match=_ADVICE):
            repository.read_session("s")
        assert repository.read_session("s") is None


def test_turn_without_threads_stores_nothing_then_or_later(pool: ConnectionPool, connection: Connection) -> None:
    repository = PostgresSessionRepository(pool, retry_timeout=0)

    async def invoke() -> None:
        agent, other = build(repository), build(repository, "other")
        repository._database.workers.close()
        with no_threads(), pytest.raises(DatabaseUnavailableError, match=_ADVICE):
            await agent.invoke_async("refused")
        await other.invoke_async("hello")

    asyncio.run(invoke())

    assert texts(connection, "s") == []
    assert texts(connection, "other") == ["hello", "ok"]
    build(repository)("again")
    assert texts(connection, "s") == ["again", "ok"]


@needs_storage
def test_storage_without_threads_raises_its_error(pool: ConnectionPool) -> None:
    storage = PostgresStorage(PostgresSessionRepository(pool, retry_timeout=0))

    async def write() -> None:
        with no_threads(), pytest.raises(PostgresStorageError, match=_ADVICE):
            await storage.write("key", b"value")
        assert await storage.read("key") is None

    asyncio.run(write())


def test_lease_whose_renewal_thread_cannot_start_is_not_held(pool: ConnectionPool, connection: Connection) -> None:
    repository = PostgresSessionRepository(pool, retry_timeout=0)
    repository.read_session("s")

    with no_threads(), pytest.raises(DatabaseUnavailableError, match=_ADVICE):
        repository.lease("s").__enter__()

    assert connection.execute("SELECT FROM strands_leases").fetchall() == []
    with repository.lease("s", wait=0):
        pass


def test_watchdog_whose_thread_could_not_start_watches_later(pool: ConnectionPool) -> None:
    repository = PostgresSessionRepository(pool, retry_timeout=0, response_timeout=0.2)
    watchdog._reset()
    descriptors = len(list(_DESCRIPTORS.iterdir()))
    for after in (1, 0, 0):  # the first one is the worker
        with no_threads(after=after), pytest.raises(DatabaseUnavailableError, match=_ADVICE):
            repository.read_session("s")
    assert len(list(_DESCRIPTORS.iterdir())) <= descriptors

    with pytest.raises(DatabaseUnavailableError, match=r"did not respond within 0\.2 s"):
        repository._database.fetch("sleeping", b"SELECT pg_sleep(60)", {})


_EXHAUST = """
import os, resource, sys
from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository
from support.agents import build
from support.waiting import wait_until

repository = PostgresSessionRepository(sys.argv[1], retry_timeout=0, max_size=2)
if sys.argv[2] == "opened":
    agent = build(repository)
    agent("first")
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for call in (lambda: repository.read_session("s"), lambda: repository.lease("s").__enter__()):
    try:
        call()
    except DatabaseUnavailableError as error:
        print(str(error).partition(": ")[2])
for descriptor in taken:
    os.close(descriptor)
repository.read_session("s")
build(repository)("last")
with repository.lease("s", wait=0):
    print(len(build(repository).messages))
repository.close()
"""


@pytest.mark.parametrize(("state", "stored"), [("opened", 4), ("unopened", 2)])
def test_lack_of_file_descriptors_is_told_with_advice_and_passes(dsn: str, state: str, stored: int) -> None:
    *errors, messages = processes.run(_EXHAUST, dsn, state).splitlines()

    assert len(errors) == 2
    assert all("oo many open files" in each for each in errors), errors
    assert int(messages) == stored
