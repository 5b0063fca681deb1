"""Deletion of idle sessions, concurrently with running agents and other purges.

A batch is one transaction. It deletes the messages first, which takes most of the time and blocks no other writer, and
then acquires the locks that writers to its sessions need. If one of the sessions is in use by then, the transaction is
rolled back and the batch is retried in halves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from datetime import timedelta
from hashlib import sha256
from operator import add
from typing import NamedTuple
from uuid import uuid4

from psycopg import Cursor, errors
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.arguments import check_count, check_duration
from strands_psycopg.batches import batches
from strands_psycopg.database import Database
from strands_psycopg.repository.annotations import Metadata, check_owner, encode_metadata
from strands_psycopg.repository.fragments import compose

_MAX_BATCH_SIZE = 10_000

# Per transaction; a session with more messages is a batch of its own.
MAX_BATCH_MESSAGES = 20_000

# In seconds, for one transaction. One session may have a million messages.
_RESPONSE_TIMEOUT = 600.0

# In seconds: a session's last activity may be up to this much later than its updated_at.
_ACTIVITY_RESOLUTION = 60.0

# Set explicitly, since the server or the pool may have another default: each statement must see what was committed
# while an earlier one waited.
_READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"

# One purge at a time, since two of them could lock the same rows in different orders.
_LOCK_PURGES = "SELECT pg_catalog.pg_advisory_xact_lock(%(lock_key)s)"

# A suspended process must not keep the locks that agents and other purges wait for.
_IDLE_TIMEOUT = "SET LOCAL idle_in_transaction_session_timeout = '1s'"

# Nor may a purge keep them while it waits for another lock.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '100ms'"

_IDLE = "updated_at < pg_catalog.now() - pg_catalog.make_interval(secs => %(idle)s)"

# The sessions to delete.
_SELECTED = f"""
    {_IDLE} AND (%(owner)s::text IS NULL OR owner = %(owner)s::text)
        AND (%(metadata)s::jsonb IS NULL OR metadata @> %(metadata)s::jsonb)
"""

_LIST_IDLE = f"""
    SELECT s.session_id, {{updated_at_text}}, {{counts_of_s}}
    FROM {{sessions}} AS s
    WHERE (s.updated_at, s.session_id) > (%(after)s::timestamptz, %(after_id)s) AND {_SELECTED}
        AND NOT EXISTS (
            SELECT true FROM {{leases}} AS l WHERE l.session_id = s.session_id AND l.expires_at > pg_catalog.now()
        )
    ORDER BY s.updated_at, s.session_id LIMIT %(limit)s
"""

# Another purge may have deleted some of them while this one waited for its lock.
_STILL_IDLE = f"SELECT session_id FROM {{sessions}} WHERE session_id = ANY(%(session_ids)s) AND {_SELECTED}"

_DELETE_MESSAGES = "DELETE FROM {messages} WHERE session_id = ANY(%(session_ids)s)"

# Writing a value meanwhile makes the session active, as writing a message does, so that the purge is rolled back.
_DELETE_VALUES = "DELETE FROM {session_storage} WHERE session_id = ANY(%(session_ids)s)"
_DELETE_CHUNKS = "DELETE FROM {session_chunks} WHERE session_id = ANY(%(session_ids)s)"

# Agents are locked before sessions, the order in which writers lock both. A writer that appends a message locks the
# session first, but then only the agent's key, for the foreign key, which an UPDATE of other columns does not block.
_LOCK_AGENTS = "UPDATE {agents} SET updated_at = updated_at WHERE session_id = ANY(%(session_ids)s)"
_LOCK_MULTI_AGENTS = "UPDATE {multi_agents} SET updated_at = updated_at WHERE session_id = ANY(%(session_ids)s)"

# A process that wants a lease on one of the sessions waits until the purge has ended. Expired leases are taken over.
_ACQUIRE_LEASES = """
    INSERT INTO {leases} AS l (session_id, term, acquired_at, expires_at)
    SELECT held.session_id, %(term)s::uuid, pg_catalog.now(), pg_catalog.now()
    FROM pg_catalog.unnest(%(session_ids)s::text[]) AS held (session_id)
    ORDER BY held.session_id
    ON CONFLICT (session_id) DO UPDATE
    SET term = EXCLUDED.term, acquired_at = EXCLUDED.acquired_at, expires_at = EXCLUDED.expires_at
    WHERE EXCLUDED.acquired_at > l.expires_at
    RETURNING l.session_id
"""  # a distributed database counts the rows that were selected, so those that are returned are counted

_DELETE_SESSIONS = f"DELETE FROM {{sessions}} WHERE session_id = ANY(%(session_ids)s) AND {_SELECTED}"

# Foreign keys cascade, but not with session_replication_role = replica.
_DELETE_CHILDREN = """
    WITH m AS (DELETE FROM {messages} WHERE session_id = ANY(%(session_ids)s)),
        v AS (DELETE FROM {message_variants} WHERE session_id = ANY(%(session_ids)s)),
        c AS (DELETE FROM {checkpoints} WHERE session_id = ANY(%(session_ids)s)),
        s AS (DELETE FROM {session_storage} WHERE session_id = ANY(%(session_ids)s)),
        k AS (DELETE FROM {session_chunks} WHERE session_id = ANY(%(session_ids)s)),
        a AS (DELETE FROM {agents} WHERE session_id = ANY(%(session_ids)s))
    DELETE FROM {multi_agents} WHERE session_id = ANY(%(session_ids)s)
"""

_DELETE_LEASES = "DELETE FROM {leases} WHERE session_id = ANY(%(session_ids)s) AND term = %(term)s"

# Leases of holders that died. One that expired recently may still be renewed, if its holder was only suspended.
_EXPIRED = "expires_at < pg_catalog.now() - interval '1 day'"

_DELETE_EXPIRED_LEASES = f"""
    DELETE FROM {{leases}} WHERE {_EXPIRED} AND session_id IN (
        SELECT session_id FROM {{leases}} WHERE {_EXPIRED} LIMIT %(limit)s
    )
    RETURNING true
"""


@dataclass(frozen=True)
class PurgeResult:
    """The numbers of rows that a purge deleted, or would delete.

    Attributes:
        sessions: The number of sessions.
        agents: The number of their agents.
        messages: The number of their messages.
        multi_agents: The number of their graphs and swarms.
    """

    sessions: int = 0
    agents: int = 0
    messages: int = 0
    multi_agents: int = 0

    def __add__(self, other: "PurgeResult") -> "PurgeResult":
        return PurgeResult(*map(add, astuple(self), astuple(other)))


class _IdleSession(NamedTuple):
    """An idle session with its counts."""

    session_id: str
    updated_at: str
    agents: int
    messages: int
    multi_agents: int


class _SessionInUseError(Exception):
    """A session of the batch is locked, leased or no longer idle."""


class Retention:
    """Deletes idle sessions of one database, schema and prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database
        name = f"purge {database.schema}.{database.table_prefix}"
        self._lock_key = Int8(int.from_bytes(sha256(name.encode()).digest()[:8], "big", signed=True))
        self._list_idle = compose(database, _LIST_IDLE)
        self._still_idle = compose(database, _STILL_IDLE)
        self._delete_values = compose(database, _DELETE_VALUES)
        self._delete_chunks = compose(database, _DELETE_CHUNKS)
        self._delete_expired_leases = compose(database, _DELETE_EXPIRED_LEASES)
        self._delete_messages = compose(database, _DELETE_MESSAGES)
        self._lock_agents = compose(database, _LOCK_AGENTS)
        self._lock_multi_agents = compose(database, _LOCK_MULTI_AGENTS)
        self._acquire_leases = compose(database, _ACQUIRE_LEASES)
        self._delete_sessions = compose(database, _DELETE_SESSIONS)
        self._delete_children = compose(database, _DELETE_CHILDREN)
        self._delete_leases = compose(database, _DELETE_LEASES)

    def purge(
        self,
        *,
        idle_for: timedelta | float,
        owner: str | None = None,
        metadata: Metadata | None = None,
        batch_size: int,
        dry_run: bool,
    ) -> Iterator[PurgeResult]:
        """Delete idle sessions in batches, the longest idle first, and yield the counts of each batch.

        After them it deletes the leases that expired more than a day ago.

        Args:
            idle_for: The time since the last activity, as a timedelta or in seconds.
            owner: Only sessions of this owner.
            metadata: Only sessions whose metadata contains this.
            batch_size: The maximum number of sessions per transaction.
            dry_run: Only count the sessions that would be deleted.

        Raises:
            ValueError: An argument is out of range.
        """
        selection: dict[str, object] = {
            "idle": check_duration("idle_for", idle_for) + _ACTIVITY_RESOLUTION,
            "owner": check_owner(owner),
            "metadata": encode_metadata(metadata)[0],
        }
        check_count("batch_size", batch_size, _MAX_BATCH_SIZE)
        return self._purge(selection, batch_size, dry_run)

    def _purge(self, selection: dict[str, object], batch_size: int, dry_run: bool) -> Iterator[PurgeResult]:
        # Each list starts after the previous one, which skips sessions in use and dead index entries of deleted ones.
        position = {"after": "-infinity", "after_id": ""}
        while True:
            parameters = {**position, **selection, "limit": Int8(batch_size)}
            rows = self._database.fetch("listing idle sessions", self._list_idle, parameters).rows
            idle_sessions = [_IdleSession(*row) for row in rows]
            for batch in batches(idle_sessions, MAX_BATCH_MESSAGES, lambda each: each.messages):
                if dry_run:
                    yield sum(
                        (PurgeResult(1, each.agents, each.messages, each.multi_agents) for each in batch), PurgeResult()
                    )
                else:
                    yield self._delete([each.session_id for each in batch], selection)
            if len(idle_sessions) < batch_size:
                break
            position = {"after": idle_sessions[-1].updated_at, "after_id": idle_sessions[-1].session_id}
        while not dry_run:
            parameters = {"limit": Int8(_MAX_BATCH_SIZE)}
            deleted = self._database.fetch("purging expired leases", self._delete_expired_leases, parameters).rows
            if len(deleted) < _MAX_BATCH_SIZE:
                break

    def _delete(self, session_ids: Sequence[str], selection: dict[str, object]) -> PurgeResult:
        """Delete those of the sessions that are not in use."""

        def work(cursor: Cursor[TupleRow]) -> PurgeResult:
            return self._delete_within(cursor, session_ids, selection)

        operation = f"purging {len(session_ids)} sessions"
        try:
            return self._database.transact(operation, work, response_timeout=_RESPONSE_TIMEOUT)
        except _SessionInUseError:
            if len(session_ids) == 1:
                return PurgeResult()
            half = len(session_ids) // 2
            return self._delete(session_ids[:half], selection) + self._delete(session_ids[half:], selection)

    def begin(self, cursor: Cursor[TupleRow]) -> None:
        """Begin a transaction that deletes sessions: one at a time, and waiting for no other lock for long."""
        cursor.execute(_READ_COMMITTED)
        cursor.execute(_IDLE_TIMEOUT)
        cursor.execute(_LOCK_PURGES, {"lock_key": self._lock_key})
        cursor.execute(_LOCK_TIMEOUT)

    def _delete_within(
        self, cursor: Cursor[TupleRow], session_ids: Sequence[str], selection: dict[str, object]
    ) -> PurgeResult:
        self.begin(cursor)
        batch = {**selection, "session_ids": list(session_ids), "term": uuid4()}
        batch["session_ids"] = still_idle = [each for (each,) in cursor.execute(self._still_idle, batch)]
        if not still_idle:
            return PurgeResult()
        try:
            messages = cursor.execute(self._delete_messages, batch).rowcount
            cursor.execute(self._delete_values, batch)
            cursor.execute(self._delete_chunks, batch)
            agents = cursor.execute(self._lock_agents, batch).rowcount
            multi_agents = cursor.execute(self._lock_multi_agents, batch).rowcount
            leases = cursor.execute(self._acquire_leases, batch).fetchall()
            if len(leases) < len(still_idle):
                raise _SessionInUseError
            sessions = cursor.execute(self._delete_sessions, batch).rowcount
        except errors.LockNotAvailable:
            raise _SessionInUseError from None
        if sessions < len(still_idle):
            raise _SessionInUseError
        cursor.execute(self._delete_children, batch)
        cursor.execute(self._delete_leases, batch)
        return PurgeResult(sessions, agents, messages, multi_agents)
