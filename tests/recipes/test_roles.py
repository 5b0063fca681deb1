"""The two roles of ``roles.sql`` and ``grants.sql``: what each can do, and what not."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from strands_psycopg import DatabaseError, PostgresSessionRepository
from strands_psycopg.cli import main
from support import catalog, programs
from support.errands import run_all
from support.tables import TABLES

RECIPES = Path(__file__).parent


class Roles(NamedTuple):
    """The database as each role reaches it."""

    migrator: str
    runtime: str


@pytest.fixture
def roles(empty_dsn: str, request: pytest.FixtureRequest) -> Iterator[Roles]:
    if request.config.getoption("--pgbouncer"):
        pytest.skip("PgBouncer does not know the roles")
    with psycopg.connect(empty_dsn, autocommit=True) as owner:
        owner.execute("CREATE TABLE secrets ()")
        owner.execute("GRANT ALL ON secrets TO PUBLIC")
        programs.psql(empty_dsn, RECIPES / "roles.sql")
        try:
            dsns = []
            for role in ("strands_migrator", "strands_runtime"):
                owner.execute(f"ALTER ROLE {role} PASSWORD 'of {role}'".encode())
                dsns.append(make_conninfo(empty_dsn, user=role, password=f"of {role}"))
            yield Roles(*dsns)
        finally:
            owner.execute("DROP OWNED BY strands_migrator, strands_runtime")
            owner.execute("DROP ROLE strands_migrator, strands_runtime")


@pytest.fixture
def migrated(roles: Roles, capsys: pytest.CaptureFixture[str]) -> Roles:
    assert main(["migrate", "--dsn", roles.migrator, "--schema", "strands"]) == 0
    for _ in range(2):
        programs.psql(roles.migrator, RECIPES / "grants.sql")
    return roles


def test_runtime_role_does_all_that_an_application_does(migrated: Roles) -> None:
    with PostgresSessionRepository(migrated.runtime, schema="strands") as repository:
        run_all(repository, "s")


def allowed(dsn: str, statements: list[str]) -> list[str]:
    """Return those of the statements for which the role has the rights."""
    found = []
    for statement in statements:
        with psycopg.connect(dsn) as connection:
            try:
                connection.execute(statement.encode())
            except errors.InsufficientPrivilege:
                continue
            finally:
                connection.rollback()
        found.append(statement)
    return found


def test_runtime_role_can_do_nothing_else(migrated: Roles) -> None:
    statements = [
        *("CREATE TABLE strands.more ()", "CREATE TABLE public.more ()", "CREATE TEMPORARY TABLE more ()"),
        *("CREATE SCHEMA more", "CREATE ROLE more", "SET ROLE strands_migrator", "SELECT FROM public.secrets"),
        "ALTER TABLE strands.strands_messages ADD more text",
        "CREATE INDEX ON strands.strands_messages (updated_at)",
        *("TRUNCATE strands.strands_leases", "DROP TABLE strands.strands_leases"),
        *("DELETE FROM strands.strands_migrations", "UPDATE strands.strands_migrations SET version = 99"),
        "INSERT INTO strands.strands_migrations VALUES (99, 'more', '', now())",
    ]
    assert allowed(migrated.runtime, statements) == []


def test_migrating_role_is_confined_to_its_schema(migrated: Roles) -> None:
    statements = [
        *("CREATE TABLE public.more ()", "CREATE TEMPORARY TABLE more ()", "CREATE SCHEMA more", "CREATE ROLE more"),
        *("SELECT FROM public.secrets", "SET ROLE strands_runtime"),
    ]
    assert allowed(migrated.migrator, statements) == []


def test_runtime_role_cannot_migrate(roles: Roles, empty_dsn: str) -> None:
    with (
        PostgresSessionRepository(roles.runtime, schema="strands") as repository,
        pytest.raises(DatabaseError, match="migrating the schema: permission denied for schema strands"),
    ):
        repository.ensure_schema()
    assert catalog.tables(empty_dsn, "strands") == []


def test_tables_belong_to_the_role_that_migrates(migrated: Roles) -> None:
    with psycopg.connect(migrated.migrator) as connection:
        query = "SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'strands'"
        owners: dict[str, str] = dict(connection.execute(query).fetchall())
    assert set(TABLES) < set(owners)
    assert set(owners.values()) == {"strands_migrator"}


def test_other_roles_cannot_even_connect(migrated: Roles, empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as owner:
        owner.execute("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
        try:
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(make_conninfo(empty_dsn, user="stranger", password="stranger"))
        finally:
            owner.execute("DROP ROLE stranger")
