"""Databases for the tests: an embedded server, or one of other programs (``--postgresql-exec``, the path of a
``pg_ctl``), or the one named by ``--postgresql-host`` and its kin.

A template database is migrated once; each test gets a fresh copy of it. With ``--pgbouncer``, tests and their
repositories reach it through a PgBouncer in transaction mode.
"""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql import factories
from pytest_postgresql.janitor import DatabaseJanitor

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.embedded import Server
from support.crew import Crew
from support.pgbouncer import MISSING, PROGRAM, PgBouncer
from support.retries import Retries
from support.servers import InstalledServer


def pytest_configure() -> None:
    """Let tests interrupt processes: a shell's background jobs ignore Ctrl-C, and so would their children."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pgbouncer", action="store_true", help="reach the databases through a PgBouncer")


# Tests that look at the server's own connections or settings, which PgBouncer hides.
_OF_SETTINGS = "sets options of a connection at its start, which PgBouncer refuses"
_OF_CONNECTIONS = "looks at the server's connections, which are PgBouncer's"
_NOT_THROUGH_PGBOUNCER = {
    "test_callable_is_asked_for_a_dsn_at_each_connect": _OF_CONNECTIONS,
    "test_child_works_on_connections_of_its_own_and_the_parents_go_on": _OF_CONNECTIONS,
    "test_ctrl_c_leaves_no_process_behind": _OF_CONNECTIONS,
    "test_manager_that_cannot_be_built_leaves_no_connection_behind": _OF_CONNECTIONS,
    "test_missing_right_is_a_database_error_that_names_table_and_cure": _OF_SETTINGS,
    "test_repository_made_before_a_fork_is_opened_in_each_process_that_uses_it": _OF_CONNECTIONS,
    "test_statement_that_was_cancelled_is_a_database_error": _OF_SETTINGS,
    "test_status_reads_well": "expects the server's own address",
    "test_with_nothing_pending_no_lock_is_waited_for": _OF_SETTINGS,
    "test_with_nothing_pending_nothing_is_written": _OF_SETTINGS,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--pgbouncer"):
        for item in items:
            if reason := _NOT_THROUGH_PGBOUNCER.get(item.name.partition("[")[0]):
                item.add_marker(pytest.mark.skip(reason))


def _migrate(**connection: Any) -> None:
    with PostgresSessionRepository(_dsn(connection)) as repository:
        repository.ensure_schema()


def _dsn(connection: dict[str, Any]) -> str:
    return make_conninfo(
        "", **{key: connection[key] for key in ("host", "port", "user", "password", "dbname") if connection.get(key)}
    )


template = factories.postgresql_noproc(dbname="sessions_under_test", load=[_migrate])
copy_of_template = factories.postgresql("template")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Connection parameters of the server that the tests share."""
    options = request.config.option
    if options.postgresql_host or options.postgresql_port:
        executor = request.getfixturevalue("template")
        yield {"host": executor.host, "port": executor.port, "user": executor.user, "password": executor.password}
        return
    pg_ctl = options.postgresql_exec
    with Server() if pg_ctl is None else InstalledServer(Path(pg_ctl)) as server:
        parameters = conninfo_to_dict(server.dsn)
        options.postgresql_host = parameters["host"]
        options.postgresql_port = parameters.get("port")
        options.postgresql_user = parameters["user"]
        options.postgresql_password = parameters.get("password")
        yield parameters


@pytest.fixture(scope="session")
def pgbouncer(server: dict[str, Any]) -> Iterator[PgBouncer]:
    """A PgBouncer in transaction mode before the server, with two connections to it for each database."""
    if PROGRAM is None:
        pytest.skip(MISSING)
    with PgBouncer(_dsn(server)) as pgbouncer:
        yield pgbouncer


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Starts processes that need not import anything any more."""
    with Crew() as crew:
        yield crew


@pytest.fixture
def direct_dsn(server: dict[str, Any], request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database, without PgBouncer between."""
    connection = request.getfixturevalue("copy_of_template")
    return _dsn({**server, "dbname": connection.info.dbname})


@pytest.fixture
def dsn(direct_dsn: str, request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database."""
    return _reached(request, direct_dsn)


@pytest.fixture
def empty_dsn(server: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh database without any table."""
    executor = request.getfixturevalue("template")
    janitor = DatabaseJanitor(
        user=executor.user,
        host=executor.host,
        port=executor.port,
        password=executor.password,
        dbname="empty_under_test",
    )
    janitor.drop()
    with janitor:
        yield _reached(request, _dsn({**server, "dbname": "empty_under_test"}))


def _reached(request: pytest.FixtureRequest, dsn: str) -> str:
    if not request.config.getoption("--pgbouncer"):
        return dsn
    pgbouncer: PgBouncer = request.getfixturevalue("pgbouncer")
    return pgbouncer.through(dsn)


@pytest.fixture
def pool_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a repository on ``dsn`` needs beside it."""
    return {"kwargs": {"prepare_threshold": None}} if request.config.getoption("--pgbouncer") else {}


@pytest.fixture
def repository(dsn: str, pool_options: dict[str, Any]) -> Iterator[PostgresSessionRepository]:
    """A repository on a fresh, migrated database."""
    with PostgresSessionRepository(dsn, **pool_options) as repository:
        yield repository


@pytest.fixture
def connection(direct_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A plain connection to the fresh database, in autocommit, to look at the tables with."""
    with psycopg.connect(direct_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def watcher(direct_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Another one, to look with while ``connection`` is in a transaction."""
    with psycopg.connect(direct_dsn, autocommit=True) as watcher:
        yield watcher


@pytest.fixture
def retries(caplog: pytest.LogCaptureFixture) -> Retries:
    """The retries of this process during the test."""
    return Retries(caplog)
