from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo
from strands.types.session import Session, SessionType

from strands_psycopg import DatabaseError, PostgresSessionRepository
from strands_psycopg.report import read_statistics
from support import agents, catalog


@contextmanager
def restricted_role(dsn: str, *grants: str) -> Iterator[str]:
    """Yield the DSN of a role with no other privileges on this database than the granted ones."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE restricted LOGIN PASSWORD 'restricted'")
        try:
            connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            connection.execute(f"REVOKE CREATE ON DATABASE {connection.info.dbname} FROM PUBLIC".encode())
            for grant in grants:
                connection.execute(f"GRANT {grant} TO restricted".encode())
            yield make_conninfo(dsn, user="restricted", password="restricted")
        finally:
            connection.execute("DROP OWNED BY restricted")
            connection.execute("DROP ROLE restricted")


def test_role_with_four_privileges_runs_a_whole_session(dsn: str) -> None:
    privileges = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
    with (
        restricted_role(dsn, "USAGE ON SCHEMA public", privileges) as restricted_dsn,
        PostgresSessionRepository(restricted_dsn) as repository,
    ):
        repository.ensure_schema()
        agent = agents.build(repository, replies=[["one"], ["two"]])
        agent("1")
        agent.state.set("seen", True)
        agent("2")

        restored = agents.build(repository)
        assert agents.dump(restored) == agents.dump(agent)
        assert len(restored.messages) == 4

        repository.delete_session("s")
        assert repository.read_session("s") is None

        with psycopg.connect(restricted_dsn) as connection, pytest.raises(errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE public.more ()")


def test_role_without_privileges_on_views_runs_a_whole_session(dsn: str) -> None:
    tables = ", ".join(f"strands_{name}" for name in catalog.TABLES)
    privileges = f"SELECT, INSERT, UPDATE, DELETE ON {tables}"
    with (
        restricted_role(dsn, "USAGE ON SCHEMA public", privileges) as restricted_dsn,
        PostgresSessionRepository(restricted_dsn) as repository,
    ):
        repository.ensure_schema()
        agent = agents.build(repository, replies=[["one"]])
        agent("1")
        assert agents.dump(agents.build(repository)) == agents.dump(agent)
        assert repository.status().ready
        repository.delete_session("s")

        with pytest.raises(DatabaseError, match=r"permission denied for view strands_.*GRANT") as error:
            read_statistics(repository)
        assert error.value.sqlstate == "42501"


def test_row_level_security_applies_to_views(dsn: str, repository: PostgresSessionRepository) -> None:
    agents.build(repository, "tenant-1")("mine")
    agents.build(repository, "tenant-2")("yours")
    with psycopg.connect(dsn) as connection:
        if connection.info.server_version < 150000:
            pytest.skip("before PostgreSQL 15 a view reads with its owner's rights")
        for table in ("strands_sessions", "strands_messages"):
            connection.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY".encode())
            connection.execute(f"CREATE POLICY mine ON {table} USING (session_id = 'tenant-1')".encode())
    with (
        restricted_role(dsn, "USAGE ON SCHEMA public", "SELECT ON ALL TABLES IN SCHEMA public") as restricted_dsn,
        psycopg.connect(restricted_dsn) as connection,
    ):
        for view in catalog.VIEWS:
            if view != "daily_figures":
                seen = connection.execute(f"SELECT DISTINCT session_id FROM strands_{view}".encode()).fetchall()
                assert seen in ([("tenant-1",)], [] if view == "tool_calls" else None)
        assert connection.execute("SELECT sessions, messages FROM strands_daily_figures").fetchall() == [(1, 2)]


@pytest.mark.parametrize(
    ("schema", "named"), [("public", "schema public"), ("office", "database empty_under_test")], ids=["public", "new"]
)
def test_error_says_which_privilege_to_create_is_missing(empty_dsn: str, schema: str, named: str) -> None:
    with (
        restricted_role(empty_dsn, "USAGE ON SCHEMA public") as restricted_dsn,
        PostgresSessionRepository(restricted_dsn, schema=schema) as repository,
    ):
        with pytest.raises(DatabaseError, match=f"migrating the schema: permission denied for {named}.*GRANT") as error:
            repository.ensure_schema()

        assert error.value.sqlstate == "42501"
    assert catalog.tables(empty_dsn, schema) == []


def test_existing_schema_is_used_without_the_privilege_to_create_schemas(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("CREATE SCHEMA office")
    with (
        restricted_role(empty_dsn, "USAGE, CREATE ON SCHEMA office") as restricted_dsn,
        PostgresSessionRepository(restricted_dsn, schema="office") as repository,
    ):
        repository.ensure_schema()

        session = Session(session_id="s", session_type=SessionType.AGENT)
        assert repository.create_session(session) == repository.read_session("s")
