"""A server that the fault tests own, and may crash, stop and reconfigure, and what they watch it with."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.embedded import Server
from support.databases import Databases
from support.servers import QuickServer


@pytest.fixture(scope="session")
def own_server() -> Iterator[Server]:
    """A server on a port of 127.0.0.1, where a password is needed. Its settings are left as they were."""
    with QuickServer(port=0) as server:
        yield server


@pytest.fixture(scope="session")
def own_databases(own_server: Server) -> Iterator[Databases]:
    """Creates databases on that server, and starts it if a test has stopped it."""
    with Databases(own_server.dsn, "own", own_server.start, "look") as databases:
        yield databases


@pytest.fixture(scope="session")
def own_template(own_databases: Databases) -> Iterator[str]:
    """The name of a migrated database of that server, to be copied."""
    with own_databases.create("migrated") as dsn:
        with PostgresSessionRepository(dsn) as repository:
            repository.ensure_schema()
        yield str(conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def own_dsn(own_databases: Databases, own_template: str) -> Iterator[str]:
    """A fresh, migrated database of that server."""
    with own_databases.reuse("faults", own_template) as dsn:
        yield dsn


@pytest.fixture
def look(own_databases: Databases, own_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A plain connection to that database, in autocommit, to look at its tables with."""
    with own_databases.connect(own_dsn) as connection:
        yield connection
