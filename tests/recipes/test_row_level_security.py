"""Tenants of one database, kept apart by ``row_level_security.sql``."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from strands.types.session import Session, SessionType

from strands_psycopg import (
    DatabaseError,
    PostgresSessionRepository,
    PostgresStorage,
    PostgresStorageError,
    SessionNotFoundError,
)
from strands_psycopg.transfer import export_session, import_session
from support import programs
from support.agents import build, dump, save_checkpoint
from support.errands import run_all
from support.multi_agents import Team
from support.storage import has_storage, needs_storage
from support.tables import Connection, one
from support.writes import message

RECIPE = Path(__file__).with_name("row_level_security.sql")

TABLES = (
    *("sessions", "agents", "messages", "message_variants", "checkpoints", "multi_agents", "leases"),
    *("storage", "chunks", "session_storage", "session_chunks"),
)
KEYS = {"storage": "scope", "chunks": "scope", "session_storage": "session_id", "session_chunks": "session_id"}
BY_SETTING = """
    CREATE OR REPLACE FUNCTION strands.tenant() RETURNS text STABLE LANGUAGE sql
    AS $$ SELECT current_setting('app.tenant') $$
"""


class Tenants(NamedTuple):
    """One database, used by two tenants and its owner."""

    acme: PostgresSessionRepository
    globex: PostgresSessionRepository
    acme_dsn: str
    owner: Connection


@pytest.fixture
def database(empty_dsn: str, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """The owner's connection to a migrated database with the policies."""
    if request.config.getoption("--pgbouncer"):
        pytest.skip("PgBouncer does not know the roles")
    with (
        PostgresSessionRepository(empty_dsn, schema="strands") as repository,
        psycopg.connect(empty_dsn, autocommit=True) as owner,
    ):
        repository.ensure_schema()
        for _ in range(2):
            programs.psql(empty_dsn, RECIPE)
        try:
            owner.execute("CREATE ROLE acme LOGIN PASSWORD 'acme' IN ROLE strands_tenants")
            owner.execute("CREATE ROLE globex LOGIN PASSWORD 'globex' IN ROLE strands_tenants")
            yield owner
        finally:
            owner.execute("DROP OWNED BY strands_tenants")
            owner.execute("DROP ROLE IF EXISTS acme, globex, strands_tenants")


@pytest.fixture(params=["role", "setting"])
def tenants(request: pytest.FixtureRequest, database: Connection, empty_dsn: str) -> Iterator[Tenants]:
    """Two tenants, each with its own role, or with one role and a setting for each."""
    if request.param == "role":
        dsns = [make_conninfo(empty_dsn, user=name, password=name) for name in ("acme", "globex")]
    else:
        database.execute(BY_SETTING)
        shared = make_conninfo(empty_dsn, user="acme", password="acme")
        dsns = [make_conninfo(shared, options=f"-c app.tenant={name}") for name in ("acme", "globex")]
    acme_dsn, globex_dsn = dsns
    with (
        PostgresSessionRepository(acme_dsn, schema="strands", min_size=0) as acme,
        PostgresSessionRepository(globex_dsn, schema="strands", min_size=0) as globex,
    ):
        yield Tenants(acme, globex, acme_dsn, database)


def visible_tenants(connection: Connection) -> dict[str, set[str]]:
    """Return, for each table, the tenants whose rows are visible."""
    seen = {}
    for table in TABLES:
        query = f"SELECT DISTINCT split_part({KEYS.get(table, 'session_id')}, '/', 1) FROM strands.strands_{table}"
        seen[table] = {tenant for (tenant,) in connection.execute(query.encode())}
    return seen


def fill(repository: PostgresSessionRepository, name: str) -> None:
    """Store a row in every table, including a lease that is not released."""
    agent = build(repository, f"{name}/s")
    agent("hello")
    agent.messages[0]["content"] = [{"text": "edited"}]
    save_checkpoint(agent)
    repository.create_multi_agent(f"{name}/s", Team("m", {}))
    repository.lease(f"{name}/s", ttl=600).__enter__()
    if has_storage:
        for storage in (PostgresStorage(repository, prefix=name), repository.storage(f"{name}/s")):
            asyncio.run(storage.write("large", name.encode() * 10_000))


def refused(work: Callable[[], object]) -> str:
    """Check that the server refuses to store another tenant's row; return the error's text."""
    with pytest.raises((DatabaseError, PostgresStorageError), match="row-level security policy") as error:
        work()
    return str(error.value)


def test_each_tenant_can_do_all_that_an_application_does(tenants: Tenants) -> None:
    run_all(tenants.acme, "acme/s", "acme")
    run_all(tenants.globex, "globex/s", "globex")


def test_each_tenant_sees_only_its_own_rows(tenants: Tenants) -> None:
    fill(tenants.acme, "acme")
    fill(tenants.globex, "globex")

    tables = [table for table in TABLES if has_storage or table not in KEYS]
    everyone = visible_tenants(tenants.owner)
    with psycopg.connect(tenants.acme_dsn) as connection:
        seen = visible_tenants(connection)
    assert {table: everyone[table] for table in tables} == {table: {"acme", "globex"} for table in tables}
    assert {table: seen[table] for table in tables} == {table: {"acme"} for table in tables}


def test_no_tenant_reads_or_changes_the_rows_of_another(tenants: Tenants) -> None:
    agent = build(tenants.globex, "globex/s")
    agent("hello")
    acme = tenants.acme

    assert acme.read_session("globex/s") is None
    assert acme.read_message("globex/s", "default", 0) is None
    with pytest.raises(SessionNotFoundError):
        acme.list_messages("globex/s", "default")
    with pytest.raises(SessionNotFoundError):
        acme.create_message("globex/s", "default", message(2, "of acme"))
    with pytest.raises(SessionNotFoundError):
        acme.delete_session("globex/s")
    with psycopg.connect(tenants.acme_dsn) as connection:
        for statement in ("UPDATE strands.strands_messages SET message = '{}'", "DELETE FROM strands.strands_sessions"):
            assert connection.execute(statement.encode()).rowcount == 0

    assert dump(build(tenants.globex, "globex/s")) == dump(agent)


def test_no_tenant_takes_a_key_of_another_whether_it_exists_or_not(tenants: Tenants) -> None:
    build(tenants.globex, "globex/s")("hello")
    acme = tenants.acme

    def create(session_id: str) -> object:
        return acme.create_session(Session(session_id, SessionType.AGENT))

    assert refused(lambda: create("globex/s")).replace("/s'", "/new'") == refused(lambda: create("globex/new"))
    refused(lambda: create("acme"))
    refused(lambda: create("acme0"))
    refused(lambda: build(acme, "globex/new"))
    refused(lambda: acme.lease("globex/s").__enter__())
    if has_storage:
        refused(lambda: asyncio.run(PostgresStorage(acme, prefix="globex").write("small", b"")))


@needs_storage
def test_no_tenant_finds_out_whether_another_stores_a_chunk_that_it_has_too(tenants: Tenants) -> None:
    fill(tenants.globex, "globex")

    def refusal(prying: PostgresStorage, data: bytes) -> str:
        return refused(lambda: asyncio.run(prying.write("pry", data * 10_000)))

    for prying in (PostgresStorage(tenants.acme, prefix="globex"), tenants.acme.storage("globex/s")):
        assert refusal(prying, b"globex") == refusal(prying, b"acme")


def test_a_tenant_exports_its_sessions_but_cannot_import(tenants: Tenants) -> None:
    build(tenants.acme, "acme/s")("hello")
    lines = list(export_session(tenants.acme, "acme/s"))
    with pytest.raises(DatabaseError, match="COPY FROM not supported with row-level security"):
        import_session(tenants.acme, lines, session_id="acme/t")


def test_a_connection_without_a_tenant_is_refused(database: Connection, empty_dsn: str) -> None:
    database.execute(BY_SETTING)
    with (
        PostgresSessionRepository(make_conninfo(empty_dsn, user="acme", password="acme"), schema="strands") as acme,
        pytest.raises(DatabaseError, match=r"app\.tenant"),
    ):
        acme.read_session("acme/s")


def test_every_table_has_policies(database: Connection) -> None:
    tables = database.execute(
        "SELECT relname, relrowsecurity FROM pg_class WHERE relnamespace = 'strands'::regnamespace AND relkind = 'r'"
    )
    assert {name for name, secure in tables if not secure} == {"strands_migrations"}
    views = database.execute("SELECT viewname FROM pg_views WHERE schemaname = 'strands'").fetchall()
    for (view,) in views:
        assert one(database, "SELECT has_table_privilege('strands_tenants', %s, 'SELECT')", f"strands.{view}") is False


def test_policies_use_the_indexes(tenants: Tenants) -> None:
    with psycopg.connect(tenants.acme_dsn) as connection:
        connection.execute("SET enable_seqscan = off")
        listing = plan(connection, "SELECT session_id FROM strands.strands_sessions")
        restoring = plan(
            connection,
            "SELECT message FROM strands.strands_messages "
            "WHERE session_id = 'acme/s' AND agent_id = 'a' AND message_id >= 5 ORDER BY message_id",
        )
    assert "Index Cond: ((session_id >= " in listing
    assert "(session_id = 'acme/s'::text) AND (agent_id = 'a'::text) AND (message_id >= 5))" in restoring
    assert "Sort" not in restoring


def plan(connection: Connection, query: str) -> str:
    return "\n".join(line for (line,) in connection.execute(f"EXPLAIN {query}".encode()))
