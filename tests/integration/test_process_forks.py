"""A repository that was used before a fork: parent and child go on, each on connections of its own."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository, SessionConflictError
from support import processes
from support.agents import build, dump
from support.waiting import wait_until

# Python warns from 3.12 on. The pool and the watchdog have threads, and what they hold is what these tests are about.
FORK_AND_END = """
import os, sys
from support.agents import build
from strands_psycopg import PostgresSessionRepository
repository = PostgresSessionRepository(sys.argv[1], max_size=1)
build(repository)("1")
pid = lambda: repository._database.fetch("", b"SELECT pg_backend_pid()", {}).rows[0][0]
before = pid()
child = os.fork()
if child == 0:
    build(repository)("2")
    sys.exit()
print(os.waitpid(child, 0)[1])
build(repository)("3")
print(pid() == before)
repository.close()
"""

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def in_child(work: Callable[[], object]) -> Any:
    """Return what ``work`` returns in a forked child, which has a minute for it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        signal.alarm(60)
        try:
            os.write(write, json.dumps(work()).encode())
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            # Neither pytest's nor the parent's exit handlers are the child's.
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        written = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(written)


def backends(repository: PostgresSessionRepository) -> list[int]:
    """Return the server's process for each of a few statements."""
    return sorted({repository._database.fetch("", b"SELECT pg_backend_pid()", {}).rows[0][0] for _ in range(5)})


def test_child_works_on_connections_of_its_own_and_the_parents_go_on(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    agent("1")
    before = backends(repository)

    def take_a_turn() -> object:
        restored = build(repository)
        restored("2")
        return [dump(restored), backends(repository)]

    in_the_child, childs = in_child(take_a_turn)

    assert not set(childs) & set(before)
    assert set(before) <= set(backends(repository))
    restored = build(repository)
    assert dump(restored) == in_the_child
    restored("3")
    assert [message["content"][0]["text"] for message in restored.messages] == ["1", "ok", "2", "ok", "3", "ok"]


def test_child_that_ends_as_usual_leaves_the_parents_connection_alone(
    dsn: str, repository: PostgresSessionRepository
) -> None:
    assert processes.run(FORK_AND_END, dsn, complete=True) == "0\nTrue\n"
    assert len(build(repository).messages) == 6


def test_repository_made_before_a_fork_is_opened_in_each_process_that_uses_it(dsn: str) -> None:
    with PostgresSessionRepository(dsn) as repository:
        each = [in_child(lambda: backends(repository)), in_child(lambda: backends(repository)), backends(repository)]

    assert len(set().union(*each)) == sum(map(len, each))


def test_fork_during_a_statement_of_another_thread_leaves_both_processes_working(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("SELECT pg_advisory_lock(1)")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(repository._database.fetch, "waiting", b"SELECT pg_advisory_lock(1) IS NULL", {})
        wait_until(lambda: connection.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall())

        assert in_child(lambda: build(repository)("1").stop_reason) == "end_turn"

        connection.execute("SELECT pg_advisory_unlock(1)")
        assert waiting.result(30).rows == [(False,)]
    assert len(build(repository).messages) == 2


def test_callers_open_pool_is_refused_in_the_child_by_name(dsn: str) -> None:
    with ConnectionPool(dsn, min_size=1, open=False) as pool:
        repository = PostgresSessionRepository(pool)
        before = backends(repository)

        def read() -> object:
            with pytest.raises(DatabaseUnavailableError, match="was open when this process was forked"):
                repository.read_session("s")
            return True

        assert in_child(read)
        assert set(before) <= set(backends(repository))

    unopened = ConnectionPool(dsn, open=False)
    repository = PostgresSessionRepository(unopened)

    def open_and_read() -> object:
        with unopened:
            return backends(repository)

    assert in_child(open_and_read)


def test_agent_used_on_both_sides_of_a_fork_is_overtaken_not_overwritten(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    agent("1")

    assert in_child(lambda: agent("2").stop_reason) == "end_turn"

    with pytest.raises(SessionConflictError):
        agent("3")
    assert [message["content"][0]["text"] for message in build(repository).messages] == ["1", "ok", "2", "ok"]


def test_closed_repository_is_closed_in_the_child_too(repository: PostgresSessionRepository) -> None:
    repository.read_session("s")
    repository.close()

    def read() -> object:
        with pytest.raises(DatabaseUnavailableError, match="closed"):
            repository.read_session("s")
        return True

    assert in_child(read)
