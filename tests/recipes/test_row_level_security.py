"""Tenants of one database, kept apart by ``row_level_security.sql``."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from strands import Agent
from strands.types.session import Session, SessionAgent, SessionType

from strands_psycopg import (
    DatabaseError,
    ErasureResult,
    PostgresSessionManager,
    PostgresSessionRepository,
    PostgresStorageError,
    SessionNotFoundError,
)
from strands_psycopg.transfer import export_session, import_session
from support import agents, programs
from support.agents import dump, save_checkpoint
from support.databases import Databases
from support.errands import run_all
from support.multi_agents import Team
from support.tables import Connection, one, store_scoped_values, store_values
from support.writes import message

RECIPE = Path(__file__).with_name("row_level_security.sql")

TABLES = (
    *("sessions", "agents", "messages", "message_variants", "checkpoints", "multi_agents", "leases"),
    *("session_storage", "session_chunks", "storage", "chunks"),
)
KEYS = {"sessions": "owner", "storage": "owner", "chunks": "split_part(scope, '/', 1)"}
BY_SETTING = """
    CREATE OR REPLACE FUNCTION strands.tenant() RETURNS text STABLE LANGUAGE sql
    AS $$ SELECT current_setting('app.tenant') $$
"""


class Tenants(NamedTuple):
    """One database, used by two tenants and its owner."""

    acme: PostgresSessionRepository
    globex: PostgresSessionRepository
    acme_dsn: str
    globex_dsn: str
    owner: Connection


@pytest.fixture(scope="module")
def with_policies(databases: Databases, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a migrated database with the policies, to be copied."""
    if request.config.getoption("--pgbouncer"):
        pytest.skip("PgBouncer does not know the roles")
    with databases.create("policies_under_test") as dsn:
        with PostgresSessionRepository(dsn, schema="strands") as repository:
            repository.ensure_schema()
        for _ in range(2):
            programs.psql(dsn, RECIPE)
        yield str(conninfo_to_dict(dsn)["dbname"])
        with psycopg.connect(dsn, autocommit=True) as owner:
            owner.execute("DROP OWNED BY strands_tenants")
            owner.execute("DROP ROLE strands_tenants")


@pytest.fixture
def database(databases: Databases, with_policies: str) -> Iterator[str]:
    """A copy of it, which the roles ``acme`` and ``globex`` may use."""
    with (
        databases.create("tenants_under_test", with_policies) as dsn,
        psycopg.connect(dsn, autocommit=True) as owner,
    ):
        try:
            owner.execute("CREATE ROLE acme LOGIN PASSWORD 'acme' IN ROLE strands_tenants")
            owner.execute("CREATE ROLE globex LOGIN PASSWORD 'globex' IN ROLE strands_tenants")
            yield dsn
        finally:
            owner.execute("DROP OWNED BY strands_tenants")
            owner.execute("DROP ROLE IF EXISTS acme, globex")


@pytest.fixture
def owner(database: str) -> Iterator[Connection]:
    """Its owner's connection to it."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture(params=["role", "setting"])
def tenants(request: pytest.FixtureRequest, owner: Connection, database: str) -> Iterator[Tenants]:
    """Two tenants, each with its own role, or with one role and a setting for each."""
    if request.param == "role":
        dsns = [make_conninfo(database, user=name, password=name) for name in ("acme", "globex")]
    else:
        owner.execute(BY_SETTING)
        shared = make_conninfo(database, user="acme", password="acme")
        dsns = [make_conninfo(shared, options=f"-c app.tenant={name}") for name in ("acme", "globex")]
    acme_dsn, globex_dsn = dsns
    with (
        PostgresSessionRepository(acme_dsn, schema="strands", min_size=0) as acme,
        PostgresSessionRepository(globex_dsn, schema="strands", min_size=0) as globex,
    ):
        yield Tenants(acme, globex, acme_dsn, globex_dsn, owner)


def visible_tenants(connection: Connection) -> dict[str, set[str]]:
    """Return, for each table, the tenants whose rows are visible."""
    seen = {}
    for table in TABLES:
        column = KEYS.get(table, "split_part(session_id, ' ', 1)")
        query = f"SELECT DISTINCT {column} FROM strands.strands_{table}"
        seen[table] = {tenant for (tenant,) in connection.execute(query.encode())}
    return seen


def build(repository: PostgresSessionRepository, tenant: str) -> Agent:
    """Build an agent on a tenant's session."""
    session_id = f"{tenant} s"
    PostgresSessionManager(session_id, repository, owner=tenant)
    return agents.build(repository, session_id)


def fill(repository: PostgresSessionRepository, dsn: str, name: str) -> None:
    """Store a row in every table, including a lease that is not released."""
    agent = build(repository, name)
    agent("hello")
    agent.messages[0]["content"] = [{"text": "edited"}]
    save_checkpoint(agent)
    repository.create_multi_agent(f"{name} s", Team("m", {}))
    repository.lease(f"{name} s", ttl=600).__enter__()
    with psycopg.connect(dsn) as connection:
        connection.execute("SET search_path = strands")
        store_values(connection, f"{name} s", "value")
        store_scoped_values(connection, f"{name}//p", name, "value")


def refused(work: Callable[[], object]) -> str:
    """Check that the server refuses to store another tenant's row; return the error's text."""
    with pytest.raises((DatabaseError, PostgresStorageError), match="row-level security policy") as error:
        work()
    return str(error.value)


def test_each_tenant_can_do_all_that_an_application_does(tenants: Tenants) -> None:
    run_all(tenants.acme, "acme s", owner="acme")
    run_all(tenants.globex, "globex s", owner="globex")


def test_each_tenant_sees_only_its_own_rows(tenants: Tenants) -> None:
    fill(tenants.acme, tenants.acme_dsn, "acme")
    fill(tenants.globex, tenants.globex_dsn, "globex")

    assert visible_tenants(tenants.owner) == {table: {"acme", "globex"} for table in TABLES}
    with psycopg.connect(tenants.acme_dsn) as connection:
        # Of a session that others have leased, and that is not stored, nobody knows whose it is.
        assert visible_tenants(connection) == {table: {"acme"} for table in TABLES}


def test_no_tenant_reads_or_changes_the_rows_of_another(tenants: Tenants) -> None:
    agent = build(tenants.globex, "globex")
    agent("hello")
    acme = tenants.acme

    assert acme.read_session("globex s") is None
    assert acme.read_message("globex s", "default", 0) is None
    with pytest.raises(SessionNotFoundError):
        acme.list_messages("globex s", "default")
    with pytest.raises(SessionNotFoundError):
        acme.create_message("globex s", "default", message(2, "of acme"))
    with pytest.raises(SessionNotFoundError):
        acme.delete_session("globex s")
    assert acme.list_sessions(owner="globex").sessions == []
    assert acme.erase(owner="globex") == ErasureResult()
    with psycopg.connect(tenants.acme_dsn) as connection:
        for statement in ("UPDATE strands.strands_messages SET message = '{}'", "DELETE FROM strands.strands_sessions"):
            assert connection.execute(statement.encode()).rowcount == 0

    assert dump(build(tenants.globex, "globex")) == dump(agent)


def test_no_tenant_stores_anything_as_another_or_in_its_sessions(tenants: Tenants) -> None:
    build(tenants.globex, "globex")("hello")
    acme = tenants.acme

    for owner in ("globex", None):
        refused(lambda: acme.create_session(Session("new", SessionType.AGENT), owner=owner))  # noqa: B023
    with pytest.raises(DatabaseError, match="a policy that hides them"):
        PostgresSessionManager("globex s", acme, owner="acme")
    refused(lambda: acme.create_agent("globex s", SessionAgent("new", {}, {})))
    refused(lambda: acme.lease("globex s").__enter__())
    with acme.lease("not stored yet"):
        build(acme, "acme")
    refused(lambda: acme.annotate_session("acme s", owner="globex"))
    for scope, owner in (("globex//p", "globex"), ("globex//p", "acme"), ("acme//p", "globex"), ("p", None)):
        with psycopg.connect(tenants.acme_dsn) as connection:
            connection.execute("SET search_path = strands")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security policy"):
                store_scoped_values(connection, scope, owner, "value")


def test_a_tenant_exports_its_sessions_but_cannot_import(tenants: Tenants) -> None:
    build(tenants.acme, "acme")("hello")
    lines = list(export_session(tenants.acme, "acme s"))
    with pytest.raises(DatabaseError, match="COPY FROM not supported with row-level security"):
        import_session(tenants.acme, lines, session_id="copy")


def test_a_connection_without_a_tenant_is_refused(owner: Connection, database: str) -> None:
    owner.execute(BY_SETTING)
    with (
        PostgresSessionRepository(make_conninfo(database, user="acme", password="acme"), schema="strands") as acme,
        pytest.raises(DatabaseError, match=r"app\.tenant"),
    ):
        acme.read_session("acme s")


def test_every_table_has_policies(owner: Connection) -> None:
    tables = owner.execute(
        "SELECT relname, relrowsecurity FROM pg_class WHERE relnamespace = 'strands'::regnamespace AND relkind = 'r'"
    )
    assert {name for name, secure in tables if not secure} == {"strands_migrations"}
    views = owner.execute("SELECT viewname FROM pg_views WHERE schemaname = 'strands'").fetchall()
    for (view,) in views:
        assert one(owner, "SELECT has_table_privilege('strands_tenants', %s, 'SELECT')", f"strands.{view}") is False


def test_policies_use_the_indexes(tenants: Tenants) -> None:
    with psycopg.connect(tenants.acme_dsn) as connection:
        connection.execute("SET enable_seqscan = off")
        listing = plan(connection, "SELECT session_id FROM strands.strands_sessions")
        restoring = plan(
            connection,
            "SELECT message FROM strands.strands_messages "
            "WHERE session_id = 'acme s' AND agent_id = 'a' AND message_id >= 5 ORDER BY message_id",
        )
    assert "Index Cond: (owner = " in listing
    assert "(session_id = 'acme s'::text) AND (agent_id = 'a'::text) AND (message_id >= 5))" in restoring
    assert "Sort" not in restoring


def plan(connection: Connection, query: str) -> str:
    return "\n".join(line for (line,) in connection.execute(f"EXPLAIN {query}".encode()))
