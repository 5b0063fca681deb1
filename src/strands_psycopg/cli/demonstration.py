"""The command ``demo``."""

import argparse

from strands_psycopg import demo
from strands_psycopg.cli.options import DSN, Commands, dsn_of


def add_to(commands: Commands) -> None:
    """Add the command."""
    show = commands.add_parser(
        "demo",
        parents=[DSN],
        allow_abbrev=False,
        help="see a conversation survive kill -9",
        description="See a conversation survive kill -9. It runs on a PostgreSQL of its own, which is deleted "
        f"afterwards, or in the schema {demo.SCHEMA} of the database that --dsn or DATABASE_URL names.",
    )
    show.add_argument("--keep", action="store_true", help="keep its PostgreSQL until Enter is pressed, to look around")
    show.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    return 0 if demo.run(dsn_of(arguments), keep=arguments.keep) else 1
