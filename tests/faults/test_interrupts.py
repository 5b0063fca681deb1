"""Signals whose handler raises, as Ctrl-C does, at random moments of the main thread's work."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import FrameType
from typing import Any

import pytest

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository
from strands_psycopg.lease import Lease
from support import processes
from support.agents import build, manager_of
from support.proxy import Proxy
from support.retries import Retries
from support.scale import scale
from support.storage import needs_storage
from support.tables import Connection
from support.waiting import wait_until

# For each kind of work.
_NUMBER = scale(10, 500)

_SCRIPT = """
import sys
from support.interrupting import main
main(*sys.argv[1:])
"""


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """One thread."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


@pytest.mark.parametrize(
    "job",
    [
        *("turn", "turn_in_thread", "synchronous_writes", "building", "lease", "calls"),
        pytest.param("storage", marks=needs_storage),
    ],
)
def test_interrupts_lose_no_connection_hold_no_lease_and_leave_no_agent_out_of_step(dsn: str, job: str) -> None:
    hits = processes.run(_SCRIPT, dsn, job, str(_NUMBER)).splitlines()

    assert len(hits) == _NUMBER
    assert int(hits[-1]) > 0


def test_interrupt_ends_a_write_that_is_not_answered_and_the_manager_refuses_from_then_on(
    dsn: str, pool_options: dict[str, Any], thread: ThreadPoolExecutor
) -> None:
    def interrupt() -> None:
        wait_until(lambda: proxy.waiting == 1)
        os.kill(os.getpid(), signal.SIGINT)

    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, max_size=1, **pool_options) as repository:
        agent = build(repository)
        agent.state.set("key", "value")
        proxy.hold()
        interrupter = thread.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            manager_of(agent).sync_agent(agent)
        proxy.release()
        interrupter.result()

        with pytest.raises(DatabaseUnavailableError, match="interrupted, so its outcome is unknown"):
            manager_of(agent).sync_agent(agent)
        assert repository.read_session("s") is not None
        build(repository)("next")


def test_interrupt_ends_the_retries_of_a_call(dsn: str, thread: ThreadPoolExecutor, retries: Retries) -> None:
    def interrupt() -> None:
        wait_until(lambda: retries())
        os.kill(os.getpid(), signal.SIGINT)

    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, retry_timeout=3600) as repository:
        proxy.refuse()
        interrupter = thread.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            repository.read_session("s")
        interrupter.result()
        proxy.accept()
        assert repository.read_session("s") is None


def test_block_of_a_lease_that_is_interrupted_where_it_is_left_is_over(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    def trace(frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        if frame.f_code is Lease._leave.__code__:
            sys.settrace(None)
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt), repository.lease("s", ttl=3600) as lease:
        sys.settrace(trace)

    wait_until(lambda: connection.execute("SELECT FROM strands_leases").fetchall() == [])
    assert not repository._tables.leases.holds(lease)


def test_lease_entered_by_an_exit_stack_is_released_by_it(repository: PostgresSessionRepository) -> None:
    with ExitStack() as stack:
        lease = stack.enter_context(repository.lease("s"))
        assert repository._tables.leases.holds(lease)

    with repository.lease("s", wait=0):
        assert not repository._tables.leases.holds(lease)


def test_asking_a_held_lease_for_its_methods_does_not_release_it(repository: PostgresSessionRepository) -> None:
    with repository.lease("s") as lease:
        assert hasattr(lease, "__exit__")
        assert hasattr(lease, "__aexit__")
        # The renewal thread has been woken by whatever may have woken it before.
        repository._tables.leases.wake_renewal(None)
        wait_until(repository._tables.leases._block_ends.empty)
        assert repository._tables.leases.holds(lease)
