"""Processes that start at the same time on an empty database, as the replicas of a service do."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.migrator import Migrator, packaged_migrations
from support import catalog, processes
from support.scale import scale
from support.waiting import wait_until

# The package is imported before the fork, and each process connects before the barrier, so that they start together.
START_UP = """
import json, multiprocessing, sys
from strands_psycopg import PostgresSessionRepository

def start_up(barrier, options):
    with PostgresSessionRepository(sys.argv[1], **options) as repository:
        repository._database.transact("connecting", lambda cursor: cursor.execute("SELECT 1"))
        barrier.wait(30)
        repository.ensure_schema()
        assert repository.read_session("s") is None

context = multiprocessing.get_context("fork")
options = json.loads(sys.argv[2])
barrier = context.Barrier(len(options))
started = [context.Process(target=start_up, args=(barrier, each)) for each in options]
for process in started:
    process.start()
for process in started:
    process.join()
sys.exit(any(process.exitcode for process in started))
"""


def start_concurrently(dsn: str, options: list[dict[str, Any]]) -> None:
    processes.run(START_UP, dsn, json.dumps(options))


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_processes_that_start_at_the_same_time_migrate_once(empty_dsn: str, isolation: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = {}").format(
                sql.Identifier(connection.info.dbname), sql.Literal(isolation)
            )
        )

    start_concurrently(empty_dsn, [{}] * scale(6, 12))

    with psycopg.connect(empty_dsn) as connection:
        ledger = connection.execute("SELECT version FROM strands_migrations ORDER BY version").fetchall()
    assert ledger == [(each.version,) for each in packaged_migrations()]
    assert catalog.tables(empty_dsn) == [f"strands_{name}" for name in catalog.TABLES]


def test_processes_of_several_prefixes_share_a_new_schema(empty_dsn: str) -> None:
    prefixes = ["erp_", "crm_", "hr_", "it_"]

    start_concurrently(empty_dsn, [{"schema": "office", "table_prefix": prefix} for prefix in prefixes * 2])

    assert catalog.tables(empty_dsn, "office") == sorted(
        prefix + name for prefix in prefixes for name in catalog.TABLES
    )


@pytest.mark.parametrize("options", [{}, {"schema": "office"}], ids=["public", "new schema"])
@pytest.mark.parametrize("prefix", ["crm_", "erp_"], ids=["same prefix", "other prefix"])
def test_migrator_that_waited_for_another_sees_its_result(empty_dsn: str, options: dict[str, Any], prefix: str) -> None:
    with (
        ThreadPoolExecutor() as threads,
        PostgresSessionRepository(empty_dsn, table_prefix="crm_", **options) as first,
        PostgresSessionRepository(empty_dsn, table_prefix=prefix, **options) as second,
        psycopg.connect(empty_dsn, autocommit=True) as connection,
    ):
        migrator = Migrator(second._database)
        assert migrator.pending() == packaged_migrations()
        statements, commit = Migrator(first._database).script().rsplit("COMMIT", maxsplit=1)
        connection.execute(statements.encode())

        applied = threads.submit(migrator.apply)
        waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until(lambda: applied.done() or connection.execute(waiting).fetchall())
        connection.execute(b"COMMIT" + commit.encode())

        assert applied.result(30) == ([] if prefix == "crm_" else packaged_migrations())
        assert second.read_session("s") is None
