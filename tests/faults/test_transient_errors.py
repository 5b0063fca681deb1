"""Refusals of a server that lives: those that pass are waited for, the others are errors with a name."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from strands_psycopg import DatabaseError, DatabaseUnavailableError, PostgresSessionRepository, database
from strands_psycopg.embedded import Server
from support.agents import build, dump
from support.proxy import Proxy
from support.replicas import execute
from support.retries import Retries
from support.tables import blocked, contents, texts
from support.waiting import wait_until

Connection = psycopg.Connection[Any]


def test_too_many_connections_are_waited_out(own_dsn: str, look: Connection, retries: Retries) -> None:
    look.execute("CREATE ROLE narrow LOGIN PASSWORD 'narrow' CONNECTION LIMIT 1")
    look.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO narrow")
    dsn = make_conninfo(own_dsn, user="narrow", password="narrow")
    try:
        with PostgresSessionRepository(dsn, max_size=1) as repository, ThreadPoolExecutor() as executor:
            with psycopg.connect(dsn):
                building = executor.submit(build, repository)
                wait_until(lambda: len(retries()) >= 2)
                assert not building.done()
            building.result()("hello")
        assert 'too many connections for role "narrow"' in retries()[-1].error
        assert texts(look) == ["hello", "ok"]
    finally:
        wait_until(lambda: not look.execute("SELECT FROM pg_stat_activity WHERE usename = 'narrow'").fetchall())
        look.execute("DROP OWNED BY narrow")
        look.execute("DROP ROLE narrow")


def test_server_that_is_starting_is_waited_for(own_server: Server, own_dsn: str, retries: Retries) -> None:
    with PostgresSessionRepository(own_dsn) as repository, ThreadPoolExecutor() as executor:
        talker = build(repository)
        with ExitStack() as stack:
            # A standby that lets nobody in goes on starting until it is promoted.
            execute(own_server.dsn, "ALTER SYSTEM SET hot_standby = off")
            own_server.stop()
            (own_server.path / "data" / "standby.signal").touch()
            started = executor.submit(own_server.start)
            stack.callback(started.result)
            stack.callback(promote, own_server)
            turn = executor.submit(talker, "hello")
            wait_until(lambda: any("not accepting connections" in retry.error for retry in retries()))
            assert not turn.done()
        execute(own_server.dsn, "ALTER SYSTEM RESET hot_standby")
        turn.result()
        assert dump(build(repository)) == dump(talker)
    with psycopg.connect(own_dsn) as look:
        assert texts(look) == ["hello", "ok"]


def promote(server: Server) -> None:
    status, output = server._run_tool(None, "pg_ctl", "promote", "-D", "data")
    assert status == 0, output


# A file that cannot be read is an I/O error, and so is the lost node of a distributed database.
FILE = "SELECT pg_catalog.pg_read_file(name) FROM files"
LOST = "UPDATE files SET name = '/proc/self/mem'"


@pytest.fixture
def lost(look: Connection) -> Iterator[Connection]:
    look.execute("CREATE TABLE files AS SELECT 'PG_VERSION'::text AS name")
    look.execute(LOST.encode())
    yield look
    look.execute("DROP TABLE files")


def test_io_error_is_repeated(own_dsn: str, lost: Connection, retries: Retries) -> None:
    with PostgresSessionRepository(own_dsn) as repository, ThreadPoolExecutor() as executor:
        fetching = executor.submit(repository._tables.database.fetch, "reading", FILE.encode(), {})
        wait_until(lambda: len(retries()) >= 2)
        lost.execute("UPDATE files SET name = 'PG_VERSION'")
        assert fetching.result().repeated
    assert "58030" in retries()[-1].error


def test_io_error_that_stays_is_an_error_before_the_timeout(
    own_dsn: str, lost: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_PERHAPS_RETRYABLE_TIMEOUT", 0.2)
    with (
        PostgresSessionRepository(own_dsn, retry_timeout=600) as repository,
        pytest.raises(DatabaseError, match="could not read file") as raised,
    ):
        repository._tables.database.fetch("reading", FILE.encode(), {})
    assert raised.value.sqlstate == "58030"


def test_victim_of_a_deadlock_is_repeated(own_dsn: str, look: Connection, retries: Retries) -> None:
    # The library's statement is the one that looks for a deadlock first.
    dsn = make_conninfo(own_dsn, options="-c deadlock_timeout=300ms")
    with PostgresSessionRepository(dsn) as repository, ThreadPoolExecutor() as executor:
        talker = build(repository)
        talker("first")
        look.execute("UPDATE strands_sessions SET updated_at = updated_at - interval '1 hour'")
        with psycopg.connect(own_dsn, options="-c deadlock_timeout=1h") as other:
            other.execute("SELECT FROM strands_agents FOR UPDATE")
            turn = executor.submit(talker, "second")
            # The statement has changed the session, and waits for the agent.
            wait_until(lambda: blocked(look) == 1)
            other.execute("UPDATE strands_sessions SET session_type = session_type")
            wait_until(retries)
        turn.result()
        assert dump(build(repository)) == dump(talker)
    assert [retry.error for retry in retries()] == ["deadlock detected (SQLSTATE 40P01)"]
    assert texts(look) == ["first", "ok", "second", "ok"]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_serialization_failure_in_the_callers_pool_is_repeated(
    level: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    def configure(connection: Connection) -> None:
        connection.isolation_level = IsolationLevel[level.upper().replace(" ", "_")]

    look.execute(
        sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = {}").format(
            sql.Identifier(look.info.dbname), sql.Literal(level)
        )
    )
    with ConnectionPool(own_dsn, configure=configure, open=True) as pool, ThreadPoolExecutor() as executor:
        repository = PostgresSessionRepository(pool)
        talker = build(repository)
        talker.state.set("mood", "good")  # stored with the message, so that the statement waits for the agent's row
        with psycopg.connect(own_dsn) as other:
            other.execute("UPDATE strands_agents SET created_at = created_at")
            turn = executor.submit(talker, "hello")
            wait_until(lambda: blocked(look) == 1)
        turn.result()
        assert dump(build(repository)) == dump(talker)
    assert [retry.error for retry in retries()] == [
        "could not serialize access due to concurrent update (SQLSTATE 40001)"
    ]
    assert texts(look) == ["hello", "ok"]


def test_lock_that_cannot_be_had_in_time_is_tried_for_again(own_dsn: str, look: Connection, retries: Retries) -> None:
    dsn = make_conninfo(own_dsn, options="-c lock_timeout=100ms")
    with PostgresSessionRepository(dsn) as repository, ThreadPoolExecutor() as executor:
        talker = build(repository)
        with psycopg.connect(own_dsn) as locker:
            locker.execute("SELECT FROM strands_agents FOR UPDATE")
            turn = executor.submit(talker, "hello")
            wait_until(lambda: len(retries()) >= 2)
        turn.result()
    assert {retry.error for retry in retries()} == {"canceling statement due to lock timeout (SQLSTATE 55P03)"}
    assert texts(look) == ["hello", "ok"]


def test_statement_that_timed_out_is_an_error_and_is_not_repeated(
    own_dsn: str, look: Connection, retries: Retries
) -> None:
    dsn = make_conninfo(own_dsn, options="-c statement_timeout=300ms")
    with PostgresSessionRepository(dsn) as repository:
        talker = build(repository)
        talker("first")
        with psycopg.connect(own_dsn) as locker:
            locker.execute("SELECT FROM strands_agents FOR UPDATE")
            with pytest.raises(DatabaseError) as raised:
                talker("lost")
        assert str(raised.value) == (
            "storing message 2 of agent 'default' in session 's': canceling statement due to statement timeout "
            "(SQLSTATE 57014); the statement was cancelled, by a statement_timeout or by an administrator"
        )
        assert raised.value.sqlstate == "57014"
        assert retries() == []
        with pytest.raises(DatabaseError) as refused:
            talker("refused")
        assert refused.value is raised.value
        build(repository)("second")
    assert texts(look) == ["first", "ok", "second", "ok"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"dbname": "unknown"}, 'database "unknown" does not exist'),
        ({"user": "unknown"}, "password authentication failed"),
    ],
    ids=["password", "database", "role"],
)
def test_connect_that_can_never_succeed_is_an_error_at_once(
    change: dict[str, str], reason: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    with (
        PostgresSessionRepository(make_conninfo(own_dsn, **change)) as repository,
        pytest.raises(DatabaseUnavailableError, match=reason),
    ):
        repository.read_session("s")
    assert retries() == []
    assert contents(look) == {table: [] for table in contents(look)}


def test_refused_connect_is_known_whatever_the_language_of_the_server(
    own_dsn: str, look: Connection, retries: Retries
) -> None:
    """The texts are German, as far as there is room for them."""
    look.execute("CREATE ROLE resting NOLOGIN PASSWORD 'calm'")
    refused = [({"dbname": "unknown"}, "ex. nicht"), ({"options": "-c unknown=1"}, 'parameter "unknown"')]
    if pq.version() >= 180000:  # before, authentication is not in libpq's trace
        refused.append(({"password": "wrong"}, "Passwort-Authentifizierung"))
        refused.append(({"user": "resting", "password": "calm"}, "darf nicht einloggen"))
    try:
        with Proxy(own_dsn) as proxy:
            proxy.translations = {
                b"password authentication failed": b"Passwort-Authentifizierung",
                b"does not exist": b"ex. nicht",
                b"is not permitted to log in": b"darf nicht einloggen",
            }
            for change, reason in refused:
                with (
                    PostgresSessionRepository(make_conninfo(proxy.dsn, **change)) as repository,
                    pytest.raises(DatabaseUnavailableError, match=reason),
                ):
                    repository.read_session("s")
    finally:
        look.execute("DROP ROLE resting")
    assert retries() == []


def test_server_that_is_full_is_waited_for_whatever_its_language(
    own_dsn: str, look: Connection, retries: Retries
) -> None:
    look.execute("CREATE ROLE crowd LOGIN PASSWORD 'calm' CONNECTION LIMIT 0")
    try:
        with Proxy(own_dsn) as proxy:
            proxy.translations = {b"too many connections for role": b"zu viele Verbindungen"}
            dsn = make_conninfo(proxy.dsn, user="crowd", password="calm")
            with (
                PostgresSessionRepository(dsn, retry_timeout=1.5) as repository,
                pytest.raises(DatabaseUnavailableError, match="zu viele"),
            ):
                repository.read_session("s")
    finally:
        look.execute("DROP ROLE crowd")
    assert retries() != []


@pytest.mark.parametrize("last", ["restarted", "refusing"])
def test_host_that_is_restarted_is_waited_for_though_another_one_refuses_for_good(
    last: str, own_dsn: str, dsn: str, retries: Retries
) -> None:
    with Proxy(dsn) as refusing, Proxy(own_dsn) as good:
        hosts = [refusing, good] if last == "restarted" else [good, refusing]
        ports = [str(conninfo_to_dict(proxy.dsn)["port"]) for proxy in hosts]
        both = make_conninfo(good.dsn, host="127.0.0.1,127.0.0.1", port=",".join(ports))
        good.refuse()
        with PostgresSessionRepository(both, retry_timeout=60) as repository, ThreadPoolExecutor() as thread:
            reading = thread.submit(repository.read_session, "s")
            wait_until(lambda: retries() != [] or reading.done())
            good.accept()
            assert reading.result(60) is None
