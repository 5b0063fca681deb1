"""Filling a table that has an index of vectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg


@contextmanager
def without_index(connection: psycopg.Connection[Any], index: str) -> Iterator[None]:
    """Drop an index and build it anew at the end, which takes a fraction of the time of as many single insertions."""
    [(definition,)] = connection.execute("SELECT pg_get_indexdef(%s::regclass)", [index]).fetchall()
    connection.execute(f"DROP INDEX {index}".encode())
    yield
    connection.execute("SET maintenance_work_mem = '1GB'")
    connection.execute(definition.encode())
