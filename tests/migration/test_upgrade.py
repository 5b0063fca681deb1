"""Upgrades of a database that contains sessions, by example migrations."""

from typing import Any

import psycopg
import pytest

from strands_psycopg import DatabaseError, PostgresSessionRepository, SchemaError
from strands_psycopg.migrator import Migration, Migrator, packaged_migrations
from strands_psycopg.report import read_statistics
from support import agents, catalog

Connection = psycopg.Connection[Any]

NEXT = len(packaged_migrations()) + 1

ADDED = Migration(
    NEXT,
    "labels",
    "-- A column with data; and a table of its own.\n"
    "ALTER TABLE strands_sessions ADD COLUMN label text NOT NULL DEFAULT 'old';\n"
    "CREATE TABLE strands_labels (label text PRIMARY KEY);\n"
    "INSERT INTO strands_labels SELECT DISTINCT label FROM strands_sessions;\n",
)

FAILING = Migration(
    NEXT + 1,
    "failing",
    "ALTER TABLE strands_agents ADD COLUMN size integer NOT NULL DEFAULT 0;\n"
    "SELECT 1 / 0;\n"
    "CREATE TABLE strands_never ();\n",
)


def contents(connection: Connection) -> dict[str, list[Any]]:
    """Return all rows of the sessions' tables, without the column that an example migration adds."""
    return {
        table: connection.execute(f"SELECT to_jsonb(t) - 'label' FROM {table} t ORDER BY 1".encode()).fetchall()
        for table in ("strands_sessions", "strands_agents", "strands_messages", "strands_multi_agents")
    }


@pytest.fixture
def dump(repository: PostgresSessionRepository) -> str:
    """Store a session with two turns, and return the dump of its agent."""
    agent = agents.build(repository, replies=[["one\0"], ["two"]])
    agent("1")
    agent("2")
    return agents.dump(agent)


def test_upgrade_keeps_the_data(
    dsn: str, repository: PostgresSessionRepository, dump: str, connection: Connection
) -> None:
    before = contents(connection)
    migrator = Migrator(repository._database, [*packaged_migrations(), ADDED])
    assert migrator.pending() == [ADDED]

    assert migrator.apply() == [ADDED]

    assert migrator.pending() == []
    assert contents(connection) == before
    assert connection.execute("SELECT session_id, label FROM strands_sessions").fetchall() == [("s", "old")]
    assert connection.execute("SELECT label FROM strands_labels").fetchall() == [("old",)]
    agent = agents.build(repository)
    assert agents.dump(agent) == dump
    agent("3")
    assert agents.dump(agents.build(repository)) == agents.dump(agent)
    with pytest.raises(SchemaError, match=rf"version {NEXT} \(labels\), newer than this package"):
        Migrator(repository._database).pending()


def test_upgrade_may_change_a_column_that_views_read(
    dsn: str, repository: PostgresSessionRepository, dump: str
) -> None:
    analytics = next(each for each in packaged_migrations() if each.name == "analytics")
    drop = "".join(f"DROP VIEW strands_{name} CASCADE;\n" for name in ("message_figures", "content_blocks"))
    alter = "ALTER TABLE strands_messages ALTER COLUMN created_at TYPE timestamptz(3);\n"
    layout = catalog.layout(dsn)
    with pytest.raises(DatabaseError, match="cannot alter type of a column used by a view"):
        Migrator(repository._database, [*packaged_migrations(), Migration(NEXT, "times", alter)]).apply()
    assert catalog.layout(dsn) == layout

    changed = Migration(NEXT, "times", drop + alter + analytics.text)
    assert Migrator(repository._database, [*packaged_migrations(), changed]).apply() == [changed]

    assert catalog.views(dsn) == [f"strands_{name}" for name in catalog.VIEWS]
    assert agents.dump(agents.build(repository)) == dump
    assert read_statistics(repository).total.messages == 4


def test_upgrade_changes_only_its_own_schema_and_prefix(
    dsn: str, repository: PostgresSessionRepository, dump: str
) -> None:
    before = catalog.layout(dsn)
    with PostgresSessionRepository(dsn, schema="office", table_prefix="crm_") as other:
        other.ensure_schema()

        assert Migrator(other._database, [*packaged_migrations(), ADDED]).apply() == [ADDED]

    assert "crm_labels" in catalog.tables(dsn, "office")
    assert catalog.layout(dsn) == before
    assert agents.dump(agents.build(repository)) == dump


def test_failing_upgrade_changes_nothing(
    dsn: str, repository: PostgresSessionRepository, dump: str, connection: Connection
) -> None:
    before, layout = contents(connection), catalog.layout(dsn)
    ledger = connection.execute("SELECT * FROM strands_migrations").fetchall()

    with pytest.raises(DatabaseError, match="migrating the schema") as error:
        Migrator(repository._database, [*packaged_migrations(), ADDED, FAILING]).apply()

    assert error.value.sqlstate == "22012"
    assert catalog.layout(dsn) == layout
    assert contents(connection) == before
    assert connection.execute("SELECT * FROM strands_migrations").fetchall() == ledger
    repository.ensure_schema()
    assert agents.dump(agents.build(repository)) == dump


def test_failing_installation_creates_nothing(empty_dsn: str) -> None:
    with PostgresSessionRepository(empty_dsn, schema="office") as repository, pytest.raises(DatabaseError):
        Migrator(repository._database, [*packaged_migrations(), ADDED, FAILING]).apply()

    assert catalog.tables(empty_dsn, "office") == []
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT to_regnamespace('office')").fetchall() == [(None,)]
