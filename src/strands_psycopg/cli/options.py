"""Options that several commands share."""

import argparse
import importlib
import json
import os
import re
import sys
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from strands_psycopg.errors import DatabaseUnavailableError, SessionNotFoundError, StrandsPsycopgError
from strands_psycopg.payload import PayloadCodec, Payloads
from strands_psycopg.repository import PostgresSessionRepository

# Long enough for a server restart, short enough for a user at a terminal.
RETRY_TIMEOUT = 5.0

# The environment variables by which libpq finds a server.
_SERVER_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE")

_MAX_LIMIT = 1000

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")


class Parser(argparse.ArgumentParser):
    """An argument parser whose options cannot be abbreviated, and whose errors never quote a DSN."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Print a usage error and exit."""
        # argparse would quote a misplaced DSN with its password.
        if "://" in message or "password" in message:
            message = "pass a DSN with --dsn"
        elif match := re.match(r"argument (command|action): invalid choice: '(.*?)' \(choose from (.*)\)", message):
            kind, word, known = match.groups()
            close = get_close_matches(word, re.findall(r"[\w-]+", known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"the {kind}s are {known}, followed by their options"
            message = f"there is no {kind} {word!r}; {hint}"
        elif message.startswith("unrecognized arguments:"):
            message = f"{message}; --help after the command lists its options"
        elif re.match("the following arguments are required: [A-Z]", message):
            message = f"{message}; write -- before one that begins with a hyphen"
        elif message.endswith("expected one argument"):
            message = f"{message}; write = before one that begins with a hyphen"
        message = message.replace("invalid int value:", "must be a whole number, not")
        super().error(message)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

# The defaults of the options below, which may stand before the command or action, or after it. They have none of their
# own: that of one place would replace what was passed at the other.
DEFAULTS = {
    "dsn": None,
    "schema": None,
    "table_prefix": "strands_",
    "payload_codec": None,
    "owner": None,
    "json": False,
}

DSN = Parser(add_help=False, argument_default=argparse.SUPPRESS)
DSN.add_argument("--dsn", help="connection string of the database: postgresql://... or key=value pairs")

TABLES = Parser(add_help=False, parents=[DSN], argument_default=argparse.SUPPRESS)
TABLES.add_argument("--schema", metavar="NAME", help="schema of the tables (default: public)")
TABLES.add_argument("--table-prefix", metavar="PREFIX", help="prefix of the table names (default: strands_)")

JSON = Parser(add_help=False, argument_default=argparse.SUPPRESS)
JSON.add_argument("--json", action="store_true", help="print JSON")

CODEC = Parser(add_help=False, argument_default=argparse.SUPPRESS)
CODEC.add_argument(
    "--payload-codec",
    metavar="MODULE:NAME",
    help="the object that the application passes to the repository as payload_codec; its module may be in the working "
    "directory",
)


def get_dsn(arguments: argparse.Namespace) -> str | None:
    """Return the DSN from ``--dsn`` or ``DATABASE_URL``; None if libpq's environment variables decide."""
    dsn: str | None = arguments.dsn
    return os.environ.get("DATABASE_URL") or None if dsn is None else dsn


def connection_hint(arguments: argparse.Namespace, error: Exception) -> str:
    """Return a hint to append to a command's error: how to specify a database if none was specified."""
    specified = get_dsn(arguments) or any(map(os.environ.get, _SERVER_VARIABLES))
    if specified or not isinstance(error, DatabaseUnavailableError):
        return ""
    return "; no database was specified: use --dsn or set DATABASE_URL"


def similar_sessions_hint(arguments: argparse.Namespace, error: Exception) -> str:
    """Return a hint to append to a command's error: which sessions have ids like one that does not exist."""
    if not isinstance(error, SessionNotFoundError):
        return ""
    hints = []
    with suppress(StrandsPsycopgError), open_repository(arguments) as repository:
        for session_id in getattr(arguments, "sessions", None) or [getattr(arguments, "session", None)]:
            if session_id and repository.read_session(session_id) is None:
                # Those that were active lately, and those that begin alike.
                found = [each for prefix in (None, session_id[:3]) for each in _list_ids(repository, prefix)]
                ids = {each.casefold(): each for each in found}
                hints += [ids[each] for each in get_close_matches(session_id.casefold(), ids)]
    return f"; did you mean {' or '.join(map(repr, hints))}?" if hints else ""


def _list_ids(repository: PostgresSessionRepository, prefix: str | None) -> list[str]:
    return [each.session_id for each in repository.list_sessions(limit=1000, prefix=prefix).sessions]


def open_repository(arguments: argparse.Namespace) -> PostgresSessionRepository:
    """Return a repository for the options of ``TABLES`` and, if the command has them, of ``CODEC``.

    Raises:
        ValueError: The payload codec cannot be imported, or is not one.
    """
    codec = getattr(arguments, "payload_codec", None)
    return PostgresSessionRepository(
        get_dsn(arguments) or "",
        schema=arguments.schema,
        table_prefix=arguments.table_prefix,
        retry_timeout=RETRY_TIMEOUT,
        payload_codec=None if codec is None else _load_codec(codec),
        # The database may be behind a pooler, and no command repeats a statement often enough for preparing it to pay.
        kwargs={"prepare_threshold": None},
    )


def _load_codec(name: str) -> PayloadCodec:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"--payload-codec must be MODULE:NAME, not {name!r}")
    # As Python itself does for a program that it runs with -m.
    sys.path.insert(0, str(Path.cwd()))
    try:
        codec: PayloadCodec = getattr(importlib.import_module(module), attribute)
        Payloads(codec)
    except Exception as error:
        raise ValueError(f"--payload-codec {name}: {type(error).__name__}: {error}") from error
    return codec


def parse_id(text: str) -> str:
    """Return an id or name, for argparse; refuse a DSN, because later messages would show its password."""
    if re.match(r"postgres(ql)?://|.*\bpassword *=", text):
        raise argparse.ArgumentTypeError("pass a DSN with --dsn")
    return text


def parse_path(text: str) -> str:
    """Return a path, for argparse; refuse an empty one, which would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def parse_limit(text: str) -> int:
    """Parse the maximum number of results of a list or search, for argparse."""
    with suppress(ValueError):
        if 1 <= int(text) <= _MAX_LIMIT:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {_MAX_LIMIT}, not {text!r}")


def parse_metadata(text: str) -> dict[str, Any]:
    """Parse a JSON object, for argparse."""
    with suppress(ValueError, RecursionError):
        metadata = json.loads(text)
        if isinstance(metadata, dict):
            return metadata
    raise argparse.ArgumentTypeError('must be a JSON object, such as \'{"kind": "taste"}\'')


def parse_duration(text: str) -> timedelta:
    """Parse a duration such as ``30d``, for argparse."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError("must be a number with a unit, such as 45s, 90m, 12h, 30d or 2w")
    try:
        return timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError:
        raise argparse.ArgumentTypeError("is too long") from None


def parse_time(text: str) -> datetime:
    """Parse a time in ISO 8601 (UTC unless it has an offset) or a duration before now, for argparse."""
    if _DURATION.fullmatch(text):
        try:
            return datetime.now(timezone.utc) - parse_duration(text)
        except OverflowError:
            raise argparse.ArgumentTypeError("is too long ago") from None
    try:
        # Python parses the suffix Z only since 3.11.
        time = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    except ValueError:
        raise argparse.ArgumentTypeError("must be a time such as 2030-05-01T12:00 or a duration such as 7d") from None
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
