"""The command ``leases``."""

import argparse
import dataclasses
import json

from strands_psycopg.cli import output
from strands_psycopg.cli.options import TABLES, Commands, open_repository
from strands_psycopg.printable import printable
from strands_psycopg.repository import session_tables


def add_to(commands: Commands) -> None:
    """Add the command."""
    leases = commands.add_parser(
        "leases",
        parents=[TABLES],
        help="list the sessions that are leased, and until when",
        description="List the sessions that are leased, the lease that expires first at the top: since when, and until "
        "when if the holder does not renew it. Each holder has a term of its own.",
    )
    leases.add_argument("--json", action="store_true", help="print JSON")
    leases.set_defaults(run=_leases)


def _leases(arguments: argparse.Namespace) -> int:
    with open_repository(arguments) as repository:
        held = session_tables(repository).leases.read_all()
    if arguments.json:
        print(json.dumps({"leases": [dataclasses.asdict(each) for each in held]}, indent=2))
        return 0
    rows = [
        (
            printable(each.session_id),
            output.format_time(each.since, timespec="seconds"),
            output.format_time(each.until, timespec="seconds"),
            each.term,
        )
        for each in held
    ]
    output.print_table(("session", "since", "until", "term"), rows, drop=("term",))
    return 0
