"""The command line: ``strands-psycopg``, or ``python -m strands_psycopg``.

Exit codes: 0 done, 1 failed (or, of ``status``, not ready), 2 wrong usage, 130 interrupted.
"""

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from strands_psycopg.cli import analytics, demonstration, schema, sessions, show, transfer
from strands_psycopg.cli.options import Parser, advice_on
from strands_psycopg.errors import StrandsPsycopgError


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
        return _fail(error, 1, advice_on(arguments, error))
    except ValueError as error:
        return _fail(error, 2)
    except BrokenPipeError:
        # The reader has seen enough.
        _discard_output()
        return 1
    except OSError as error:
        _discard_output()
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    return code


def _discard_output() -> None:
    # Python would flush once more at its exit, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: Exception, code: int, advice: str = "") -> int:
    print("strands-psycopg: error:", *f"{error}{advice}".split(), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="strands-psycopg",
        description="Strands Agents' sessions in PostgreSQL.",
        epilog="The database is --dsn, or the variable DATABASE_URL, or what libpq's own variables (PGHOST, ...) say.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version('strands-psycopg')}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    schema.add_to(commands)
    sessions.add_to(commands)
    show.add_to(commands)
    transfer.add_to(commands)
    analytics.add_to(commands)
    demonstration.add_to(commands)
    return parser
