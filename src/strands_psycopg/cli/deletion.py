"""The commands ``delete`` and ``erase``, which ask before they delete."""

import argparse
import dataclasses
import sys

from strands_psycopg.cli import output
from strands_psycopg.cli.options import TABLES, Commands, Parser, open_repository, parse_id
from strands_psycopg.errors import SessionNotFoundError, owner_error
from strands_psycopg.printable import printable
from strands_psycopg.repository import PostgresSessionRepository, session_tables
from strands_psycopg.repository.annotations import check_owner
from strands_psycopg.repository.erasure import ErasureResult
from strands_psycopg.repository.listing import SessionSummary


def add_to(commands: Commands) -> None:
    """Add the commands."""
    delete = commands.add_parser(
        "delete",
        parents=[TABLES],
        help="delete sessions with everything in them",
        description="Delete sessions with everything in them, even if an agent is running. It asks first.",
    )
    delete.add_argument("sessions", type=parse_id, metavar="SESSION", nargs="+", help="id of a session")
    delete.add_argument("--owner", metavar="NAME", help="delete them only if all of them belong to this owner")
    add_deletion_options(delete)
    delete.set_defaults(run=_delete)

    erase = commands.add_parser(
        "erase",
        parents=[TABLES],
        help="delete everything of an owner",
        description="Delete everything of an owner: sessions with everything in them, values of storages and memories. "
        "It asks first. Agents may be running; their next write fails. What is stored under the owner after it has "
        "started remains. If it is interrupted, run it again.",
    )
    erase.add_argument("--owner", required=True, metavar="NAME", help="whose data to delete")
    add_deletion_options(erase)
    erase.set_defaults(run=_erase)


def add_deletion_options(command: Parser) -> None:
    """Add the options of every command that deletes."""
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.add_argument("--dry-run", action="store_true", help="only count what would be deleted")
    command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def _delete(arguments: argparse.Namespace) -> int:
    check_can_ask(arguments)
    with open_repository(arguments) as repository:
        found = _read_summaries(repository, arguments)
        if not confirm(arguments, f"Delete {_describe(found)}?"):
            return 1
        if not arguments.dry_run:
            for each in found:
                repository.delete_session(each.session_id, owner=arguments.owner)
    if arguments.json:
        sessions = [dataclasses.asdict(each) for each in found]
        print(output.dump_json({"sessions": sessions, "dry_run": arguments.dry_run}, indent=2))
    else:
        print(f"{verb(arguments)} {_describe(found)}")
    return 0


def _read_summaries(repository: PostgresSessionRepository, arguments: argparse.Namespace) -> list[SessionSummary]:
    """Return the summaries of the sessions to delete.

    Raises:
        ValueError: The owner cannot be one.
        SessionNotFoundError: One does not exist.
        SessionOwnerError: One belongs to another owner.
    """
    check_owner(arguments.owner)
    found = []
    for session_id in dict.fromkeys(arguments.sessions):
        summary = session_tables(repository).listing.read(session_id)
        if summary is None:
            raise SessionNotFoundError(f"session {session_id!r} does not exist; nothing was deleted")
        if arguments.owner is not None and summary.owner != arguments.owner:
            raise owner_error("nothing was deleted", session_id)
        found.append(summary)
    return found


def _describe(sessions: list[SessionSummary]) -> str:
    which = (
        f"session {printable(sessions[0].session_id)}"
        if len(sessions) == 1
        else output.pluralize(len(sessions), "session")
    )
    agents, messages = sum(each.agents for each in sessions), sum(each.messages for each in sessions)
    multi_agents = sum(each.multi_agents for each in sessions)
    return (
        f"{which} with {output.pluralize(agents, 'agent')}, {output.pluralize(messages, 'message')} and "
        f"{output.pluralize(multi_agents, 'multi-agent')}"
    )


def _erase(arguments: argparse.Namespace) -> int:
    check_can_ask(arguments)
    with open_repository(arguments) as repository:
        if not arguments.yes and not arguments.dry_run:
            counts = _counts(repository.erase(owner=arguments.owner, dry_run=True))
            listed = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts) or "nothing so far"
            if not confirm(arguments, f"Delete everything of {printable(arguments.owner)} ({listed})?"):
                return 1
        erased = ErasureResult()
        with output.progress("counting" if arguments.dry_run else "erasing") as advance:
            for batch in session_tables(repository).erasure.erase(arguments.owner, dry_run=arguments.dry_run):
                erased += batch
                advance(batch.sessions)
    if arguments.json:
        print(output.dump_json({**dataclasses.asdict(erased), "dry_run": arguments.dry_run}, indent=2))
    else:
        print(f"{verb(arguments)} {output.pluralize(sum(dataclasses.astuple(erased)), 'row')}")
        counts = _counts(erased)
        if not counts:
            print(f"nothing is stored under the owner {arguments.owner!r}", file=sys.stderr)
        else:
            output.print_table(("table", "rows"), counts, right=("rows",))
    return 0


def _counts(result: ErasureResult) -> list[tuple[str, str]]:
    """Return the tables with rows, and how many they have."""
    return [(name, f"{count:,}") for name, count in dataclasses.asdict(result).items() if count]


def check_can_ask(arguments: argparse.Namespace) -> None:
    """Check that the command can ask for confirmation, unless it need not.

    Raises:
        ValueError: It has no terminal.
    """
    if not (arguments.yes or arguments.dry_run or (sys.stdin is not None and sys.stdin.isatty())):
        raise ValueError(
            "there is no terminal to ask on, so nothing was deleted; pass --yes to delete, or --dry-run to only count"
        )


def confirm(arguments: argparse.Namespace, question: str) -> bool:
    """Ask whether to go on, unless the options say so."""
    if arguments.yes or arguments.dry_run:
        return True
    # On stderr, because programs may read the output.
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was deleted", file=sys.stderr)
    return False


def verb(arguments: argparse.Namespace) -> str:
    """Return what the command does."""
    return "would delete" if arguments.dry_run else "deleted"
