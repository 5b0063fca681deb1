"""Options that several commands share."""

import argparse
import os
import re
from datetime import datetime, timedelta, timezone
from typing import NoReturn, TypeAlias

from strands_psycopg.errors import DatabaseUnavailableError
from strands_psycopg.repository import PostgresSessionRepository

# Long enough for a server that is restarting, short enough for someone who waits at a terminal.
RETRY_TIMEOUT = 5.0

# Those of libpq's variables that say where a server is.
_WHERE = ("PGHOST", "PGHOSTADDR", "PGSERVICE")

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


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


def advice_on(arguments: argparse.Namespace, error: Exception) -> str:
    """Give what to add to an error of a command: how to name a database, if nothing did."""
    named = dsn_of(arguments) or any(map(os.environ.get, _WHERE))
    if named or not isinstance(error, DatabaseUnavailableError):
        return ""
    return "; no database was named: give --dsn or set DATABASE_URL"


def repository_of(arguments: argparse.Namespace) -> PostgresSessionRepository:
    """Build the repository that the options of ``TABLES`` describe."""
    return PostgresSessionRepository(
        dsn_of(arguments) or "",
        schema=arguments.schema,
        table_prefix=arguments.table_prefix,
        retry_timeout=RETRY_TIMEOUT,
        # It may be behind a pooler, and no command repeats a statement often enough to gain by it.
        kwargs={"prepare_threshold": None},
    )


def id_of_session(text: str) -> str:
    """Take a session's id, for argparse; no DSN in its place, which a later message would repeat, password and all."""
    if re.match(r"postgres(ql)?://|.*\bpassword *=", text):
        raise argparse.ArgumentTypeError("a DSN is given with --dsn")
    return text


def duration(text: str) -> timedelta:
    """Read a time span such as ``30d``, for argparse."""
    read = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw])", text)
    if not read:
        raise argparse.ArgumentTypeError("must be a number and a unit, such as 45s, 90m, 12h, 30d or 2w")
    try:
        return timedelta(**{_UNITS[read[2]]: float(read[1])})
    except OverflowError:
        raise argparse.ArgumentTypeError("is too long") from None


def moment(text: str) -> datetime:
    """Read a time in ISO 8601, of UTC unless it says another zone, or how long ago it was, for argparse."""
    try:
        return datetime.now(timezone.utc) - duration(text)
    except argparse.ArgumentTypeError:
        pass
    except OverflowError:
        raise argparse.ArgumentTypeError("is too long ago") from None
    try:
        # Before Python 3.11 only the offset is understood.
        time = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    except ValueError:
        raise argparse.ArgumentTypeError("must be a time such as 2030-05-01T12:00, or a span such as 7d") from None
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
