"""A server that the fault tests own, and may crash, stop and reconfigure, and what they watch it with."""

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.embedded import Server
from support.servers import QuickServer

_numbers = itertools.count()


@pytest.fixture(scope="session")
def own_server() -> Iterator[Server]:
    """A server on a port of 127.0.0.1, where a password is needed. Its settings are left as they were."""
    with QuickServer(port=0) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE DATABASE migrated")
        with PostgresSessionRepository(make_conninfo(server.dsn, dbname="migrated")) as repository:
            repository.ensure_schema()
        yield server


@pytest.fixture
def own_dsn(own_server: Server) -> Iterator[str]:
    """A fresh, migrated database of that server."""
    own_server.start()
    name = f"faults_{next(_numbers)}"
    with psycopg.connect(own_server.dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE migrated STRATEGY file_copy").format(sql.Identifier(name))
        )
    yield make_conninfo(own_server.dsn, dbname=name)
    own_server.start()
    with psycopg.connect(own_server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def look(own_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A plain connection to that database, in autocommit, to look at its tables with."""
    with psycopg.connect(own_dsn, autocommit=True, application_name="look") as connection:
        yield connection
