"""Processes that fork with a repository in hand: each uses connections of its own, and none touches another's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from support import processes
from support.crew import Process
from support.tables import blocked, texts
from support.waiting import wait_until

Connection = psycopg.Connection[Any]

# Prints a line after each step and waits for one before the next. Warnings of retries go to standard error.
PARENT = """
import os, sys, threading, warnings
from support.agents import build
from support.writes import message
from strands_psycopg import PostgresSessionRepository

# From Python 3.12 on, of a fork beside the threads of a pool.
warnings.simplefilter("ignore", DeprecationWarning)

def step(line):
    print(line, flush=True)
    sys.stdin.readline()

def talk(session_id):
    agent = build(repository, session_id)
    agent("hello")
    assert build(repository, session_id).messages == agent.messages

def fork(work, *, abruptly):
    child = os.fork()
    if child == 0:
        work()
        if abruptly:
            os._exit(0)
        sys.exit(0)
    return child

def wait(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

dsn, abruptly = sys.argv[1], sys.argv[2] == "abruptly"
repository = PostgresSessionRepository(dsn, min_size=2, max_size=2)
"""

USED_BEFORE = """
talk("parent")
step("used")
def use(number):
    talk(f"child {number}")
    if number % 2:
        repository.close()
children = [fork(lambda: use(number), abruptly=abruptly) for number in range(2)]
for child in children:
    wait(child)
step("children ended")
build(repository, "parent")("again")
step("used again")
repository.close()
"""

NOT_USED_BEFORE = """
children = [fork(lambda: talk(f"child {number}"), abruptly=abruptly) for number in range(2)]
talk("parent")
for child in children:
    wait(child)
talk("parent, later")
repository.close()
"""

IN_A_STATEMENT = """
talk("parent")
step("used")
append = threading.Thread(target=repository.create_message, args=("parent", "default", message(2, "slow")))
append.start()
step("appending")
children = [fork(lambda: talk(f"child {number}"), abruptly=abruptly) for number in range(2)]
for child in children:
    wait(child)
step("children ended")
append.join()
talk("parent, later")
repository.close()
"""

GRANDCHILD = """
talk("parent")
def use():
    talk("child")
    wait(fork(lambda: talk("grandchild"), abruptly=abruptly))
    build(repository, "child")("again")
wait(fork(use, abruptly=abruptly))
build(repository, "parent")("again")
repository.close()
"""

# A child must not wait for its parent's turn, end it, or hold its lease.
IN_A_LEASE = """
with repository.lease("parent", ttl=3):
    talk("parent")
    step("held")
    wait(fork(lambda: talk("child"), abruptly=abruptly))
    wait(fork(repository.close, abruptly=abruptly))
    step("children ended")
    build(repository, "parent")("again")
step("free")
repository.close()
"""

OF_THE_POOL = """
    SELECT pid, backend_start FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'strands-psycopg' ORDER BY pid
"""

abruptly = pytest.mark.parametrize("ending", ["normally", "abruptly"])


class Parent:
    def __init__(self, process: Process) -> None:
        self._process = process

    def wait_for(self, line: str) -> None:
        """Wait until it is so far."""
        assert self._process.line() == line

    def go_on(self) -> None:
        """Resume it from where it is."""
        self._process.write("\n")

    def finish(self) -> None:
        """Wait for its end, and see that nothing went wrong in it, nor in its children."""
        assert self._process.finish() == (0, "", "")


@contextmanager
def parent(script: str, dsn: str, ending: str) -> Iterator[Parent]:
    with processes.start(PARENT + script, dsn, ending, complete=True) as process:
        yield Parent(process)


def talked(look: Connection, session_id: str) -> bool:
    return texts(look, session_id) == ["hello", "ok"]


@abruptly
def test_repository_used_before_the_fork_works_in_parent_and_children(
    ending: str, own_dsn: str, look: Connection
) -> None:
    with parent(USED_BEFORE, own_dsn, ending) as process:
        process.wait_for("used")
        wait_until(lambda: len(look.execute(OF_THE_POOL).fetchall()) == 2)
        connections = look.execute(OF_THE_POOL).fetchall()
        process.go_on()
        process.wait_for("children ended")
        wait_until(lambda: len(look.execute(OF_THE_POOL).fetchall()) == 2)
        assert look.execute(OF_THE_POOL).fetchall() == connections
        process.go_on()
        process.wait_for("used again")
        assert look.execute(OF_THE_POOL).fetchall() == connections
        process.go_on()
        process.finish()
    assert texts(look, "parent") == ["hello", "ok", "again", "ok"]
    assert all(talked(look, f"child {number}") for number in range(2))


@abruptly
def test_repository_built_before_the_fork_works_in_parent_and_children(
    ending: str, own_dsn: str, look: Connection
) -> None:
    with parent(NOT_USED_BEFORE, own_dsn, ending) as process:
        process.finish()
    assert talked(look, "parent")
    assert talked(look, "parent, later")
    assert all(talked(look, f"child {number}") for number in range(2))


@abruptly
def test_statement_of_another_thread_goes_on_during_a_fork(ending: str, own_dsn: str, look: Connection) -> None:
    with parent(IN_A_STATEMENT, own_dsn, ending) as process:
        process.wait_for("used")
        with psycopg.connect(own_dsn) as locker:
            locker.execute("SELECT FROM strands_agents FOR UPDATE")
            connections = look.execute(OF_THE_POOL).fetchall()
            process.go_on()
            process.wait_for("appending")
            wait_until(lambda: blocked(look) == 1)
            process.go_on()
            process.wait_for("children ended")
            assert blocked(look) == 1
            assert set(connections) <= set(look.execute(OF_THE_POOL).fetchall())
        process.go_on()
        process.finish()
    assert texts(look, "parent") == ["hello", "ok", "slow"]
    assert talked(look, "parent, later")
    assert all(talked(look, f"child {number}") for number in range(2))


@abruptly
def test_grandchild_works_too(ending: str, own_dsn: str, look: Connection) -> None:
    with parent(GRANDCHILD, own_dsn, ending) as process:
        process.finish()
    assert texts(look, "parent") == texts(look, "child") == ["hello", "ok", "again", "ok"]
    assert talked(look, "grandchild")


@abruptly
def test_child_neither_holds_nor_frees_its_parents_lease(ending: str, own_dsn: str, look: Connection) -> None:
    terms = "SELECT term FROM strands_leases WHERE session_id = 'parent' AND expires_at > now()"
    with parent(IN_A_LEASE, own_dsn, ending) as process:
        process.wait_for("held")
        held = look.execute(terms).fetchall()
        assert len(held) == 1
        process.go_on()
        process.wait_for("children ended")
        assert look.execute(terms).fetchall() == held
        process.go_on()
        process.wait_for("free")
        assert look.execute(terms).fetchall() == []
        process.go_on()
        process.finish()
    assert texts(look, "parent") == ["hello", "ok", "again", "ok"]
    assert talked(look, "child")
