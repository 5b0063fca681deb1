"""The command line: ``strands-psycopg``, or ``python -m strands_psycopg``.

Exit codes: 0 done, 1 failed (or, of ``status``, not ready), 2 wrong usage, 130 interrupted.
"""

import argparse
import dataclasses
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from strands_psycopg import demo
from strands_psycopg.errors import StrandsPsycopgError
from strands_psycopg.migrator import Migrator
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.repository.status import Status, TableStatus

# Long enough for a server that is restarting, short enough for someone who waits at a terminal.
_RETRY_TIMEOUT = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code.

    Args:
        argv: The arguments after the program's name; None for this process's.

    Raises:
        SystemExit: Wrong usage, ``--help`` or ``--version``.
    """
    arguments = _parser().parse_args(argv)
    # The error that ends a command tells what each retry would have logged on stderr.
    logging.basicConfig(handlers=[logging.NullHandler()])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except StrandsPsycopgError as error:
        return _fail(error, 1)
    except ValueError as error:
        return _fail(error, 2)
    except BrokenPipeError:
        # The reader has seen enough. Python would flush once more at its exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _fail(error: Exception, code: int) -> int:
    print("strands-psycopg: error:", *str(error).split(), file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # It would quote a DSN in a wrong place, password and all.
        if "://" in message or "password" in message:
            message = "a DSN is given with --dsn"
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="strands-psycopg",
        description="Strands Agents' sessions in PostgreSQL.",
        epilog="The database is --dsn, or the variable DATABASE_URL, or what libpq's own variables (PGHOST, ...) say.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version('strands-psycopg')}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)

    dsn = _Parser(add_help=False)
    dsn.add_argument("--dsn", help="the database, as postgresql://... or key=value pairs")
    tables = _Parser(add_help=False, parents=[dsn])
    tables.add_argument("--schema", metavar="NAME", help="the schema of the tables (public)")
    tables.add_argument(
        "--table-prefix", metavar="PREFIX", default="strands_", help="what their names begin with (strands_)"
    )

    migrate = commands.add_parser(
        "migrate",
        parents=[tables],
        allow_abbrev=False,
        help="create or upgrade the tables",
        description="Create or upgrade the tables. Any number of processes may do so at once.",
    )
    output = migrate.add_mutually_exclusive_group()
    output.add_argument(
        "--sql",
        action="store_true",
        help="print the SQL instead of running it: what is pending in the database if --dsn or DATABASE_URL is given, "
        "otherwise, without connecting, all of it",
    )
    output.add_argument("--json", action="store_true", help="print what was applied as JSON")
    migrate.set_defaults(run=_migrate)

    status = commands.add_parser(
        "status",
        parents=[tables],
        allow_abbrev=False,
        help="show the server, the version of the tables and how much is in them",
        description="Show the server, the version of the tables and how much is in them. The exit code is 1 if "
        "migrations are pending or tables missing.",
    )
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)

    show = commands.add_parser(
        "demo",
        parents=[dsn],
        allow_abbrev=False,
        help="see a conversation survive kill -9",
        description="See a conversation survive kill -9. It runs on a PostgreSQL of its own, which is deleted "
        f"afterwards, or in the schema {demo.SCHEMA} of the database that --dsn or DATABASE_URL names.",
    )
    show.add_argument("--keep", action="store_true", help="keep its PostgreSQL until Enter is pressed, to look around")
    show.set_defaults(run=_demo)
    return parser


def _dsn(arguments: argparse.Namespace) -> str | None:
    dsn: str | None = arguments.dsn
    return os.environ.get("DATABASE_URL") or None if dsn is None else dsn


def _repository(arguments: argparse.Namespace) -> PostgresSessionRepository:
    return PostgresSessionRepository(
        _dsn(arguments) or "",
        schema=arguments.schema,
        table_prefix=arguments.table_prefix,
        retry_timeout=_RETRY_TIMEOUT,
    )


def _migrate(arguments: argparse.Namespace) -> int:
    with _repository(arguments) as repository:
        migrator = Migrator(repository.database)
        if arguments.sql:
            if _dsn(arguments) is None:
                print(migrator.script(), end="")
            else:
                pending = migrator.pending()
                print(migrator.script(pending) if pending else "-- nothing is pending\n", end="")
            return 0
        applied = migrator.apply()
    if arguments.json:
        versions = [{"version": migration.version, "name": migration.name} for migration in applied]
        print(json.dumps({"applied": versions}, indent=2))
        return 0
    for migration in applied:
        print(f"applied {migration.version:04} {migration.name}")
    if not applied:
        print("nothing was pending")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    with _repository(arguments) as repository:
        status = repository.status()
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(status), "ready": status.ready}, indent=2))
    else:
        print(_described(status))
    return 0 if status.ready else 1


def _described(status: Status) -> str:
    if status.problem:
        state = status.problem
    elif status.pending:
        state = f"pending: {', '.join(status.pending)}; run 'strands-psycopg migrate'"
    elif status.missing:
        state = f"missing: {', '.join(status.missing)}; restore what was dropped from a backup"
    else:
        state = "up to date"
    lines = [
        f"server    PostgreSQL {status.server_version} on {status.host}, port {status.port}",
        f"database  {status.database}, as {status.user}",
        f"tables    {status.table_prefix}* in schema {status.schema}",
        f"version   {status.schema_version} of {status.package_version}, {state}",
    ]
    if status.tables:
        rows = [
            ("table", "rows", "size"),
            *((table.name, _rows(table), _size(table.bytes)) for table in status.tables),
            ("total", "", _size(sum(table.bytes for table in status.tables))),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append("")
        lines += [f"{name:<{widths[0]}}  {count:>{widths[1]}}  {size:>{widths[2]}}" for name, count, size in rows]
    return "\n".join(lines)


def _rows(table: TableStatus) -> str:
    return f"{table.rows:,}" if table.exact else f"about {table.rows:,}"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.1f} TB"


def _demo(arguments: argparse.Namespace) -> int:
    return 0 if demo.run(_dsn(arguments), keep=arguments.keep) else 1
