"""Migrations by twelve processes at once, of which one is killed, or while someone else holds a lock."""

import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository
from strands_psycopg.migrator import Migrator, packaged_migrations
from support import catalog
from support.agents import build
from support.crew import Crew, Process
from support.tables import Connection, one, texts
from support.waiting import wait_until

_PROCESSES = 12

LOCK_TIMEOUT: dict[str, Any] = {"kwargs": {"options": "-c lock_timeout=200"}}

MIGRATE = """
import sys
from psycopg.conninfo import make_conninfo
from strands_psycopg import PostgresSessionRepository

dsn, number = sys.argv[1:]
with PostgresSessionRepository(make_conninfo(dsn, application_name=f"migrator {number}")) as repository:
    ready()
    repository.ensure_schema()
    assert repository.read_session("s") is None
"""

_WAITING = """
    SELECT application_name FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND (wait_event = 'advisory') = %s
"""


@pytest.fixture
def look(empty_dsn: str) -> Iterator[Connection]:
    """A connection to the empty database, in autocommit."""
    with psycopg.connect(empty_dsn, autocommit=True) as look:
        yield look


def waiting(look: Connection, *, for_their_turn: bool) -> list[str]:
    """Return the processes that wait for the advisory lock, or those that hold it and wait for another lock."""
    return [name for (name,) in look.execute(_WAITING, [for_their_turn])]


def release(members: list[Process]) -> None:
    for member in members:
        member.release()


def test_one_of_many_is_killed_half_way(crew: Crew, empty_dsn: str, direct_dsn: str, look: Connection) -> None:
    with crew.of(_PROCESSES, MIGRATE, empty_dsn) as members, psycopg.connect(empty_dsn) as other:
        # Whoever migrates makes two tables before this one, and then has to wait for what becomes of this.
        other.execute("CREATE TABLE strands_messages ()")
        release(members)
        wait_until(lambda: len(waiting(look, for_their_turn=True)) == _PROCESSES - 1)
        wait_until(lambda: len(waiting(look, for_their_turn=False)) == 1)
        victim = members[int(waiting(look, for_their_turn=False)[0].split()[1])]
        victim.signal(signal.SIGKILL)
        assert victim.end() == -signal.SIGKILL
        other.rollback()

        for member in members:
            if member is not victim:
                assert member.result() == []

    assert catalog.layout(empty_dsn) == catalog.layout(direct_dsn)
    ledger = look.execute("SELECT version FROM strands_migrations ORDER BY version").fetchall()
    assert ledger == [(each.version,) for each in packaged_migrations()]
    assert one(look, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


def test_killed_migration_leaves_nothing(crew: Crew, empty_dsn: str, direct_dsn: str, look: Connection) -> None:
    with crew.of(1, MIGRATE, empty_dsn) as [victim], psycopg.connect(empty_dsn) as other:
        other.execute("CREATE TABLE strands_messages ()")
        victim.release()
        wait_until(lambda: waiting(look, for_their_turn=False))
        victim.signal(signal.SIGKILL)
        assert victim.end() == -signal.SIGKILL
        other.rollback()
        wait_until(
            lambda: one(look, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'migrator 0'") == 0
        )

    assert catalog.objects(empty_dsn) == []
    assert one(look, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    with PostgresSessionRepository(empty_dsn) as repository:
        repository.ensure_schema()
    assert catalog.layout(empty_dsn) == catalog.layout(direct_dsn)


def migrate_to_first_version(dsn: str) -> None:
    with PostgresSessionRepository(dsn) as repository:
        Migrator(repository._database, packaged_migrations()[:1]).apply()


def test_upgrade_waits_for_whoever_has_locked_the_tables(
    crew: Crew, empty_dsn: str, direct_dsn: str, look: Connection
) -> None:
    migrate_to_first_version(empty_dsn)
    with crew.of(_PROCESSES, MIGRATE, empty_dsn) as members, psycopg.connect(empty_dsn) as other:
        tables = "strands_migrations, strands_sessions, strands_agents, strands_messages, strands_multi_agents"
        other.execute(f"LOCK TABLE {tables}".encode())
        release(members)
        wait_until(lambda: len(waiting(look, for_their_turn=False)) == _PROCESSES)
        other.rollback()

        for member in members:
            assert member.result() == []

    assert catalog.layout(empty_dsn) == catalog.layout(direct_dsn)


@pytest.mark.parametrize(
    ("lock", "options", "reason"),
    [
        ("LOCK TABLE strands_migrations", {"response_timeout": 0.5}, "the server did not respond within 0.5 s"),
        ("LOCK TABLE strands_migrations", LOCK_TIMEOUT, "lock timeout (SQLSTATE 55P03)"),
        ("CREATE TABLE strands_leases ()", LOCK_TIMEOUT, "lock timeout (SQLSTATE 55P03)"),
    ],
    ids=["no answer", "ledger", "table"],
)
def test_upgrade_that_does_not_get_its_locks_in_time_says_why_and_changes_nothing(
    empty_dsn: str, look: Connection, lock: str, options: dict[str, Any], reason: str
) -> None:
    migrate_to_first_version(empty_dsn)
    before = catalog.layout(empty_dsn)
    with psycopg.connect(empty_dsn) as other:
        other.execute(lock.encode())

        with (
            PostgresSessionRepository(empty_dsn, retry_timeout=1, **options) as repository,
            pytest.raises(DatabaseUnavailableError) as error,
        ):
            repository.ensure_schema()

        other.rollback()
    assert str(error.value).endswith(reason)
    assert catalog.layout(empty_dsn) == before
    with PostgresSessionRepository(empty_dsn) as repository:
        repository.ensure_schema()
        build(repository)("works")
    assert texts(look) == ["works", "ok"]
