"""The commands for the schema: ``migrate`` and ``status``."""

import argparse
import dataclasses
import json

from strands_psycopg.cli import output
from strands_psycopg.cli.options import TABLES, Commands, get_dsn, open_repository
from strands_psycopg.memory.embedding import check_dimensions
from strands_psycopg.migrator import Migrator
from strands_psycopg.repository import session_tables
from strands_psycopg.repository.status import Status, TableStatus


def add_to(commands: Commands) -> None:
    """Add the commands."""
    migrate = commands.add_parser(
        "migrate",
        parents=[TABLES],
        help="create or upgrade the tables",
        description="Create or upgrade the tables. Several processes may run this command at the same time.",
    )
    migrate.add_argument(
        "--vectors",
        type=int,
        metavar="DIMENSIONS",
        help="also create the extension pgvector and the table of vectors of that many dimensions, for memory stores "
        "that search by meaning",
    )
    form = migrate.add_mutually_exclusive_group()
    form.add_argument(
        "--sql",
        action="store_true",
        help="print SQL instead of running it: the pending migrations of the database if --dsn or DATABASE_URL is set, "
        "otherwise all migrations, without connecting",
    )
    form.add_argument("--json", action="store_true", help="print the applied migrations as JSON")
    migrate.set_defaults(run=_migrate)

    status = commands.add_parser(
        "status",
        parents=[TABLES],
        help="show the server, the schema version and the size of the tables",
        description="Show the server, the schema version, and the rows and size of each table. The exit code is 1 if "
        "migrations are pending or tables are missing.",
    )
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)


def _migrate(arguments: argparse.Namespace) -> int:
    with open_repository(arguments) as repository:
        dimensions = None if arguments.vectors is None else check_dimensions(arguments.vectors)
        migrator = Migrator(session_tables(repository).database, vector_dimensions=dimensions)
        if arguments.sql:
            if get_dsn(arguments) is None:
                print(migrator.script(), end="")
            else:
                pending = migrator.pending()
                print(migrator.script(pending) if pending else "-- no migrations are pending\n", end="")
            return 0
        applied = migrator.apply()
    if arguments.json:
        versions = [{"version": migration.version, "name": migration.name} for migration in applied]
        print(json.dumps({"applied": versions}, indent=2))
        return 0
    for migration in applied:
        print(f"applied {migration.version:04} {migration.name}")
    if not applied:
        print("no migrations are pending")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    with open_repository(arguments) as repository:
        status = repository.status()
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(status), "ready": status.ready}, indent=2))
    else:
        _print_status(status)
    return 0 if status.ready else 1


def _print_status(status: Status) -> None:
    if status.problem:
        state = status.problem
    elif status.pending:
        state = f"pending: {', '.join(status.pending)}; run 'strands-psycopg migrate'"
    elif status.missing:
        state = f"missing: {', '.join(status.missing)}; restore them from a backup"
    else:
        state = "up to date"
    print(f"server    PostgreSQL {status.server_version} on {status.host}, port {status.port}")
    print(f"database  {status.database}, as {status.user}")
    print(f"in use    {status.connections} of {output.pluralize(status.max_connections, 'connection')}")
    print(f"tables    {status.table_prefix}* in schema {status.schema}")
    print(f"version   {status.schema_version} of {status.latest_version}, {state}")
    if status.tables:
        rows = [(table.name, _row_count(table), output.format_size(table.bytes)) for table in status.tables]
        total = ("total", "", output.format_size(sum(table.bytes for table in status.tables)))
        print()
        output.print_table(("table", "rows", "size"), [*rows, total], right=("rows", "size"))


def _row_count(table: TableStatus) -> str:
    return f"{table.rows:,}" if table.exact else f"about {table.rows:,}"
