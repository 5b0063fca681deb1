"""What a storage or memory store shares with the repository, or other object, that it is built on."""

from typing import Protocol

from psycopg_pool import ConnectionPool

from strands_psycopg.database import Database
from strands_psycopg.payload import Payloads
from strands_psycopg.pool_options import PoolOptions


class HasDatabase(Protocol):
    """An object whose database a storage or memory store can share, such as a ``PostgresSessionRepository``."""

    _database: Database


def open_database(
    source: object,
    *,
    schema: str | None,
    table_prefix: str,
    retry_timeout: float | None,
    response_timeout: float,
    pool_options: PoolOptions,
) -> tuple[Database, bool]:
    """Return the database of a source, and whether it is new, so that it has to be closed.

    ``source`` is as for ``PostgresStorage``. The other arguments are as for ``Database``; if the source has a database,
    they must be the defaults.

    Raises:
        TypeError: The source is of a wrong type, or has a database already and options for one are passed too.
        ValueError: An argument is out of range, or the DSN cannot be parsed.
    """
    if isinstance(source, str | ConnectionPool) or callable(source):
        database = Database(
            source,
            schema=schema,
            table_prefix=table_prefix,
            retry_timeout=retry_timeout,
            response_timeout=response_timeout,
            pool_options=pool_options,
        )
        return database, True
    shared = getattr(source, "_database", None)
    if not isinstance(shared, Database):
        raise TypeError(
            "source must be a DSN, a callable that returns one, a psycopg_pool.ConnectionPool or a "
            f"PostgresSessionRepository, not {type(source).__name__}"
        )
    if (schema, table_prefix, retry_timeout, response_timeout, pool_options) != (None, "strands_", None, 30, {}):
        raise TypeError("what is built on a repository shares its database; pass the options to the repository")
    return shared, False


def shared_payloads(source: object) -> Payloads:
    """Return what encodes and decodes the values of a source; only a repository has a payload codec."""
    payloads = getattr(getattr(source, "_tables", None), "payloads", None)
    return payloads if isinstance(payloads, Payloads) else Payloads()
