"""What a storage or memory store shares with the repository, or other object, that it is built on."""

from typing import Protocol

from strands_psycopg.database import Database
from strands_psycopg.payload import Payloads


class HasDatabase(Protocol):
    """An object whose database a storage or memory store can share, such as a ``PostgresSessionRepository``."""

    _database: Database


def shared_database(source: object) -> Database:
    """Return the database of a source.

    Raises:
        TypeError: It has none.
    """
    database = getattr(source, "_database", None)
    if not isinstance(database, Database):
        raise TypeError(
            "source must be a DSN, a callable that returns one, a psycopg_pool.ConnectionPool or a "
            f"PostgresSessionRepository, not {type(source).__name__}"
        )
    return database


def shared_payloads(source: object) -> Payloads:
    """Return what encodes and decodes the values of a source: without a payload codec unless it is a repository."""
    payloads = getattr(getattr(source, "_tables", None), "payloads", None)
    return payloads if isinstance(payloads, Payloads) else Payloads()


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can store a text."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
