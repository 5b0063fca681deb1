"""The command ``storage``: lists storages; lists, prints and purges the values of one."""

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from strands_psycopg.cli import output
from strands_psycopg.cli.deletion import add_deletion_options, check_can_ask, confirm, verb
from strands_psycopg.cli.lines import STDIO
from strands_psycopg.cli.options import (
    CODEC,
    JSON,
    TABLES,
    Commands,
    Parser,
    open_repository,
    parse_duration,
    parse_id,
    parse_path,
)
from strands_psycopg.errors import (
    PostgresStorageError,
    SessionNotFoundError,
    StorageError,
    StrandsPsycopgError,
    TransferError,
)
from strands_psycopg.printable import printable
from strands_psycopg.repository import session_tables
from strands_psycopg.repository.annotations import check_owner
from strands_psycopg.storage import PostgresStorage, list_values
from strands_psycopg.storage.prefixes import list_storages
from strands_psycopg.storage.purging import StoragePurgeResult
from strands_psycopg.system_errors import explain

_STORAGE = Parser(add_help=False)
_which = _STORAGE.add_mutually_exclusive_group()
_which.add_argument("--session", type=parse_id, metavar="ID", help="the storage of this session")
_which.add_argument("--prefix", default="", metavar="TEXT", help="the storage with this prefix (default: none)")
_STORAGE.add_argument(
    "--owner",
    metavar="NAME",
    default=argparse.SUPPRESS,
    help="whose storage it is (default: nobody's); with --session, use it only if the session belongs to this owner",
)


def add_to(commands: Commands) -> None:
    """Add the command."""
    storage = commands.add_parser(
        "storage",
        parents=[TABLES, JSON],
        help="list storages; list, print and purge the values of one",
        description="Without an action, list the prefixes of storages, without those of sessions. With one, list, "
        "print and purge the values of a PostgresStorage, or of the storage of a session.",
    )
    storage.add_argument(
        "--owner", metavar="NAME", default=argparse.SUPPRESS, help="only storages of this owner (default: of anyone)"
    )
    storage.set_defaults(run=_list_storages)
    actions = storage.add_subparsers(title="actions", metavar="action")

    listing = _add(actions, "list", _list, "list values with their sizes", TABLES, JSON)
    listing.add_argument("--under", default="", metavar="TEXT", help="only keys that begin with TEXT")

    get = _add(actions, "get", _get, "print a value, or write it to a file", TABLES, CODEC)
    get.add_argument("key", metavar="KEY", help="its key")
    get.add_argument(
        "--to", type=parse_path, default=STDIO, metavar="FILE", help="a new file; - is standard output (default: -)"
    )

    purge = _add(actions, "purge", _purge, "delete expired values, and those not written for some time", TABLES)
    purge.add_argument(
        "--idle-for",
        type=parse_duration,
        metavar="DURATION",
        help="also delete values that were not written for this time: 30d, 12h, 90m, 45s",
    )
    add_deletion_options(purge)


def _add(
    actions: Commands,
    name: str,
    run: Callable[[argparse.Namespace, PostgresStorage], int],
    summary: str,
    *parents: Parser,
) -> Parser:
    description = f"{summary[0].upper()}{summary[1:]}."
    action = actions.add_parser(name, parents=[*parents, _STORAGE], help=summary, description=description)

    def run_on_storage(arguments: argparse.Namespace) -> int:
        try:
            with _open_storage(arguments) as storage:
                return run(arguments, storage)
        except StrandsPsycopgError:
            raise
        except StorageError as error:  # raised by Strands for a prefix or key
            raise ValueError(str(error)) from error

    action.set_defaults(run=run_on_storage)
    return action


@contextmanager
def _open_storage(arguments: argparse.Namespace) -> Iterator[PostgresStorage]:
    """Yield the storage of the options.

    Raises:
        SessionNotFoundError: There is no such session.
        ValueError: The installed Strands has no storages, or an option is out of range.
    """
    with open_repository(arguments) as repository:
        try:
            if arguments.session is None:
                yield PostgresStorage(repository, prefix=arguments.prefix, owner=arguments.owner)
                return
            storage = repository.storage(arguments.session, owner=arguments.owner)
        except ImportError as error:
            raise ValueError(str(error)) from error
        if repository.read_session(arguments.session, owner=arguments.owner) is None:
            raise SessionNotFoundError(f"session {arguments.session!r} does not exist")
        yield storage


def _list_storages(arguments: argparse.Namespace) -> int:
    check_owner(arguments.owner)
    with open_repository(arguments) as repository:
        found = list_storages(session_tables(repository).database, arguments.owner)
    if arguments.json:
        print(json.dumps({"storages": [dataclasses.asdict(each) for each in found]}, indent=2))
        return 0
    rows = [
        (
            printable(each.prefix) or "(none)",
            f"{each.owners:,}",
            f"{each.values:,}",
            output.format_size(each.bytes),
            output.format_time(each.updated_at, timespec="minutes"),
        )
        for each in found
    ]
    output.print_table(("prefix", "owners", "values", "size", "newest"), rows, right=("owners", "values", "size"))
    return 0


def _list(arguments: argparse.Namespace, storage: PostgresStorage) -> int:
    found = list_values(storage, arguments.under)
    if arguments.json:
        print(json.dumps({"values": [dataclasses.asdict(each) for each in found]}, indent=2))
        return 0
    rows = [
        (
            printable(each.key),
            output.format_size(each.size),
            output.format_time(each.updated_at, timespec="minutes"),
            output.format_time(each.expires_at, timespec="minutes") if each.expires_at else "",
        )
        for each in found
    ]
    output.print_table(("key", "size", "written", "expires"), rows, right=("size",))
    return 0


def _get(arguments: argparse.Namespace, storage: PostgresStorage) -> int:
    value = asyncio.run(storage.read(arguments.key))
    if value is None:
        raise PostgresStorageError(
            f"there is no value {arguments.key!r}; 'strands-psycopg storage list' prints the keys"
        )
    if arguments.to == STDIO:
        sys.stdout.flush()
        sys.stdout.buffer.write(value)
        return 0
    path = Path(arguments.to)
    try:
        with path.open("xb" if path.is_file() or not path.exists() else "wb") as file:
            file.write(value)
    except OSError as error:
        raise TransferError(f"{arguments.to} cannot be written: {explain(error)}") from error
    return 0


def _purge(arguments: argparse.Namespace, storage: PostgresStorage) -> int:
    check_can_ask(arguments)
    if arguments.dry_run or not arguments.yes:
        purged = storage.purge(idle_for=arguments.idle_for, dry_run=True)
        if not confirm(arguments, f"Delete {_describe(purged)}?"):
            return 1
    if not arguments.dry_run:
        purged = storage.purge(idle_for=arguments.idle_for)
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(purged), "dry_run": arguments.dry_run}, indent=2))
    else:
        print(f"{verb(arguments)} {_describe(purged)}")
    return 0


def _describe(purged: StoragePurgeResult) -> str:
    return f"{output.pluralize(purged.values, 'value')} of {output.format_size(purged.bytes)}"
