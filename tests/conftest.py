"""Databases for the tests: an embedded server, or the one named by ``--postgresql-host`` and its kin.

A template database is migrated once; each test gets a fresh copy of it.
"""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql import factories
from pytest_postgresql.janitor import DatabaseJanitor

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.embedded import postgres


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
    with postgres() as dsn:
        parameters = conninfo_to_dict(dsn)
        options.postgresql_host = parameters["host"]
        options.postgresql_port = parameters.get("port")
        options.postgresql_user = parameters["user"]
        options.postgresql_password = parameters.get("password")
        yield parameters


@pytest.fixture
def dsn(server: dict[str, Any], request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database."""
    connection = request.getfixturevalue("copy_of_template")
    return _dsn({**server, "dbname": connection.info.dbname})


@pytest.fixture
def empty_dsn(server: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh database without any table."""
    executor = request.getfixturevalue("template")
    janitor = DatabaseJanitor(
        user=executor.user, host=executor.host, port=executor.port, password=executor.password, dbname="empty_under_test"
    )
    janitor.drop()
    with janitor:
        yield _dsn({**server, "dbname": "empty_under_test"})


@pytest.fixture
def repository(dsn: str) -> Iterator[PostgresSessionRepository]:
    """A repository on a fresh, migrated database."""
    with PostgresSessionRepository(dsn) as repository:
        yield repository


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A plain connection to the fresh database, in autocommit, to look at the tables with."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection
