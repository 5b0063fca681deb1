"""Owners under faults: an erasure that is killed or interrupted, and processes that create one session at once."""

import signal
import uuid

import pytest
from strands.types.session import Session, SessionType

from strands_psycopg import ErasureResult, PostgresSessionRepository
from strands_psycopg.repository.annotations import AnnotatedSession
from support.crew import Crew
from support.owners import find, leave
from support.scale import scale
from support.tables import Connection, one
from support.waiting import wait_until

ERASE = """
import sys
from strands_psycopg.cli import main
from strands_psycopg.repository import erasure

erasure._SESSIONS_PER_BATCH = 1
sys.exit(main(["erase", "--dsn", sys.argv[1], "--owner", sys.argv[2], "--yes"]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_erasure_that_was_killed_or_interrupted_is_completed_by_the_next_one(
    crew: Crew, own_dsn: str, look: Connection, number: signal.Signals, status: int
) -> None:
    marker = f"marker{uuid.uuid4().hex}"
    with PostgresSessionRepository(own_dsn) as repository:
        for place in range(2):
            leave(repository, look, f"Alice {marker}", f"{place}{marker}")
        repository.create_session(Session("of Bob", SessionType.AGENT), owner="Bob")
        with look.transaction():
            # So it deletes one session, and is in a transaction that has deleted most of another.
            look.execute("SELECT true FROM strands_agents WHERE session_id LIKE 'session 1%' FOR UPDATE")
            with crew.start(ERASE, own_dsn, f"Alice {marker}") as process:
                wait_until(lambda: one(look, "SELECT count(*) FROM strands_sessions") == 2)
                process.signal(number)
                assert process.end() == status, process.errors()
        assert find(look, marker)

        erased = repository.erase(owner=f"Alice {marker}")

        assert (erased.sessions, erased.memories, erased.storage) == (1, 2, 4)
        assert find(look, marker) == set()
        assert repository.erase(owner=f"Alice {marker}") == ErasureResult()
        assert repository.read_session("of Bob", owner="Bob") is not None


OPEN = """
import sys
from strands_psycopg import PostgresSessionManager, PostgresSessionRepository, SessionOwnerError

with PostgresSessionRepository(sys.argv[1]) as repository:
    for number in range(int(sys.argv[2])):
        repository.read_session("connects")
        ready()
        try:
            PostgresSessionManager(f"s{number}", repository, owner=f"owner {sys.argv[3]}", title=f"of {sys.argv[3]}")
        except SessionOwnerError:
            print("refused", flush=True)
        else:
            print("opened", flush=True)
"""


def test_one_of_two_processes_that_create_a_session_at_once_for_two_owners_is_refused(
    crew: Crew, own_dsn: str, look: Connection
) -> None:
    rounds = scale(20, 500)
    with (
        PostgresSessionRepository(own_dsn) as repository,
        crew.of(2, OPEN, own_dsn, str(rounds)) as processes,
    ):
        for number in range(rounds):
            for process in processes:
                process.release()
            outcomes = [process.line() for process in processes]
            assert sorted(outcomes) == ["opened", "refused"]
            winner = outcomes.index("opened")
            session = repository.read_session(f"s{number}")
            assert isinstance(session, AnnotatedSession)
            assert (session.owner, session.title) == (f"owner {winner}", f"of {winner}")
            if number < rounds - 1:
                assert [process.line() for process in processes] == ["ready", "ready"]
