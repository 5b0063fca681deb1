"""Every statement runs unchanged where the tables are distributed, as on Citus (see ``support.distributable``)."""

import asyncio
import inspect
import re
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import strands_psycopg
from strands_psycopg import PostgresMemoryStore, PostgresSessionRepository, PostgresStorage
from strands_psycopg.database import Database
from strands_psycopg.memory.stores import list_stores
from strands_psycopg.report import read_statistics
from strands_psycopg.storage.prefixes import list_storages
from strands_psycopg.transfer import export_session, import_session
from support import transfers
from support.distribution import distribute_vectors
from support.memories import DIMENSIONS, embed_trigrams, has_memory, has_pgvector
from support.payloads import ScramblingCodec

pytest.importorskip("pglast", reason="PostgreSQL's parser has no wheel here")

from support.distributable import violations
from support.storage import has_storage

pytestmark = pytest.mark.skipif(not has_storage, reason="needs a newer Strands, since storages have statements too")

SOURCES = Path(strands_psycopg.__file__).parent

# Statements that look at all shards, and why they may.
MAINTENANCE = {
    "Leases._renew": "renews all leases of a process; one by one where that fails",
    "Leases._read_all": "lists all leases",
    "Listing._list": "lists all sessions",
    "Listing._list_prefix": "lists all sessions",
    "Listing._list_of_owner": "lists all sessions of an owner",
    "Listing._list_prefix_of_owner": "lists all sessions of an owner",
    "Retention._list_idle": "lists idle sessions",
    "Retention._still_idle": "purges a batch of sessions",
    "Retention._delete_messages": "purges a batch of sessions",
    "Retention._lock_agents": "purges a batch of sessions",
    "Retention._lock_multi_agents": "purges a batch of sessions",
    "Retention._acquire_leases": "purges a batch of sessions",
    "Retention._delete_sessions": "purges a batch of sessions",
    "Retention._delete_values": "purges a batch of sessions",
    "Retention._delete_chunks": "purges a batch of sessions",
    "Retention._delete_expired_leases": "purges leases of the dead",
    "_Sessions._list": "lists all sessions of an owner, to erase them",
    "_Sessions._still_owned": "erases a batch of sessions",
    "_Sessions._lock_agents": "erases a batch of sessions",
    "_Sessions._delete": "erases a batch of sessions",
    "_Sessions._delete_agents": "erases a batch of sessions",
    "_Sessions._delete_sessions": "erases a batch of sessions",
    "_Sessions._count": "counts what an erasure would delete",
    "_Chunks._list_scopes": "lists all storages of an owner, to erase them",
    "_Chunks._count": "counts what an erasure would delete",
    "_Values._count": "counts what an erasure would delete",
    "_Values._are_left": "looks for what an erasure has not deleted",
    "_Values._delete": "erases the values of all storages of an owner",
    "Retention._delete_children": "purges a batch of sessions",
    "Retention._delete_leases": "purges a batch of sessions",
    "StoredSessions._ids": "lists all sessions, to export them",
    "status.read_status": "counts all rows",
    "statistics.read_statistics": "reads all messages",
    "stores.list_stores": "lists all memory stores",
    "prefixes.list_storages": "lists all storages",
}


class Composed(NamedTuple):
    """A statement, and where it was composed."""

    text: str
    owner: object
    module: str
    function: str

    @property
    def name(self) -> str:
        for attribute, value in vars(self.owner).items() if hasattr(self.owner, "__dict__") else ():
            found = value.values() if isinstance(value, dict) else [value]
            if self.text.encode() in found:
                return f"{type(self.owner).__name__}.{attribute}"
        return f"{self.module.rpartition('.')[2]}.{self.function}"


def composer(frame: FrameType | None) -> FrameType:
    """Return the frame of whoever composes a statement for itself."""
    composing = {"compose", "_compose", "<genexpr>", "<dictcomp>", "<listcomp>"}
    while frame is not None and frame.f_code.co_name in composing:
        frame = frame.f_back
    assert frame is not None
    return frame


@pytest.fixture(scope="module")
def composed() -> list[Composed]:
    """What the first test has collected."""
    return []


@pytest.fixture
def statements(
    monkeypatch: pytest.MonkeyPatch, composed: list[Composed], dsn: str, distributed_dsn: str | None
) -> list[Composed]:
    """All statements of the package."""
    if composed:
        return composed
    original = Database.statement

    def statement(self: Database, template: Any) -> bytes:
        text = original(self, template)
        frame = composer(inspect.currentframe().f_back)  # type: ignore[union-attr]
        owner = frame.f_locals.get("self")
        composed.append(Composed(text.decode(), owner, frame.f_globals["__name__"], frame.f_code.co_name))
        return text

    monkeypatch.setattr(Database, "statement", statement)
    with (
        PostgresSessionRepository(dsn) as plain,
        PostgresSessionRepository(dsn, payload_codec=ScramblingCodec()),
        PostgresStorage(plain, guard_overwrites=True),
    ):
        plain.storage("s")
        plain.storage("s", owner="Alice")
        plain.ensure_schema()
        if has_memory:
            asyncio.run(keep_memories(PostgresMemoryStore("m", plain, owner="o")))
            if has_pgvector(dsn):
                with_vectors = PostgresMemoryStore("m", plain, owner="o", embed=embed_trigrams, dimensions=DIMENSIONS)
                with_vectors.ensure_schema()
                if distributed_dsn is not None:
                    distribute_vectors(dsn)
                asyncio.run(keep_memories(with_vectors))
        plain.status()
        transfers.fill(plain, "s")
        import_session(plain, list(export_session(plain, "s")), session_id="t")
        read_statistics(plain)
        list_stores(plain._database)
        list_storages(plain._database)
    return composed


async def keep_memories(store: PostgresMemoryStore) -> None:
    memory_id = await store.add(f"a fact with {store._dimensions or 'no'} dimensions")
    await store.update(memory_id, metadata={})
    await store.update(memory_id, content=f"a fact with {store._dimensions or 'no'} dimensions, edited")
    await store.search("fact")
    if store._dimensions is not None:
        await store.embed_missing()
    await store.import_lines([line async for line in store.export_lines()])


def is_statement(text: str) -> bool:
    return not re.match(r"\s*(COPY|CREATE) |\s*\S+$", text)


def test_every_statement_is_distributable(statements: list[Composed]) -> None:
    broken: dict[str, set[str]] = {}
    looking_at_all = set()
    # Two classes may have the same statement.
    texts = {each.text for each in statements}
    rules = {text: violations(text) for text in texts if is_statement(text)}
    for each in statements:
        for rule in rules.get(each.text, ()):
            if "by no parameter" in rule and each.name in MAINTENANCE:
                looking_at_all.add(each.name)
            else:
                broken.setdefault(each.name, set()).add(rule)
    assert broken == {}
    assert looking_at_all == set(MAINTENANCE)


def test_no_statement_is_left_out(statements: list[Composed]) -> None:
    composing = {
        path.stem if path.stem != "__init__" else path.parent.name
        for path in SOURCES.rglob("*.py")
        if re.search(r"(?<!def )(?:\bcompose\(|\.statement\()", path.read_text())
    } - {"fragments", "scope", "write_checks"}  # the functions
    composed = {each.module.rpartition(".")[2] for each in statements}
    assert composing - composed == set()
