"""Lists of sessions and agents: pages, counts, and what a page costs."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import (
    AgentSummary,
    PostgresSessionRepository,
    SessionNotFoundError,
    SessionPage,
    SessionSummary,
)
from support.databases import Databases
from support.tables import one
from support.writes import agent, message, store_with_message

Connection = psycopg.Connection[Any]

NOON = datetime(2030, 5, 1, 12, tzinfo=timezone.utc)

_INSERT = """
    INSERT INTO strands_sessions (session_id, session_type, write_id, created_at, updated_at)
    SELECT %s, 'AGENT', gen_random_uuid(), %s, %s
"""


def add(connection: Connection, session_id: str, active: datetime, created: datetime | None = None) -> None:
    connection.execute(_INSERT, [session_id, created or active, active])


def add_many(connection: Connection, count: int) -> None:
    """Add sessions of two agents with ten messages each, and let the server know how many there are."""
    connection.execute(
        "INSERT INTO strands_sessions (session_id, session_type, write_id, created_at, updated_at) "
        "SELECT 's-' || lpad(n::text, 6, '0'), 'AGENT', gen_random_uuid(), now(), "
        "timestamptz '2030-05-01' + n * interval '1 s' FROM generate_series(1, %s) AS n",
        [count],
    )
    connection.execute(
        "INSERT INTO strands_agents (session_id, agent_id, state, conversation_manager_state, _internal_state, "
        "write_id, created_at, updated_at) SELECT session_id, a, '{}', '{}', '{}', write_id, now(), now() "
        "FROM strands_sessions, unnest('{a,b}'::text[]) AS a"
    )
    connection.execute(
        "INSERT INTO strands_messages (session_id, agent_id, message_id, message, write_id, created_at, updated_at) "
        "SELECT session_id, agent_id, n, '{}', write_id, now(), now() FROM strands_agents, generate_series(0, 9) AS n"
    )
    connection.execute("VACUUM ANALYZE")


def times(stored: Session | SessionAgent) -> tuple[datetime, datetime]:
    """Return the times that a call has set."""
    return datetime.fromisoformat(stored.created_at), datetime.fromisoformat(stored.updated_at)


def ids(page: SessionPage) -> list[str]:
    return [session.session_id for session in page.sessions]


def walk(repository: PostgresSessionRepository, **options: Any) -> list[list[str]]:
    """Return the ids of every page."""
    pages = [repository.list_sessions(**options)]
    while pages[-1].next is not None:
        pages.append(repository.list_sessions(before=pages[-1].next, **options))
    return [ids(page) for page in pages]


def test_session_is_listed_with_its_counts(repository: PostgresSessionRepository) -> None:
    session = repository.create_session(Session("s", SessionType.AGENT))
    for agent_id, messages in [("a", 3), ("b", 0), ("c", 2)]:
        repository.create_agent("s", SessionAgent(agent_id, {}, {}))
        for index in range(messages):
            repository.create_message("s", agent_id, message(index, "hello"))
    repository._tables.multi_agents.create("s", "m", {}, write_id=uuid4())

    assert repository.list_sessions() == SessionPage(
        [SessionSummary("s", "AGENT", *times(session), agents=3, messages=5, multi_agents=1)],
        next=None,
    )


def test_newest_activity_comes_first_and_ids_decide_between_equals(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    add(connection, "old", NOON - timedelta(days=1), created=NOON - timedelta(days=2))
    for session_id in ("a", "Z", "é", "b"):
        add(connection, session_id, NOON)
    add(connection, "new", NOON + timedelta(microseconds=1))
    page = repository.list_sessions()
    assert ids(page) == ["new", "é", "b", "a", "Z", "old"]
    assert page.sessions[0].updated_at == NOON + timedelta(microseconds=1)
    assert (page.sessions[-1].created_at, page.sessions[-1].updated_at) == (
        NOON - timedelta(days=2),
        NOON - timedelta(days=1),
    )


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 8, 1000])
def test_pages_hold_every_session_once(
    repository: PostgresSessionRepository, connection: Connection, limit: int
) -> None:
    # Many are active at once, so that the ends of pages fall between equals.
    for number in range(8):
        add(connection, f"s-{number}", NOON + timedelta(microseconds=number // 3))
    pages = walk(repository, limit=limit)
    assert [session_id for page in pages for session_id in page] == [f"s-{number}" for number in reversed(range(8))]
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert len(pages) == -(-8 // limit)


def test_no_session_is_an_empty_page(repository: PostgresSessionRepository) -> None:
    assert repository.list_sessions() == SessionPage([], None)


def test_session_that_was_deleted_marks_a_place_all_the_same(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    for number in range(4):
        add(connection, f"s-{number}", NOON + timedelta(seconds=number))
    page = repository.list_sessions(limit=2)
    repository.delete_session("s-2")
    assert ids(repository.list_sessions(limit=2, before=page.next)) == ["s-1", "s-0"]


def test_only_sessions_that_were_active_since(repository: PostgresSessionRepository, connection: Connection) -> None:
    for hours in range(4):
        add(connection, f"s-{hours}", NOON + timedelta(hours=hours))
    tokyo = timezone(timedelta(hours=9))
    assert walk(repository, limit=1, active_since=(NOON + timedelta(hours=2)).astimezone(tokyo)) == [["s-3"], ["s-2"]]


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("", ["ab", "a%b", "a_", "a\U0010ffff", "aß", "b", "a", "A"]),
        ("a", ["ab", "a%b", "a_", "a\U0010ffff", "aß", "a"]),
        ("a%", ["a%b"]),
        ("a_", ["a_"]),
        ("a\U0010ffff", ["a\U0010ffff"]),
        ("A", ["A"]),
        ("aß", ["aß"]),
        ("c", []),
        ("'; --", []),
    ],
)
def test_prefix_is_taken_literally(
    repository: PostgresSessionRepository, connection: Connection, prefix: str, found: list[str]
) -> None:
    for number, session_id in enumerate(["A", "a", "b", "aß", "a\U0010ffff", "a_", "a%b", "ab"]):
        add(connection, session_id, NOON + timedelta(seconds=number))
    assert ids(repository.list_sessions(prefix=prefix)) == found
    assert [each for page in walk(repository, limit=1, prefix=prefix) for each in page] == found


@pytest.mark.parametrize("limit", [0, -1, 1001, True, 1.0, "5"])
def test_limit_out_of_range_is_refused(repository: PostgresSessionRepository, limit: Any) -> None:
    with pytest.raises(ValueError, match="limit must be an integer from 1 to 1000"):
        repository.list_sessions(limit=limit)


@pytest.mark.parametrize("prefix", ["x" * 256, "a\0", "\ud800"])
def test_prefix_that_no_id_has_is_refused(repository: PostgresSessionRepository, prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix must"):
        repository.list_sessions(prefix=prefix)


def test_time_without_a_zone_is_refused(repository: PostgresSessionRepository) -> None:
    with pytest.raises(ValueError, match="active_since must have a time zone"):
        repository.list_sessions(active_since=datetime(2030, 5, 1))


def encoded(position: object) -> str:
    return urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


BROKEN: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "truncated": lambda cursor: cursor[:-3],
    "prolonged": lambda cursor: cursor + "AAAA",
    "with characters of no meaning": lambda cursor: cursor[:4] + "!!!!" + cursor[4:],
    "not base64": lambda _: "é" * 8,
    "a session id": lambda _: "s-1",
    "no list": lambda _: encoded({"a": 1}),
    "too long a list": lambda _: encoded(["2030-05-01T12:00:00+00:00", "s", "t"]),
    "no time": lambda _: encoded(["infinity", "s"]),
    "no zone": lambda _: encoded(["2030-05-01T12:00:00", "s"]),
    "numbers": lambda _: encoded([1, 2]),
    "no id": lambda _: encoded(["2030-05-01T12:00:00+00:00", ""]),
    "SQL": lambda _: encoded(["2030-05-01'; DROP TABLE strands_sessions", "s"]),
    "changed": lambda cursor: encoded([json.loads(urlsafe_b64decode(cursor + "=="))[0], "\0"]),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_cursor_is_refused(repository: PostgresSessionRepository, connection: Connection, broken: str) -> None:
    for number in range(2):
        add(connection, f"s-{number}", NOON)
    cursor = repository.list_sessions(limit=1).next
    assert cursor is not None
    with pytest.raises(ValueError, match="before must be the cursor that an earlier page ended with"):
        repository.list_sessions(before=BROKEN[broken](cursor))


def test_agents_are_listed_oldest_first(repository: PostgresSessionRepository) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    assert repository.list_agents("s") == []
    expected = []
    for agent_id, messages in [("z", 2), ("a", 0)]:
        created = SessionAgent(agent_id, {}, {})
        repository.create_agent("s", created)
        for index in range(messages):
            repository.create_message("s", agent_id, SessionMessage({"role": "user", "content": []}, index))
        expected.append(AgentSummary(agent_id, *times(created), messages))
    assert repository.list_agents("s") == expected


def test_agents_of_a_missing_session_are_an_error(repository: PostgresSessionRepository) -> None:
    with pytest.raises(SessionNotFoundError, match="agents of session 's': the session does not exist"):
        repository.list_agents("s")


WRITES: dict[str, Callable[[PostgresSessionRepository], object]] = {
    "create_agent": lambda repository: repository.create_agent("s", SessionAgent("new", {}, {})),
    "update_agent": lambda repository: repository.update_agent("s", agent("now")),
    "delete_agent": lambda repository: repository.delete_agent("s", "a"),
    "create_message": lambda repository: repository.create_message("s", "a", message(1, "now")),
    "update_message": lambda repository: repository.update_message("s", "a", message(0, "now")),
    "update_and_append": lambda repository: store_with_message(repository, "s", agent("now"), message(1, "now")),
    "create_multi_agent": lambda repository: repository._tables.multi_agents.create("s", "new", {}, write_id=uuid4()),
    "update_multi_agent": lambda repository: repository._tables.multi_agents.update("s", "m", {}, write_id=uuid4()),
}


@pytest.mark.parametrize("write", WRITES)
def test_every_write_makes_its_session_active(
    repository: PostgresSessionRepository, connection: Connection, write: str
) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_agent("s", agent("new"))
    repository.create_message("s", "a", message(0, "hello"))
    repository._tables.multi_agents.create("s", "m", {}, write_id=uuid4())
    repository.create_session(Session("later", SessionType.AGENT))
    connection.execute("UPDATE strands_sessions SET updated_at = now() - interval '2 minutes' WHERE session_id = 's'")
    assert ids(repository.list_sessions()) == ["later", "s"]
    WRITES[write](repository)
    assert ids(repository.list_sessions()) == ["s", "later"]
    active = one(
        connection, "SELECT updated_at > now() - interval '1 minute' FROM strands_sessions WHERE session_id = 's'"
    )
    assert active is True


# What a page costs, as the server tells.


def plan(
    connection: Connection, repository: PostgresSessionRepository, statement: str, generic: bool, **parameters: Any
) -> dict[str, Any]:
    """Run one of the listing's statements and return how the server executed it."""
    text: bytes = getattr(repository._tables.listing, statement)
    defaults = {"before": "infinity", "before_id": "", "active_since": "-infinity", "metadata": None, "limit": 21}
    connection.execute(f"SET plan_cache_mode = force_{'generic' if generic else 'custom'}_plan".encode())
    names = [name for name in {**defaults, **parameters} if b"%%(%s)s" % name.encode() in text]
    for number, name in enumerate(names, start=1):
        text = text.replace(b"%%(%s)s" % name.encode(), b"$%d" % number)
    values = {**defaults, **parameters}
    connection.execute(b"PREPARE page AS " + text)
    literals = b", ".join(psycopg.sql.Literal(values[name]).as_bytes(connection) for name in names)
    rows = connection.execute(
        b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE page" + (b"(" + literals + b")" if names else b"")
    ).fetchone()
    connection.execute("DEALLOCATE page")
    assert rows is not None
    explained: dict[str, Any] = rows[0][0]["Plan"]
    return explained


def nodes(explained: dict[str, Any]) -> list[dict[str, Any]]:
    return [explained, *(node for child in explained.get("Plans", []) for node in nodes(child))]


def touched(explained: dict[str, Any]) -> dict[str, int]:
    """Return how many rows of each table were read."""
    rows: dict[str, int] = {}
    for node in nodes(explained):
        if "Relation Name" in node:
            count = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            name = node["Relation Name"]
            # An empty table has no index worth a look.
            assert "Index" in node["Node Type"] or count == 0, node
            rows[name] = rows.get(name, 0) + round(count)
    return rows


@pytest.fixture(scope="module")
def full(databases: Databases, template: str) -> Iterator[tuple[Connection, PostgresSessionRepository]]:
    """A connection to a database with many sessions, and a repository on it."""
    with (
        databases.create("listing_under_test", template) as dsn,
        psycopg.connect(dsn, autocommit=True) as connection,
        PostgresSessionRepository(dsn) as repository,
    ):
        add_many(connection, 2000)
        yield connection, repository


@pytest.mark.parametrize("generic", [False, True], ids=["custom plan", "generic plan"])
def test_page_reads_no_more_rows_than_it_shows(
    full: tuple[Connection, PostgresSessionRepository], generic: bool
) -> None:
    connection, repository = full
    middle = {"before": "2030-05-01 00:10:00+00", "before_id": "s-000600"}
    for parameters in ({}, middle, {**middle, "active_since": "2030-05-01+00"}):
        explained = plan(connection, repository, "_list", generic, **parameters)
        # Agents are counted once, and once gone through for their messages, of which only the last is looked at.
        assert touched(explained) == {
            "strands_sessions": 21,
            "strands_agents": 21 * 2 * 2,
            "strands_messages": 21 * 2,
            "strands_multi_agents": 0,
        }
        assert explained["Shared Hit Blocks"] + explained["Shared Read Blocks"] < 600


def test_page_of_a_rare_prefix_reads_what_has_the_prefix(full: tuple[Connection, PostgresSessionRepository]) -> None:
    explained = plan(*full, "_list_prefix", False, prefix="s-00001", prefix_end="s-00002")
    assert touched(explained)["strands_sessions"] == 10


def test_page_of_a_common_prefix_reads_no_more_than_it_shows(
    full: tuple[Connection, PostgresSessionRepository],
) -> None:
    explained = plan(*full, "_list_prefix", False, prefix="s-", prefix_end="s.")
    assert touched(explained)["strands_sessions"] == 21


def test_one_summary_is_read_by_its_key(full: tuple[Connection, PostgresSessionRepository]) -> None:
    explained = plan(*full, "_read", True, session_id="s-000600")
    assert touched(explained) == {
        "strands_sessions": 1,
        "strands_agents": 4,
        "strands_messages": 2,
        "strands_multi_agents": 0,
    }
