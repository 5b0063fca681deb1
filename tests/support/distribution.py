"""The tables, distributed over the nodes of a Citus cluster as the recipe does it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from strands_psycopg import PostgresSessionRepository
from support.catalog import TABLES, VIEWS

RECIPE = Path(__file__).parent.parent / "recipes" / "citus.sql"

# Those to which others refer, and those to which none does.
_EMPTIED = ("strands_sessions", "strands_leases", "strands_storage", "strands_chunks", "strands_memories")

_OURS = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')"

# What a test has created.
_OTHERS = """
    SELECT relname FROM pg_class AS c
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND NOT starts_with(relname, 'strands_')
        AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype = 'e')
"""


@contextmanager
def distributed(dsn: str) -> Iterator[None]:
    """Create and distribute the tables, in a database that has none of them, and drop them at the end."""
    if names(dsn):
        raise RuntimeError("the database has tables of this package; pass one that has none, since all are dropped")
    try:
        create(dsn)
        yield
    finally:
        drop(dsn)


def names(dsn: str) -> set[str]:
    """Return the names of our tables and views, without their prefix."""
    with psycopg.connect(dsn) as connection:
        found = [name for (name,) in connection.execute(_OURS).fetchall()]
    return {name.removeprefix("strands_") for name in found if name.startswith("strands_")}


def create(dsn: str) -> None:
    with PostgresSessionRepository(dsn) as repository:
        repository.ensure_schema()
    with psycopg.connect(dsn) as connection:
        connection.execute(RECIPE.read_bytes())


def distribute_vectors(dsn: str) -> None:
    """Distribute the table of vectors, which was created later than the others."""
    [statement] = re.findall(rb"^SELECT [^;]+'strands_memory_vectors'[^;]+;", RECIPE.read_bytes(), re.M)
    with psycopg.connect(dsn) as connection:
        connection.execute(statement)


def drop(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        for table in sorted(names(dsn) - set(VIEWS)):
            connection.execute(f"DROP TABLE strands_{table} CASCADE".encode())


def empty(dsn: str) -> None:
    """Delete all rows, and undo what tests have created, dropped and set."""
    with psycopg.connect(dsn, autocommit=True, client_encoding="utf8") as connection:
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} RESET client_encoding").format(database))
        for (table,) in connection.execute(_OTHERS).fetchall():
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(sql.Identifier(table)))
    if names(dsn) != {*TABLES, *VIEWS}:
        drop(dsn)
        create(dsn)
        return
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in _EMPTIED:
            connection.execute(f"DELETE FROM {table}".encode())
