"""Lists of sessions, agents, checkpoints and values with counts, without their contents."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.arguments import check_count, check_id
from strands_psycopg.database import Database, iso_time
from strands_psycopg.errors import SessionNotFoundError
from strands_psycopg.payload import Payloads
from strands_psycopg.repository.annotations import Annotations, Metadata, check_owner, encode_metadata
from strands_psycopg.repository.fragments import compose
from strands_psycopg.storage.value_reader import ValueSummary

_MAX_LIMIT = 1000

# Greater than every id. So a prefix followed by it is greater than every id that starts with the prefix.
_MAX_ID = "\U0010ffff" * 256

_SUMMARY = "s.session_id, s.session_type, {annotations_of_s}, {times_of_s}, {counts_of_s} FROM {sessions} AS s"

_READ = "SELECT " + _SUMMARY.replace("{counts_of_s}", "{counts}") + " WHERE s.session_id = %(session_id)s"

_WHERE = """
    WHERE (s.updated_at, s.session_id) < (%(before)s::timestamptz, %(before_id)s)
        AND s.updated_at >= %(active_since)s::timestamptz
        AND (%(metadata)s::jsonb IS NULL OR s.metadata @> %(metadata)s::jsonb)
"""

_OF_OWNER = " AND s.owner = %(owner)s"

_WITH_PREFIX = " AND s.session_id >= %(prefix)s AND s.session_id < %(prefix_end)s"

_ORDER = " ORDER BY s.updated_at DESC, s.session_id DESC LIMIT %(limit)s"

_LIST = "SELECT " + _SUMMARY + _WHERE + _ORDER

_LIST_OF_OWNER = "SELECT " + _SUMMARY + _WHERE + _OF_OWNER + _ORDER

# Which index is better depends on the number of sessions that share the prefix, so it is planned for each call.
_LIST_PREFIX = "SELECT " + _SUMMARY + _WHERE + _WITH_PREFIX + _ORDER

_LIST_PREFIX_OF_OWNER = "SELECT " + _SUMMARY + _WHERE + _WITH_PREFIX + _OF_OWNER + _ORDER

# Writers touch the session only once a minute.
_LATEST = """
    greatest(
        s.updated_at,
        (SELECT pg_catalog.max(a.updated_at) FROM {agents} AS a WHERE a.session_id = %(session_id)s),
        (SELECT pg_catalog.max(m.updated_at) FROM {messages} AS m WHERE m.session_id = %(session_id)s),
        (SELECT pg_catalog.max(m.created_at) FROM {messages} AS m WHERE m.session_id = %(session_id)s),
        (SELECT pg_catalog.max(a.updated_at) FROM {multi_agents} AS a WHERE a.session_id = %(session_id)s),
        (SELECT pg_catalog.max(v.updated_at) FROM {session_storage} AS v WHERE v.session_id = %(session_id)s)
    )
"""
_LAST_ACTIVITY = "SELECT " + iso_time(_LATEST) + " FROM {sessions} AS s WHERE s.session_id = %(session_id)s"

_LIST_AGENTS = """
    SELECT t.agent_id, {times_of_t}, coalesce(t.messages, 0)
    FROM {sessions} AS s LEFT JOIN (
        SELECT a.agent_id, a.created_at, a.updated_at, {messages_of_a} AS messages
        FROM {agents} AS a WHERE a.session_id = %(session_id)s
    ) AS t ON true
    WHERE s.session_id = %(session_id)s
    ORDER BY t.created_at, t.agent_id
"""  # no row: no session; one row whose id is NULL: no agent

_LIST_CHECKPOINTS = """
    SELECT snapshot_id::text, {created_at_text}, message_count FROM {checkpoints}
    WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
    ORDER BY snapshot_id
"""

_LIST_VALUES = """
    SELECT key, size, {updated_at_text}, {expires_at_text} FROM {session_storage}
    WHERE session_id = %(session_id)s AND (expires_at IS NULL OR expires_at > pg_catalog.now())
    ORDER BY key
"""


@dataclass(frozen=True)
class SessionSummary:
    """A session with the numbers of its agents, messages and multi-agents.

    Attributes:
        session_id: The id of the session.
        session_type: Strands' session type.
        created_at: When it was created, in UTC.
        updated_at: When anything in it was last written, in UTC; up to one minute too early.
        agents: The number of agents.
        messages: The number of messages of all agents.
        multi_agents: The number of graphs and swarms.
        owner: Whose session it is; None if nobody's.
        title: Its title.
        metadata: What the application looks it up by.
    """

    session_id: str
    session_type: str
    created_at: datetime
    updated_at: datetime
    agents: int
    messages: int
    multi_agents: int
    owner: str | None = None
    title: str | None = None
    metadata: Metadata | None = None


@dataclass(frozen=True)
class SessionPage:
    """A page of the list of sessions.

    Attributes:
        sessions: The sessions, the most recently active first.
        next: The value of ``before`` that returns the next page; None if this is the last page.
    """

    sessions: list[SessionSummary]
    next: str | None


@dataclass(frozen=True)
class AgentSummary:
    """An agent with the number of its messages.

    Attributes:
        agent_id: The id of the agent.
        created_at: When it was created, in UTC.
        updated_at: When its state was last stored, in UTC; appending a message does not change it.
        messages: The number of messages, which is the index of the next one.
    """

    agent_id: str
    created_at: datetime
    updated_at: datetime
    messages: int


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint of an agent.

    Attributes:
        snapshot_id: Its id.
        created_at: When it was saved, in UTC.
        messages: The number of messages that the agent's log had then.
    """

    snapshot_id: str
    created_at: datetime
    messages: int


class Listing:
    """Lists the sessions, agents, checkpoints and values of one database, schema and prefix."""

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self._database = database
        self._payloads = payloads
        self._read = compose(database, _READ)
        self._last_activity = compose(database, _LAST_ACTIVITY)
        self._list = compose(database, _LIST)
        self._list_of_owner = compose(database, _LIST_OF_OWNER)
        self._list_prefix = compose(database, _LIST_PREFIX)
        self._list_prefix_of_owner = compose(database, _LIST_PREFIX_OF_OWNER)
        self._list_agents = compose(database, _LIST_AGENTS)
        self._list_checkpoints = compose(database, _LIST_CHECKPOINTS)
        self._list_values = compose(database, _LIST_VALUES)

    def read(self, session_id: str) -> SessionSummary | None:
        """Return the summary of a session, or None if it does not exist."""
        key = {"session_id": check_id("session_id", session_id)}
        rows = self._database.fetch(f"reading session {session_id!r}", self._read, key).rows
        return self._summary(rows[0]) if rows else None

    def last_activity(self, session_id: str) -> datetime | None:
        """Return when anything in a session was last written, to the microsecond; None if it does not exist."""
        key = {"session_id": check_id("session_id", session_id)}
        rows = self._database.fetch(f"reading session {session_id!r}", self._last_activity, key).rows
        return datetime.fromisoformat(rows[0][0]) if rows else None

    def read_within(self, cursor: Cursor[TupleRow], session_id: str) -> SessionSummary:
        """Return the summary of an existing session, in a transaction."""
        return self._summary(cursor.execute(self._read, {"session_id": session_id}).fetchall()[0])

    def sessions(
        self,
        *,
        limit: int,
        before: str | None,
        active_since: datetime | None,
        prefix: str | None,
        owner: str | None,
        metadata: Metadata | None,
    ) -> SessionPage:
        """Return a page of sessions, the most recently active first.

        Raises:
            ValueError: An argument is out of range, or ``before`` is not the ``next`` of a page.
        """
        check_count("limit", limit, _MAX_LIMIT)
        if active_since is not None and active_since.tzinfo is None:
            raise ValueError("active_since must have a time zone, as in datetime.now(timezone.utc)")
        before_time, before_id = ("infinity", "") if before is None else _decode_page_token(before)
        page: dict[str, object] = {
            "before": before_time,
            "before_id": before_id,
            "active_since": "-infinity" if active_since is None else active_since.isoformat(),
            "owner": check_owner(owner),
            "metadata": encode_metadata(metadata)[0],
            # One more than requested shows whether there is a next page.
            "limit": Int8(limit + 1),
        }
        if prefix:
            page |= {"prefix": check_id("prefix", prefix), "prefix_end": prefix + _MAX_ID}
            statement = self._list_prefix if owner is None else self._list_prefix_of_owner
            rows = self._database.fetch("listing sessions", statement, page, prepare=False).rows
        else:
            statement = self._list if owner is None else self._list_of_owner
            rows = self._database.fetch("listing sessions", statement, page).rows
        sessions = [self._summary(row) for row in rows[:limit]]
        if len(rows) <= limit:
            return SessionPage(sessions, None)
        return SessionPage(sessions, _encode_page_token(sessions[-1].updated_at, sessions[-1].session_id))

    def agents(self, session_id: str) -> list[AgentSummary]:
        """Return the agents of a session, oldest first.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        operation = f"listing agents of session {session_id!r}"
        key = {"session_id": check_id("session_id", session_id)}
        rows = self._database.fetch(operation, self._list_agents, key).rows
        if not rows:
            raise SessionNotFoundError(f"{operation}: the session does not exist")
        return [
            AgentSummary(agent_id, *_times(created_at, updated_at), messages)
            for agent_id, created_at, updated_at, messages in rows
            if agent_id is not None
        ]

    def checkpoints(self, session_id: str, agent_id: str) -> list[CheckpointSummary]:
        """Return the checkpoints of an agent, oldest first."""
        key = {"session_id": check_id("session_id", session_id), "agent_id": check_id("agent_id", agent_id)}
        operation = f"listing checkpoints of agent {agent_id!r} in session {session_id!r}"
        rows = self._database.fetch(operation, self._list_checkpoints, key).rows
        return [CheckpointSummary(each, datetime.fromisoformat(time), count) for each, time, count in rows]

    def values(self, session_id: str) -> list[ValueSummary]:
        """Return the values of a session's storage in the order of their keys, without those that have expired."""
        key = {"session_id": check_id("session_id", session_id)}
        operation = f"listing values of session {session_id!r}"
        return [ValueSummary(*row) for row in self._database.fetch(operation, self._list_values, key).rows]

    def _summary(self, row: TupleRow) -> SessionSummary:
        session_id, session_type, owner, title, metadata, metadata_exact, created_at, updated_at, *counts = row
        annotations = Annotations.decode([owner, title, metadata, metadata_exact], self._payloads, session_id)
        return SessionSummary(
            session_id, session_type, *_times(created_at, updated_at), *counts, **annotations._asdict()
        )


def _times(created_at: str, updated_at: str | None) -> tuple[datetime, datetime]:
    """Return the times of a row; the second one is None if both are equal."""
    return datetime.fromisoformat(created_at), datetime.fromisoformat(updated_at or created_at)


def _encode_page_token(updated_at: datetime, session_id: str) -> str:
    """Encode the last session of a page as a token that is safe in URLs."""
    last = [updated_at.isoformat(timespec="microseconds"), session_id]
    return urlsafe_b64encode(json.dumps(last).encode()).decode().rstrip("=")


def _decode_page_token(token: str) -> tuple[str, str]:
    try:
        updated_at, session_id = json.loads(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        time = datetime.fromisoformat(updated_at)
        # Encoding it again detects characters outside of the Base64 alphabet, which the decoder skips.
        if time.tzinfo and check_id("session_id", session_id) and _encode_page_token(time, session_id) == token:
            return updated_at, session_id
    except (ValueError, TypeError):
        pass
    raise ValueError("before must be the cursor that an earlier page ended with")
