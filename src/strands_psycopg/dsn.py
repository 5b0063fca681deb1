"""Parsing of DSNs, with errors that say what to change and quote no password."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from strands_psycopg.printable import printable

# Parameters in DSNs for other libraries, and what to do about them.
_FOREIGN_PARAMETERS = {
    **dict.fromkeys(("schema", "currentSchema"), "pass schema= to the repository, or options=-csearch_path=..."),
    **dict.fromkeys(
        ("pgbouncer", "statement_cache_size", "prepared_statement_cache_size", "prepareThreshold"),
        'leave it out; behind a pooler pass kwargs={"prepare_threshold": None}',
    ),
    **dict.fromkeys(("ssl", "sslaccept"), "use sslmode=require or verify-full"),
    "connection_limit": "leave it out, and pass max_size=",
    "pool_timeout": "leave it out, and pass timeout=",
}

# The settings of a connection that an address shows.
_ADDRESS = ("host", "port", "dbname", "user")


def parse_dsn(dsn: str) -> dict[str, Any]:
    """Return the settings of a DSN.

    Raises:
        ValueError: It cannot be parsed. The text quotes only known words, since any part may be a misplaced password.
    """
    authority = re.match(r"postgres(?:ql)?://([^/?#]*)", dsn)
    if authority and authority[1].count("@") > 1:
        raise ValueError("the DSN has more than one '@' before its path; percent-encode the password ('@' is %40)")
    with suppress(psycopg.Error):
        return conninfo_to_dict(dsn)
    # Not raised from the driver's error, which quotes the DSN.
    raise ValueError(f"the DSN cannot be parsed: {_fault_of(dsn)}")


def _fault_of(dsn: str) -> str:
    """Return what is wrong with a DSN that libpq cannot parse, and what to do."""
    scheme = re.match(r"(?:postgres(?:ql)?)\+(asyncpg|psycopg|psycopg2|psycopg_async|pg8000)://", dsn)
    if scheme:
        return f"its scheme, with +{scheme[1]}, is one of SQLAlchemy's; begin it with postgresql://"
    if dsn.startswith("jdbc:"):
        return "it is a URL for JDBC; begin it with postgresql:// and write user:password@ before the host"
    parameters = [name for name, _ in parse_qsl(dsn.partition("?")[2], keep_blank_values=True)]
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    for name in parameters:
        if name in _FOREIGN_PARAMETERS:
            return f"libpq has no parameter {name!r}; {_FOREIGN_PARAMETERS[name]}"
    if "://" in dsn and any(name not in known for name in parameters):
        return "after its '?' is a parameter that libpq does not have; leave it out"
    if "://" in dsn:
        return (
            "use postgresql://user:password@host:port/database, with the reserved characters of user and password "
            "percent-encoded ('/' is %2F, '?' is %3F, '#' is %23, '%' is %25)"
        )
    return "use postgresql://user:password@host:port/database, or pairs such as host=... dbname=..."


def format_address(settings: dict[str, Any], kwargs: object) -> str:
    """Return where settings and the ``kwargs`` that override them connect to, without secrets."""
    if isinstance(kwargs, Mapping):
        settings = {**settings, **kwargs}
    shown = [f"{key}={settings[key]}" for key in _ADDRESS if settings.get(key)]
    # If a password contains an unescaped "/", the parser takes it for a port and a database name with an "@".
    if not shown or "@" in str(settings.get("dbname")):
        return "conninfo=..."
    return printable(" ".join(shown))


def libpq_defaults() -> dict[str, Any]:
    """Return what libpq takes from environment variables and from the service file that they name."""
    return {option.keyword.decode(): option.val for option in pq.Conninfo.get_defaults() if option.val}
