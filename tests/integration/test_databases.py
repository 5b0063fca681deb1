"""What a test leaves in its database does not reach the next one."""

import psycopg
import pytest
from psycopg import sql

from strands_psycopg import PostgresSessionRepository
from support.agents import build
from support.databases import Databases
from support.tables import contents

NAME = "reuse_under_test"


def test_database_in_which_a_test_leaves_rows_is_emptied_and_used_again(databases: Databases, template: str) -> None:
    if not databases.can_reuse:
        pytest.skip("this server counts too late")
    with databases.reuse(NAME, template) as first, PostgresSessionRepository(first) as repository:
        build(repository)("hello")
    with databases.reuse(NAME, template) as second, psycopg.connect(second) as look:
        assert second == first
        assert not any(contents(look).values())
        assert look.execute("SELECT FROM strands_migrations").fetchall()


def test_connection_that_is_lent_comes_back_like_a_new_one(databases: Databases, template: str) -> None:
    if not databases.can_reuse:
        pytest.skip("this server counts too late")
    with databases.reuse(NAME, template) as first, databases.connect(first) as connection:
        pid = connection.info.backend_pid
        connection.execute("SET work_mem = '8MB'")
        connection.execute("SELECT pg_advisory_lock(1)")
        connection.autocommit = False
        connection.execute("SELECT")  # in a transaction
    with databases.reuse(NAME, template) as second, databases.connect(second) as connection:
        assert second == first
        assert connection.info.backend_pid == pid
        assert connection.autocommit
        assert connection.execute("SELECT FROM pg_locks WHERE locktype = 'advisory'").fetchall() == []
        assert connection.execute("SHOW work_mem").fetchone() == ("4MB",)
        with databases.connect(second) as another:
            assert another.info.backend_pid != pid


def test_connection_that_is_kept_comes_back_like_a_new_one(databases: Databases, template: str) -> None:
    if not databases.can_reuse:
        pytest.skip("this server counts too late")
    settings = {"autocommit": True, "application_name": "mine"}
    with databases.reuse(NAME, template) as first:
        kept = databases.connection_class(first)
        assert kept is not None
        connection, another = kept.connect(first, **settings), kept.connect(first, **settings)
        pid = connection.info.backend_pid
        connection.execute("SET work_mem = '8MB'")
        connection.execute("SELECT pg_advisory_lock(1)")
        connection.execute("PREPARE more AS SELECT 1")
        kept.keeps = True
        connection.close()
        another.close()
        assert (connection.closed, another.closed) == (True, True)
        with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
            connection.execute("SELECT")
    with databases.reuse(NAME, template) as second, kept.connect(second, **settings) as connection:
        assert second == first
        assert connection.info.backend_pid == pid
        assert connection.autocommit
        assert connection.execute("SELECT FROM pg_locks WHERE locktype = 'advisory'").fetchall() == []
        assert connection.execute("SELECT FROM pg_prepared_statements").fetchall() == []
        assert connection.execute("SHOW work_mem").fetchone() == ("4MB",)
        assert connection.execute("SHOW application_name").fetchone() == ("mine",)
        kept.keeps = True
    with databases.reuse(NAME, template) as third, kept.connect(third) as connection:
        assert third == second
        assert connection.info.backend_pid != pid  # with other settings
        assert not connection.autocommit


def test_what_a_connection_that_is_kept_has_done_counts(databases: Databases, template: str) -> None:
    with databases.reuse(NAME, template) as first:
        kept = databases.connection_class(first)
        if kept is None:
            pytest.skip("this server counts too late")
        connection = kept.connect(first, autocommit=True)
        connection.execute("COMMENT ON TABLE strands_sessions IS 'more'")
        kept.keeps = True
        connection.close()
    with databases.reuse(NAME, template) as second:
        assert second != first


def test_connection_that_is_lost_or_in_a_transaction_is_not_kept(databases: Databases, template: str) -> None:
    with databases.reuse(NAME, template) as first:
        kept = databases.connection_class(first)
        if kept is None:
            pytest.skip("this server counts too late")
        connection = kept.connect(first)
        connection.execute("SELECT")
        kept.keeps = True
        connection.close()
        assert kept.kept_pid() == 0
        connection = kept.connect(first, autocommit=True)
        pid = connection.info.backend_pid
        kept.keeps = True
        connection.close()
        assert kept.kept_pid() == pid
        with psycopg.connect(first, autocommit=True) as another:
            another.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        with kept.connect(first, autocommit=True) as connection:
            assert connection.execute("SELECT pg_backend_pid()").fetchone() != (pid,)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more ()",
        "CREATE TEMPORARY TABLE more ()",
        "CREATE SCHEMA more",
        "CREATE INDEX ON strands_sessions (created_at)",
        "ALTER TABLE strands_sessions SET (fillfactor = 50)",
        "COMMENT ON TABLE strands_sessions IS 'more'",
        "GRANT SELECT ON strands_sessions TO PUBLIC",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        "GRANT ALL ON DATABASE {database} TO PUBLIC",
        "ALTER DATABASE {database} SET work_mem = '8MB'",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
        "SELECT lo_create(0)",
        "UPDATE strands_migrations SET name = name",
        "DELETE FROM strands_migrations",
        "TRUNCATE strands_sessions CASCADE",
        "ANALYZE strands_sessions",
        "VACUUM strands_sessions",
    ],
)
def test_database_in_which_a_test_does_more_is_not_used_again(
    databases: Databases, template: str, statement: str
) -> None:
    with databases.reuse(NAME, template) as first, psycopg.connect(first, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL(statement).format(database=name))
    with databases.reuse(NAME, template) as second:
        assert second != first


def test_what_a_connection_that_is_lent_has_done_counts(databases: Databases, template: str) -> None:
    with databases.reuse(NAME, template) as first, databases.connect(first) as connection:
        connection.execute("COMMENT ON TABLE strands_sessions IS 'more'")
    with databases.reuse(NAME, template) as second, databases.connect(second) as connection:
        assert second != first
        connection.execute("PREPARE more AS SELECT 1")
    with databases.reuse(NAME, template) as third:
        assert third != second


def test_database_with_many_pages_is_not_used_again(databases: Databases, template: str) -> None:
    with databases.reuse(NAME, template) as first, PostgresSessionRepository(first) as repository:
        build(repository)("hello")
        with psycopg.connect(first, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO strands_messages SELECT session_id, agent_id, n, message, NULL, NULL, NULL, write_id, "
                "created_at, updated_at FROM strands_messages, generate_series(2, 9999) AS n WHERE message_id = 0"
            )
    with databases.reuse(NAME, template) as second:
        assert second != first


def test_database_to_which_somebody_is_connected_is_not_used_again(databases: Databases, template: str) -> None:
    with databases.reuse(NAME, template) as first:
        connection = psycopg.connect(first)
    with databases.reuse(NAME, template) as second:
        assert second != first
    connection.close()
