"""Options that several commands share."""

import argparse
import os
from typing import NoReturn, TypeAlias

from strands_psycopg.repository import PostgresSessionRepository

# Long enough for a server that is restarting, short enough for someone who waits at a terminal.
_RETRY_TIMEOUT = 5.0


class Parser(argparse.ArgumentParser):
    """A parser that quotes no DSN."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the usage, and end."""
        # It would quote a DSN in a wrong place, password and all.
        if "://" in message or "password" in message:
            message = "a DSN is given with --dsn"
        super().error(message)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

DSN = Parser(add_help=False)
DSN.add_argument("--dsn", help="the database, as postgresql://... or key=value pairs")

TABLES = Parser(add_help=False, parents=[DSN])
TABLES.add_argument("--schema", metavar="NAME", help="the schema of the tables (public)")
TABLES.add_argument(
    "--table-prefix", metavar="PREFIX", default="strands_", help="what their names begin with (strands_)"
)


def dsn_of(arguments: argparse.Namespace) -> str | None:
    """Give the DSN of ``--dsn`` or ``DATABASE_URL``; None if only libpq's own variables say which database it is."""
    dsn: str | None = arguments.dsn
    return os.environ.get("DATABASE_URL") or None if dsn is None else dsn


def repository_of(arguments: argparse.Namespace) -> PostgresSessionRepository:
    """Build the repository that the options of ``TABLES`` describe."""
    return PostgresSessionRepository(
        dsn_of(arguments) or "",
        schema=arguments.schema,
        table_prefix=arguments.table_prefix,
        retry_timeout=_RETRY_TIMEOUT,
    )
