"""Erasure: nothing that an owner has left remains anywhere, all that others have does, and no agent holds it up."""

import asyncio
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any

import pytest
from psycopg import sql
from strands.types.session import Session, SessionType

from strands_psycopg import (
    ErasureResult,
    PostgresSessionManager,
    PostgresSessionRepository,
    PostgresStorage,
    SessionNotFoundError,
)
from strands_psycopg.repository import erasure, retention
from support.agents import build
from support.owners import find, leave
from support.pausing import pause_before
from support.retries import Retries
from support.storage import has_storage
from support.tables import Connection, contents, one, store_scoped_values
from support.waiting import wait_until
from support.writes import message

# Every column in which its text can be.
PLACES = {
    f"{table}.{column}"
    for table, columns in {
        "agents": "session_id agent_id state state_exact",
        "checkpoints": "session_id agent_id data data_exact",
        "chunks": "scope data",
        "leases": "session_id",
        "message_variants": "session_id agent_id message message_exact",
        "messages": "session_id agent_id message message_exact redact_message redact_message_exact",
        "multi_agents": "session_id multi_agent_id state state_exact",
        "session_chunks": "session_id data",
        "session_storage": "session_id key data search_vector",
        "sessions": "session_id owner title metadata metadata_exact",
        "storage": "scope key owner data search_vector",
        "memories": "owner store content content_exact metadata metadata_exact search_vector",
    }.items()
    for column in columns.split()
}

# One owner's row in each table.
LEFT = ErasureResult(
    sessions=1,
    agents=1,
    messages=4,
    message_variants=1,
    checkpoints=1,
    multi_agents=1,
    session_storage=2,
    session_chunks=1,
    leases=1,
    storage=2,
    chunks=1,
    memories=1,
)


@pytest.fixture
def other(dsn: str, pool_options: dict[str, Any]) -> Iterator[PostgresSessionRepository]:
    with PostgresSessionRepository(dsn, **pool_options) as repository:
        yield repository


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def test_nothing_of_an_owner_is_left_in_any_column(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    text = f"marker{uuid.uuid4().hex}"  # one word for a text search
    leave(repository, connection, f"Alice {text}", text)
    assert find(connection, text) == PLACES

    assert other.erase(owner=f"Alice {text}", dry_run=True) == LEFT
    assert find(connection, text) == PLACES
    assert other.erase(owner=f"Alice {text}") == LEFT
    assert find(connection, text) == set()


def test_all_of_other_owners_is_left(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection
) -> None:
    # Owners whose names, or whose storages' scopes, begin in the same way.
    for stranger in ("Bob", "Alicex", "Alice//b", "Alice/", "Alic", "alice"):
        leave(repository, connection, stranger, stranger.replace("/", "_"))
    repository.create_session(Session("nobody's", SessionType.AGENT))
    store_scoped_values(connection, "Alice", None, "shared")
    before = everything(connection)
    leave(repository, connection, "Alice", "Alice")

    assert other.erase(owner="Alice") == LEFT

    assert everything(connection) == before
    assert other.erase(owner="Alice") == other.erase(owner="Alice", dry_run=True) == ErasureResult()


def everything(connection: Connection) -> dict[str, list[str]]:
    query = sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1")
    tables = ("strands_storage", "strands_chunks")
    storage = {table: [row[0] for row in connection.execute(query.format(sql.Identifier(table)))] for table in tables}
    return contents(connection) | storage


def test_small_batches_and_an_end_although_more_is_stored_after_each(
    repository: PostgresSessionRepository, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "_SESSIONS_PER_BATCH", 2)
    monkeypatch.setattr(erasure, "_ROWS_PER_BATCH", 1)
    for number in range(3):
        leave(repository, connection, "Alice", f"{number}")

    # As imports can store them.
    connection.execute("UPDATE strands_sessions SET created_at = '2100-01-01' WHERE session_id = 'session 0'")
    connection.execute("UPDATE strands_memories SET updated_at = '2100-01-01' WHERE store = '0'")

    results = []
    for batch in repository._tables.erasure.erase("Alice", dry_run=False):
        results.append(batch)
        late = f"late {len(results)}"
        repository.create_session(Session(late, SessionType.AGENT), owner="Alice")
        store_scoped_values(connection, f"Alice//{late}", "Alice", late)
        assert len(results) < 100

    assert max(each.sessions for each in results) == 2
    assert max(each.storage for each in results) == 1
    assert sum(results, ErasureResult()) == sum([LEFT] * 3, ErasureResult())
    left = ErasureResult(sessions=len(results), storage=2 * len(results), chunks=len(results))
    assert repository.erase(owner="Alice", dry_run=True) == left
    monkeypatch.undo()
    assert repository.erase(owner="Alice") == left
    assert repository.erase(owner="Alice", dry_run=True) == ErasureResult()


@pytest.mark.parametrize("leased", [False, True])
def test_running_agent_does_not_stop_it_and_finds_its_session_gone(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: Connection, leased: bool
) -> None:
    PostgresSessionManager("s", repository, owner="Alice")
    lease = repository.lease("s")
    if leased:
        lease.__enter__()
    agent = build(repository)
    agent("hello")

    assert other.erase(owner="Alice").sessions == 1

    with pytest.raises(SessionNotFoundError):
        agent("again")
    with pytest.raises(SessionNotFoundError):
        repository.create_message("s", "default", message(2, "again"))
    lease.__exit__(None, None, None)
    assert not any(contents(connection).values())


def test_batch_is_retried_while_a_statement_of_an_agent_holds_a_lock(
    repository: PostgresSessionRepository, connection: Connection, retries: Retries, threads: ThreadPoolExecutor
) -> None:
    PostgresSessionManager("s", repository, owner="Alice")
    build(repository)("hello")
    with connection.transaction():
        connection.execute("SELECT true FROM strands_agents FOR UPDATE")
        erased = threads.submit(repository.erase, owner="Alice")
        wait_until(lambda: len(retries()) >= 2)
        assert one(connection, "SELECT count(*) FROM strands_messages") == 2
    assert erased.result(30).sessions == 1
    assert {retry.operation for retry in retries()} == {"erasing an owner's data"}


def test_session_that_gets_another_owner_meanwhile_is_kept(
    repository: PostgresSessionRepository,
    other: PostgresSessionRepository,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PostgresSessionManager("s", repository, owner="Alice")
    PostgresSessionManager("t", repository, owner="Alice")
    build(repository)("hello")
    monkeypatch.setattr(retention, "_IDLE_TIMEOUT", "SET LOCAL idle_in_transaction_session_timeout = '30s'")
    (sessions, *_) = repository._tables.erasure._parts
    assert isinstance(sessions, erasure._Sessions)
    reached, go = pause_before(monkeypatch, sessions._lock_agents)
    erased = threads.submit(repository.erase, owner="Alice")
    assert reached.wait(30)
    other.annotate_session("s", owner="Bob")
    go.set()
    assert erased.result(30) == ErasureResult(sessions=1)
    assert [(each.session_id, each.messages) for each in repository.list_sessions().sessions] == [("s", 2)]


class User(str, Enum):
    ALICE = "Alice"


@pytest.mark.skipif(not has_storage, reason="strands-agents before 1.54 has no storage")
def test_owner_that_is_a_member_of_an_enumeration_is_the_text_that_it_equals(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    PostgresSessionManager("s", repository, owner=User.ALICE)
    asyncio.run(PostgresStorage(repository, owner=User.ALICE).write("notes", b"x" * 40_000))
    assert one(connection, "SELECT scope FROM strands_storage") == "Alice//"
    erased = repository.erase(owner="Alice")
    assert (erased.sessions, erased.storage, erased.chunks) == (1, 1, 2)


@pytest.mark.parametrize("owner", ["", "a\0", None])
def test_owner_must_be_one(repository: PostgresSessionRepository, owner: Any) -> None:
    with pytest.raises(ValueError, match="owner must"):
        repository.erase(owner=owner)
