"""Deletion of everything that belongs to an owner, concurrently with running agents.

It deletes what was stored before it started, part by part and batch by batch, each batch in a transaction of its own.
So it ends even if more is being stored, and can be interrupted at any time and started again. A batch waits for no lock
for long: if a statement of a running agent holds one, the transaction is retried. Leases do not stop it; their holders'
next write finds that the session is gone.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from functools import partial
from operator import add, itemgetter
from typing import NamedTuple, Protocol, TypeVar
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.arguments import check_id
from strands_psycopg.batches import batches
from strands_psycopg.database import Database
from strands_psycopg.errors import suppressed_error
from strands_psycopg.memory.vectors import find_vectors
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.retention import MAX_BATCH_MESSAGES, Retention
from strands_psycopg.storage.chunk_store import ChunkStore
from strands_psycopg.storage.scope import Scope

_T = TypeVar("_T")

_SESSIONS_PER_BATCH = 20
_ROWS_PER_BATCH = 1_000

# In seconds, for one transaction. One session may have a million messages.
_RESPONSE_TIMEOUT = 600.0

_OPERATION = "erasing an owner's data"

_READ_TIME = "SELECT pg_catalog.clock_timestamp()"

# Whether a row was stored before the erasure started; one with a time in the future was imported.
_NOT_NEW = "({time} <= %(started_at)s OR {time} > pg_catalog.clock_timestamp())"

_LIST_SESSIONS = """
    SELECT s.session_id, {counts_of_s}
    FROM {sessions} AS s WHERE s.owner = %(owner)s AND {not_new}
    ORDER BY s.updated_at, s.session_id LIMIT %(limit)s
""".replace("{not_new}", _NOT_NEW.replace("{time}", "s.created_at"))

_STILL_OWNED = "SELECT session_id FROM {sessions} WHERE session_id = ANY(%(session_ids)s) AND owner = %(owner)s"

# In the order in which their rows are deleted: texts first, which takes most of the time and blocks few writers.
_SESSION_TABLES = (
    "messages",
    "message_variants",
    "checkpoints",
    "session_storage",
    "session_chunks",
    "leases",
    "multi_agents",
)

_DELETE_OF_SESSIONS = "DELETE FROM {table} WHERE session_id = ANY(%(session_ids)s)"

# See ``retention``.
_LOCK_AGENTS = "UPDATE {agents} SET updated_at = updated_at WHERE session_id = ANY(%(session_ids)s)"

_DELETE_SESSIONS = "DELETE FROM {sessions} WHERE session_id = ANY(%(session_ids)s) AND owner = %(owner)s"

_COUNT_OF_SESSIONS = """
    SELECT pg_catalog.count(*) FROM {table}
    WHERE session_id IN (SELECT session_id FROM {sessions} WHERE owner = %(owner)s)
"""

# The range of an owner's scopes in the order of bytes, in which 0 follows the slash. It includes the scopes of owners
# whose names begin with this one and //, which the condition below it leaves out.
_IN_SCOPES = "scope >= %(owner)s::text || '//' AND scope < %(owner)s::text || '/0'"

_OF_OWNERS_SCOPE = f"""
    {_IN_SCOPES}
    AND pg_catalog.strpos(pg_catalog.substr(scope, pg_catalog.length(%(owner)s::text) + 3), '//') = 0
    AND pg_catalog.substr(scope, pg_catalog.length(%(owner)s::text) + 3, 1) <> '/'
"""

_LIST_SCOPES = f"SELECT DISTINCT scope FROM {{chunks}} WHERE {_OF_OWNERS_SCOPE}"

_COUNT_CHUNKS = f"SELECT pg_catalog.count(*) FROM {{chunks}} WHERE {_OF_OWNERS_SCOPE}"

# A chunk that a value uses is not deleted: the writer of a value keeps its chunks locked until the value is stored.
_UNUSED = """
    NOT EXISTS (
        SELECT true FROM {storage} AS v WHERE v.scope = %(scope)s AND c.chunk_id = ANY(v.chunk_ids)
    )
"""

_LOCK_CHUNKS = f"""
    SELECT c.chunk_id FROM {{chunks}} AS c WHERE c.scope = %(scope)s AND c.chunk_id > %(after)s AND {_UNUSED}
    ORDER BY c.chunk_id LIMIT %(limit)s FOR UPDATE
"""

# A statement of its own, since it must see what was committed while the other one waited.
_DELETE_CHUNKS = f"""
    DELETE FROM {{chunks}} AS c WHERE c.scope = %(scope)s AND c.chunk_id = ANY(%(chunk_ids)s) AND {_UNUSED}
"""


class _Table(NamedTuple):
    """A table whose rows have an owner.

    Attributes:
        name: Its name, which is also that of its count in ``ErasureResult``.
        key: Its primary key.
        condition: Which rows are the owner's, by its index.
        returning: What their deletion returns.
    """

    name: str
    key: str
    condition: str
    returning: str

    def fill_in(self, template: str) -> str:
        """Return a statement for this table."""
        return (
            _for_table(template, self.name)
            .replace("{key}", self.key)
            .replace("{condition}", self.condition)
            .replace("{returning}", self.returning)
        )


_STORAGE = _Table("storage", "scope, key", f"owner = %(owner)s AND {_IN_SCOPES}", "scope, chunk_ids")
_MEMORIES = _Table("memories", "owner, store, memory_id", "owner = %(owner)s", "true")

_DELETE_ROWS = """
    DELETE FROM {table} WHERE {condition} AND ({key}) IN (
        SELECT {key} FROM {table} WHERE {condition} AND {not_new} LIMIT %(limit)s
    )
    RETURNING {returning}
""".replace("{not_new}", _NOT_NEW.replace("{time}", "updated_at"))

_ARE_LEFT = """
    SELECT EXISTS (SELECT true FROM {table} WHERE {condition} AND {not_new})
""".replace("{not_new}", _NOT_NEW.replace("{time}", "updated_at"))

# Foreign keys cascade, but not with session_replication_role = replica.
_DELETE_VECTORS = """
    DELETE FROM {memory_vectors} AS v WHERE v.owner = %(owner)s AND NOT EXISTS (
        SELECT true FROM {memories} AS m
        WHERE m.owner = %(owner)s AND m.store = v.store AND m.memory_id = v.memory_id
    )
"""

_COUNT_ROWS = "SELECT pg_catalog.count(*) FROM {table} WHERE {condition}"


@dataclass(frozen=True)
class ErasureResult:
    """The numbers of rows that an erasure deleted, or would delete, by table.

    Attributes:
        sessions: Sessions.
        agents: Their agents.
        messages: Their messages.
        message_variants: Other forms of their messages, such as summaries.
        checkpoints: Their checkpoints.
        multi_agents: Their graphs and swarms.
        session_storage: Values of their storages.
        session_chunks: Chunks of those values.
        leases: Leases on them.
        storage: Values of storages with the owner.
        chunks: Chunks of those values.
        memories: Memories of the owner.
    """

    sessions: int = 0
    agents: int = 0
    messages: int = 0
    message_variants: int = 0
    checkpoints: int = 0
    multi_agents: int = 0
    session_storage: int = 0
    session_chunks: int = 0
    leases: int = 0
    storage: int = 0
    chunks: int = 0
    memories: int = 0

    def __add__(self, other: "ErasureResult") -> "ErasureResult":
        return ErasureResult(*map(add, astuple(self), astuple(other)))


class _Part(Protocol):
    """A part of an owner's data."""

    def count(self, owner: str) -> Counter[str]:
        """Return the numbers of its rows, by table."""

    def delete(self, owner: str, started_at: datetime, /) -> Iterator[Counter[str]]:
        """Delete its rows, except those stored since a time, and yield how many of each table, batch by batch."""


class Erasure:
    """Deletes the data of owners in one database, schema and prefix."""

    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._read_time = compose(database, _READ_TIME)
        transactions = _Transactions(database, retention)
        self._parts: Sequence[_Part] = (
            _Sessions(database, transactions),
            _Values(database, transactions, _STORAGE),
            _Memories(database, transactions, _MEMORIES),
            _Chunks(database, transactions),
        )

    def erase(self, owner: str, *, dry_run: bool) -> Iterator[ErasureResult]:
        """Delete everything that an owner has stored so far, and yield the counts of each batch.

        Args:
            owner: The owner.
            dry_run: Only count what would be deleted.

        Raises:
            ValueError: ``owner`` cannot be one.
        """
        check_id("owner", owner)
        return (ErasureResult(**part.count(owner)) for part in self._parts) if dry_run else self._erase(owner)

    def _erase(self, owner: str) -> Iterator[ErasureResult]:
        ((started_at,),) = self._database.fetch("reading the server's time", self._read_time, {}).rows
        for part in self._parts:
            for deleted in part.delete(owner, started_at):
                yield ErasureResult(**deleted)


class _Transactions:
    """Runs transactions that delete rows."""

    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._retention = retention

    def run(self, work: Callable[[Cursor[TupleRow]], _T]) -> _T:
        def begin_and_work(cursor: Cursor[TupleRow]) -> _T:
            self._retention.begin(cursor)
            return work(cursor)

        return self._database.transact(_OPERATION, begin_and_work, response_timeout=_RESPONSE_TIMEOUT)


class _SessionLostError(Exception):
    """A session was given another owner, or was deleted, while its rows were being deleted."""


class _Sessions:
    """Sessions with everything that belongs to them."""

    def __init__(self, database: Database, transactions: _Transactions) -> None:
        self._database = database
        self._transactions = transactions
        self._list = compose(database, _LIST_SESSIONS)
        self._still_owned = compose(database, _STILL_OWNED)
        self._lock_agents = compose(database, _LOCK_AGENTS)
        self._delete_sessions = compose(database, _DELETE_SESSIONS)
        self._delete_agents = compose(database, _for_table(_DELETE_OF_SESSIONS, "agents"))
        self._delete = {name: compose(database, _for_table(_DELETE_OF_SESSIONS, name)) for name in _SESSION_TABLES}
        self._count = {
            name: compose(database, _for_table(_COUNT_OF_SESSIONS, name))
            for name in ("sessions", "agents", *_SESSION_TABLES)
        }

    def count(self, owner: str) -> Counter[str]:
        return Counter({name: _fetch_count(self._database, count, owner) for name, count in self._count.items()})

    def delete(self, owner: str, started_at: datetime) -> Iterator[Counter[str]]:
        parameters = {"owner": owner, "started_at": started_at, "limit": Int8(_SESSIONS_PER_BATCH)}
        while rows := self._database.fetch("listing an owner's sessions", self._list, parameters).rows:
            found = [(session_id, messages) for session_id, _agents, messages, *_ in rows]
            session_ids = [session_id for session_id, _ in next(batches(found, MAX_BATCH_MESSAGES, itemgetter(1)))]
            with suppress(_SessionLostError):
                yield self._transactions.run(partial(self._delete_within, owner, session_ids))

    def _delete_within(self, owner: str, session_ids: Sequence[str], cursor: Cursor[TupleRow]) -> Counter[str]:
        parameters = {"owner": owner, "session_ids": list(session_ids)}
        owned = [session_id for (session_id,) in cursor.execute(self._still_owned, parameters)]
        parameters["session_ids"] = owned
        deleted = Counter({name: cursor.execute(each, parameters).rowcount for name, each in self._delete.items()})
        deleted["agents"] = cursor.execute(self._lock_agents, parameters).rowcount
        deleted["sessions"] = cursor.execute(self._delete_sessions, parameters).rowcount
        if deleted["sessions"] < len(owned):
            if cursor.execute(self._still_owned, parameters).fetchall():
                raise suppressed_error(_OPERATION)
            raise _SessionLostError
        # Foreign keys cascade, but not with session_replication_role = replica.
        cursor.execute(self._delete_agents, parameters)
        return deleted


class _Rows:
    """The owner's rows of one table."""

    def __init__(self, database: Database, transactions: _Transactions, table: _Table) -> None:
        self._database = database
        self._transactions = transactions
        self._name = table.name
        self._delete = compose(database, table.fill_in(_DELETE_ROWS))
        self._are_left = compose(database, table.fill_in(_ARE_LEFT))
        self._count = compose(database, table.fill_in(_COUNT_ROWS))

    def count(self, owner: str) -> Counter[str]:
        return Counter({self._name: _fetch_count(self._database, self._count, owner)})

    def delete(self, owner: str, started_at: datetime) -> Iterator[Counter[str]]:
        parameters = {"owner": owner, "started_at": started_at, "limit": Int8(_ROWS_PER_BATCH)}
        is_stuck = False
        while True:
            deleted = self._transactions.run(partial(self._delete_within, parameters))
            if deleted.total():
                is_stuck = False
                yield deleted
            elif not self._database.fetch(_OPERATION, self._are_left, parameters).rows[0][0]:
                return
            elif is_stuck:
                raise suppressed_error(_OPERATION)
            else:
                # These may have been stored since, by a transaction that began before the erasure.
                is_stuck = True

    def _delete_within(self, parameters: Mapping[str, object], cursor: Cursor[TupleRow]) -> Counter[str]:
        """Delete a batch and return how many rows of each table."""
        return Counter({self._name: cursor.execute(self._delete, parameters).rowcount})


class _Memories(_Rows):
    """Memories with their vectors."""

    def delete(self, owner: str, started_at: datetime) -> Iterator[Counter[str]]:
        yield from super().delete(owner, started_at)
        if find_vectors(self._database) is not None:
            statement = compose(self._database, _DELETE_VECTORS)
            self._transactions.run(lambda cursor: cursor.execute(statement, {"owner": owner}))


class _Values(_Rows):
    """The values of the owner's storages, and the chunks that only they use."""

    def _delete_within(self, parameters: Mapping[str, object], cursor: Cursor[TupleRow]) -> Counter[str]:
        values = cursor.execute(self._delete, parameters).fetchall()
        references: dict[str, Counter[UUID]] = {}
        for scope, chunk_ids in values:
            references.setdefault(scope, Counter()).update(set(chunk_ids or ()))
        chunks = 0
        for scope in sorted(references):
            chunks += ChunkStore(self._database, Scope(scope)).release(references[scope], cursor)
        return Counter(storage=len(values), chunks=chunks)


class _Chunks:
    """Chunks of the owner's storages that no value uses, such as those of values that were deleted with SQL."""

    def __init__(self, database: Database, transactions: _Transactions) -> None:
        self._database = database
        self._transactions = transactions
        self._list_scopes = compose(database, _LIST_SCOPES)
        self._lock = compose(database, _LOCK_CHUNKS)
        self._delete = compose(database, _DELETE_CHUNKS)
        self._count = compose(database, _COUNT_CHUNKS)

    def count(self, owner: str) -> Counter[str]:
        return Counter(chunks=_fetch_count(self._database, self._count, owner))

    def delete(self, owner: str, _: datetime, /) -> Iterator[Counter[str]]:
        for (scope,) in self._database.fetch("listing an owner's storages", self._list_scopes, {"owner": owner}).rows:
            position = UUID(int=0)
            # A chunk before this position that becomes unused is deleted by the write that replaces its value.
            while (batch := self._transactions.run(partial(self._delete_within, scope, position))) is not None:
                count, position = batch
                yield Counter(chunks=count)

    def _delete_within(self, scope: str, after: UUID, cursor: Cursor[TupleRow]) -> tuple[int, UUID] | None:
        """Delete the next unused chunks; return their number and the last one's id, or None if there are no more."""
        parameters = {"scope": scope, "after": after, "limit": Int8(_ROWS_PER_BATCH)}
        chunk_ids = [chunk_id for (chunk_id,) in cursor.execute(self._lock, parameters)]
        if not chunk_ids:
            return None
        return cursor.execute(self._delete, parameters | {"chunk_ids": chunk_ids}).rowcount, chunk_ids[-1]


def _for_table(template: str, name: str) -> str:
    return template.replace("{table}", "{" + name + "}")


def _fetch_count(database: Database, statement: bytes, owner: str) -> int:
    return int(database.fetch("counting an owner's data", statement, {"owner": owner}).rows[0][0])
