"""A pool that the caller owns works as it is, is left as it was, and stays open."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, tuple_row
from psycopg_pool import ConnectionPool
from strands.types.content import Message
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import (
    DatabaseError,
    DatabaseUnavailableError,
    PostgresSessionRepository,
    PostgresStorage,
    SchemaError,
    SessionBusyError,
    SessionNotFoundError,
)
from support.agents import build, dump
from support.odd_pool import (
    EVERYTHING,
    Connection,
    Instrumented,
    Pool,
    own_adapters,
    own_isolation,
    own_json,
    own_search_path,
)
from support.storage import needs_storage
from support.waiting import wait_until

POOLS: dict[str, dict[str, Any]] = {
    "as psycopg makes it": {},
    "autocommit": {"kwargs": {"autocommit": True}},
    "rows as dicts": {"kwargs": {"row_factory": dict_row}},
    "own cursors": {"kwargs": {"cursor_factory": Instrumented}},
    "own adapters": {"configure": own_adapters},
    "own JSON loader and dumper": {"configure": own_json},
    "other search_path": {"configure": own_search_path},
    "other isolation level": {"configure": own_isolation},
    "prepared at once": {"kwargs": {"prepare_threshold": 0}},
    "never prepared": {"kwargs": {"prepare_threshold": None}},
    "all of it": EVERYTHING,
}


@contextmanager
def pool_of(dsn: str, **options: Any) -> Iterator[Pool]:
    """Open a pool of one connection, which so is the one that the repository has used."""
    with ConnectionPool(dsn, connection_class=Connection, min_size=1, max_size=1, open=False, **options) as pool:
        yield pool


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest, dsn: str) -> Iterator[Pool]:
    with pool_of(dsn, **POOLS[request.param]) as pool:
        yield pool


@pytest.fixture
def plain_pool(dsn: str) -> Iterator[Pool]:
    with pool_of(dsn) as pool:
        yield pool


def saying(text: str) -> Message:
    return {"role": "user", "content": [{"text": text}]}


def settings(connection: Connection) -> dict[str, object]:
    """Return all that a user of the connection could find changed."""
    return {
        "autocommit": connection.autocommit,
        "status": TransactionStatus(connection.pgconn.transaction_status),
        "row_factory": connection.row_factory,
        "cursor_factory": connection.cursor_factory,
        "prepare_threshold": connection.prepare_threshold,
        "isolation_level": connection.isolation_level,
        "server": psycopg.Cursor(connection, row_factory=tuple_row)
        .execute("SELECT name, setting FROM pg_settings WHERE name <> 'transaction_isolation' ORDER BY name")
        .fetchall(),
    }


def settings_of(pool: Pool) -> dict[str, object]:
    with pool.connection() as connection:
        return settings(connection)


def use(repository: PostgresSessionRepository) -> None:
    """Call every method often enough for its statement to be prepared."""
    for number in range(7):
        session_id = f"s{number}"
        session = repository.create_session(Session(session_id, SessionType.AGENT))
        agent = SessionAgent("a", {"order": 1, "a": 2}, {"plain": 1}, {"NUL": "\0"})
        repository.create_agent(session_id, agent)
        messages = [SessionMessage(saying(text), index) for index, text in enumerate(["plain", "NUL \0"])]
        for message in messages:
            repository.create_message(session_id, "a", message)
        messages[1].redact_message = saying("redacted")
        repository.update_message(session_id, "a", messages[1])
        messages[1].message = saying("redacted")  # what was redacted is nowhere
        repository.update_agent(session_id, agent)
        assert repository.read_session(session_id) == session
        assert repository.read_agent(session_id, "a") == agent
        assert repository.read_message(session_id, "a", 1) == messages[1]
        assert repository.list_messages(session_id, "a") == messages
        repository.delete_session(session_id)


def test_pool_works_whatever_its_settings(pool: Pool) -> None:
    use(PostgresSessionRepository(pool))


def test_leases_forks_and_purges_work_whatever_its_settings(dsn: str) -> None:
    with ConnectionPool(dsn, connection_class=Connection, min_size=2, **POOLS["all of it"]) as pool:
        repository = PostgresSessionRepository(pool)
        with repository.lease("s", ttl=0.6) as lease:
            build(repository, "s")("hello")
            started = time.monotonic()
            wait_until(lambda: lease._renew_at > started + 1.2)
            with PostgresSessionRepository(dsn) as other, pytest.raises(SessionBusyError):
                other.lease("s", wait=0).__enter__()
            build(repository, "s")("again")
        repository.fork_session("s", "fork")
        assert dump(build(repository, "fork")) == dump(build(repository, "s"))
        repository._database.fetch(
            "ageing", b"UPDATE public.strands_sessions SET updated_at = now() - interval '1 day'", {}
        )
        assert repository.purge_sessions(idle_for=3600).sessions == 2


@needs_storage
def test_large_values_work_whatever_its_settings(dsn: str) -> None:
    value = bytes(range(256)) * 100
    with ConnectionPool(dsn, connection_class=Connection, min_size=2, **POOLS["all of it"]) as pool:
        storage = PostgresStorage(PostgresSessionRepository(pool))
        asyncio.run(storage.write("key", value))
        assert asyncio.run(storage.read("key")) == value


def test_cursors_of_the_pools_factory_run_all_statements(dsn: str) -> None:
    Instrumented.statements.clear()
    with pool_of(dsn, **POOLS["own cursors"]) as pool:
        PostgresSessionRepository(pool).read_session("s")
    assert any("strands_sessions" in each for each in Instrumented.statements)


@pytest.mark.parametrize("factory", [psycopg.ClientCursor, psycopg.RawCursor])
def test_cursors_without_parameters_bound_by_the_server_are_refused_by_name(dsn: str, factory: type) -> None:
    with (
        pool_of(dsn, kwargs={"cursor_factory": factory}) as pool,
        pytest.raises(DatabaseError, match=f"cursor_factory makes a {factory.__name__}"),
    ):
        PostgresSessionRepository(pool).read_session("s")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
@pytest.mark.parametrize("way", ["kwargs", "configure", "database"])
def test_other_encoding_is_refused_by_name(dsn: str, connection: Connection, encoding: str, way: str) -> None:
    def configure(connection: Connection) -> None:
        connection.execute(f"SET client_encoding TO {encoding}")
        connection.commit()

    options: dict[str, Any] = {}
    if way == "kwargs":
        options = {"kwargs": {"client_encoding": encoding}}
    elif way == "configure":
        options = {"configure": configure}
    else:
        name = psycopg.sql.Identifier(connection.info.dbname)
        connection.execute(psycopg.sql.SQL("ALTER DATABASE {} SET client_encoding = {}").format(name, encoding))
    with pool_of(dsn, **options) as pool:
        with pytest.raises(DatabaseError, match=f"client_encoding is {encoding}"):
            PostgresSessionRepository(pool).read_session("s")
        with pytest.raises(DatabaseError, match=f"client_encoding is {encoding}"):
            PostgresSessionRepository(pool).lease("s").__enter__()
    assert connection.execute("SELECT FROM strands_leases").fetchall() == []


def test_encoding_of_an_own_pool_that_is_configured_otherwise_is_refused_by_name(dsn: str) -> None:
    def configure(connection: Connection) -> None:
        connection.execute("SET client_encoding TO LATIN1")

    with (
        PostgresSessionRepository(dsn, configure=configure) as repository,
        pytest.raises(DatabaseError, match="client_encoding is LATIN1"),
    ):
        repository.read_session("s")


def test_statement_whose_plan_is_outdated_is_repeated_at_once(dsn: str, connection: Connection) -> None:
    with ConnectionPool(dsn, connection_class=Connection, min_size=4, kwargs={"prepare_threshold": 0}) as pool:
        repository = PostgresSessionRepository(pool)
        repository.create_session(Session("s", SessionType.AGENT))
        with ThreadPoolExecutor(4) as executor:
            for _ in range(5):
                list(executor.map(lambda _: repository.read_session("s"), range(8)))
            # Views would be in the way.
            connection.execute("DROP VIEW strands_message_figures, strands_session_figures CASCADE")
            connection.execute("ALTER TABLE strands_sessions ALTER COLUMN session_type TYPE varchar(20)")
            sessions = list(executor.map(lambda _: repository.read_session("s"), range(16)))
        assert all(session is not None for session in sessions)


def test_pool_is_left_as_it_was(pool: Pool) -> None:
    before = settings_of(pool)
    use(PostgresSessionRepository(pool))
    assert settings_of(pool) == before


def test_connection_comes_back_idle_and_out_of_autocommit(plain_pool: Pool) -> None:
    repository = PostgresSessionRepository(plain_pool)
    repository.create_session(Session("s", SessionType.AGENT))
    connection = plain_pool.getconn()
    try:
        assert not connection.autocommit
        assert connection.pgconn.transaction_status == TransactionStatus.IDLE
    finally:
        plain_pool.putconn(connection)


FAILURES: dict[str, tuple[type[Exception], Callable[[Pool], object]]] = {
    "refused by the repository": (
        SessionNotFoundError,
        lambda pool: PostgresSessionRepository(pool).delete_session("s"),
    ),
    "refused by the server": (
        SessionNotFoundError,
        lambda pool: PostgresSessionRepository(pool).create_agent("s", SessionAgent("a", {}, {})),
    ),
    "refused in a transaction": (
        SessionNotFoundError,
        lambda pool: PostgresSessionRepository(pool)._tables.agents.create(
            "s", SessionAgent("a", {}, {}), [SessionMessage(saying("hello"), 0)], write_id=uuid4()
        ),
    ),
    "refused in a migration": (
        SchemaError,
        lambda pool: PostgresSessionRepository(pool, table_prefix="quux_").ensure_schema(),
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_connection_comes_back_idle_and_out_of_autocommit_after_a_failure(plain_pool: Pool, failure: str) -> None:
    with plain_pool.connection() as connection:
        connection.execute("CREATE TABLE quux_sessions ()")
    expected, call = FAILURES[failure]
    with pytest.raises(expected):
        call(plain_pool)
    connection = plain_pool.getconn()
    try:
        assert not connection.autocommit
        assert connection.pgconn.transaction_status == TransactionStatus.IDLE
    finally:
        plain_pool.putconn(connection)


def test_pool_is_not_closed(plain_pool: Pool) -> None:
    with PostgresSessionRepository(plain_pool) as repository:
        repository.create_session(Session("s", SessionType.AGENT))
    repository.close()
    assert not plain_pool.closed
    with plain_pool.connection() as connection:
        assert connection.execute("SELECT session_id FROM strands_sessions").fetchall() == [("s",)]


def test_repository_works_after_close_while_the_pool_is_open(plain_pool: Pool) -> None:
    repository = PostgresSessionRepository(plain_pool)
    repository.close()
    session = repository.create_session(Session("s", SessionType.AGENT))
    assert repository.read_session("s") == session


def test_pool_is_not_opened(dsn: str) -> None:
    pool: Pool = ConnectionPool(dsn, connection_class=Connection, open=False)
    with pytest.raises(DatabaseUnavailableError, match="not open yet"):
        PostgresSessionRepository(pool).read_session("s")
    assert pool.closed


def test_pool_options_beside_a_pool_are_refused(plain_pool: Pool) -> None:
    with pytest.raises(TypeError, match=r"\['max_size', 'min_size'\]"):
        PostgresSessionRepository(plain_pool, min_size=1, max_size=2)
