"""Roles that may do little, that lose a right in mid-run, and a server that takes no writes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from strands import Agent, tool
from strands.types.exceptions import EventLoopException

from strands_psycopg import DatabaseError, PostgresSessionRepository, PurgeResult, SessionBusyError, StrandsPsycopgError
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import LOOK_UP, build, dump, look_up
from support.tables import Connection, contents, one, texts
from support.waiting import wait_until

_FOUR_RIGHTS = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"


@pytest.fixture
def role_dsn(dsn: str, connection: Connection) -> Iterator[str]:
    """The database for a role that may select, insert, update and delete, and no more."""
    connection.execute("CREATE ROLE writer_under_test LOGIN PASSWORD 'writer'")
    try:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.execute(f"GRANT {_FOUR_RIGHTS} TO writer_under_test".encode())
        yield make_conninfo(dsn, user="writer_under_test", password="writer")
    finally:
        connection.execute("DROP OWNED BY writer_under_test")
        connection.execute("DROP ROLE writer_under_test")


@pytest.fixture
def as_role(role_dsn: str, pool_options: dict[str, Any]) -> Iterator[PostgresSessionRepository]:
    with PostgresSessionRepository(role_dsn, retry_timeout=60, **pool_options) as as_role:
        yield as_role


def failure_of(agent: Agent, prompt: str) -> Exception:
    """Return what ended a turn, which Strands wraps if it was in its event loop."""
    with pytest.raises((StrandsPsycopgError, EventLoopException)) as raised:
        agent(prompt)
    error: Exception = getattr(raised.value, "original_exception", raised.value)
    return error


def test_role_with_four_rights_holds_renews_and_frees_sessions(
    as_role: PostgresSessionRepository, repository: PostgresSessionRepository, connection: Connection
) -> None:
    as_role.ensure_schema()
    with as_role.lease("s", ttl=1):
        until = one(connection, "SELECT expires_at FROM strands_leases")
        agent = build(as_role, replies=LOOK_UP, tools=[look_up])
        agent("ask")
        wait_until(lambda: one(connection, "SELECT expires_at FROM strands_leases") > until)
        with pytest.raises(SessionBusyError):
            repository.lease("s", wait=0).__enter__()

    assert one(connection, "SELECT count(*) FROM strands_leases") == 0
    assert dump(build(as_role)) == dump(agent)
    assert len(texts(connection)) == 4


def test_role_with_four_rights_lists_forks_and_purges(
    as_role: PostgresSessionRepository, connection: Connection
) -> None:
    build(as_role)("ask")
    assert as_role.fork_session("s", "fork", until=1).messages == 1
    connection.execute("UPDATE strands_sessions SET updated_at = '2020-01-01'")
    assert [session.session_id for session in as_role.list_sessions().sessions] == ["s", "fork"]
    assert as_role.status().ready
    as_role.delete_agent("fork", "default")
    connection.execute("UPDATE strands_sessions SET updated_at = '2020-01-01'")
    assert as_role.purge_sessions(idle_for=1) == PurgeResult(2, 1, 2, 0)


@pytest.mark.parametrize(
    ("right", "table", "doing"),
    [
        ("INSERT", "strands_messages", "storing message 2 of agent 'default' in session 's'"),
        ("UPDATE", "strands_sessions", "storing message 2 of agent 'default' in session 's'"),
        ("SELECT", "strands_agents", "storing message 2 of agent 'default' in session 's'"),
    ],
)
def test_right_taken_away_between_two_turns(
    as_role: PostgresSessionRepository, connection: Connection, right: str, table: str, doing: str
) -> None:
    model = ScriptedModel([["one"], ["two"]])
    agent = build(as_role, model=model)
    agent("1")
    connection.execute(f"REVOKE {right} ON {table} FROM writer_under_test".encode())
    before = contents(connection)

    error = failure_of(agent, "2")

    assert isinstance(error, DatabaseError)
    assert error.sqlstate == "42501"
    assert str(error) == (
        f"{doing}: permission denied for table {table} (SQLSTATE 42501); "
        "let the owner of the tables run GRANT USAGE ON SCHEMA schema TO role and GRANT SELECT, INSERT, UPDATE, DELETE "
        "ON ALL TABLES IN SCHEMA schema TO role; a role that migrates needs GRANT CREATE ON SCHEMA schema TO role too"
    )
    assert len(model.calls) == 1
    assert contents(connection) == before

    connection.execute(f"GRANT {right} ON {table} TO writer_under_test".encode())
    assert failure_of(agent, "3") is error
    assert contents(connection) == before
    build(as_role, replies=[["works"]])("of a new agent")
    assert texts(connection) == ["1", "one", "of a new agent", "works"]


def test_right_taken_away_in_the_middle_of_a_turn(as_role: PostgresSessionRepository, connection: Connection) -> None:
    @tool
    def revoke() -> str:
        """Take the right to insert messages away."""
        connection.execute("REVOKE INSERT ON strands_messages FROM writer_under_test")
        return "done"

    agent = build(as_role, replies=[[{"name": "revoke", "input": {}}], ["never said"]], tools=[revoke])

    error = failure_of(agent, "1")

    assert isinstance(error, DatabaseError)
    assert "permission denied for table strands_messages (SQLSTATE 42501)" in str(error)
    assert kinds(connection) == ["text", "toolUse"]
    connection.execute("GRANT INSERT ON strands_messages TO writer_under_test")
    assert failure_of(agent, "2") is error
    assert kinds(connection) == ["text", "toolUse"]
    build(as_role)("of a new agent")
    # Strands answers the call that has no result, and then asks.
    assert kinds(connection) == ["text", "toolUse", "toolResult", "text", "text"]


def kinds(connection: Connection) -> list[str]:
    """Return the kind of each message's first block."""
    query = "SELECT jsonb_object_keys(message['content'][0]) FROM strands_messages ORDER BY message_id"
    return [kind for (kind,) in connection.execute(query)]


@pytest.fixture
def read_only(connection: Connection) -> Callable[[bool], None]:
    """Has the server refuse writes, or take them again, on all connections but the tests' own, which are cut."""

    def set_read_only(on: bool) -> None:
        statement = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
        connection.execute(statement.format(sql.Identifier(connection.info.dbname), on))
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    return set_read_only


def test_server_that_takes_no_writes_any_more(
    repository: PostgresSessionRepository, connection: Connection, read_only: Callable[[bool], None]
) -> None:
    model = ScriptedModel([["one"], ["two"]])
    agent = build(repository, model=model)
    agent("1")
    read_only(True)
    before = contents(connection)

    error = failure_of(agent, "2")

    assert isinstance(error, DatabaseError)
    assert error.sqlstate == "25006"
    assert str(error).startswith("storing message 2 of agent 'default' in session 's': cannot execute")
    assert str(error).endswith(
        "(SQLSTATE 25006); the server is read-only; connect to the primary (target_session_attrs=read-write)"
    )
    assert len(model.calls) == 1
    # What is stored can be read.
    assert dump(build(repository)) == dump(build(repository))
    assert len(build(repository).messages) == 2
    assert contents(connection) == before

    read_only(False)
    assert failure_of(agent, "3") is error
    assert contents(connection) == before
    build(repository, replies=[["works"]])("of a new agent")
    assert texts(connection) == ["1", "one", "of a new agent", "works"]


def test_session_cannot_be_held_on_a_server_that_takes_no_writes(
    repository: PostgresSessionRepository, read_only: Callable[[bool], None]
) -> None:
    read_only(True)

    with pytest.raises(DatabaseError, match=r"acquiring a lease on session 's': .* the server is read-only") as error:
        repository.lease("s").__enter__()

    assert error.value.sqlstate == "25006"


def test_schema_of_a_server_that_takes_no_writes(
    dsn: str,
    pool_options: dict[str, Any],
    repository: PostgresSessionRepository,
    read_only: Callable[[bool], None],
) -> None:
    read_only(True)

    repository.ensure_schema()

    with (
        PostgresSessionRepository(dsn, table_prefix="other_", **pool_options) as other,
        pytest.raises(DatabaseError, match=r"migrating the schema: .* the server is read-only"),
    ):
        other.ensure_schema()
