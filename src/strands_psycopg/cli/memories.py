"""The command ``memories``: lists memory stores; lists, searches, forgets, exports and imports the memories of one."""

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import chain
from typing import Any

from strands_psycopg.cli import output
from strands_psycopg.cli.lines import STDIO, read_lines
from strands_psycopg.cli.options import (
    JSON,
    TABLES,
    Commands,
    Parser,
    open_repository,
    parse_duration,
    parse_id,
    parse_limit,
    parse_metadata,
    parse_path,
)
from strands_psycopg.errors import TransferError
from strands_psycopg.memory import PostgresMemoryStore
from strands_psycopg.memory.entry import MEMORY_ID, SCORE
from strands_psycopg.memory.stores import list_stores
from strands_psycopg.memory.vectors import find_vectors
from strands_psycopg.printable import printable
from strands_psycopg.repository import PostgresSessionRepository, session_tables
from strands_psycopg.repository.annotations import check_owner

# In characters, of a memory's text in a table.
_MAX_WIDTH = 100

_STORE = Parser(add_help=False)
_STORE.add_argument(
    "--store",
    required=True,
    type=parse_id,
    metavar="NAME",
    help="name of the memory store; 'strands-psycopg memories' lists them",
)
_STORE.add_argument(
    "--owner",
    type=parse_id,
    metavar="OWNER",
    default=argparse.SUPPRESS,
    help="whose memories (default: those of nobody)",
)

_FILTER = Parser(add_help=False)
_FILTER.add_argument(
    "--metadata", type=parse_metadata, metavar="JSON", help="only memories whose metadata contains this JSON object"
)


def add_to(commands: Commands) -> None:
    """Add the command."""
    memories = commands.add_parser(
        "memories",
        parents=[TABLES, JSON],
        help="list memory stores; list, search, forget, export and import the memories of one",
        description="Without an action, list memory stores. With one, list, search, forget, export and import the "
        "memories of a PostgresMemoryStore.",
    )
    memories.add_argument(
        "--owner",
        type=parse_id,
        metavar="OWNER",
        default=argparse.SUPPRESS,
        help="only this owner's memories (default: those of anyone)",
    )
    memories.set_defaults(run=_list_stores)
    actions = memories.add_subparsers(title="actions", metavar="action")

    listing = _add(actions, "list", _list, "list memories, newest first", _FILTER, JSON)
    listing.add_argument(
        "--limit", type=parse_limit, default=100, metavar="N", help="maximum number, up to 1000 (default: 100)"
    )
    listing.add_argument("--before", metavar="CURSOR", help="continue after the previous page, as it printed")

    search = _add(actions, "search", _search, "search memories by their words, best match first", _FILTER, JSON)
    search.add_argument("query", metavar="QUERY", help="text with the words to search for")
    search.add_argument("--limit", type=parse_limit, default=10, metavar="N", help="maximum, up to 1000 (default: 10)")

    forget = _add(actions, "forget", _forget, "delete the memories that meet all conditions", _FILTER, JSON)
    forget.add_argument("--id", metavar="ID", help="only the memory with this id")
    forget.add_argument(
        "--older-than",
        type=parse_duration,
        metavar="DURATION",
        help="only memories that were not added or edited for this time: 30d, 12h, 90m, 45s; 0s for all",
    )

    _add(actions, "export", _export, "print all memories as JSON lines, with their vectors if there are any")

    import_ = _add(actions, "import", _import, "store exported memories; existing ones are left alone", JSON)
    import_.add_argument(
        "--from",
        dest="lines",
        type=parse_path,
        default=STDIO,
        metavar="FILE",
        help="JSON lines; - is standard input (default: -)",
    )


def _add(
    actions: Commands,
    name: str,
    run: Callable[[argparse.Namespace, PostgresMemoryStore], Coroutine[Any, Any, int]],
    summary: str,
    *parents: Parser,
) -> Parser:
    """Add an action.

    Args:
        actions: Where to add it.
        name: Its name.
        run: What it does; returns the number of memories concerned.
        summary: What its help says.
        *parents: Parsers with its options.
    """
    description = f"{summary[0].upper()}{summary[1:]}."
    action = actions.add_parser(name, parents=[TABLES, _STORE, *parents], help=summary, description=description)

    def run_on_store(arguments: argparse.Namespace) -> int:
        with open_repository(arguments) as repository, _open_store(arguments, repository) as store:
            if asyncio.run(run(arguments, store)) or name == "import":
                return 0
            code = _explain_no_results(arguments, repository)
        return 0 if name == "forget" else code

    action.set_defaults(run=run_on_store)
    return action


@contextmanager
def _open_store(arguments: argparse.Namespace, repository: PostgresSessionRepository) -> Iterator[PostgresMemoryStore]:
    """Yield the store of the options, which keeps vectors if the database has any.

    Raises:
        ValueError: The installed Strands has no memory stores.
    """
    vectors = find_vectors(session_tables(repository).database)
    dimensions = None if vectors is None else vectors.dimensions
    try:
        store = PostgresMemoryStore(arguments.store, repository, owner=arguments.owner, dimensions=dimensions)
    except ImportError as error:
        raise ValueError(str(error)) from error
    with store:
        yield store


def _explain_no_results(arguments: argparse.Namespace, repository: PostgresSessionRepository) -> int:
    """Print to stderr if there is no such store, or this owner has nothing in it; return the exit code."""
    stores = {each.name: each for each in list_stores(session_tables(repository).database)}
    if arguments.store not in stores:
        close = get_close_matches(arguments.store, stores)
        hint = (
            f"did you mean {' or '.join(map(repr, close))}?" if close else "'strands-psycopg memories' lists the stores"
        )
        print(f"there is no memory store {arguments.store!r}; {hint}", file=sys.stderr)
        return 1
    own = list_stores(session_tables(repository).database, arguments.owner or "")
    if arguments.store not in {each.name for each in own}:
        who = "nobody" if arguments.owner is None else printable(arguments.owner)
        others = f"other owners have {stores[arguments.store].memories:,}"
        print(f"{who} has no memories in store {arguments.store!r}; {others}", file=sys.stderr)
    return 0


def _list_stores(arguments: argparse.Namespace) -> int:
    check_owner(arguments.owner)
    with open_repository(arguments) as repository:
        stores = list_stores(session_tables(repository).database, arguments.owner)
    if arguments.json:
        print(json.dumps({"stores": [dataclasses.asdict(each) for each in stores]}, indent=2))
        return 0
    rows = [
        (
            printable(each.name),
            f"{each.owners:,}",
            f"{each.memories:,}",
            output.format_size(each.bytes),
            output.format_time(each.updated_at, timespec="minutes"),
        )
        for each in stores
    ]
    output.print_table(("store", "owners", "memories", "size", "newest"), rows, right=("owners", "memories", "size"))
    return 0


async def _list(arguments: argparse.Namespace, store: PostgresMemoryStore) -> int:
    page = await store.list(limit=arguments.limit, before=arguments.before, metadata=arguments.metadata)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(page), indent=2, default=repr))
        return len(page.memories)
    rows = [
        (memory.memory_id, output.format_time(memory.updated_at, timespec="minutes"), _shorten(memory.content))
        for memory in page.memories
    ]
    output.print_table(("memory", "updated", "text"), rows)
    if page.next:
        # On stderr, because programs may read the table.
        print(f"next page: --before {page.next}", file=sys.stderr)
    return len(page.memories)


async def _search(arguments: argparse.Namespace, store: PostgresMemoryStore) -> int:
    if not arguments.query.strip():
        raise ValueError("the query is blank; 'strands-psycopg memories list' lists all memories")
    options = {"max_search_results": arguments.limit}
    if arguments.metadata is not None:
        options["metadata"] = arguments.metadata
    entries = await store.search(arguments.query, options)  # type: ignore[arg-type]
    found = [(entry.content, entry.metadata or {}) for entry in entries]
    if arguments.json:
        results = [{"content": content, "metadata": metadata} for content, metadata in found]
        print(json.dumps(results, indent=2, default=repr))
        return len(found)
    rows = [(str(metadata[MEMORY_ID]), f"{metadata[SCORE]:.3f}", _shorten(content)) for content, metadata in found]
    output.print_table(("memory", "score", "text"), rows, right=("score",))
    return len(found)


async def _forget(arguments: argparse.Namespace, store: PostgresMemoryStore) -> int:
    if arguments.id is None and arguments.older_than is None and arguments.metadata is None:
        raise ValueError("select memories by --id, --older-than or --metadata; --older-than 0s selects all")
    count = await store.forget(arguments.id, older_than=arguments.older_than, metadata=arguments.metadata)
    _print_count("forgot", count, arguments)
    return count


async def _export(_: argparse.Namespace, store: PostgresMemoryStore) -> int:
    count = 0
    async for line in store.export_lines():
        print(line)
        count += 1
    return count


async def _import(arguments: argparse.Namespace, store: PostgresMemoryStore) -> int:
    lines = read_lines(arguments.lines)
    first = next(lines, None)
    if first is None:
        raise TransferError("there is nothing to import: no line was read; pass the output of 'memories export'")
    count = await store.import_lines(chain([first], lines))
    _print_count("imported", count, arguments)
    return count


def _shorten(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _MAX_WIDTH else f"{line[: _MAX_WIDTH - 3]}..."


def _print_count(verb: str, number: int, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps({"memories": number}))
    else:
        print(verb, "1 memory" if number == 1 else f"{number:,} memories")
