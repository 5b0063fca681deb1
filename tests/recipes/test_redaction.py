"""What a guardrail's redaction erases, and what it cannot.

It rewrites the message wherever it is stored: in the log, in other forms, for every agent of the session. Out of its
reach, and yours to see to:

- The text was stored before the model was called, so others could read it until the guardrail spoke.
- The old version of the row stays in the table's pages until VACUUM, and its bytes until something is written over
  them. VACUUM FULL writes the table anew.
- The write-ahead log holds both versions: pg_wal until its files have been used again, archives, replicas that lag,
  and backups for as long as you keep them.
- Copies: what the model or a tool repeated, summaries, the agent's state, snapshots and offloaded results in a storage,
  forks, exports. ``find_text.sql`` finds those that are in the tables.
- Logs: a server that logs statements logs their parameters too, unless log_parameter_max_length is 0.
"""

import asyncio
import random
from collections.abc import AsyncIterable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from strands.types.streaming import StreamEvent

from strands_psycopg import PostgresSessionRepository, PostgresStorage
from support import programs
from support.agents import GuardedModel, build, save_checkpoint
from support.multi_agents import Team
from support.servers import QuickServer
from support.storage import has_storage
from support.tables import Connection, one, texts
from support.waiting import wait_until

FIND_TEXT = Path(__file__).with_name("find_text.sql")

SECRET = "4111 1111 1111 1111"


def guarded(repository: PostgresSessionRepository, session_id: str = "s") -> None:
    """Take a turn whose prompt is redacted once the model has been called."""
    build(repository, session_id, model=GuardedModel([["no"]], "[redacted]"))(f"my card is {SECRET}")


def found(dsn: str) -> list[str]:
    """Return the places where ``find_text.sql`` finds the text."""
    output = programs.run(
        *("psql", "--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", f"--set=text={SECRET}"),
        *(f"--file={FIND_TEXT}", f"--dbname={dsn}"),
    )
    return output.splitlines()


def in_pages(connection: Connection) -> bool:
    """Return whether the messages' file has the text, in whatever version of a row or in none."""
    connection.execute("CHECKPOINT")
    query = "SELECT position(%s::bytea IN pg_read_binary_file(pg_relation_filepath('strands_messages'))) > 0"
    return bool(one(connection, query, SECRET.encode()))


def in_log(connection: Connection) -> bool:
    """Return whether the write-ahead log has the text."""
    query = "SELECT bool_or(position(%s::bytea IN pg_read_binary_file('pg_wal/' || name)) > 0) FROM pg_ls_waldir()"
    return bool(one(connection, query, SECRET.encode()))


def test_redacted_text_is_in_no_row(
    repository: PostgresSessionRepository, connection: Connection, direct_dsn: str
) -> None:
    guarded(repository)

    assert texts(connection) == ["[redacted]", "no"]
    assert found(direct_dsn) == []


def test_text_is_stored_until_the_guardrail_speaks(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    stored = []

    class Model(GuardedModel):
        async def stream(self, *arguments: Any, **kwargs: Any) -> AsyncIterable[StreamEvent]:
            stored.extend(texts(connection))
            async for event in super().stream(*arguments, **kwargs):
                yield event

    build(repository, model=Model([["no"]], "[redacted]"))(f"my card is {SECRET}")

    assert stored == [f"my card is {SECRET}"]


@pytest.mark.new_pages
def test_old_version_stays_in_the_pages_until_vacuum_and_in_the_write_ahead_log_for_longer(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    guarded(repository)

    assert in_pages(connection)
    connection.execute("VACUUM FULL strands_messages")
    assert not in_pages(connection)
    assert in_log(connection)


def test_copies_are_found_wherever_they_are(repository: PostgresSessionRepository, direct_dsn: str) -> None:
    guarded(repository, "guarded")
    build(repository, "repeated", [[f"You said {SECRET}."]])("What did I say?")
    noted = build(repository, "noted", agent_id="a")
    noted.state.set("card", SECRET)
    noted("hello")
    repository.create_multi_agent("noted", Team("m", {"task": f"pay with {SECRET}"}))
    edited = build(repository, "edited", agent_id="a")
    edited("hello")
    edited.messages[0]["content"] = [{"text": f"hello {SECRET}"}]
    edited.state.set("card", SECRET)
    snapshot_id = save_checkpoint(edited)
    expected = ["agent|edited|a", "agent|noted|a", f"checkpoint|edited|a {snapshot_id}", "message|repeated|default 1"]
    expected += ["multi-agent|noted|m"]
    if has_storage:
        storage = PostgresStorage(repository)
        asyncio.run(storage.write("small", SECRET.encode()))
        asyncio.run(storage.write("large", random.Random(1).randbytes(100_000) + SECRET.encode() + bytes(100_000)))
        asyncio.run(storage.write("other", b"4111"))
        kept = repository.storage("edited")
        asyncio.run(kept.write("small", SECRET.encode()))
        asyncio.run(kept.write("large", random.Random(1).randbytes(100_000) + SECRET.encode() + bytes(100_000)))
        asyncio.run(kept.write("other", b"4111"))
        expected += ["session value|edited|large", "session value|edited|small", "value||large", "value||small"]
    expected += ["variant|edited|a 1"]

    assert found(direct_dsn) == expected


def test_server_that_logs_statements_logs_the_text_unless_told_otherwise() -> None:
    with QuickServer() as server:
        log = server.path / "data" / "server.log"
        with psycopg.connect(server.dsn, autocommit=True) as owner, PostgresSessionRepository(server.dsn) as repository:
            repository.ensure_schema()
            for setting in ("log_min_duration_statement", "log_parameter_max_length"):
                owner.execute(f"ALTER SYSTEM SET {setting} = 0".encode())
            owner.execute("SELECT pg_reload_conf()")
            wait_until(lambda: one(owner, "SHOW log_parameter_max_length") == "0")
        # On new connections, as older ones may not have heard of it yet.
        with psycopg.connect(server.dsn, autocommit=True) as owner, PostgresSessionRepository(server.dsn) as repository:
            guarded(repository, "quiet")
            assert "INSERT INTO" in log.read_text()
            assert SECRET not in log.read_text()
            owner.execute("ALTER SYSTEM RESET log_parameter_max_length")
            owner.execute("SELECT pg_reload_conf()")
            wait_until(lambda: one(owner, "SHOW log_parameter_max_length") == "-1")
        with PostgresSessionRepository(server.dsn) as repository:
            guarded(repository, "loud")
            assert SECRET in log.read_text()
