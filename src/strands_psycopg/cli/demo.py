"""The command ``demo``."""

import argparse

from strands_psycopg import demo
from strands_psycopg.cli.options import DSN, Commands


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "demo",
        parents=[DSN],
        help="demonstrate that a conversation survives kill -9",
        description="Demonstrate that a conversation survives kill -9. The demo starts a temporary PostgreSQL server "
        f"or uses the schema {demo.SCHEMA} of the database specified by --dsn.",
    )
    command.add_argument("--keep", action="store_true", help="keep the temporary server running until Enter is pressed")
    command.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    return 0 if demo.run(arguments.dsn, keep=arguments.keep) else 1
