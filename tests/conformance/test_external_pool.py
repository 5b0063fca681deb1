"""A pool that the caller owns works as it is, is left as it was, and stays open."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, tuple_row
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg_pool import ConnectionPool
from strands.types.content import Message
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository, SchemaError, SessionNotFoundError

Connection = psycopg.Connection[Any]
Pool = ConnectionPool[Connection]


def own_json(connection: Connection) -> None:
    set_json_loads(lambda _: "own", connection)
    set_json_dumps(lambda _: '"own"', connection)


def own_search_path(connection: Connection) -> None:
    connection.execute("SELECT set_config('search_path', 'pg_catalog', false)")
    connection.commit()


def own_everything(connection: Connection) -> None:
    own_json(connection)
    own_search_path(connection)


def own_isolation(connection: Connection) -> None:
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE


POOLS: dict[str, dict[str, Any]] = {
    "as psycopg makes it": {},
    "autocommit": {"kwargs": {"autocommit": True}},
    "rows as dicts": {"kwargs": {"row_factory": dict_row}},
    "client-side cursors": {"kwargs": {"cursor_factory": psycopg.ClientCursor}},
    "raw cursors": {"kwargs": {"cursor_factory": psycopg.RawCursor}},
    "own JSON loader and dumper": {"configure": own_json},
    "other search_path": {"configure": own_search_path},
    "other isolation level": {"configure": own_isolation},
    "prepared at once": {"kwargs": {"prepare_threshold": 0}},
    "never prepared": {"kwargs": {"prepare_threshold": None}},
    "all of it": {
        "kwargs": {"row_factory": dict_row, "prepare_threshold": 0, "cursor_factory": psycopg.ClientCursor},
        "configure": own_everything,
    },
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
    with pytest.raises(DatabaseUnavailableError, match="closed"):
        PostgresSessionRepository(pool).read_session("s")
    assert pool.closed


def test_pool_options_beside_a_pool_are_refused(plain_pool: Pool) -> None:
    with pytest.raises(TypeError, match=r"\['max_size', 'min_size'\]"):
        PostgresSessionRepository(plain_pool, min_size=1, max_size=2)
