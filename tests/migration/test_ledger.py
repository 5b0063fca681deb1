import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository, SchemaError
from strands_psycopg.migrator import Migrator, packaged_migrations
from support import catalog

Connection = psycopg.Connection[Any]


def test_ledger_records_what_was_applied_and_when(empty_dsn: str) -> None:
    with PostgresSessionRepository(empty_dsn) as repository:
        assert Migrator(repository._database).apply() == packaged_migrations()
        assert Migrator(repository._database).apply() == []

    with psycopg.connect(empty_dsn) as connection:
        ledger = connection.execute("SELECT version, name, checksum FROM strands_migrations ORDER BY version")
        assert ledger.fetchall() == [(each.version, each.name, each.checksum) for each in packaged_migrations()]
        age = connection.execute("SELECT now() - min(applied_at) BETWEEN '0' AND '1 min' FROM strands_migrations")
        assert age.fetchall() == [(True,)]


def assert_refused(dsn: str, match: str) -> None:
    before = catalog.layout(dsn)
    with PostgresSessionRepository(dsn) as repository:
        with pytest.raises(SchemaError, match=match):
            Migrator(repository._database).pending()
        with pytest.raises(SchemaError, match=match):
            repository.ensure_schema()
    assert catalog.layout(dsn) == before


def test_file_that_has_changed_since_is_refused(dsn: str, connection: Connection) -> None:
    connection.execute("UPDATE strands_migrations SET checksum = repeat('0', 64) WHERE version = 1")

    assert_refused(dsn, r"migration 1 \(sessions\) .* differs .* install the release that")


def test_newer_database_is_refused(dsn: str, connection: Connection) -> None:
    connection.execute("INSERT INTO strands_migrations VALUES (9999, 'flying', repeat('0', 64), now())")

    latest = packaged_migrations()[-1].version
    assert_refused(dsn, rf"version 9999 \(flying\), newer than this package, .* up to {latest}; upgrade")


def test_tables_without_a_ledger_are_refused(dsn: str, connection: Connection) -> None:
    connection.execute("DROP TABLE strands_migrations")

    assert_refused(dsn, r'"strands_sessions" exists without .*"strands_migrations".* choose another schema= or table_p')


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_database_with_another_encoding_is_refused(dsn: str, encoding: str) -> None:
    with _other_database(dsn, encoding) as other:
        with PostgresSessionRepository(other) as repository, pytest.raises(SchemaError, match=f"{encoding}.*UTF8"):
            repository.ensure_schema()
        assert catalog.tables(other) == []


@contextmanager
def _other_database(dsn: str, encoding: str) -> Iterator[str]:
    dbname = f"{conninfo_to_dict(dsn)['dbname']}_{encoding.lower()}"
    name = sql.Identifier(dbname)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").format(
                name, sql.Literal(encoding)
            )
        )
        yield make_conninfo(dsn, dbname=dbname)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def migrator_lock_held(dsn: str, empty_dsn: str) -> Iterator[tuple[str, str]]:
    """Yield the DSNs of a migrated and an empty database, in both of which the migrator's lock is held."""
    with PostgresSessionRepository(dsn) as repository:
        script = Migrator(repository._database).script([])
    lock = re.search(r"pg_advisory_xact_lock\(-?\d+\)", script)
    assert lock
    with psycopg.connect(dsn) as one, psycopg.connect(empty_dsn) as two:
        for connection in (one, two):
            connection.execute(f"SELECT {lock[0]}".encode())
        yield _with_lock_timeout(dsn), _with_lock_timeout(empty_dsn)


def _with_lock_timeout(dsn: str) -> str:
    return make_conninfo(dsn, options="-c lock_timeout=500")


def test_lock_is_not_taken_if_nothing_is_pending(migrator_lock_held: tuple[str, str]) -> None:
    migrated, empty = migrator_lock_held
    with PostgresSessionRepository(migrated, retry_timeout=0) as repository:
        repository.ensure_schema()
    # The lock does block a migrator that takes it.
    with (
        PostgresSessionRepository(empty, retry_timeout=0) as repository,
        pytest.raises(DatabaseUnavailableError, match="lock timeout"),
    ):
        repository.ensure_schema()


def test_nothing_is_written_if_nothing_is_pending(dsn: str) -> None:
    read_only = make_conninfo(dsn, options="-c default_transaction_read_only=on")
    with PostgresSessionRepository(read_only) as repository:
        repository.ensure_schema()
