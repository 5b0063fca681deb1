"""The command line: ``strands-psycopg``, or ``python -m strands_psycopg``.

Exit codes: 0 success, 1 failure (of ``status``: not ready), 2 wrong usage, 130 interrupted.
"""

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata

from strands_psycopg.cli import analytics, deletion, demo, leases, memories, schema, sessions, show, storage, transfer
from strands_psycopg.cli.options import CODEC, DEFAULTS, TABLES, Parser, connection_hint, similar_sessions_hint
from strands_psycopg.errors import StrandsPsycopgError
from strands_psycopg.system_errors import explain


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: The arguments without the program name; None for ``sys.argv``.

    Raises:
        SystemExit: Wrong usage, ``--help`` or ``--version``.
    """
    _open_missing_streams()
    if sys.stdout is None:
        return _fail("standard output is closed; redirect it, for example to /dev/null", 1)
    # Retries would be logged to stderr, but the error that ends a command already has their reason.
    logging.basicConfig(handlers=[logging.NullHandler()])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = argparse.Namespace(**DEFAULTS)
    try:
        try:
            _build_parser().parse_args(argv, arguments)
            code: int = arguments.run(arguments)
        except SystemExit:
            # After --help, too, nothing must be left for Python to write.
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except StrandsPsycopgError as error:
        hint = connection_hint(arguments, error) or similar_sessions_hint(arguments, error)
        return _fail(f"{error}{hint}", 1)
    except BrokenPipeError:
        # The reader of the pipe has ended, as head does.
        _discard_output()
        return 1
    except OSError as error:
        _discard_output()
        return _fail(f"standard output cannot be written: {explain(error)}", 1)
    except ValueError as error:
        return _fail(f"{error}", 2)
    except KeyboardInterrupt:
        return 130
    return code


def _open_missing_streams() -> None:
    """Open standard streams that are closed, so that no connection gets the descriptor of one."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest one that is free, which is this one.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        # Otherwise ``print`` would write to standard output instead.
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _discard_output() -> None:
    # Otherwise Python flushes again at exit and reports the error again.
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: str, code: int) -> int:
    with suppress(OSError):
        print("strands-psycopg: error:", *error.split(), file=sys.stderr, flush=True)
    return code


@cache
def _build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="strands-psycopg",
        parents=[TABLES, CODEC],
        description="Manage sessions of Strands Agents in PostgreSQL.",
        epilog="The database is specified by --dsn, by the environment variable DATABASE_URL, or by libpq's "
        "environment variables (PGHOST, ...).",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version('strands-psycopg')}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    schema.add_to(commands)
    sessions.add_to(commands)
    deletion.add_to(commands)
    leases.add_to(commands)
    show.add_to(commands)
    transfer.add_to(commands)
    storage.add_to(commands)
    memories.add_to(commands)
    analytics.add_to(commands)
    demo.add_to(commands)
    return parser
