"""No function or operator of another schema is run in the place of PostgreSQL's own, whatever the search_path is.

PostgreSQL searches its own schema first, but an overload anywhere on the path wins if its types fit better.
"""

import ast
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import strands_psycopg
from strands_psycopg import PostgresSessionRepository
from strands_psycopg.migrator import packaged_migrations
from strands_psycopg.report import read_statistics
from strands_psycopg.repository import status
from strands_psycopg.repository.window import Window
from strands_psycopg.transfer import export_session, import_session
from support import agents, transfers
from support.errands import run_all
from support.payloads import ScramblingCodec
from support.tables import store_scoped_values

Connection = psycopg.Connection[Any]

SOURCES = Path(strands_psycopg.__file__).parent

# Shows statements as a user types them.
_OF_USERS = "demo"

# Has functions of Vega's language.
_OF_PLOTS = re.compile("plots.py$")

# With several arguments, unnest is no function but syntax, and so are the others. None of them can be hijacked.
_SYNTAX = re.compile(r"\b(?:extract\(epoch FROM|substring\((?:[^()]|\([a-z]+\))+ FROM|unnest\(\s*%[^,]*,)")

_CALL = re.compile(r"(?<![\w.\"{}%$@'])([a-z_][a-z0-9_]*)\(")

# Operators for which a literal without a type could be anything.
_UNTYPED = re.compile(r"(?:->>?|#>>?|(?<=\w )\?|@>) ?'[^']*'(?!::)|@> ?ARRAY(?!\[[^]]*\]::)")


@cache
def texts() -> list[tuple[str, str]]:
    """Return what ``read_texts`` yields."""
    return list(read_texts())


def read_texts() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of everything that may be a part of a statement, without comments and docstrings."""
    for migration in packaged_migrations():
        for statement in migration.statements("strands_"):
            yield migration.name, statement
    for path in sorted(SOURCES.rglob("*.py")):
        if path.relative_to(SOURCES).parts[0] == _OF_USERS or _OF_PLOTS.search(path.name):
            continue
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                if isinstance(node.value, bytes):
                    yield f"{path.name}:{node.lineno}", node.value.decode(errors="replace")
                elif isinstance(node.value, str):
                    yield f"{path.name}:{node.lineno}", node.value


def test_functions_in_statements_are_qualified(connection: Connection) -> None:
    functions = {
        name
        for (name,) in connection.execute("SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace")
    }
    found = [(place, name) for place, text in texts() for name in _CALL.findall(_SYNTAX.sub("", text))]

    assert [(place, name) for place, name in found if name in functions] == []
    # The search finds what there is.
    qualified = {name for _, text in texts() for name in re.findall(r"pg_catalog\.([a-z_0-9]+)\(", text)}
    assert {"now", "num_nulls", "jsonb_path_exists", "pg_total_relation_size", "to_char", "make_interval"} <= qualified
    # Citus has its own in the same schema.
    assert {name for name in qualified - functions if not name.startswith("citus_")} <= {"run_command_on_shards"}


def test_literals_beside_operators_have_a_type() -> None:
    assert [(place, found) for place, text in texts() for found in _UNTYPED.findall(text)] == []


# Overloads that fit better than PostgreSQL's own, if a call is not qualified or a literal has no type: the function,
# what it returns, and such a call.
FUNCTIONS = [
    ("num_nulls(bytea, uuid[])", "integer", "num_nulls(''::bytea, '{}'::uuid[])"),
    ("pg_total_relation_size(oid)", "bigint", "pg_total_relation_size(1::oid)"),
    ("pg_relation_size(oid)", "bigint", "pg_relation_size(1::oid)"),
    ("jsonb_path_exists(jsonb, text)", "boolean", "jsonb_path_exists('1'::jsonb, '$')"),
    ("jsonb_path_exists(jsonb, text, text, boolean)", "boolean", "jsonb_path_exists('1'::jsonb, '$', '{}', true)"),
    ("jsonb_path_query_first(jsonb, text)", "jsonb", "jsonb_path_query_first('1'::jsonb, '$')"),
    (
        "jsonb_path_query_first(jsonb, text, text, boolean)",
        "jsonb",
        "jsonb_path_query_first('1'::jsonb, '$', '', true)",
    ),
    (
        "jsonb_path_query_array(jsonb, text, text, boolean)",
        "jsonb",
        "jsonb_path_query_array('1'::jsonb, '$', '', true)",
    ),
    ("jsonb_build_array(jsonb)", "jsonb", "jsonb_build_array('1'::jsonb)"),
    ("unnest(uuid[])", "uuid", "unnest('{}'::uuid[])"),
    ("unnest(text[])", "text", "unnest('{}'::text[])"),
    ("format(text, text)", "text", "format('%I', 'a'::text)"),
    ("pg_advisory_xact_lock(integer)", "boolean", "pg_advisory_xact_lock(1)"),
    ("to_regclass(varchar)", "regclass", "to_regclass('a'::varchar)"),
]

OPERATORS = [
    ("->>", "jsonb", "jsonb", "text", """'{"a": 1}'::jsonb ->> '"a"'"""),
    ("->", "jsonb", "jsonb", "jsonb", """'{"a": 1}'::jsonb -> '"a"'"""),
    ("#>>", "jsonb", "jsonb", "text", """'{"a": 1}'::jsonb #>> '[]'"""),
    ("#>", "jsonb", "jsonb", "jsonb", """'{"a": 1}'::jsonb #> '[]'"""),
    ("?", "jsonb", "jsonb", "boolean", """'{"a": 1}'::jsonb ? '"a"'"""),
    ("@>", "uuid[]", "uuid[]", "boolean", "'{}'::uuid[] @> '{}'::uuid[]"),
    ("=", "oid", "regclass", "boolean", "1::oid = 'pg_class'::regclass"),
    (">", "real", "integer", "boolean", "1::real > 1"),
    ("*", "real", "bigint", "double precision", "1::real * 1::bigint"),
]


def create_hostile_schema(connection: Connection) -> list[str]:
    """Create the overloads, all of which fail, and return the expressions that run them."""
    connection.execute("CREATE SCHEMA evil")
    connection.execute("SET search_path = evil, public")
    for signature, result, _ in FUNCTIONS:
        connection.execute(
            f"CREATE FUNCTION evil.{signature} RETURNS {result} LANGUAGE plpgsql "
            f"AS $$ BEGIN RAISE 'hijacked by {signature.replace('%', '')}'; END $$".encode()
        )
    for number, (name, left, right, result, _) in enumerate(OPERATORS):
        connection.execute(
            f"CREATE FUNCTION evil.operator_{number}({left}, {right}) RETURNS {result} LANGUAGE plpgsql "
            f"AS $$ BEGIN RAISE 'hijacked'; END $$".encode()
        )
        connection.execute(
            f"CREATE OPERATOR evil.{name} (LEFTARG = {left}, RIGHTARG = {right}, "
            f"FUNCTION = evil.operator_{number})".encode()
        )
    return [each[-1] for each in (*FUNCTIONS, *OPERATORS)]


def test_overloads_of_the_hostile_schema_win_where_they_can(connection: Connection) -> None:
    for expression in create_hostile_schema(connection):
        with pytest.raises(psycopg.errors.RaiseException, match="hijacked"):
            connection.execute(f"SELECT {expression}".encode())


def test_everything_runs_beside_a_hostile_schema(monkeypatch: pytest.MonkeyPatch, empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        create_hostile_schema(connection)
    # The tables are in that schema too, so the migration and the views have it on their path.
    dsn = make_conninfo(empty_dsn, options="-c search_path=evil,public")
    with PostgresSessionRepository(dsn, schema="evil") as hostile:
        hostile.ensure_schema()
        run_all(hostile, "errands")
        transfers.fill(hostile, "s")
        agents.build(hostile, "t", agents.LOOK_UP, tools=[agents.look_up])("weather?")
        transfers.store_window(hostile, "t", "default", Window((), 3))
        for until in (1, 2, 3):
            hostile.fork_session("t", f"u-{until}", until=until)
        hostile.list_sessions(prefix="t")
        hostile.list_agents("s")
        lines = list(export_session(hostile, "s"))
        import_session(hostile, lines, session_id="v")
        assert read_statistics(hostile).total.tool_calls > 0
        with psycopg.connect(dsn, autocommit=True) as connection:
            for view in ("message_figures", "content_blocks", "tool_calls", "session_figures", "daily_figures"):
                connection.execute(f"SELECT * FROM evil.strands_{view}".encode()).fetchall()
            connection.execute("ANALYZE evil.strands_messages")
        # Estimates the number of rows as for a large table.
        monkeypatch.setattr(status, "_MAX_COUNTED_BYTES", 0)
        assert hostile.status().ready
        assert hostile.purge_sessions(idle_for=timedelta(days=1)).sessions == 0
        hostile.delete_agent("s", "a")
        hostile.delete_session("s")
        hostile.annotate_session("t", owner="o", title="t", metadata={"a": 1})
        assert hostile.fork_session("t", "o", owner="o").owner == "o"
        assert len(hostile.list_sessions(owner="o", prefix="t", metadata={"a": 1}).sessions) == 1
        assert hostile.purge_sessions(idle_for=timedelta(days=1), owner="o", metadata={"a": 1}).sessions == 0
        with psycopg.connect(dsn, autocommit=True) as connection:
            store_scoped_values(connection, "o//p", "o", "value")
        hostile.delete_session("o", owner="o")
        assert hostile.erase(owner="o", dry_run=True) == hostile.erase(owner="o")
    with PostgresSessionRepository(dsn, schema="evil", payload_codec=ScramblingCodec()) as hostile:
        agents.build(hostile, "w", model=agents.GuardedModel([["no"]], "[redacted]"))("secret")
        transfers.store_checkpoint(hostile, "w", "default", 2, Window((), 2), {})
        hostile.fork_session("w", "x")
        hostile.fork_session("w", "y", until=1)
