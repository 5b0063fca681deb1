import re
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import errors

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.migrator import Migration, Migrator, packaged_migrations
from support import agents, catalog

NEXT = len(packaged_migrations()) + 1

OPTIONS: list[dict[str, Any]] = [
    {},
    {"schema": "select"},
    {"table_prefix": "crm_"},
    {"schema": "office", "table_prefix": "crm_"},
]


def run(dsn: str, script: str) -> None:
    """Run a script as one query string."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(script.encode())


def run_by_statement(dsn: str, script: str) -> None:
    """Run a script statement by statement, and continue after an error, as psql does by default."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in script.split(";\n\n"):
            with suppress(psycopg.Error):
                connection.execute(statement.encode())


def schemas_and_objects(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        schemas = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$' ORDER BY 1"
        ).fetchall()
    return [f"{schema}.{name}" for (schema,) in schemas for name in ["", *catalog.objects(dsn, schema)]]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_is_pending_after_the_script(empty_dsn: str, options: dict[str, Any]) -> None:
    with PostgresSessionRepository(empty_dsn, **options) as repository:
        migrator = Migrator(repository._database)
        assert migrator.pending() == packaged_migrations()

        run(empty_dsn, migrator.script())

        assert migrator.pending() == []
        agent = agents.build(repository)
        agent("hello")
        assert agents.dump(agents.build(repository)) == agents.dump(agent)


def test_script_does_what_apply_does(dsn: str, empty_dsn: str) -> None:
    with PostgresSessionRepository(empty_dsn) as repository:
        run(empty_dsn, Migrator(repository._database).script())

    assert catalog.layout(empty_dsn) == catalog.layout(dsn)
    ledgers = []
    for each in (dsn, empty_dsn):
        with psycopg.connect(each) as connection:
            ledgers.append(connection.execute("SELECT version, name, checksum FROM strands_migrations").fetchall())
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_script_that_fails_halfway_creates_nothing(empty_dsn: str, options: dict[str, Any]) -> None:
    with PostgresSessionRepository(empty_dsn, **options) as repository:
        halfway = Migration(NEXT, "halfway", "ALTER TABLE strands_sessions ADD note text; SELECT 1 / 0;")
        script = Migrator(repository._database, [*packaged_migrations(), halfway]).script()
    before = schemas_and_objects(empty_dsn)

    with pytest.raises(errors.DivisionByZero):
        run(empty_dsn, script)
    assert schemas_and_objects(empty_dsn) == before
    run_by_statement(empty_dsn, script)
    assert schemas_and_objects(empty_dsn) == before

    run_by_statement(empty_dsn, re.sub("SELECT 1 / 0;", "", script))
    assert schemas_and_objects(empty_dsn) != before


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_script_creates_the_views_that_apply_creates(empty_dsn: str, options: dict[str, Any]) -> None:
    with PostgresSessionRepository(empty_dsn, **options) as repository:
        run(empty_dsn, Migrator(repository._database).script())

    schema, prefix = options.get("schema", "public"), options.get("table_prefix", "strands_")
    assert catalog.views(empty_dsn, schema) == [prefix + name for name in catalog.VIEWS]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_script_of_pending_migrations_upgrades(empty_dsn: str, options: dict[str, Any]) -> None:
    with PostgresSessionRepository(empty_dsn, **options) as repository:
        repository.ensure_schema()
        agent = agents.build(repository)
        agent("hello")
        note = Migration(NEXT, "note", "ALTER TABLE strands_sessions ADD note text;")
        migrator = Migrator(repository._database, [*packaged_migrations(), note])

        run(empty_dsn, migrator.script(migrator.pending()))

        assert migrator.pending() == []
        assert agents.dump(agents.build(repository)) == agents.dump(agent)
