"""What is said when the server refuses a statement."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from strands.types.session import Session, SessionAgent, SessionType

from strands_psycopg import (
    DatabaseError,
    PostgresSessionManager,
    PostgresSessionRepository,
    SchemaError,
    SessionNotFoundError,
)
from support.agents import build

Connection = psycopg.Connection[Any]


@pytest.fixture
def reader(dsn: str, connection: Connection) -> Iterator[str]:
    """The database as a role that may only read."""
    role = sql.Identifier("strands_reader_under_test")
    connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(role))
    connection.execute(sql.SQL("CREATE ROLE {}").format(role))
    connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(role))
    yield make_conninfo(dsn, options="-c role=strands_reader_under_test")
    connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
    connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_missing_tables_are_a_schema_error_that_says_how_to_make_them(empty_dsn: str) -> None:
    with (
        PostgresSessionRepository(empty_dsn) as repository,
        pytest.raises(SchemaError, match=r"^reading session 's': .* call ensure_schema\(\)"),
    ):
        PostgresSessionManager("s", repository)


def test_missing_schema_is_a_schema_error_that_says_how_to_make_it(dsn: str) -> None:
    with (
        PostgresSessionRepository(dsn, schema="elsewhere") as repository,
        pytest.raises(SchemaError, match=r"call ensure_schema\(\)"),
    ):
        repository.read_session("s")


def test_missing_column_is_a_schema_error(repository: PostgresSessionRepository, connection: Connection) -> None:
    connection.execute("ALTER TABLE strands_messages DROP COLUMN message_exact")

    with pytest.raises(SchemaError, match="from an older version"):
        build(repository)("1")


def test_manager_works_after_the_tables_were_made(empty_dsn: str) -> None:
    with PostgresSessionRepository(empty_dsn) as repository:
        with pytest.raises(SchemaError):
            PostgresSessionManager("s", repository)

        repository.ensure_schema()

        assert PostgresSessionManager("s", repository).session_id == "s"


def test_missing_right_is_a_database_error_that_names_table_and_cure(
    reader: str, repository: PostgresSessionRepository
) -> None:
    repository.create_session(Session("s", SessionType.AGENT))

    with PostgresSessionRepository(reader, retry_timeout=60) as without_rights:
        assert without_rights.read_session("s") is not None
        with pytest.raises(
            DatabaseError, match=r"creating agent 'default'.*permission denied for table.*grant"
        ) as error:
            build(without_rights)

    assert error.value.sqlstate == "42501"
    assert repository.read_agent("s", "default") is None


def test_agent_of_a_session_that_is_gone_is_a_session_not_found_error(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    repository.delete_session("s")

    with pytest.raises(SessionNotFoundError, match="the agent does not exist"):
        agent("1")


def test_agent_for_a_missing_session_is_a_session_not_found_error(repository: PostgresSessionRepository) -> None:
    with pytest.raises(SessionNotFoundError, match="creating agent 'a' in session 's'"):
        repository.create_agent("s", SessionAgent("a", {}, {}))


def test_values_that_the_server_refuses_are_not_quoted(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    connection.execute("ALTER TABLE strands_messages ADD CONSTRAINT refused CHECK (message::text NOT LIKE '%hunter2%')")

    with pytest.raises(DatabaseError, match="SQLSTATE 23514") as raised:
        build(repository)("My password is hunter2")

    error: BaseException | None = raised.value
    while error is not None:
        assert "hunter2" not in str(error) + repr(error)
        error = error.__cause__ or error.__context__


def test_statement_that_was_cancelled_is_a_database_error(dsn: str) -> None:
    with (
        PostgresSessionRepository(
            make_conninfo(dsn, options="-c statement_timeout=50"), retry_timeout=60
        ) as repository,
        pytest.raises(DatabaseError, match="statement_timeout") as raised,
    ):
        repository._database.fetch("sleeping", b"SELECT pg_sleep(30)", {})

    assert raised.value.sqlstate == "57014"
