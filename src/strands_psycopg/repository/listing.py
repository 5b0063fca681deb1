"""Lists of sessions, agents and checkpoints with counts, without their contents."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.database import Database
from strands_psycopg.errors import SessionNotFoundError
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.identifiers import check_id

_MAX_LIMIT = 1000

# Greater than every id. So a prefix followed by it is greater than every id that starts with the prefix.
_MAX_ID = "\U0010ffff" * 256

_SUMMARY = "s.session_id, s.session_type, {times_of_s}, {counts_of_s} FROM {sessions} AS s"

_READ = "SELECT " + _SUMMARY.replace("{counts_of_s}", "{counts}") + " WHERE s.session_id = %(session_id)s"

_WHERE = """
    WHERE (s.updated_at, s.session_id) < (%(before)s::timestamptz, %(before_id)s)
        AND s.updated_at >= %(active_since)s::timestamptz
"""

_ORDER = " ORDER BY s.updated_at DESC, s.session_id DESC LIMIT %(limit)s"

_LIST = "SELECT " + _SUMMARY + _WHERE + _ORDER

# Which index is better depends on the number of sessions that share the prefix, so it is planned for each call.
_LIST_PREFIX = (
    "SELECT " + _SUMMARY + _WHERE + " AND s.session_id >= %(prefix)s AND s.session_id < %(prefix_end)s" + _ORDER
)

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
    SELECT snapshot_id::text, pg_catalog.to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
        message_count
    FROM {checkpoints} WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
    ORDER BY snapshot_id
"""


@dataclass(frozen=True)
class SessionSummary:
    """A session with the numbers of its agents, messages and multi-agents.

    Attributes:
        session_id: The id of the session.
        session_type: Strands' session type.
        created_at: When it was created, in UTC as ISO 8601.
        updated_at: When anything in it was last written, in UTC as ISO 8601; up to one minute too early.
        agents: The number of agents.
        messages: The number of messages of all agents.
        multi_agents: The number of graphs and swarms.
    """

    session_id: str
    session_type: str
    created_at: str
    updated_at: str
    agents: int
    messages: int
    multi_agents: int


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
        created_at: When it was created, in UTC as ISO 8601.
        updated_at: When its state was last stored, in UTC as ISO 8601; appending a message does not change it.
        messages: The number of messages, which is the index of the next one.
    """

    agent_id: str
    created_at: str
    updated_at: str
    messages: int


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint of an agent.

    Attributes:
        snapshot_id: Its id.
        created_at: When it was saved, in UTC as ISO 8601.
        messages: The number of messages that the agent's log had then.
    """

    snapshot_id: str
    created_at: str
    messages: int


class Listing:
    """Lists the sessions, agents and checkpoints of one database, schema and prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = compose(database, _READ)
        self._list = compose(database, _LIST)
        self._list_prefix = compose(database, _LIST_PREFIX)
        self._list_agents = compose(database, _LIST_AGENTS)
        self._list_checkpoints = compose(database, _LIST_CHECKPOINTS)

    def read(self, session_id: str) -> SessionSummary | None:
        """Return the summary of a session, or None if it does not exist."""
        key = {"session_id": check_id("session_id", session_id)}
        rows = self._database.fetch(f"reading session {session_id!r}", self._read, key).rows
        return _summary(rows[0]) if rows else None

    def read_within(self, cursor: Cursor[TupleRow], session_id: str) -> SessionSummary:
        """Return the summary of an existing session, in a transaction."""
        return _summary(cursor.execute(self._read, {"session_id": session_id}).fetchall()[0])

    def sessions(
        self, *, limit: int, before: str | None, active_since: datetime | None, prefix: str | None
    ) -> SessionPage:
        """Return a page of sessions, the most recently active first.

        Raises:
            ValueError: An argument is out of range, or ``before`` is not the ``next`` of a page.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MAX_LIMIT:
            raise ValueError(f"limit must be an integer from 1 to {_MAX_LIMIT}, not {limit!r}")
        if active_since is not None and active_since.tzinfo is None:
            raise ValueError("active_since must have a time zone, as in datetime.now(timezone.utc)")
        before_time, before_id = ("infinity", "") if before is None else _decode_page_token(before)
        page: dict[str, object] = {
            "before": before_time,
            "before_id": before_id,
            "active_since": "-infinity" if active_since is None else active_since.isoformat(),
            # One more than requested shows whether there is a next page.
            "limit": Int8(limit + 1),
        }
        if prefix:
            page |= {"prefix": check_id("prefix", prefix), "prefix_end": prefix + _MAX_ID}
            rows = self._database.fetch("listing sessions", self._list_prefix, page, prepare=False).rows
        else:
            rows = self._database.fetch("listing sessions", self._list, page).rows
        sessions = [_summary(row) for row in rows[:limit]]
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
            AgentSummary(agent_id, created_at, updated_at or created_at, messages)
            for agent_id, created_at, updated_at, messages in rows
            if agent_id is not None
        ]

    def checkpoints(self, session_id: str, agent_id: str) -> list[CheckpointSummary]:
        """Return the checkpoints of an agent, oldest first."""
        key = {"session_id": check_id("session_id", session_id), "agent_id": check_id("agent_id", agent_id)}
        operation = f"listing checkpoints of agent {agent_id!r} in session {session_id!r}"
        return [CheckpointSummary(*row) for row in self._database.fetch(operation, self._list_checkpoints, key).rows]


def _summary(row: TupleRow) -> SessionSummary:
    session_id, session_type, created_at, updated_at, agents, messages, multi_agents = row
    return SessionSummary(
        session_id, session_type, created_at, updated_at or created_at, agents, messages, multi_agents
    )


def _encode_page_token(updated_at: str, session_id: str) -> str:
    """Encode the last session of a page as a token that is safe in URLs."""
    return urlsafe_b64encode(json.dumps([updated_at, session_id]).encode()).decode().rstrip("=")


def _decode_page_token(token: str) -> tuple[str, str]:
    try:
        updated_at, session_id = json.loads(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        aware = datetime.fromisoformat(updated_at).tzinfo is not None
        # Encoding it again detects characters outside of the Base64 alphabet, which the decoder skips.
        if aware and check_id("session_id", session_id) and _encode_page_token(updated_at, session_id) == token:
            return updated_at, session_id
    except (ValueError, TypeError):
        pass
    raise ValueError("before must be the next of an earlier page")
