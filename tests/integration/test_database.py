"""What is said when the server refuses a statement."""

import asyncio
import logging
import re
import traceback
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from strands.types.session import Session, SessionAgent, SessionType
from typing_extensions import LiteralString

from strands_psycopg import (
    DatabaseError,
    DatabaseUnavailableError,
    PostgresSessionManager,
    PostgresSessionRepository,
    PostgresStorage,
    SchemaError,
    SessionNotFoundError,
    StrandsPsycopgError,
)
from strands_psycopg.errors import StorageError
from support.agents import build
from support.storage import has_storage

Connection = psycopg.Connection[Any]

PASSWORD = "hunter2"
SECRET = f"My password is {PASSWORD}"


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


def test_each_operation_is_a_line_for_debugging_with_its_milliseconds(
    repository: PostgresSessionRepository, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "strands_psycopg.database")
    repository.read_session("s")

    [line] = [record.getMessage() for record in caplog.records if record.name == "strands_psycopg.database"]
    assert re.fullmatch(r"attempts=<1>, milliseconds=<\d+\.\d\d> \| reading session 's' succeeded", line)


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


def test_async_with_closes_repository_and_storage(dsn: str) -> None:
    async def use() -> None:
        async with PostgresSessionRepository(dsn) as repository:
            assert repository.read_session("s") is None
        with pytest.raises(DatabaseUnavailableError, match="closed"):
            repository.read_session("s")
        if has_storage:
            async with PostgresStorage(dsn) as storage:
                assert await storage.read("key") is None
            with pytest.raises(StorageError, match="closed"):
                await storage.read("key")

    asyncio.run(use())


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
            DatabaseError, match=r"creating agent 'default'.*permission denied for table.*GRANT"
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
        build(repository)(SECRET)

    assert PASSWORD not in _shown(raised.value)


# Of PostgreSQL's own SQLSTATEs 42501 has a text that is shown, and 40001 is retried.
@pytest.mark.parametrize("sqlstate", ["P0001", "P0002", "P0ABC", "AB123", "U0001", "22023", "38001", "42501", "40001"])
def test_text_that_a_function_raises_is_not_shown(
    dsn: str, connection: Connection, caplog: pytest.LogCaptureFixture, sqlstate: str
) -> None:
    _create_trigger(connection, f"RAISE 'refused %', NEW.message USING ERRCODE = '{sqlstate}', HINT = NEW.message;")
    caplog.set_level(logging.DEBUG)

    with (
        PostgresSessionRepository(dsn, retry_timeout=0.5) as repository,
        pytest.raises(StrandsPsycopgError, match=f"SQLSTATE {sqlstate} .*server's log") as raised,
    ):
        build(repository)(SECRET)

    assert PASSWORD not in _shown(raised.value) + caplog.text


def test_text_of_an_error_in_a_function_is_not_shown(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    _create_trigger(connection, "EXECUTE format('SELECT %I', NEW.message);")

    with pytest.raises(DatabaseError, match="SQLSTATE 42703") as raised:
        build(repository)(SECRET)

    assert PASSWORD not in _shown(raised.value)


def _create_trigger(connection: Connection, body: LiteralString) -> None:
    connection.execute(
        f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$"
    )
    connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON strands_messages FOR EACH ROW EXECUTE FUNCTION refuse()")


def _shown(error: BaseException) -> str:
    """Return what a traceback of an error shows, and the texts of its causes."""
    texts = traceback.format_exception(error)
    cause: BaseException | None = error
    while cause is not None:
        texts += [str(cause), repr(cause)]
        cause = cause.__cause__ or cause.__context__
    return "".join(texts)


def test_statement_that_was_cancelled_is_a_database_error(dsn: str) -> None:
    with (
        PostgresSessionRepository(
            make_conninfo(dsn, options="-c statement_timeout=50"), retry_timeout=60
        ) as repository,
        pytest.raises(DatabaseError, match="statement_timeout") as raised,
    ):
        repository._database.fetch("sleeping", b"SELECT pg_sleep(30)", {})

    assert raised.value.sqlstate == "57014"
