"""The command ``show``, which prints one session as text or JSON."""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from strands.types.session import SessionMessage, encode_bytes_values

from strands_psycopg.cli import output, transcript
from strands_psycopg.cli.options import TABLES, Commands, open_repository, parse_session_id
from strands_psycopg.errors import SessionNotFoundError
from strands_psycopg.printable import printable
from strands_psycopg.repository import PostgresSessionRepository, session_tables
from strands_psycopg.repository.listing import AgentSummary, SessionSummary

# The number of messages in memory at once.
_PAGE_SIZE = 100


def add_to(commands: Commands) -> None:
    """Add the command."""
    show = commands.add_parser(
        "show",
        parents=[TABLES],
        allow_abbrev=False,
        help="print a session's conversations",
        description="Print a session's conversations. Redacted messages are shown redacted.",
    )
    show.add_argument("session", type=parse_session_id, metavar="SESSION", help="id of the session")
    show.add_argument("--agent", metavar="ID", help="only this agent")
    show.add_argument("--last", type=int, metavar="N", help="only the last N messages of each agent")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=_show)


def _show(arguments: argparse.Namespace) -> int:
    if arguments.last is not None and arguments.last < 0:
        raise ValueError(f"--last must be 0 or more, not {arguments.last}")
    with open_repository(arguments) as repository:
        session = session_tables(repository).listing.read(arguments.session)
        if session is None:
            raise SessionNotFoundError(f"showing session {arguments.session!r}: it does not exist")
        agents = repository.list_agents(arguments.session)
        if arguments.agent is not None:
            agents = [agent for agent in agents if agent.agent_id == arguments.agent]
            if not agents:
                raise SessionNotFoundError(
                    f"showing session {arguments.session!r}: it has no agent {arguments.agent!r}"
                )
        (_print_json if arguments.json else _print)(repository, session, agents, arguments.last)
    return 0


def _messages(
    repository: PostgresSessionRepository, session: SessionSummary, agent: AgentSummary, last: int | None
) -> Iterator[SessionMessage]:
    """Yield an agent's messages page by page, including those that are added meanwhile."""
    index = 0 if last is None else max(agent.messages - last, 0)
    if last == 0:
        return
    while page := repository.list_messages(session.session_id, agent.agent_id, limit=_PAGE_SIZE, offset=index):
        yield from page
        index += len(page)


def _print(
    repository: PostgresSessionRepository, session: SessionSummary, agents: list[AgentSummary], last: int | None
) -> None:
    output.print_heading(f"session {printable(session.session_id)}")
    print(
        f"created {output.format_time(session.created_at, timespec='seconds')} UTC, "
        f"last active {output.format_time(session.updated_at, timespec='minutes')} UTC; "
        f"{output.pluralize(session.agents, 'agent')}, {output.pluralize(session.messages, 'message')}, "
        f"{output.pluralize(session.multi_agents, 'multi-agent')}"
    )
    for agent in agents:
        print()
        output.print_heading(f"agent {printable(agent.agent_id)}, {output.pluralize(agent.messages, 'message')}")
        for message in _messages(repository, session, agent, last):
            print()
            content = message.to_message()
            head = [
                f"{message.message_id} {transcript.format_role(content)}",
                output.format_time(message.created_at, timespec="seconds"),
                *transcript.format_tokens(content),
                *(["redacted"] if message.redact_message is not None else []),
            ]
            output.print_heading(printable(", ".join(head)))
            for line in transcript.format_lines(content):
                print("  " + printable(line, keep="\t"))


def _print_json(
    repository: PostgresSessionRepository, session: SessionSummary, agents: list[AgentSummary], last: int | None
) -> None:
    """Print one JSON document without holding all of it in memory."""
    print('{"session": ' + _dump(dataclasses.asdict(session)) + ', "agents": [', end="")
    for number, agent in enumerate(agents):
        summary = _dump(dataclasses.asdict(agent) | {"messages": None}).removesuffix("null}")
        print(f"{',' if number else ''}\n{summary}[", end="")
        for position, message in enumerate(_messages(repository, session, agent, last)):
            shown = {
                "message_id": message.message_id,
                "created_at": message.created_at,
                "updated_at": message.updated_at,
                "redacted": message.redact_message is not None,
                "message": message.to_message(),
            }
            print(f"{',' if position else ''}\n{_dump(shown)}", end="")
        print("]}", end="")
    print("]}")


def _dump(document: dict[str, Any]) -> str:
    """Return a document as JSON, with bytes in Strands' form and null for NaN and infinities."""
    try:
        return json.dumps(document, default=encode_bytes_values, allow_nan=False)
    except ValueError:
        text = json.dumps(document, default=encode_bytes_values)
        return json.dumps(json.loads(text, parse_constant=lambda _: None))
