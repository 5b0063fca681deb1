"""The commands that list, copy and delete sessions: ``sessions``, ``fork`` and ``purge``."""

import argparse
import dataclasses
import json
import sys

from strands_psycopg.cli import output
from strands_psycopg.cli.options import TABLES, Commands, duration, id_of_session, moment, repository_of
from strands_psycopg.printable import printable
from strands_psycopg.repository import session_tables
from strands_psycopg.repository.retention import PurgeResult


def add_to(commands: Commands) -> None:
    """Add the commands."""
    sessions = commands.add_parser(
        "sessions",
        parents=[TABLES],
        allow_abbrev=False,
        help="list sessions, newest activity first",
        description="List sessions, newest activity first. Activity is known to the minute.",
    )
    sessions.add_argument("--limit", type=int, default=100, metavar="N", help="how many, up to 1000 (100)")
    sessions.add_argument("--before", metavar="CURSOR", help="go on where the last page ended, with what it said")
    sessions.add_argument(
        "--active-since",
        type=moment,
        metavar="WHEN",
        help="only those active since a time (2030-05-01, 2030-05-01T12:00+02:00; UTC unless it says) or for so long "
        "(12h, 7d)",
    )
    sessions.add_argument("--prefix", metavar="TEXT", help="only those whose ids begin so")
    sessions.add_argument("--json", action="store_true", help="print JSON")
    sessions.set_defaults(run=_sessions)

    fork = commands.add_parser(
        "fork",
        parents=[TABLES],
        allow_abbrev=False,
        help="copy a session, or an agent's conversation up to a message",
        description="Copy a session, or an agent's conversation up to a message, to go on from there in another way.",
    )
    fork.add_argument("session", type=id_of_session, metavar="SESSION", help="the session's id")
    fork.add_argument("new", type=id_of_session, metavar="NEW", help="the copy's id, which must not exist yet")
    fork.add_argument("--agent", metavar="ID", help="copy this agent only")
    fork.add_argument("--until", type=int, metavar="N", help="copy the messages before the one with this index")
    fork.add_argument("--json", action="store_true", help="print JSON")
    fork.set_defaults(run=_fork)

    purge = commands.add_parser(
        "purge",
        parents=[TABLES],
        allow_abbrev=False,
        help="delete sessions that have been idle for long",
        description="Delete sessions that have been idle for long, except those that someone holds a lease on. It may "
        "run beside agents and other purges, and can be stopped at any time: it leaves whole sessions.",
    )
    purge.add_argument(
        "--idle-for", type=duration, required=True, metavar="TIME", help="for how long: 30d, 12h, 90m, 45s"
    )
    purge.add_argument("--dry-run", action="store_true", help="only count them")
    purge.add_argument("--batch-size", type=int, default=1000, metavar="N", help="how many at once, up to 10000 (1000)")
    purge.add_argument("--json", action="store_true", help="print JSON")
    purge.set_defaults(run=_purge)


def _sessions(arguments: argparse.Namespace) -> int:
    with repository_of(arguments) as repository:
        page = repository.list_sessions(
            limit=arguments.limit,
            before=arguments.before,
            active_since=arguments.active_since,
            prefix=arguments.prefix,
        )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(page), indent=2))
        return 0
    rows = [
        (
            printable(session.session_id),
            f"{session.agents:,}",
            f"{session.messages:,}",
            f"{session.multi_agents:,}",
            output.minute(session.updated_at),
        )
        for session in page.sessions
    ]
    header = ("session", "agents", "messages", "multi-agents", "last activity")
    output.print_table(header, rows, right=("agents", "messages", "multi-agents"))
    if page.next:
        # Not in the table, which may be read by a program.
        print(f"more with --before {page.next}", file=sys.stderr)
    return 0


def _fork(arguments: argparse.Namespace) -> int:
    with repository_of(arguments) as repository:
        fork = repository.fork_session(
            arguments.session, arguments.new, agent_id=arguments.agent, until=arguments.until
        )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(fork), indent=2))
        return 0
    counts = [output.counted(fork.agents, "agent"), output.counted(fork.messages, "message")]
    if fork.multi_agents:
        counts.append(output.counted(fork.multi_agents, "multi-agent"))
    print(f"forked {printable(arguments.session)} to {printable(fork.session_id)}: {', '.join(counts)}")
    return 0


def _purge(arguments: argparse.Namespace) -> int:
    options = {"idle_for": arguments.idle_for, "batch_size": arguments.batch_size}
    purged = PurgeResult()
    with repository_of(arguments) as repository:
        total = None
        if not arguments.dry_run and sys.stderr.isatty():
            total = repository.purge_sessions(**options, dry_run=True).sessions
        label = "counting" if arguments.dry_run else "purging"
        with output.progress(label, total) as advance:
            for batch in session_tables(repository).retention.purge(**options, dry_run=arguments.dry_run):
                purged += batch
                advance(batch.sessions)
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(purged), "dry_run": arguments.dry_run}, indent=2))
        return 0
    did = "would delete" if arguments.dry_run else "deleted"
    print(
        f"{did} {output.counted(purged.sessions, 'session')} with {output.counted(purged.agents, 'agent')}, "
        f"{output.counted(purged.messages, 'message')} and {output.counted(purged.multi_agents, 'multi-agent')}"
    )
    return 0
