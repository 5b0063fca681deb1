"""The tables, distributed over the nodes of a Citus cluster as the recipe does it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from strands_psycopg import PostgresSessionRepository

RECIPE = Path(__file__).parent.parent / "recipes" / "citus.sql"

# Those to which others refer, and those to which none does.
_EMPTIED = ("strands_sessions", "strands_leases", "strands_storage", "strands_chunks")

_OURS = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND starts_with(tablename, 'strands_')"


@contextmanager
def distributed(dsn: str) -> Iterator[None]:
    """Create and distribute the tables, in a database that has none of them, and drop them at the end."""
    with psycopg.connect(dsn) as connection:
        if connection.execute(_OURS).fetchone():
            raise RuntimeError("the database has tables of this package; pass one that has none, as all are dropped")
    try:
        with PostgresSessionRepository(dsn) as repository:
            repository.ensure_schema()
        with psycopg.connect(dsn) as connection:
            connection.execute(RECIPE.read_bytes())
        yield
    finally:
        with psycopg.connect(dsn) as connection:
            for (table,) in connection.execute(_OURS).fetchall():
                connection.execute(f"DROP TABLE IF EXISTS {table} CASCADE".encode())


def empty(dsn: str) -> None:
    """Delete all rows."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in _EMPTIED:
            connection.execute(f"DELETE FROM {table}".encode())
