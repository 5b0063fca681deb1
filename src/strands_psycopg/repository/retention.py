"""Deletion of sessions that have been idle for long.

It goes beside running agents and other purges. A batch is a transaction that removes the messages first, which takes
most of the time and holds up nobody, and then takes what a writer to one of the sessions would have to wait for. If a
session turns out to be in use by then, all of it is undone, and the batch is tried again in halves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import NamedTuple
from uuid import uuid4

from psycopg import Cursor, errors
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.database import Database
from strands_psycopg.repository.fragments import compose

_LARGEST_BATCH = 10_000

# How many messages one transaction deletes, unless they are all of one session.
_MESSAGES_OF_BATCH = 20_000

# In seconds, for one transaction. One session may have a million messages.
_RESPONSE_TIMEOUT = 600.0

# In seconds: by so much a session's last activity may be later than its updated_at says.
_INACCURACY = 60.0

_LONGEST_IDLE = timedelta(days=36_500)

# Of whatever the server's or the pool's default is, what was committed while a statement waited must be seen.
_READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"

# Purges take turns, so that no two of them lock the same rows in different orders.
_TAKE_TURNS = "SELECT pg_advisory_xact_lock(%(turn)s)"

# A process that has been stopped must not go on holding what agents and other purges wait for.
_NEVER_STAND_STILL = "SET LOCAL idle_in_transaction_session_timeout = '1s'"

# Nor may it hold that while it waits itself.
_WAIT_BRIEFLY = "SET LOCAL lock_timeout = '100ms'"

_IDLE = "updated_at < now() - make_interval(secs => %(idle)s)"

_CANDIDATES = f"""
    SELECT s.session_id,
        to_char(s.updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'), {{contents_of_s}}
    FROM {{sessions}} AS s
    WHERE (s.updated_at, s.session_id) > (%(after)s::timestamptz, %(after_id)s) AND s.{_IDLE}
        AND NOT EXISTS (SELECT FROM {{leases}} AS l WHERE l.session_id = s.session_id AND l.expires_at > now())
    ORDER BY s.updated_at, s.session_id LIMIT %(limit)s
"""

# Some may have been deleted by the purge whose turn it was before.
_STILL_IDLE = f"SELECT session_id FROM {{sessions}} WHERE session_id = ANY(%(session_ids)s) AND {_IDLE}"

_DELETE_MESSAGES = "DELETE FROM {messages} WHERE session_id = ANY(%(session_ids)s)"

# Before the sessions, because that is the order in which writers take both. A lock that leaves the keys alone, since a
# writer who adds a message takes the session first, and then looks whether the agent is there.
_LOCK_AGENTS = "UPDATE {agents} SET updated_at = updated_at WHERE session_id = ANY(%(session_ids)s)"
_LOCK_MULTI_AGENTS = "UPDATE {multi_agents} SET updated_at = updated_at WHERE session_id = ANY(%(session_ids)s)"

# Who wants to hold a session that is being purged waits until it is gone. Leases that have expired are taken over.
_TAKE_LEASES = """
    INSERT INTO {leases} AS l (session_id, term, acquired_at, expires_at)
    SELECT held.session_id, %(term)s::uuid, now(), now() FROM unnest(%(session_ids)s::text[]) AS held (session_id)
    ORDER BY held.session_id
    ON CONFLICT (session_id) DO UPDATE
    SET term = EXCLUDED.term, acquired_at = EXCLUDED.acquired_at, expires_at = EXCLUDED.expires_at
    WHERE EXCLUDED.acquired_at > l.expires_at
"""

_DELETE_SESSIONS = f"DELETE FROM {{sessions}} WHERE session_id = ANY(%(session_ids)s) AND {_IDLE}"

_DELETE_LEASES = "DELETE FROM {leases} WHERE session_id = ANY(%(session_ids)s) AND term = %(term)s"


@dataclass(frozen=True)
class PurgeResult:
    """How much was deleted, or would be.

    Attributes:
        sessions: How many sessions.
        agents: How many agents they had.
        messages: How many messages those had.
        multi_agents: How many graphs and swarms the sessions had.
    """

    sessions: int = 0
    agents: int = 0
    messages: int = 0
    multi_agents: int = 0

    def __add__(self, other: "PurgeResult") -> "PurgeResult":
        return PurgeResult(
            self.sessions + other.sessions,
            self.agents + other.agents,
            self.messages + other.messages,
            self.multi_agents + other.multi_agents,
        )


class _Candidate(NamedTuple):
    """An idle session, when it was last active, and how much is in it."""

    session_id: str
    updated_at: str
    agents: int
    messages: int
    multi_agents: int


class _InUseError(Exception):
    """One of the sessions of a batch is being written, or held, after all."""


class Retention:
    """Deletes idle sessions of one database, schema and prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database
        name = f"purge {database.schema}.{database.table_prefix}"
        self._turn = Int8(int.from_bytes(sha256(name.encode()).digest()[:8], "big", signed=True))
        self._candidates = compose(database, _CANDIDATES)
        self._still_idle = compose(database, _STILL_IDLE)
        self._delete_messages = compose(database, _DELETE_MESSAGES)
        self._lock_agents = compose(database, _LOCK_AGENTS)
        self._lock_multi_agents = compose(database, _LOCK_MULTI_AGENTS)
        self._take_leases = compose(database, _TAKE_LEASES)
        self._delete_sessions = compose(database, _DELETE_SESSIONS)
        self._delete_leases = compose(database, _DELETE_LEASES)

    def purge(self, *, idle_for: timedelta | float, batch_size: int, dry_run: bool) -> Iterator[PurgeResult]:
        """Delete sessions batch by batch, those that have been idle for longest first; give each batch's counts.

        Args:
            idle_for: For how long a session must have been idle; in seconds unless it is a timedelta.
            batch_size: How many sessions one transaction deletes at most.
            dry_run: Whether to count only.

        Raises:
            ValueError: ``idle_for`` or ``batch_size`` is out of range.
        """
        idle = _seconds(idle_for)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= _LARGEST_BATCH:
            raise ValueError(f"batch_size must be an integer from 1 to {_LARGEST_BATCH}, not {batch_size!r}")
        return self._purge(idle, batch_size, dry_run)

    def _purge(self, idle: float, batch_size: int, dry_run: bool) -> Iterator[PurgeResult]:
        # Sessions that turned out to be in use are left behind, and so are the index entries of what was deleted.
        position = {"after": "-infinity", "after_id": ""}
        while True:
            parameters = {**position, "idle": idle, "limit": Int8(batch_size)}
            rows = self._database.fetch("looking for idle sessions", self._candidates, parameters).rows
            found = [_Candidate(*row) for row in rows]
            for batch in _batches(found):
                if dry_run:
                    yield sum(
                        (PurgeResult(1, each.agents, each.messages, each.multi_agents) for each in batch), PurgeResult()
                    )
                else:
                    yield self._delete([each.session_id for each in batch], idle)
            if len(found) < batch_size:
                return
            position = {"after": found[-1].updated_at, "after_id": found[-1].session_id}

    def _delete(self, session_ids: Sequence[str], idle: float) -> PurgeResult:
        """Delete those of some sessions that nobody uses."""

        def work(cursor: Cursor[TupleRow]) -> PurgeResult:
            return self._delete_within(cursor, session_ids, idle)

        operation = f"purging {len(session_ids)} sessions"
        try:
            return self._database.transact(operation, work, response_timeout=_RESPONSE_TIMEOUT)
        except _InUseError:
            if len(session_ids) == 1:
                return PurgeResult()
            half = len(session_ids) // 2
            return self._delete(session_ids[:half], idle) + self._delete(session_ids[half:], idle)

    def _delete_within(self, cursor: Cursor[TupleRow], session_ids: Sequence[str], idle: float) -> PurgeResult:
        cursor.execute(_READ_COMMITTED)
        cursor.execute(_NEVER_STAND_STILL)
        cursor.execute(_TAKE_TURNS, {"turn": self._turn})
        cursor.execute(_WAIT_BRIEFLY)
        batch = {"session_ids": list(session_ids), "idle": idle, "term": uuid4()}
        batch["session_ids"] = found = [each for (each,) in cursor.execute(self._still_idle, batch)]
        if not found:
            return PurgeResult()
        try:
            messages = cursor.execute(self._delete_messages, batch).rowcount
            agents = cursor.execute(self._lock_agents, batch).rowcount
            multi_agents = cursor.execute(self._lock_multi_agents, batch).rowcount
            held = cursor.execute(self._take_leases, batch).rowcount
            if held < len(found):
                raise _InUseError
            sessions = cursor.execute(self._delete_sessions, batch).rowcount
        except errors.LockNotAvailable:
            raise _InUseError from None
        if sessions < len(found):
            raise _InUseError
        cursor.execute(self._delete_leases, batch)
        return PurgeResult(sessions, agents, messages, multi_agents)


def _seconds(idle_for: timedelta | float) -> float:
    """Give the age of ``updated_at`` at which a session certainly has been idle for so long."""
    seconds = idle_for.total_seconds() if isinstance(idle_for, timedelta) else float(idle_for)
    if not 0 < seconds <= _LONGEST_IDLE.total_seconds():
        raise ValueError(f"idle_for must be more than 0 seconds and at most {_LONGEST_IDLE.days} days, not {idle_for}")
    return seconds + _INACCURACY


def _batches(found: Sequence[_Candidate]) -> Iterator[list[_Candidate]]:
    """Divide sessions so that none of the parts has too many messages."""
    batch: list[_Candidate] = []
    messages = 0
    for candidate in found:
        if batch and messages + candidate.messages > _MESSAGES_OF_BATCH:
            yield batch
            batch, messages = [], 0
        batch.append(candidate)
        messages += candidate.messages
    if batch:
        yield batch
