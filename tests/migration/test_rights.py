from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo
from strands.types.session import Session, SessionType

from strands_psycopg import DatabaseError, PostgresSessionRepository
from support import agents, catalog


@contextmanager
def clerk(dsn: str, *grants: str) -> Iterator[str]:
    """Give the DSN of a role that may do no more on this database than what is granted."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE clerk LOGIN PASSWORD 'clerk'")
        try:
            connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            connection.execute(f"REVOKE CREATE ON DATABASE {connection.info.dbname} FROM PUBLIC".encode())
            for grant in grants:
                connection.execute(f"GRANT {grant} TO clerk".encode())
            yield make_conninfo(dsn, user="clerk", password="clerk")
        finally:
            connection.execute("DROP OWNED BY clerk")
            connection.execute("DROP ROLE clerk")


def test_a_role_with_the_four_rights_runs_a_whole_session(dsn: str) -> None:
    rights = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
    with (
        clerk(dsn, "USAGE ON SCHEMA public", rights) as of_clerk,
        PostgresSessionRepository(of_clerk) as repository,
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

        with psycopg.connect(of_clerk) as connection, pytest.raises(errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE public.more ()")


@pytest.mark.parametrize(
    ("schema", "named"), [("public", "schema public"), ("office", "database empty_under_test")], ids=["public", "new"]
)
def test_a_role_that_may_not_create_is_told_so(empty_dsn: str, schema: str, named: str) -> None:
    with (
        clerk(empty_dsn, "USAGE ON SCHEMA public") as of_clerk,
        PostgresSessionRepository(of_clerk, schema=schema) as repository,
    ):
        with pytest.raises(DatabaseError, match=f"migrating the schema: permission denied for {named}.*grant") as error:
            repository.ensure_schema()

        assert error.value.sqlstate == "42501"
    assert catalog.tables(empty_dsn, schema) == []


def test_an_existing_schema_is_used_without_the_right_to_create_schemas(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("CREATE SCHEMA office")
    with (
        clerk(empty_dsn, "USAGE, CREATE ON SCHEMA office") as of_clerk,
        PostgresSessionRepository(of_clerk, schema="office") as repository,
    ):
        repository.ensure_schema()

        session = Session(session_id="s", session_type=SessionType.AGENT)
        assert repository.create_session(session) == repository.read_session("s")
