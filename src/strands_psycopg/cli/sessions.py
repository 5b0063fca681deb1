"""The commands that list, fork and delete sessions: ``sessions``, ``fork`` and ``purge``."""

import argparse
import dataclasses
import json
import sys
from datetime import datetime, timezone

from strands_psycopg.cli import output
from strands_psycopg.cli.deletion import verb
from strands_psycopg.cli.options import (
    CODEC,
    TABLES,
    Commands,
    Parser,
    open_repository,
    parse_duration,
    parse_id,
    parse_limit,
    parse_metadata,
    parse_time,
)
from strands_psycopg.printable import printable
from strands_psycopg.repository import session_tables
from strands_psycopg.repository.retention import PurgeResult


def add_to(commands: Commands) -> None:
    """Add the commands."""
    sessions = commands.add_parser(
        "sessions",
        parents=[TABLES, CODEC],
        help="list sessions, most recently active first",
        description="List sessions, most recently active first. The time of the last activity is accurate to a minute. "
        "If the application has a payload codec, pass it to read the titles.",
    )
    sessions.add_argument(
        "--limit",
        type=parse_limit,
        default=100,
        metavar="N",
        help="maximum number of sessions, up to 1000 (default: 100)",
    )
    sessions.add_argument(
        "--before", metavar="CURSOR", help="continue after the previous page, with the cursor that it printed"
    )
    sessions.add_argument(
        "--active-since",
        type=parse_time,
        metavar="WHEN",
        help="only sessions active since a time (2030-05-01, 2030-05-01T12:00+02:00; UTC unless it has an offset) or "
        "within a duration (12h, 7d)",
    )
    sessions.add_argument("--prefix", metavar="TEXT", help="only sessions whose id starts with TEXT")
    sessions.add_argument("--owner", metavar="NAME", help="only sessions of this owner")
    _add_metadata(sessions)
    sessions.add_argument("--json", action="store_true", help="print JSON")
    sessions.set_defaults(run=_sessions)

    fork = commands.add_parser(
        "fork",
        parents=[TABLES, CODEC],
        help="copy a session, or one agent's conversation up to a message or checkpoint",
        description="Copy a session, or one agent's conversation up to a message or checkpoint, to continue it in "
        "another way. If the application has a payload codec, pass it: it may bind documents to their session.",
    )
    fork.add_argument("session", type=parse_id, metavar="SESSION", help="id of the session")
    fork.add_argument("new", type=parse_id, metavar="NEW", help="id of the copy, which must not exist yet")
    fork.add_argument("--agent", metavar="ID", help="copy only this agent")
    point = fork.add_mutually_exclusive_group()
    point.add_argument("--until", type=int, metavar="N", help="copy only the messages before index N")
    point.add_argument(
        "--snapshot",
        metavar="ID",
        help="copy the agent of this checkpoint as it was then (see 'show --checkpoints')",
    )
    fork.add_argument("--json", action="store_true", help="print JSON")
    fork.set_defaults(run=_fork)

    purge = commands.add_parser(
        "purge",
        parents=[TABLES],
        help="delete sessions that have been idle for some time",
        description="Delete sessions that have been idle for some time, except those that are leased. Agents and other "
        "purges may run at the same time. A purge can be interrupted at any time: no session is deleted partially.",
    )
    purge.add_argument(
        "--idle-for",
        type=parse_duration,
        required=True,
        metavar="DURATION",
        help="minimum idle time: 30d, 12h, 90m, 45s",
    )
    purge.add_argument("--owner", metavar="NAME", help="only sessions of this owner")
    _add_metadata(purge)
    purge.add_argument("--dry-run", action="store_true", help="only count the sessions")
    purge.add_argument(
        "--batch-size", type=int, default=1000, metavar="N", help="sessions per batch, up to 10000 (default: 1000)"
    )
    purge.add_argument("--json", action="store_true", help="print JSON")
    purge.set_defaults(run=_purge)


def _add_metadata(command: Parser) -> None:
    command.add_argument(
        "--metadata",
        type=parse_metadata,
        metavar="JSON",
        help='only sessions whose metadata contains this JSON object, such as \'{"tier": "gold"}\'',
    )


def _sessions(arguments: argparse.Namespace) -> int:
    with open_repository(arguments) as repository:
        page = repository.list_sessions(
            limit=arguments.limit,
            before=arguments.before,
            active_since=arguments.active_since,
            prefix=arguments.prefix,
            owner=arguments.owner,
            metadata=arguments.metadata,
        )
    since = arguments.active_since
    if not page.sessions and since is not None and since > datetime.now(timezone.utc):
        print("--active-since is in the future; times are in UTC unless they have an offset", file=sys.stderr)
    if arguments.json:
        print(output.dump_json(dataclasses.asdict(page), indent=2))
        return 0
    names, annotations = output.annotation_columns(page.sessions)
    rows = [
        (
            printable(session.session_id),
            *cells,
            f"{session.agents:,}",
            f"{session.messages:,}",
            f"{session.multi_agents:,}",
            output.format_time(session.updated_at, timespec="minutes"),
        )
        for session, cells in zip(page.sessions, annotations, strict=True)
    ]
    header = ("session", *names, "agents", "messages", "multi-agents", "last activity")
    output.print_table(header, rows, right=("agents", "messages", "multi-agents"))
    if page.next:
        # On stderr, because programs may read the table.
        print(f"next page: --before {page.next}", file=sys.stderr)
    return 0


def _fork(arguments: argparse.Namespace) -> int:
    with open_repository(arguments) as repository:
        fork = repository.fork_session(
            arguments.session,
            arguments.new,
            agent_id=arguments.agent,
            until=arguments.until,
            snapshot_id=arguments.snapshot,
        )
    if arguments.json:
        print(output.dump_json(dataclasses.asdict(fork), indent=2))
        return 0
    counts = [output.pluralize(fork.agents, "agent"), output.pluralize(fork.messages, "message")]
    if fork.multi_agents:
        counts.append(output.pluralize(fork.multi_agents, "multi-agent"))
    print(f"forked {printable(arguments.session)} to {printable(fork.session_id)}: {', '.join(counts)}")
    if arguments.until is not None and fork.messages < arguments.until:
        print(f"there are no more messages before {arguments.until}, so all were copied", file=sys.stderr)
    return 0


def _purge(arguments: argparse.Namespace) -> int:
    names = ("idle_for", "owner", "metadata", "batch_size")
    options = {name: getattr(arguments, name) for name in names}
    purged = PurgeResult()
    with open_repository(arguments) as repository:
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
    sessions, agents = output.pluralize(purged.sessions, "session"), output.pluralize(purged.agents, "agent")
    messages = output.pluralize(purged.messages, "message")
    multi_agents = output.pluralize(purged.multi_agents, "multi-agent")
    print(f"{verb(arguments)} {sessions} with {agents}, {messages} and {multi_agents}")
    return 0
