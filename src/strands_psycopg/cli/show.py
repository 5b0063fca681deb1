"""The command ``show``, which prints one session as text or JSON."""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from strands.types.content import Message

from strands_psycopg.cli import output, transcript
from strands_psycopg.cli.options import CODEC, TABLES, Commands, open_repository, parse_id
from strands_psycopg.errors import SessionNotFoundError
from strands_psycopg.printable import printable
from strands_psycopg.repository import PostgresSessionRepository, session_tables
from strands_psycopg.repository.listing import AgentSummary, SessionSummary
from strands_psycopg.repository.multi_agents import ListedMultiAgent
from strands_psycopg.storage.value_reader import ValueSummary

# The number of messages in memory at once.
_PAGE_SIZE = 100


def add_to(commands: Commands) -> None:
    """Add the command."""
    show = commands.add_parser(
        "show",
        parents=[TABLES, CODEC],
        help="print a session's conversations",
        description="Print a session's conversations: what was said, or what its agents hold in memory. Redacted "
        "messages are shown redacted. Graphs and swarms follow with the states and results of their nodes, and the "
        "values of the session's storage, without their contents.",
    )
    show.add_argument("session", type=parse_id, metavar="SESSION", help="id of the session")
    show.add_argument("--agent", metavar="ID", help="only this agent")
    show.add_argument("--last", type=int, metavar="N", help="only the last N messages or checkpoints of each agent")
    view = show.add_mutually_exclusive_group()
    view.add_argument(
        "--window",
        action="store_const",
        dest="view",
        const=_WINDOW,
        help="show the messages that each agent holds in memory, in the form in which it holds them",
    )
    view.add_argument(
        "--checkpoints", action="store_const", dest="view", const=_CHECKPOINTS, help="list each agent's checkpoints"
    )
    show.add_argument(
        "--state",
        action="store_true",
        help="show the states of agents, of their conversation managers, of graphs and of swarms too",
    )
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=_show, view=_LOG)


def _show(arguments: argparse.Namespace) -> int:
    if arguments.last is not None and arguments.last < 0:
        raise ValueError(f"--last must be 0 or more, not {arguments.last}")
    with open_repository(arguments) as repository:
        tables = session_tables(repository)
        session = tables.listing.read(arguments.session)
        last_activity = tables.listing.last_activity(arguments.session)
        if session is None or last_activity is None:
            raise SessionNotFoundError(f"showing session {arguments.session!r}: it does not exist")
        session = dataclasses.replace(session, updated_at=last_activity)
        agents = repository.list_agents(arguments.session)
        if arguments.agent is not None:
            ids = [agent.agent_id for agent in agents]
            agents = [agent for agent in agents if agent.agent_id == arguments.agent]
            if not agents:
                raise SessionNotFoundError(
                    f"showing session {arguments.session!r}: it has no agent {arguments.agent!r}; "
                    f"{'its agents are ' + ', '.join(map(repr, ids)) if ids else 'it has no agents'}"
                )

        view: _View = arguments.view

        def read(agent: AgentSummary) -> Iterator[_Entry]:
            return view.read(repository, session.session_id, agent, arguments.last)

        def read_state(agent: AgentSummary) -> dict[str, Any]:
            stored = repository.read_agent(session.session_id, agent.agent_id) if arguments.state else None
            if stored is None:
                return {}
            return {
                "state": stored.state,
                "conversation_manager_state": stored.conversation_manager_state,
                "internal_state": stored._internal_state,
            }

        # None of these belongs to one agent.
        values = None if arguments.agent else tables.listing.values(session.session_id)
        multi_agents = None if arguments.agent else tables.multi_agents.read_all(session.session_id)
        if arguments.json:
            _print_json(session, agents, view.key, read, read_state, multi_agents, values)
        else:
            _print(session, agents, view, read, read_state)
            _print_multi_agents(multi_agents or [], arguments.state)
            _print_values(values or [])
    return 0


class _Entry(NamedTuple):
    """A message or checkpoint.

    Attributes:
        head: The parts of its first line.
        content: The message; None for a checkpoint.
        document: What is printed as JSON.
    """

    head: list[str]
    content: Message | None
    document: dict[str, Any]


def _log(
    repository: PostgresSessionRepository, session_id: str, agent: AgentSummary, last: int | None
) -> Iterator[_Entry]:
    """Yield what was said, page by page, including what is said meanwhile."""
    index = 0 if last is None else max(agent.messages - last, 0)
    if last == 0:
        return
    while page := repository.list_messages(session_id, agent.agent_id, limit=_PAGE_SIZE, offset=index):
        for message in page:
            content = message.to_message()
            is_redacted = message.redact_message is not None
            head = [
                f"{message.message_id} {transcript.format_role(content)}",
                output.format_time(message.created_at, timespec="seconds"),
                *transcript.format_tokens(content),
                *(["redacted"] if is_redacted else []),
            ]
            document = {
                "message_id": message.message_id,
                "created_at": message.created_at,
                "updated_at": message.updated_at,
                "redacted": is_redacted,
                "message": content,
            }
            yield _Entry(head, content, document)
        index += len(page)


def _window(
    repository: PostgresSessionRepository, session_id: str, agent: AgentSummary, last: int | None
) -> Iterator[_Entry]:
    """Yield the messages that an agent holds in memory, and whether the log has them."""
    conversation = session_tables(repository).conversations.read(session_id, agent.agent_id)
    if conversation is None:  # it was deleted meanwhile
        return
    # Index in the log, whether the message differs from the log's, and the message.
    held = [(each.original, each.place < 0, each.message) for each in conversation.messages]
    if conversation.summary is not None:
        held.insert(0, (None, True, conversation.summary))
    for index, differs, content in held if last is None else held[max(len(held) - last, 0) :]:
        role = transcript.format_role(content)
        head = [role if index is None else f"{index} {role}", *transcript.format_tokens(content)]
        if differs:
            head.append("not in the log" if index is None else "differs from the log")
        yield _Entry(head, content, {"message_id": index, "in_log": not differs, "message": content})


def _checkpoints(
    repository: PostgresSessionRepository, session_id: str, agent: AgentSummary, last: int | None
) -> Iterator[_Entry]:
    """Yield the checkpoints of an agent."""
    checkpoints = session_tables(repository).listing.checkpoints(session_id, agent.agent_id)
    for each in checkpoints if last is None else checkpoints[max(len(checkpoints) - last, 0) :]:
        head = [each.snapshot_id, output.format_time(each.created_at, timespec="seconds"), f"{each.messages:,}"]
        yield _Entry(head, None, dataclasses.asdict(each))


class _View(NamedTuple):
    """What is shown of each agent.

    Attributes:
        key: Its key in JSON.
        read: Yields the entries of an agent.
    """

    key: str
    read: Callable[[PostgresSessionRepository, str, AgentSummary, int | None], Iterator[_Entry]]


_LOG = _View("messages", _log)
_WINDOW = _View("window", _window)
_CHECKPOINTS = _View("checkpoints", _checkpoints)


def _print(
    session: SessionSummary,
    agents: list[AgentSummary],
    view: _View,
    read: Callable[[AgentSummary], Iterator[_Entry]],
    read_state: Callable[[AgentSummary], dict[str, Any]],
) -> None:
    output.print_heading(f"session {printable(session.session_id)}")
    print(
        f"created {output.format_time(session.created_at, timespec='seconds')} UTC, "
        f"last active {output.format_time(session.updated_at, timespec='seconds')} UTC; "
        f"{output.pluralize(session.agents, 'agent')}, {output.pluralize(session.messages, 'message')}, "
        f"{output.pluralize(session.multi_agents, 'multi-agent')}"
    )
    if session.owner is not None:
        print(f"owner {printable(session.owner)}")
    if session.title is not None:
        print(f"title {printable(session.title)}")
    if session.metadata is not None:
        print(f"metadata {printable(output.dump_json(session.metadata))}")
    for agent in agents:
        print()
        entries = read(agent)
        output.print_heading(f"agent {printable(agent.agent_id)}, {output.pluralize(agent.messages, 'message')}")
        for name, state in read_state(agent).items():
            print(f"  {name.replace('_', ' ')} {printable(output.dump_json(state))}")
        if view is _CHECKPOINTS:
            print()
            output.print_table(("checkpoint", "time", "messages"), [each.head for each in entries], right=("messages",))
            continue
        for head, content, _ in entries:
            print()
            output.print_heading(printable(", ".join(head)))
            for line in transcript.format_lines(content):
                print("  " + printable(line, keep="\t"))


def _print_multi_agents(multi_agents: list[ListedMultiAgent], with_state: bool) -> None:
    for multi_agent in multi_agents:
        state = multi_agent.state
        print()
        output.print_heading(
            f"{printable(str(state.get('type', 'multi-agent')))} {printable(multi_agent.multi_agent_id)}, "
            f"{printable(str(state.get('status', 'no status')))}, "
            f"{output.format_time(multi_agent.updated_at, timespec='seconds')}"
        )
        for line in transcript.format_multi_agent(state):
            print("  " + printable(line, keep="\t"))
        if with_state:
            print(f"  state {printable(output.dump_json(state))}")


def _print_values(values: list[ValueSummary]) -> None:
    if not values:
        return
    print()
    output.print_heading(f"storage, {output.pluralize(len(values), 'value')}")
    print()
    rows = [
        (
            printable(value.key),
            output.format_size(value.size),
            output.format_time(value.updated_at, timespec="seconds"),
            "" if value.expires_at is None else output.format_time(value.expires_at, timespec="seconds"),
        )
        for value in values
    ]
    output.print_table(("key", "size", "written", "expires"), rows, right=("size",))


def _print_json(
    session: SessionSummary,
    agents: list[AgentSummary],
    key: str,
    read: Callable[[AgentSummary], Iterator[_Entry]],
    read_state: Callable[[AgentSummary], dict[str, Any]],
    multi_agents: list[ListedMultiAgent] | None,
    values: list[ValueSummary] | None,
) -> None:
    """Print one JSON document without holding all of it in memory."""
    print('{"session": ' + output.dump_json(dataclasses.asdict(session)) + ', "agents": [', end="")
    for number, agent in enumerate(agents):
        summary = dataclasses.asdict(agent) | read_state(agent)
        summary.pop(key, None)  # instead of their number
        print(f'{"," if number else ""}\n{output.dump_json(summary).removesuffix("}")}, "{key}": [', end="")
        for position, entry in enumerate(read(agent)):
            print(f"{',' if position else ''}\n{output.dump_json(entry.document)}", end="")
        print("]}", end="")
    rest: dict[str, Any] = {}
    if multi_agents is not None:
        rest["multi_agents"] = [each._asdict() for each in multi_agents]
    if values is not None:
        rest["values"] = [dataclasses.asdict(each) for each in values]
    print("]" + "".join(f', "{name}": {output.dump_json(documents)}' for name, documents in rest.items()) + "}")
