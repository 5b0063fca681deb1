"""Servers that an operator has set up oddly: triggers that suppress rows, no foreign keys, rounded numbers, limits."""

import asyncio
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import (
    DatabaseError,
    PostgresMemoryStore,
    PostgresSessionRepository,
    PostgresStorage,
    PostgresStorageError,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
    database,
)
from strands_psycopg.report import read_statistics
from strands_psycopg.repository import session_tables
from strands_psycopg.repository.agents import AgentChange, EncodedAgent
from strands_psycopg.repository.window import Window
from strands_psycopg.transfer import export_session, import_session
from support import transfers
from support.agents import build
from support.memories import needs_memory
from support.multi_agents import Team
from support.payloads import ScramblingCodec
from support.storage import has_storage, needs_storage
from support.tables import one

Connection = psycopg.Connection[Any]

SUPPRESSED = "reported success, but .*look for a trigger or rule"


def suppress(connection: Connection, table: str, operation: str, condition: str = "true") -> None:
    """Create a trigger that suppresses what an operation does to rows that meet a condition."""
    connection.execute(
        "CREATE OR REPLACE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    )
    connection.execute(
        sql.SQL("CREATE TRIGGER suppress BEFORE {} ON {} FOR EACH ROW WHEN ({}) EXECUTE FUNCTION suppress()").format(
            sql.SQL(operation), sql.Identifier(table), sql.SQL(condition)
        )
    )


def allow(connection: Connection, table: str) -> None:
    """Drop that trigger."""
    connection.execute(sql.SQL("DROP TRIGGER suppress ON {}").format(sql.Identifier(table)))


def message(index: int, text: str = "hello") -> SessionMessage:
    return SessionMessage({"role": "user", "content": [{"text": text}]}, index)


def redacted(index: int) -> SessionMessage:
    return SessionMessage(message(index).message, index, {"role": "user", "content": [{"text": "[redacted]"}]})


def save_checkpoint(repository: PostgresSessionRepository) -> None:
    transfers.store_checkpoint(repository, "s", "a", 1, Window(((0, 1),), None), {})


def store_state(repository: PostgresSessionRepository, *, with_message: bool) -> None:
    """Store an agent's state with the write id that it is expected to have."""
    tables = session_tables(repository)
    stored = tables.agents.read("s", "a")
    assert stored is not None
    change = AgentChange("a", EncodedAgent.of(stored.agent), None, drops_variants=False)
    appended = message(stored.next_message_id) if with_message else None
    tables.agents.store("s", change, appended, write_id=uuid4(), expected=stored.write_id)


# A table, what is suppressed, and the call that does it, of a session "s" with an agent, a message and a multi-agent.
WRITES: dict[str, tuple[str, str, Callable[[PostgresSessionRepository], object]]] = {
    "create session": (
        "strands_sessions",
        "INSERT",
        lambda repository: repository.create_session(Session("new", SessionType.AGENT)),
    ),
    "create agent": (
        "strands_agents",
        "INSERT",
        lambda repository: repository.create_agent("s", SessionAgent("new", {}, {})),
    ),
    "create message": (
        "strands_messages",
        "INSERT",
        lambda repository: repository.create_message("s", "a", message(1)),
    ),
    "build an agent with messages": (
        "strands_messages",
        "INSERT",
        lambda repository: build(repository, messages=[message(0).message]),
    ),
    "create multi-agent": (
        "strands_multi_agents",
        "INSERT",
        lambda repository: repository.create_multi_agent("s", Team("new", {})),
    ),
    "update agent": (
        "strands_agents",
        "UPDATE",
        lambda repository: repository.update_agent("s", SessionAgent("a", {"b": 1}, {})),
    ),
    "update expected agent": (
        "strands_agents",
        "UPDATE",
        lambda repository: store_state(repository, with_message=False),
    ),
    "update agent with message": (
        "strands_agents",
        "UPDATE",
        lambda repository: store_state(repository, with_message=True),
    ),
    "append message with state": (
        "strands_messages",
        "INSERT",
        lambda repository: store_state(repository, with_message=True),
    ),
    "update message": (
        "strands_messages",
        "UPDATE",
        lambda repository: repository.update_message("s", "a", message(0, "changed")),
    ),
    "redact message": (
        "strands_messages",
        "UPDATE",
        lambda repository: repository.update_message("s", "a", redacted(0)),
    ),
    "update multi-agent": (
        "strands_multi_agents",
        "UPDATE",
        lambda repository: repository.update_multi_agent("s", Team("m", {"b": 1})),
    ),
    "save checkpoint": ("strands_checkpoints", "INSERT", save_checkpoint),
    "delete session": ("strands_sessions", "DELETE", lambda repository: repository.delete_session("s")),
    "delete agent": ("strands_agents", "DELETE", lambda repository: repository.delete_agent("s", "a")),
    "fork": ("strands_sessions", "INSERT", lambda repository: repository.fork_session("s", "t")),
    "lease": ("strands_leases", "INSERT", lambda repository: repository.lease("s", wait=0).__enter__()),
    "import session": (
        "strands_sessions",
        "INSERT",
        lambda repository: import_session(repository, list(export_session(repository, "s")), session_id="t"),
    ),
    "import message": (
        "strands_messages",
        "INSERT",
        lambda repository: import_session(repository, list(export_session(repository, "s")), session_id="t"),
    ),
}


def fill(repository: PostgresSessionRepository) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_agent("s", SessionAgent("a", {}, {}))
    repository.create_message("s", "a", message(0))
    repository.create_multi_agent("s", Team("m", {}))


def test_row_that_a_trigger_suppresses_is_told_as_that(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository)
    told = {}
    for write, (table, operation, call) in WRITES.items():
        suppress(connection, table, operation)
        with pytest.raises(DatabaseError) as failure:
            call(repository)
        told[write] = re.search(SUPPRESSED, str(failure.value)) is not None
        allow(connection, table)
    assert told == dict.fromkeys(WRITES, True)


@pytest.mark.skipif(not has_storage, reason="needs strands-agents 1.54 or later")
@pytest.mark.parametrize("size", [10, 100_000], ids=["inline", "in chunks"])
@pytest.mark.parametrize("table", ["storage", "chunks", "session_storage", "session_chunks"])
def test_value_that_a_trigger_suppresses_is_told_as_that(
    repository: PostgresSessionRepository, connection: Connection, table: str, size: int
) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    suppress(connection, f"strands_{table}", "INSERT")
    storage = repository.storage("s") if table.startswith("session") else PostgresStorage(repository)
    if "chunks" in table and size == 10:
        asyncio.run(storage.write("key", bytes(size)))
        return

    with pytest.raises(PostgresStorageError, match=SUPPRESSED):
        asyncio.run(storage.write("key", bytes(size)))


@pytest.mark.skipif(not has_storage, reason="needs strands-agents 1.54 or later")
@pytest.mark.parametrize("size", [10, 100_000], ids=["inline", "in chunks"])
def test_deletion_of_a_value_that_a_trigger_suppresses_is_told_as_that(
    repository: PostgresSessionRepository, connection: Connection, size: int
) -> None:
    storage = PostgresStorage(repository)
    asyncio.run(storage.write("key", bytes(size)))
    suppress(connection, "strands_storage", "DELETE")
    with pytest.raises(PostgresStorageError, match=SUPPRESSED):
        asyncio.run(storage.delete("key"))
    asyncio.run(storage.delete("another key"))
    allow(connection, "strands_storage")
    asyncio.run(storage.delete("key"))


@pytest.mark.skipif(not has_storage, reason="needs strands-agents 1.54 or later")
def test_erasure_that_a_trigger_suppresses_ends_and_is_told_as_that(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    repository.annotate_session("s", owner="me")
    asyncio.run(PostgresStorage(repository, owner="me").write("key", b"value"))
    for table in ("strands_sessions", "strands_storage"):
        suppress(connection, table, "DELETE")
        with pytest.raises(DatabaseError, match=SUPPRESSED):
            repository.erase(owner="me")
        allow(connection, table)
    erased = repository.erase(owner="me")
    assert (erased.sessions, erased.storage) == (0, 1)


OF_FORKS = ("agents", "messages", "message_variants", "checkpoints", "multi_agents")
OF_STORAGES = ("session_storage", "session_chunks")


@pytest.mark.parametrize("codec", [None, ScramblingCodec()], ids=["plain", "with a codec"])
def test_fork_of_which_a_trigger_suppresses_a_row_is_not_stored(
    dsn: str, connection: Connection, codec: ScramblingCodec | None
) -> None:
    with PostgresSessionRepository(dsn, payload_codec=codec) as repository:
        transfers.fill(repository, "s")
        for table in (*OF_FORKS, *(OF_STORAGES if has_storage else ())):
            counts = one(connection, f"SELECT count(*) FROM strands_{table}")
            suppress(connection, f"strands_{table}", "INSERT")

            with pytest.raises(DatabaseError, match=SUPPRESSED):
                repository.fork_session("s", "t")

            assert repository.read_session("t") is None
            assert one(connection, f"SELECT count(*) FROM strands_{table}") == counts
            allow(connection, f"strands_{table}")


def test_lease_whose_takeover_a_trigger_suppresses_is_told_as_that(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    connection.execute(
        "INSERT INTO strands_leases (session_id, term, acquired_at, expires_at)"
        " VALUES ('s', gen_random_uuid(), '2020-01-01', '2020-01-01')"
    )
    suppress(connection, "strands_leases", "UPDATE")

    with pytest.raises(DatabaseError, match=SUPPRESSED):
        repository.lease("s", wait=0).__enter__()


def test_writer_that_was_first_is_still_a_conflict(repository: PostgresSessionRepository) -> None:
    fill(repository)

    with pytest.raises(SessionExistsError, match="already exists"):
        repository.create_session(Session("s", SessionType.AGENT))
    with pytest.raises(SessionConflictError, match="a message with this index already exists"):
        repository.create_message("s", "a", message(0))
    with pytest.raises(SessionConflictError, match="the next index is 1"):
        repository.create_message("s", "a", message(2))
    with pytest.raises(SessionNotFoundError):
        repository.update_message("s", "a", message(1))


@pytest.fixture
def replica(dsn: str) -> Iterator[PostgresSessionRepository]:
    """A repository whose connections run no triggers, which foreign keys are."""
    with PostgresSessionRepository(make_conninfo(dsn, options="-c session_replication_role=replica")) as repository:
        yield repository


CHILDREN = [
    "strands_agents",
    "strands_messages",
    "strands_message_variants",
    "strands_checkpoints",
    "strands_multi_agents",
]


def test_deleted_session_leaves_nothing_without_foreign_keys(
    replica: PostgresSessionRepository, connection: Connection
) -> None:
    transfers.fill(replica, "s")
    transfers.fill(replica, "other")
    others = {table: one(connection, f"SELECT count(*) FROM {table}") // 2 for table in CHILDREN}

    replica.delete_session("s")

    assert {table: one(connection, f"SELECT count(*) FROM {table}") for table in CHILDREN} == others
    replica.create_session(Session("s", SessionType.AGENT))
    replica.create_agent("s", SessionAgent("a", {}, {}))
    assert replica.list_messages("s", "a") == []


def test_deleted_agent_leaves_nothing_without_foreign_keys(
    replica: PostgresSessionRepository, connection: Connection
) -> None:
    transfers.fill(replica, "s")

    replica.delete_agent("s", "a")

    for table in CHILDREN[:-1]:
        assert one(connection, f"SELECT count(*) FROM {table} WHERE agent_id = 'a'") == 0
    assert len(replica.list_messages("s", "ö")) == len(transfers.ODD)


def test_purged_session_leaves_nothing_without_foreign_keys(
    replica: PostgresSessionRepository, connection: Connection
) -> None:
    transfers.fill(replica, "s")
    connection.execute("UPDATE strands_sessions SET updated_at = now() - interval '2 days'")

    assert replica.purge_sessions(idle_for=timedelta(days=1)).sessions == 1

    assert {table: one(connection, f"SELECT count(*) FROM {table}") for table in CHILDREN} == dict.fromkeys(CHILDREN, 0)


def test_times_and_durations_do_not_depend_on_how_floats_are_shown(
    dsn: str, repository: PostgresSessionRepository, connection: Connection
) -> None:
    build(repository)("hello")
    connection.execute(
        """UPDATE strands_messages SET message = message || '{"metadata": {"metrics": {"latencyMs": 123456}}}'"""
    )
    exact = read_statistics(repository)

    with PostgresSessionRepository(make_conninfo(dsn, options="-c extra_float_digits=-15")) as rounding:
        statistics = read_statistics(rounding)
        with rounding.lease("s"), pytest.raises(Exception, match="held by another writer"):
            rounding.lease("s", wait=0).__enter__()

    assert abs(statistics.read_at - datetime.now(timezone.utc)) < timedelta(minutes=5)
    assert statistics.model_latency == exact.model_latency
    assert exact.model_latency is not None
    assert exact.model_latency.median == pytest.approx(123.456)
    assert statistics.longest == exact.longest


# What a server refuses, and how: its settings, and a statement.
REFUSALS = {
    "25P04": ("transaction_timeout=50", "SELECT pg_sleep(60)", "transaction_timeout is too short"),
    "53400": (
        "temp_file_limit=64 -c work_mem=64",
        "SELECT count(*) FROM (SELECT n FROM generate_series(1, 1000000) AS n ORDER BY n DESC) AS t",
        "raise that limit",
    ),
    "55000": ("work_mem=64", "SELECT lastval()", "ask your DBA"),
}


@pytest.mark.parametrize("sqlstate", REFUSALS)
def test_refusal_of_the_server_has_advice(dsn: str, connection: Connection, sqlstate: str) -> None:
    setting, statement, advice = REFUSALS[sqlstate]
    if sqlstate == "25P04" and connection.info.server_version < 170000:
        pytest.skip("PostgreSQL has transaction_timeout since 17")

    with (
        PostgresSessionRepository(make_conninfo(dsn, options=f"-c {setting}"), retry_timeout=60) as repository,
        pytest.raises(DatabaseError, match=f"SQLSTATE {sqlstate}.*{advice}"),
    ):
        repository._database.fetch("testing", statement.encode(), {})


@needs_storage
def test_reason_for_which_the_server_ends_the_connection_of_a_large_write_is_told(
    dsn: str, repository: PostgresSessionRepository, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    if connection.info.server_version < 170000:
        pytest.skip("PostgreSQL has transaction_timeout since 17")
    asyncio.run(PostgresStorage(repository).write("key", b"small"))
    options = "-c transaction_timeout=200"

    with (
        PostgresSessionRepository(make_conninfo(dsn, options=options), retry_timeout=60) as impatient,
        psycopg.connect(dsn) as locking,
    ):
        locking.execute("SELECT FROM strands_storage FOR UPDATE")
        with pytest.raises(PostgresStorageError) as failed:
            asyncio.run(PostgresStorage(impatient).write("key", bytes(100_000)))

    assert isinstance(failed.value.__cause__, DatabaseError)
    assert "transaction_timeout is too short" in str(failed.value)
    assert [record for record in caplog.records if record.name == "psycopg"] == []


def test_full_disk_of_the_server_has_advice() -> None:
    error = database._translate("storing", "could not extend file", psycopg.errors.DiskFull())

    assert str(error) == "storing: could not extend file; free some space on the server's disk"


LOCALES = {
    "none": "LOCALE 'C'",
    "libc": "LOCALE 'C.UTF-8'",
    "english": "LOCALE 'en_US.UTF-8'",
    "builtin": "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'",
    "unicode": "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST' LOCALE 'C'",
    "icu": "LOCALE_PROVIDER icu ICU_LOCALE 'und' LOCALE 'C'",
    "turkish": "LOCALE_PROVIDER icu ICU_LOCALE 'tr' LOCALE 'C'",
}


@pytest.fixture(params=LOCALES)
def localised_dsn(request: pytest.FixtureRequest, server: str, worker_id: str) -> Iterator[str]:
    """A database whose parser of words knows letters and digits as its locale does."""
    name = f"{request.param}_{worker_id}"
    with psycopg.connect(server, autocommit=True) as connection:
        try:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {LOCALES[request.param]}".encode())
        except psycopg.Error as error:
            pytest.skip(f"the server has no such locale: {error.diag.message_primary}")
        yield make_conninfo(server, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@needs_memory
def test_same_words_are_found_on_every_locale(localised_dsn: str) -> None:
    words = ["½", "x²", "①", "ⅷ", "Größe", "İZMIR", "ЖУК", "東京", "١٢٣"]

    async def missing(store: PostgresMemoryStore, storage: PostgresStorage) -> list[str]:
        missing = []
        for word in words:
            await store.add(f"before {word} after")
            await storage.write(word, f"before {word} after".encode())
            memories, values = await store.search(word), await storage.search(word)
            if [each.content for each in memories] != [f"before {word} after"] or len(values) != 1:
                missing.append(word)
        return missing

    with PostgresSessionRepository(localised_dsn) as repository:
        repository.ensure_schema()
        assert asyncio.run(missing(PostgresMemoryStore("notes", repository), PostgresStorage(repository))) == []
