"""The command ``memories``: lists, searches, forgets, exports and imports the memories of a store."""

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from strands_psycopg.cli import output
from strands_psycopg.cli.lines import STDIO, read_lines
from strands_psycopg.cli.options import (
    TABLES,
    Commands,
    Parser,
    open_repository,
    parse_duration,
    parse_session_id,
)
from strands_psycopg.memory import PostgresMemoryStore
from strands_psycopg.memory.entry import MEMORY_ID, SCORE
from strands_psycopg.memory.vectors import find_vectors
from strands_psycopg.printable import printable
from strands_psycopg.repository import session_tables

# In characters, of a memory's text in a table.
_MAX_WIDTH = 100

_STORE = Parser(add_help=False)
_STORE.add_argument(
    "--store",
    required=True,
    type=parse_session_id,
    metavar="NAME",
    help="name of the memory store, as in the application",
)
_STORE.add_argument("--owner", type=parse_session_id, metavar="OWNER", help="whose memories (default: those of nobody)")


def _parse_metadata(text: str) -> dict[str, Any]:
    """Parse a JSON object, for argparse."""
    with suppress(ValueError):
        metadata = json.loads(text)
        if isinstance(metadata, dict):
            return metadata
    raise argparse.ArgumentTypeError('must be a JSON object, such as \'{"kind": "taste"}\'')


_FILTER = Parser(add_help=False)
_FILTER.add_argument(
    "--metadata", type=_parse_metadata, metavar="JSON", help="only memories whose metadata contains this JSON object"
)


def add_to(commands: Commands) -> None:
    """Add the command."""
    memories = commands.add_parser(
        "memories",
        allow_abbrev=False,
        help="list, search, forget, export and import the memories of a store",
        description="List, search, forget, export and import the memories of a PostgresMemoryStore.",
    )
    actions = memories.add_subparsers(title="actions", metavar="action", required=True)

    listing = _add(actions, "list", _list, "list memories, newest first", _FILTER)
    listing.add_argument(
        "--limit", type=int, default=100, metavar="N", help="maximum number, up to 1000 (default: 100)"
    )
    listing.add_argument("--before", metavar="CURSOR", help="continue after the previous page, as it printed")
    listing.add_argument("--json", action="store_true", help="print JSON")

    search = _add(actions, "search", _search, "search memories by their words, best match first", _FILTER)
    search.add_argument("query", metavar="QUERY", help="text with the words to search for")
    search.add_argument("--limit", type=int, default=10, metavar="N", help="maximum, up to 1000 (default: 10)")
    search.add_argument("--json", action="store_true", help="print JSON")

    forget = _add(actions, "forget", _forget, "delete the memories that meet all conditions", _FILTER)
    forget.add_argument("--id", metavar="ID", help="only the memory with this id")
    forget.add_argument(
        "--older-than",
        type=parse_duration,
        metavar="DURATION",
        help="only memories not added again or edited for this time: 30d, 12h, 90m, 45s; 0s for all",
    )

    _add(actions, "export", _export, "print all memories as JSON lines, with their vectors if there are any")

    import_ = _add(actions, "import", _import, "store exported memories; existing ones are left alone")
    import_.add_argument(
        "--from", dest="lines", default=STDIO, metavar="FILE", help="JSON lines; - is standard input (default: -)"
    )


def _add(
    actions: Commands,
    name: str,
    run: Callable[[argparse.Namespace, PostgresMemoryStore], Coroutine[Any, Any, int]],
    summary: str,
    *parents: Parser,
) -> Parser:
    description = f"{summary[0].upper()}{summary[1:]}."
    action = actions.add_parser(
        name, parents=[TABLES, _STORE, *parents], allow_abbrev=False, help=summary, description=description
    )

    def run_on_store(arguments: argparse.Namespace) -> int:
        with _open_store(arguments) as store:
            return asyncio.run(run(arguments, store))

    action.set_defaults(run=run_on_store)
    return action


@contextmanager
def _open_store(arguments: argparse.Namespace) -> Iterator[PostgresMemoryStore]:
    """Yield the store of the options, which keeps vectors if the database has any.

    Raises:
        ValueError: The installed Strands has no memory stores.
    """
    with open_repository(arguments) as repository:
        vectors = find_vectors(session_tables(repository).database)
        dimensions = None if vectors is None else vectors.dimensions
        try:
            store = PostgresMemoryStore(arguments.store, repository, owner=arguments.owner, dimensions=dimensions)
        except ImportError as error:
            raise ValueError(str(error)) from error
        yield store


async def _list(arguments: argparse.Namespace, store: PostgresMemoryStore) -> int:
    page = await store.list(limit=arguments.limit, before=arguments.before, metadata=arguments.metadata)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(page), indent=2, default=repr))
        return 0
    rows = [
        (memory.memory_id, output.format_time(memory.updated_at, timespec="minutes"), _shorten(memory.content))
        for memory in page.memories
    ]
    output.print_table(("memory", "updated", "text"), rows)
    if page.next:
        # On stderr, because programs may read the table.
        print(f"next page: --before {page.next}", file=sys.stderr)
    return 0


async def _search(arguments: argparse.Namespace, store: PostgresMemoryStore) -> int:
    options = {"max_search_results": arguments.limit}
    if arguments.metadata is not None:
        options["metadata"] = arguments.metadata
    entries = await store.search(arguments.query, options)  # type: ignore[arg-type]
    found = [(entry.content, entry.metadata or {}) for entry in entries]
    if arguments.json:
        results = [{"content": content, "metadata": metadata} for content, metadata in found]
        print(json.dumps(results, indent=2, default=repr))
        return 0
    rows = [(str(metadata[MEMORY_ID]), f"{metadata[SCORE]:.3f}", _shorten(content)) for content, metadata in found]
    output.print_table(("memory", "score", "text"), rows, right=("score",))
    return 0


async def _forget(arguments: argparse.Namespace, store: PostgresMemoryStore) -> int:
    if arguments.id is None and arguments.older_than is None and arguments.metadata is None:
        raise ValueError("select memories by --id, --older-than or --metadata; --older-than 0s selects all")
    count = await store.forget(arguments.id, older_than=arguments.older_than, metadata=arguments.metadata)
    print(f"forgot {_count(count)}")
    return 0


async def _export(_: argparse.Namespace, store: PostgresMemoryStore) -> int:
    async for line in store.export_lines():
        print(line)
    return 0


async def _import(arguments: argparse.Namespace, store: PostgresMemoryStore) -> int:
    count = await store.import_lines(read_lines(arguments.lines))
    print(f"imported {_count(count)}")
    return 0


def _shorten(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _MAX_WIDTH else f"{line[: _MAX_WIDTH - 3]}..."


def _count(number: int) -> str:
    return "1 memory" if number == 1 else f"{number:,} memories"
