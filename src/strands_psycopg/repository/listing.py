"""Which sessions there are and how much is in them, without loading any of it."""

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

_LARGEST_PAGE = 1000

# Greater than every id, so behind a prefix greater than every id that begins with it.
_LAST = "\U0010ffff" * 256

_SUMMARY = "s.session_id, s.session_type, {times_of_s}, {contents_of_s} FROM {sessions} AS s"

_READ = "SELECT " + _SUMMARY + " WHERE s.session_id = %(session_id)s"

_WHERE = """
    WHERE (s.updated_at, s.session_id) < (%(before)s::timestamptz, %(before_id)s)
        AND s.updated_at >= %(active_since)s::timestamptz
"""

_ORDER = " ORDER BY s.updated_at DESC, s.session_id DESC LIMIT %(limit)s"

_LIST = "SELECT " + _SUMMARY + _WHERE + _ORDER

# How many sessions a prefix is shared by decides which index is the better one.
_LIST_PREFIX = (
    "SELECT " + _SUMMARY + _WHERE + " AND s.session_id >= %(prefix)s AND s.session_id < %(prefix_end)s" + _ORDER
)

_LIST_AGENTS = """
    SELECT t.agent_id, {times_of_t}, coalesce(t.messages, 0)
    FROM {sessions} AS s LEFT JOIN (
        SELECT a.session_id, a.agent_id, a.created_at, a.updated_at, {messages_of_a} AS messages
        FROM {agents} AS a WHERE a.session_id = %(session_id)s
    ) AS t ON t.session_id = s.session_id
    WHERE s.session_id = %(session_id)s
    ORDER BY t.created_at, t.agent_id
"""  # no row: no session; one row without an id: no agent


@dataclass(frozen=True)
class SessionSummary:
    """A session and how much is in it.

    Attributes:
        session_id: The session.
        session_type: Strands' type of session.
        created_at: When it was created, in UTC as ISO 8601.
        updated_at: When anything in it was last written, likewise; to the minute, so it may be a minute early.
        agents: How many agents it has.
        messages: How many messages they have together.
        multi_agents: How many graphs and swarms it has.
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
    """Some sessions of a list, newest activity first.

    Attributes:
        sessions: The sessions.
        next: What to give as ``before`` to get the page after this one; None if this is the last.
    """

    sessions: list[SessionSummary]
    next: str | None


@dataclass(frozen=True)
class AgentSummary:
    """An agent and how much it has said and heard.

    Attributes:
        agent_id: The agent.
        created_at: When it was created, in UTC as ISO 8601.
        updated_at: When its state was last stored, likewise; messages are stored without it.
        messages: How many messages it has; the index that its next one will have.
    """

    agent_id: str
    created_at: str
    updated_at: str
    messages: int


class Listing:
    """Looks over the sessions of one database, schema and prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = compose(database, _READ)
        self._list = compose(database, _LIST)
        self._list_prefix = compose(database, _LIST_PREFIX)
        self._list_agents = compose(database, _LIST_AGENTS)

    def read(self, session_id: str) -> SessionSummary | None:
        """Give a session's summary, or None."""
        key = {"session_id": check_id("session_id", session_id)}
        rows = self._database.fetch(f"reading session {session_id!r}", self._read, key).rows
        return _summary(rows[0]) if rows else None

    def read_within(self, cursor: Cursor[TupleRow], session_id: str) -> SessionSummary:
        """Give the summary of a session that is there, as a transaction sees it."""
        return _summary(cursor.execute(self._read, {"session_id": session_id}).fetchall()[0])

    def sessions(
        self, *, limit: int, before: str | None, active_since: datetime | None, prefix: str | None
    ) -> SessionPage:
        """Give a page of sessions, newest activity first.

        Raises:
            ValueError: An argument is out of range, or ``before`` is no page's ``next``.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _LARGEST_PAGE:
            raise ValueError(f"limit must be an integer from 1 to {_LARGEST_PAGE}, not {limit!r}")
        if active_since is not None and active_since.tzinfo is None:
            raise ValueError("active_since must have a time zone, such as datetime.now(timezone.utc) has")
        before_time, before_id = ("infinity", "") if before is None else _position(before)
        page: dict[str, object] = {
            "before": before_time,
            "before_id": before_id,
            "active_since": "-infinity" if active_since is None else active_since.isoformat(),
            # One more, to know whether there is a page after this one.
            "limit": Int8(limit + 1),
        }
        if prefix:
            page |= {"prefix": check_id("prefix", prefix), "prefix_end": prefix + _LAST}
            rows = self._database.fetch("listing sessions", self._list_prefix, page, prepare=False).rows
        else:
            rows = self._database.fetch("listing sessions", self._list, page).rows
        sessions = [_summary(row) for row in rows[:limit]]
        more = len(rows) > limit
        return SessionPage(sessions, _cursor(sessions[-1].updated_at, sessions[-1].session_id) if more else None)

    def agents(self, session_id: str) -> list[AgentSummary]:
        """Give a session's agents, oldest first.

        Raises:
            SessionNotFoundError: There is no such session.
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


def _summary(row: TupleRow) -> SessionSummary:
    session_id, session_type, created_at, updated_at, agents, messages, multi_agents = row
    return SessionSummary(
        session_id, session_type, created_at, updated_at or created_at, agents, messages, multi_agents
    )


def _cursor(updated_at: str, session_id: str) -> str:
    """Give what stands for the position after a session, for use in URLs too."""
    return urlsafe_b64encode(json.dumps([updated_at, session_id]).encode()).decode().rstrip("=")


def _position(cursor: str) -> tuple[str, str]:
    try:
        updated_at, session_id = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        aware = datetime.fromisoformat(updated_at).tzinfo is not None
        # Base64 is decoded whatever stands between its characters.
        if aware and check_id("session_id", session_id) and _cursor(updated_at, session_id) == cursor:
            return updated_at, session_id
    except (ValueError, TypeError):
        pass
    raise ValueError("before must be the cursor that a page ended with, its next")
