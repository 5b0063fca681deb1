"""PgBouncer in transaction mode, with two connections to the server for all clients."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from strands_psycopg import DatabaseError, DatabaseUnavailableError, PostgresSessionRepository
from support import catalog
from support.agents import LOOK_UP, build, dump, look_up
from support.crew import Crew
from support.pgbouncer import PgBouncer
from support.retries import Retries
from support.scale import scale
from support.tables import Connection, one, texts

_CLIENTS = 50
_UNPREPARED: dict[str, Any] = {"kwargs": {"prepare_threshold": None}}
_PREPARED: dict[str, Any] = {"kwargs": {"prepare_threshold": 5}}

MIGRATE = """
import sys
from strands_psycopg import PostgresSessionRepository

with PostgresSessionRepository(sys.argv[1], kwargs={"prepare_threshold": None}) as repository:
    ready()
    repository.ensure_schema()
"""

TURNS = """
import sys
from support.agents import build
from strands_psycopg import PostgresSessionRepository

dsn, turns, number = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with PostgresSessionRepository(dsn, kwargs={"prepare_threshold": None}) as repository:
    ready()
    for turn in range(turns):
        with repository.lease("s", wait=60, ttl=3):
            build(repository, replies=[[f"answer {number}.{turn}"]])(f"ask {number}.{turn}")
"""


@pytest.fixture
def pooled_dsn(pgbouncer: PgBouncer, direct_dsn: str) -> str:
    """The fresh database through PgBouncer."""
    return pgbouncer.through(direct_dsn)


@pytest.fixture
def pooled(pooled_dsn: str) -> Iterator[PostgresSessionRepository]:
    """A repository of fifty connections to PgBouncer."""
    with PostgresSessionRepository(
        pooled_dsn, min_size=_CLIENTS, max_size=_CLIENTS, timeout=120, **_UNPREPARED
    ) as pooled:
        yield pooled


def advisory_locks(connection: Connection) -> int:
    found: int = one(connection, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    return found


def links(connection: Connection) -> int:
    """Return how many connections PgBouncer has to this database: it is known by its clients' application name."""
    found: int = one(
        connection,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'strands-psycopg'",
    )
    return found


def test_fifty_agents_work_on_two_connections(pooled: PostgresSessionRepository, connection: Connection) -> None:
    turns = scale(1, 40)

    def work(number: int) -> str:
        agent = build(pooled, f"s{number}", [*LOOK_UP] * turns, tools=[look_up])
        for turn in range(turns):
            agent(f"ask {turn}")
        return dump(agent)

    with ThreadPoolExecutor(_CLIENTS) as threads:
        worked = list(threads.map(work, range(_CLIENTS)))

    assert links(connection) == 2
    assert advisory_locks(connection) == 0
    for number in range(_CLIENTS):
        asked = [text for text in texts(connection, f"s{number}") if text.startswith("ask")]
        assert asked == [f"ask {turn}" for turn in range(turns)]
        assert len(texts(connection, f"s{number}")) == 4 * turns
        assert dump(build(pooled, f"s{number}")) == worked[number]


def test_agents_with_initial_messages_are_stored_in_one_transaction(
    pooled: PostgresSessionRepository, connection: Connection
) -> None:
    def work(number: int) -> None:
        messages = [{"role": "user", "content": [{"text": f"{number}.{index}"}]} for index in range(10)]
        build(pooled, f"s{number}", messages=messages)

    with ThreadPoolExecutor(_CLIENTS) as threads:
        list(threads.map(work, range(_CLIENTS)))

    assert [texts(connection, f"s{number}") for number in range(_CLIENTS)] == [
        [f"{number}.{index}" for index in range(10)] for number in range(_CLIENTS)
    ]


def test_leases_make_turns_exclusive(crew: Crew, pooled_dsn: str, connection: Connection) -> None:
    turns = scale(2, 50)
    with crew.of(8, TURNS, pooled_dsn, str(turns)) as members:
        for member in members:
            member.release()
        for member in members:
            assert member.result() == []

    stored = texts(connection)
    order = [text.removeprefix("ask ") for text in stored[::2]]
    assert stored == [text for name in order for text in (f"ask {name}", f"answer {name}")]
    assert sorted(order) == sorted(f"{number}.{turn}" for number in range(8) for turn in range(turns))
    assert one(connection, "SELECT count(*) FROM strands_leases") == 0
    assert advisory_locks(connection) == 0


def test_processes_migrate_at_once_and_leave_no_advisory_lock(
    crew: Crew, pgbouncer: PgBouncer, empty_dsn: str, direct_dsn: str
) -> None:
    with crew.of(6, MIGRATE, pgbouncer.through(empty_dsn)) as members:
        for member in members:
            member.release()
        for member in members:
            assert member.result() == []

    assert catalog.layout(empty_dsn) == catalog.layout(direct_dsn)
    with psycopg.connect(empty_dsn) as connection:
        assert advisory_locks(connection) == 0


def read_until_prepared(repository: PostgresSessionRepository) -> None:
    for _ in range(10):
        repository.read_session("s")


def test_own_pool_prepares_no_statement_behind_a_pooler(pooled_dsn: str) -> None:
    with (
        PostgresSessionRepository(pooled_dsn, max_size=1) as first,
        PostgresSessionRepository(pooled_dsn, max_size=1) as second,
        psycopg.connect(pooled_dsn, prepare_threshold=None) as other,
    ):
        read_until_prepared(first)
        # This takes the connection to the server on which a statement would be prepared; others are given another.
        other.execute("SELECT 1")
        read_until_prepared(first)
        read_until_prepared(second)


def test_callers_pool_that_would_prepare_statements_behind_a_pooler_is_refused_by_name(pooled_dsn: str) -> None:
    with (
        ConnectionPool(pooled_dsn, min_size=1, max_size=1) as pool,
        pytest.raises(DatabaseError, match="a pooler in between") as error,
    ):
        read_until_prepared(PostgresSessionRepository(pool))

    assert str(error.value).endswith('build the pool with kwargs={"prepare_threshold": None}')


def test_error_for_a_statement_prepared_on_another_connection_says_what_to_pass(pooled_dsn: str) -> None:
    with (
        PostgresSessionRepository(pooled_dsn, max_size=1, **_PREPARED) as repository,
        psycopg.connect(pooled_dsn, prepare_threshold=None) as other,
    ):
        read_until_prepared(repository)
        # This takes the connection to the server on which the statement is prepared; the repository is given another.
        other.execute("SELECT 1")

        with pytest.raises(DatabaseError) as error:
            repository.read_session("s")

    assert error.value.sqlstate == "26000"
    assert str(error.value).startswith("reading session 's': ")
    assert str(error.value).endswith('behind a pooler pass kwargs={"prepare_threshold": None}')


def test_error_for_a_statement_prepared_by_another_client_says_what_to_pass(pooled_dsn: str) -> None:
    with (
        PostgresSessionRepository(pooled_dsn, max_size=1, **_PREPARED) as first,
        PostgresSessionRepository(pooled_dsn, max_size=1, **_PREPARED) as second,
    ):
        read_until_prepared(first)

        with pytest.raises(DatabaseError) as error:
            read_until_prepared(second)

    assert error.value.sqlstate == "42P05"
    assert str(error.value).endswith('behind a pooler pass kwargs={"prepare_threshold": None}')


def test_pooler_that_allows_no_transactions_is_reported_at_once(server: str, dsn: str, retries: Retries) -> None:
    with (
        PgBouncer(server, pool_mode="statement") as pooler,
        PostgresSessionRepository(pooler.through(dsn), **_UNPREPARED) as repository,
        pytest.raises(DatabaseError, match="statement pooling mode") as error,
    ):
        repository.status()

    assert error.value.sqlstate == "08P01"
    assert not retries()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"user": "nobody_known"}, "no such user"),
        ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
        ({"options": "-c lock_timeout=1"}, "unsupported startup parameter: options"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_pgbouncer_refuses_for_good_is_reported_at_once(
    pooled_dsn: str, settings: dict[str, str], reason: str
) -> None:
    with (
        PostgresSessionRepository(make_conninfo(pooled_dsn, **settings), retry_timeout=600) as repository,
        pytest.raises(DatabaseUnavailableError, match=reason),
    ):
        repository.read_session("s")
