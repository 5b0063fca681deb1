"""However full the tables are, a statement looks at the rows that it gives or changes and at next to no others."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from strands.types.session import SessionAgent, SessionMessage

from strands_psycopg import PostgresSessionRepository
from support.databases import Databases
from support.plans import Plans, Touched, options

Planned = tuple[PostgresSessionRepository, Plans]

SESSIONS = 2_000
EACH = 10
LONG = 20_000

FILL = """
    WITH sizes AS (
        SELECT 'many-' || n AS session_id, now() - n * interval '1 hour' AS active, %(each)s AS size
        FROM generate_series(1, %(sessions)s) AS n
        UNION ALL VALUES ('long', now(), %(long)s), ('idle', now() - interval '1 year', %(each)s)
    ), s AS (
        INSERT INTO strands_sessions (session_id, session_type, owner, write_id, created_at, updated_at)
        SELECT session_id, 'AGENT', 'owner-' || hashtext(session_id) %% 50, gen_random_uuid(), active, active FROM sizes
    ), a AS (
        INSERT INTO strands_agents (session_id, agent_id, state, conversation_manager_state, _internal_state, write_id,
            created_at, updated_at)
        SELECT session_id, 'a', '{}', jsonb_build_object('removed_message_count', greatest(size - 40, 0)), '{}',
            gen_random_uuid(), active, active
        FROM sizes
    ), m AS (
        INSERT INTO strands_multi_agents (session_id, multi_agent_id, state, write_id, created_at, updated_at)
        SELECT session_id, 'm', '{}', gen_random_uuid(), active, active FROM sizes
    ), l AS (
        INSERT INTO strands_leases (session_id, term, acquired_at, expires_at)
        SELECT session_id, gen_random_uuid(), active, active + interval '1 minute' FROM sizes
    ), v AS (
        INSERT INTO strands_message_variants (session_id, agent_id, variant_id, message, created_at)
        SELECT session_id, 'a', n, '{"role": "user", "content": [{"text": "Hello"}]}', active
        FROM sizes, generate_series(1, %(each)s) AS n
    ), c AS (
        INSERT INTO strands_checkpoints (session_id, agent_id, snapshot_id, message_count, memory_window, variant_ids,
            data, write_id, created_at)
        SELECT session_id, 'a', gen_random_uuid(), size, '{"items": [1], "next": null}', '{1}', '{}',
            gen_random_uuid(), active
        FROM sizes
    ), k AS (
        INSERT INTO strands_session_chunks (session_id, chunk_id, data)
        SELECT session_id, gen_random_uuid(), 'chunk' FROM sizes, generate_series(1, %(each)s)
    ), d AS (
        INSERT INTO strands_session_storage (session_id, key, data, size, write_id, updated_at)
        SELECT session_id, n::text, 'value', 5, gen_random_uuid(), active FROM sizes, generate_series(1, %(each)s) AS n
    )
    INSERT INTO strands_messages (session_id, agent_id, message_id, message, write_id, created_at, updated_at)
    SELECT session_id, 'a', n, '{"role": "user", "content": [{"text": "Hello"}]}', gen_random_uuid(), active, active
    FROM sizes, generate_series(0, size - 1) AS n
"""


@pytest.fixture(scope="module")
def full_template(databases: Databases, template: str) -> Iterator[str]:
    """The name of a database with full tables, to be copied."""
    with databases.create("full_under_test", template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            try:
                connection.execute("LOAD 'auto_explain'")
            except psycopg.Error as error:
                pytest.skip(f"needs a server with auto_explain, and the right to load it: {error}")
            connection.execute(FILL, {"sessions": SESSIONS, "each": EACH, "long": LONG})
            connection.execute("VACUUM ANALYZE")
            name = connection.info.dbname
        yield name


@pytest.fixture(params=["force_generic_plan", "force_custom_plan"])
def planned(databases: Databases, full_template: str, request: pytest.FixtureRequest) -> Iterator[Planned]:
    """A repository on full tables, and the plans of what it runs."""
    plans = Plans()
    with databases.create("sessions_under_test", full_template) as dsn:
        dsn = make_conninfo(dsn, options=options(request.param))
        with PostgresSessionRepository(dsn, configure=plans.configure) as repository:
            yield repository, plans


def touched(planned: Planned, call: Callable[[PostgresSessionRepository], object], *may_be_scanned: str) -> Touched:
    repository, plans = planned
    with plans.of() as everything:
        call(repository)
    assert everything.rows, "nothing was explained"
    assert everything.scanned <= set(may_be_scanned)
    return everything


def test_scans_of_whole_tables_are_noticed(planned: Planned) -> None:
    repository, plans = planned
    with plans.of() as everything:
        repository._database.fetch("counting", repository._database.statement("SELECT count(*) FROM {messages}"), {})
    assert everything.scanned == {"messages"}
    assert everything.rows == {"messages": (SESSIONS + 1) * EACH + LONG}


def test_restoring_looks_at_the_messages_that_it_gives(planned: Planned) -> None:
    everything = touched(planned, lambda repository: repository._tables.conversations.read("long", "a"))
    assert everything.rows["messages"] <= 40 + 1  # the last one, for the next one's index
    assert everything.rows["agents"] <= 3


@pytest.mark.parametrize(("limit", "offset", "given"), [(None, LONG - 40, 40), (7, 100, 7), (0, 0, 0)])
def test_listing_messages_looks_at_those_that_it_gives(
    planned: Planned, limit: int | None, offset: int, given: int
) -> None:
    everything = touched(planned, lambda repository: repository.list_messages("long", "a", limit, offset))
    assert everything.rows["messages"] <= max(given, 1)
    assert everything.rows["agents"] <= 2


@pytest.mark.parametrize("session_id", ["long", "many-1"])
def test_appending_looks_at_the_last_message(planned: Planned, session_id: str) -> None:
    size = LONG if session_id == "long" else EACH
    message = SessionMessage({"role": "user", "content": [{"text": "Hello again"}]}, size)
    everything = touched(planned, lambda repository: repository.create_message(session_id, "a", message))
    assert everything.rows["messages"] <= 3
    assert everything.rows["agents"] <= 2
    assert everything.rows["sessions"] <= 2


def test_writing_an_agent_looks_at_its_row(planned: Planned) -> None:
    agent = SessionAgent("a", {"changed": True}, {"removed_message_count": 0})
    everything = touched(planned, lambda repository: repository.update_agent("many-7", agent))
    assert everything.rows["agents"] <= 3
    assert everything.rows["messages"] == 0


def test_a_page_of_sessions_looks_at_its_sessions_and_the_last_message_of_each_agent(planned: Planned) -> None:
    repository, _ = planned
    first = repository.list_sessions(limit=20)
    everything = touched(planned, lambda repository: repository.list_sessions(limit=20, before=first.next))
    assert everything.rows["sessions"] <= 21
    assert everything.rows["agents"] <= 2 * 21
    assert everything.rows["messages"] <= 21


def test_a_page_of_sessions_of_a_rare_prefix_looks_at_those(planned: Planned) -> None:
    everything = touched(planned, lambda repository: repository.list_sessions(prefix="many-100"))
    assert everything.rows["sessions"] <= 11 * 3


def test_a_page_of_an_owners_sessions_looks_at_those(planned: Planned) -> None:
    repository, _ = planned
    owner = repository.list_sessions(limit=1, prefix="many-7").sessions[0].owner
    everything = touched(planned, lambda repository: repository.list_sessions(limit=5, owner=owner))
    assert everything.rows["sessions"] <= len(repository.list_sessions(owner=owner).sessions) < SESSIONS / 20


def test_agents_of_a_session_are_found_by_it(planned: Planned) -> None:
    everything = touched(planned, lambda repository: repository.list_agents("many-7"))
    assert everything.rows["agents"] <= 2
    assert everything.rows["messages"] <= 1


def test_purge_looks_at_idle_sessions(planned: Planned) -> None:
    everything = touched(planned, lambda repository: repository.purge_sessions(idle_for=360 * 86400), "leases")
    assert everything.rows["sessions"] <= 10
    assert everything.rows["messages"] <= 2 * EACH
