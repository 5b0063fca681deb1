"""Encrypted sessions: nothing is readable without both databases, rows cannot be exchanged, keys rotate and end."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from strands.types.session import Session, SessionType

from recipes.encryption import EncryptingCodec, SessionKeys
from strands_psycopg import PayloadCodecError, PostgresSessionRepository, PostgresStorageError
from strands_psycopg.transfer import export_session, import_session
from support.agents import build, dump, save_checkpoint
from support.databases import Databases
from support.storage import needs_storage
from support.tables import Connection, one
from support.transfers import ODD, fill, restored

SECRET = "4111 1111 1111 1111"

MASTERS = {"2029": b"a" * 32, "2030": b"b" * 32}


@pytest.fixture
def pool(databases: Databases, reached: Callable[[str], str]) -> Iterator[ConnectionPool[Any]]:
    """The pool of the keys' database."""
    with databases.create("keys_under_test") as dsn:
        options = {"prepare_threshold": None}
        with ConnectionPool(reached(dsn), min_size=0, max_size=4, kwargs=options, open=True) as pool:
            yield pool


@pytest.fixture
def keys(pool: ConnectionPool[Any]) -> SessionKeys:
    keys = SessionKeys(pool, {"2029": MASTERS["2029"]}, current="2029")
    keys.create_table()
    return keys


@pytest.fixture
def encrypted(dsn: str, pool_options: dict[str, Any], keys: SessionKeys) -> Iterator[PostgresSessionRepository]:
    with PostgresSessionRepository(dsn, payload_codec=EncryptingCodec(keys), **pool_options) as repository:
        yield repository


def another_process(
    dsn: str, pool: ConnectionPool[Any], masters: dict[str, bytes], **options: Any
) -> PostgresSessionRepository:
    """Return a repository that remembers no key."""
    codec = EncryptingCodec(SessionKeys(pool, masters, current=list(masters)[-1]), **options)
    return PostgresSessionRepository(dsn, payload_codec=codec, kwargs={"prepare_threshold": None})


def test_encrypted_session_comes_back(
    encrypted: PostgresSessionRepository, connection: Connection, dsn: str, pool: ConnectionPool[Any]
) -> None:
    agent = build(encrypted, replies=[[SECRET]], state={"odd": ODD[0], "bytes": None})
    agent(SECRET)
    save_checkpoint(agent)
    envelope = one(connection, "SELECT message FROM strands_messages WHERE message_id = 0")
    assert envelope.keys() == {"key", "nonce", "data"}
    for table in ("agents", "messages", "checkpoints"):
        assert SECRET not in one(connection, f"SELECT string_agg(t::text, '') FROM strands_{table} AS t")
    with another_process(dsn, pool, {"2029": MASTERS["2029"]}) as repository:
        assert dump(build(repository)) == dump(agent)


def is_value(line: str) -> bool:
    return line.startswith('{"kind": "value"')


def stored(line: str) -> str:
    data: str = json.loads(line)["data"]
    return data


def test_every_document_comes_back_exactly(
    encrypted: PostgresSessionRepository, repository: PostgresSessionRepository
) -> None:
    fill(repository)
    lines = list(export_session(repository, "s"))
    import_session(encrypted, lines, session_id="t")
    exported = list(export_session(encrypted, "t"))
    assert [line for line in exported if not is_value(line)][1:] == [line for line in lines if not is_value(line)][1:]
    # Of values, the keys contain the session's id, and the words are not stored.
    assert list(map(stored, filter(is_value, exported))) == list(map(stored, filter(is_value, lines)))
    encrypted.fork_session("t", "fork")
    repository.delete_session("s")
    import_session(encrypted, lines)
    assert json.loads(restored(encrypted))[1:] == json.loads(restored(encrypted, "t"))[1:]


EXCHANGES = {
    "messages of one agent": """
        UPDATE strands_messages AS m SET message = o.message, message_exact = o.message_exact FROM strands_messages AS o
        WHERE m.session_id = 's' AND o.session_id = 's' AND m.message_id = 2 AND o.message_id = 0
    """,
    "messages of two sessions": """
        UPDATE strands_messages AS m SET message = o.message, message_exact = o.message_exact FROM strands_messages AS o
        WHERE m.session_id = 's' AND o.session_id = 'other' AND m.message_id = 0 AND o.message_id = 0
    """,
    "a message and its redaction": "UPDATE strands_messages SET redact_message = message WHERE message_id = 0",
    "documents of an agent": "UPDATE strands_agents SET state = _internal_state",
    "one bit": """
        UPDATE strands_messages SET message = jsonb_set(message, '{data}', to_jsonb(
            overlay(message->>'data' PLACING CASE WHEN message->>'data' LIKE 'A%' THEN 'B' ELSE 'A' END FROM 1)
        )) WHERE message_id = 0
    """,
    "plain text": """UPDATE strands_messages SET message = '{"role": "user", "content": []}' WHERE message_id = 0""",
}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_rows_cannot_be_exchanged(encrypted: PostgresSessionRepository, connection: Connection, exchange: str) -> None:
    for session_id in ("s", "other"):
        agent = build(encrypted, session_id, replies=[["one"], ["two"]])
        agent("1")
        agent("2")
    connection.execute(EXCHANGES[exchange].encode())
    with pytest.raises(PayloadCodecError, match=r"of agent 'default' in session 's': payload_codec: decode raised"):
        build(encrypted)


def test_master_key_is_rotated(
    encrypted: PostgresSessionRepository, dsn: str, pool: ConnectionPool[Any], connection: Connection
) -> None:
    agent = build(encrypted, replies=[["one"]])
    agent("1")
    before = one(connection, "SELECT string_agg(message::text, ' ' ORDER BY message_id) FROM strands_messages")
    SessionKeys(pool, MASTERS, current="2030").rewrap()
    assert one(connection, "SELECT string_agg(message::text, ' ' ORDER BY message_id) FROM strands_messages") == before
    with another_process(dsn, pool, {"2030": MASTERS["2030"]}) as repository:
        assert dump(build(repository)) == dump(agent)


def test_key_of_a_session_is_rotated(
    encrypted: PostgresSessionRepository, keys: SessionKeys, dsn: str, pool: ConnectionPool[Any], connection: Connection
) -> None:
    agent = build(encrypted, replies=[["one"], ["two"]])
    agent("1")
    keys.rotate("s")
    agent("2")
    used = connection.execute("SELECT DISTINCT message->>'key' FROM strands_messages GROUP BY 1").fetchall()
    assert len(used) == 2
    with another_process(dsn, pool, {"2029": MASTERS["2029"]}) as repository:
        assert dump(build(repository)) == dump(agent)


def test_session_whose_key_is_destroyed_is_unreadable_and_so_are_its_backups(
    encrypted: PostgresSessionRepository, keys: SessionKeys, dsn: str, pool: ConnectionPool[Any], tmp_path: Path
) -> None:
    for session_id in ("s", "other"):
        build(encrypted, session_id)("hello")
    backup = list(export_session(encrypted, "s", raw=True))
    keys.destroy("s")
    with pytest.raises(PayloadCodecError, match="session 's': payload_codec: decode raised LookupError"):
        build(encrypted)
    build(encrypted, "other")
    encrypted.delete_session("s")
    import_session(encrypted, backup)
    with another_process(dsn, pool, MASTERS) as repository, pytest.raises(PayloadCodecError):
        list(export_session(repository, "s"))


def test_plain_documents_are_read_if_that_is_wanted(
    repository: PostgresSessionRepository, dsn: str, pool: ConnectionPool[Any], keys: SessionKeys
) -> None:
    agent = build(repository, replies=[["one"]])
    agent("1")
    with another_process(dsn, pool, MASTERS) as strict, pytest.raises(PayloadCodecError):
        build(strict)
    with another_process(dsn, pool, MASTERS, reads_plain=True) as lenient:
        again = build(lenient, replies=[["two"]])
        assert dump(again) == dump(agent)
        again("2")
        assert dump(build(lenient)) == dump(again)


@needs_storage
def test_storage_is_encrypted(
    encrypted: PostgresSessionRepository, connection: psycopg.Connection[Any], keys: SessionKeys
) -> None:
    encrypted.create_session(Session("s", SessionType.AGENT))

    async def use() -> None:
        storage = encrypted.storage("s")
        await storage.write("key", SECRET.encode())
        assert await storage.read("key") == SECRET.encode()
        assert await storage.search("1111") == []
        assert SECRET.encode() not in one(connection, "SELECT data FROM strands_session_storage")
        connection.execute("UPDATE strands_session_storage SET key = 'another'")
        with pytest.raises(PostgresStorageError, match="decode raised InvalidTag"):
            await storage.read("another")

    asyncio.run(use())
