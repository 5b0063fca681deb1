"""A process that holds a session and is killed: the session is free after its ttl, and nothing else is left behind."""

import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from psycopg.conninfo import make_conninfo

from strands_psycopg import PostgresSessionRepository, SessionBusyError
from support.agents import build
from support.crew import Crew, Process
from support.tables import Connection, blocked, one, texts
from support.waiting import wait_until

_TTL = 2

HOLD = """
import sys
from support.agents import build
from strands_psycopg import PostgresSessionRepository

dsn, ttl = sys.argv[1:3]
with PostgresSessionRepository(dsn) as repository:
    with repository.lease("s", ttl=float(ttl)):
        agent = build(repository, replies=[["first answer"], ["second answer"]])
        agent("first")
        ready()
        agent("second")
        ready()
"""


def of_holder(dsn: str) -> str:
    return make_conninfo(dsn, application_name="holder")


def backends(connection: Connection) -> list[int]:
    """Return the process ids of the holder's connections."""
    found = connection.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'holder' ORDER BY 1")
    return [pid for (pid,) in found]


def kill(member: Process) -> None:
    member.signal(signal.SIGKILL)
    assert member.end() == -signal.SIGKILL


def test_session_is_free_after_the_ttl_not_before_and_not_much_after(
    crew: Crew, dsn: str, repository: PostgresSessionRepository, connection: Connection
) -> None:
    with crew.of(1, HOLD, of_holder(dsn), str(_TTL)) as [holder]:
        renewed = one(connection, "SELECT expires_at FROM strands_leases")
        wait_until(lambda: one(connection, "SELECT expires_at FROM strands_leases") > renewed)
        kill(holder)
        killed = one(connection, "SELECT clock_timestamp()")
        wait_until(lambda: backends(connection) == [])
        until = one(connection, "SELECT expires_at FROM strands_leases")
        with pytest.raises(SessionBusyError):
            repository.lease("s", wait=0).__enter__()

        with repository.lease("s", wait=30):
            taken = one(connection, "SELECT acquired_at FROM strands_leases")
            build(repository, replies=[["their answer"]])("theirs")

    assert until <= taken < until + timedelta(seconds=1)
    assert until <= killed + timedelta(seconds=_TTL)
    assert texts(connection) == ["first", "first answer", "theirs", "their answer"]


def test_no_connection_and_no_lock_is_left(crew: Crew, dsn: str, connection: Connection) -> None:
    with crew.of(1, HOLD, of_holder(dsn), str(_TTL)) as [holder]:
        before = backends(connection)
        assert before != []
        kill(holder)

        wait_until(lambda: backends(connection) == [])

    assert one(connection, "SELECT count(*) FROM pg_locks WHERE pid = ANY(%s)", before) == 0
    assert one(connection, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


def test_write_that_lands_after_its_process_was_killed_lands_before_the_next_holder(
    crew: Crew, dsn: str, repository: PostgresSessionRepository, connection: Connection, watcher: Connection
) -> None:
    def take_over() -> list[str]:
        with repository.lease("s", wait=30):
            agent = build(repository, replies=[["their answer"]])
            restored = [message["content"][0]["text"] for message in agent.messages]
            agent("theirs")
            return restored

    with crew.of(1, HOLD, of_holder(dsn), str(_TTL)) as [holder], ThreadPoolExecutor(1) as thread:
        with connection.transaction(force_rollback=True):
            # What the holder writes next has to wait until it is known that this is rolled back.
            connection.execute(
                "INSERT INTO strands_messages (session_id, agent_id, message_id, message, write_id, created_at, "
                "updated_at) VALUES ('s', 'default', 2, '{}', gen_random_uuid(), now(), now())"
            )
            holder.release()
            wait_until(lambda: blocked(watcher) == 1)
            kill(holder)
            wait_until(lambda: one(watcher, "SELECT expires_at < now() FROM strands_leases"))
            taking_over = thread.submit(take_over)
            wait_until(lambda: blocked(watcher) == 2)
        restored = taking_over.result(30)

    assert restored == ["first", "first answer", "second"]
    assert texts(connection) == ["first", "first answer", "second", "theirs", "their answer"]
