"""Rows of messages."""

from collections.abc import Sequence
from operator import itemgetter
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8
from strands.types.session import SessionMessage

from strands_psycopg.codec import decode, encode
from strands_psycopg.database import Database
from strands_psycopg.errors import SessionConflictError, SessionNotFoundError
from strands_psycopg.repository.fragments import ACTIVE, times
from strands_psycopg.repository.identifiers import check_id, check_index

INSERT = """
    INSERT INTO {messages} AS m (
        session_id, agent_id, message_id, message, message_exact, redact_message, redact_message_exact, write_id,
        created_at, updated_at
    )
    SELECT %(session_id)s::text, %(agent_id)s::text, %(message_id)s, %(message)s::jsonb, %(message_exact)s::text,
        %(redact_message)s::jsonb, %(redact_message_exact)s::text, %(write_id)s::uuid, now(), now()
"""

IS_NEXT = """
    (%(message_id)s = 0 OR EXISTS (
        SELECT FROM {messages}
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND message_id = %(message_id)s - 1
    ))
"""

UNLESS_TAKEN = """
    ON CONFLICT (session_id, agent_id, message_id) DO UPDATE SET write_id = EXCLUDED.write_id
    WHERE m.write_id = EXCLUDED.write_id
    RETURNING m.created_at, m.updated_at
"""

# Looked up only for the text of an error.
NEXT_IF_REFUSED = """
    CASE WHEN t.created_at IS NULL THEN coalesce((
        SELECT m.message_id + 1 FROM {messages} AS m
        WHERE m.session_id = %(session_id)s AND m.agent_id = %(agent_id)s
        ORDER BY m.message_id DESC LIMIT 1
    ), 0) END
"""

_APPEND = (
    "WITH"
    + ACTIVE
    + ", t AS ("
    + INSERT
    + "WHERE"
    + IS_NEXT
    + UNLESS_TAKEN
    + ") SELECT"
    + times("t")
    + ","
    + NEXT_IF_REFUSED
    + """
    FROM {agents} AS a LEFT JOIN t ON true
    WHERE a.session_id = %(session_id)s AND a.agent_id = %(agent_id)s
    """
)  # no row back: no agent; a row without times: the index is taken, or not the next

_COLUMNS = " t.message_id, t.message::text, t.message_exact, t.redact_message::text, t.redact_message_exact," + times(
    "t"
)

_READ = (
    "SELECT"
    + _COLUMNS
    + """
    FROM {messages} AS t
    WHERE t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s AND t.message_id = %(message_id)s
    """
)

_LIST = (
    "SELECT"
    + _COLUMNS
    + """
    FROM {agents} AS a LEFT JOIN LATERAL (
        SELECT m.message_id, m.message, m.message_exact, m.redact_message, m.redact_message_exact, m.created_at,
            m.updated_at
        FROM {messages} AS m
        WHERE m.session_id = %(session_id)s AND m.agent_id = %(agent_id)s AND m.message_id >= %(offset)s
        ORDER BY m.message_id LIMIT %(limit)s
    ) AS t ON true
    WHERE a.session_id = %(session_id)s AND a.agent_id = %(agent_id)s
    """
)  # no row back: no agent; one row without an index: no message

_UPDATE = (
    "WITH"
    + ACTIVE
    + """, t AS (
        UPDATE {messages} SET
            message = %(message)s, message_exact = %(message_exact)s, redact_message = %(redact_message)s,
            redact_message_exact = %(redact_message_exact)s, write_id = %(write_id)s, updated_at = now()
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND message_id = %(message_id)s
        RETURNING created_at, updated_at
    )
    SELECT"""
    + times("t")
    + "FROM t"
)


class Messages:
    """The messages of one database, schema and prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._append = database.statement(_APPEND)
        self._read = database.statement(_READ)
        self._list = database.statement(_LIST)
        self._update = database.statement(_UPDATE)

    def append(self, session_id: str, agent_id: str, message: SessionMessage, *, write_id: UUID) -> None:
        """Store the next message of an agent and set its times.

        Raises:
            SessionConflictError: Its index is taken by another write, or is not the next.
            SessionNotFoundError: The agent does not exist.
        """
        doing = f"storing message {message.message_id} of agent {agent_id!r} in session {session_id!r}"
        row = message_row(session_id, agent_id, message, write_id)
        rows = self._database.fetch(doing, self._append, row).rows
        if not rows:
            raise SessionNotFoundError(f"{doing}: the agent does not exist")
        created_at, updated_at, next_index = rows[0]
        if created_at is None:
            raise refused(doing, session_id, agent_id, message, next_index)
        message.created_at, message.updated_at = created_at, updated_at or created_at

    def append_many(self, cursor: Cursor[TupleRow], rows: Sequence[dict[str, object]]) -> None:
        """Store the first messages of an agent that the same transaction creates."""
        cursor.executemany(self._append, rows)

    def read(self, session_id: str, agent_id: str, message_id: int) -> SessionMessage | None:
        """Give a message, or None."""
        key = {
            "session_id": check_id("session_id", session_id),
            "agent_id": check_id("agent_id", agent_id),
            "message_id": check_index("message_id", message_id),
        }
        doing = f"reading message {message_id} of agent {agent_id!r} in session {session_id!r}"
        rows = self._database.fetch(doing, self._read, key).rows
        return _message(rows[0]) if rows else None

    def list(self, session_id: str, agent_id: str, *, limit: int | None, offset: int) -> list[SessionMessage]:
        """Give an agent's messages from index ``offset`` on, ``limit`` at most, in order.

        Raises:
            SessionNotFoundError: The agent does not exist.
            ValueError: ``limit`` or ``offset`` is negative or no integer.
        """
        doing = f"listing messages of agent {agent_id!r} in session {session_id!r}"
        window = {
            "session_id": check_id("session_id", session_id),
            "agent_id": check_id("agent_id", agent_id),
            "offset": Int8(check_index("offset", offset)),
            # At least one, since no row at all would mean that there is no agent.
            "limit": None if limit is None else Int8(max(check_index("limit", limit), 1)),
        }
        rows = self._database.fetch(doing, self._list, window).rows
        if not rows:
            raise SessionNotFoundError(f"{doing}: the agent does not exist")
        if rows[0][0] is None or limit == 0:
            return []
        # They arrive in order; no ORDER BY over the join promises it without sorting the documents.
        rows.sort(key=itemgetter(0))
        return [_message(row) for row in rows]

    def update(self, session_id: str, agent_id: str, message: SessionMessage, *, write_id: UUID) -> None:
        """Store a message's present content, and what it is redacted to, and set its times.

        Raises:
            SessionNotFoundError: There is no such message.
        """
        doing = f"updating message {message.message_id} of agent {agent_id!r} in session {session_id!r}"
        row = message_row(session_id, agent_id, message, write_id)
        rows = self._database.fetch(doing, self._update, row).rows
        if not rows:
            raise SessionNotFoundError(f"{doing}: the message does not exist")
        message.created_at, message.updated_at = rows[0][0], rows[0][1] or rows[0][0]


def message_row(session_id: str, agent_id: str, message: SessionMessage, write_id: UUID) -> dict[str, object]:
    """Encode a message as the parameters of a statement."""
    content, content_exact = encode(message.message)
    redaction, redaction_exact = (None, None) if message.redact_message is None else encode(message.redact_message)
    return {
        "session_id": check_id("session_id", session_id),
        "agent_id": check_id("agent_id", agent_id),
        # One type for every index, so that the server keeps one prepared statement.
        "message_id": Int8(check_index("message_id", message.message_id)),
        "message": content,
        "message_exact": content_exact,
        "redact_message": redaction,
        "redact_message_exact": redaction_exact,
        "write_id": write_id,
    }


def refused(
    doing: str, session_id: str, agent_id: str, message: SessionMessage, next_index: int
) -> SessionConflictError:
    """Tell why a message was not stored."""
    if message.message_id > next_index:
        reason = f"the next index is {next_index}"
    else:
        reason = "a message with this index already exists"
    return SessionConflictError(
        f"{doing}: {reason}, since another writer came first; nothing was stored. Build a new session manager and "
        "agent to go on from what is stored, or hold a lease while you write",
        session_id=session_id,
        agent_id=agent_id,
        message_id=message.message_id,
    )


def _message(row: TupleRow) -> SessionMessage:
    message_id, content, content_exact, redaction, redaction_exact, created_at, updated_at = row
    return SessionMessage(
        decode(content, content_exact),
        message_id,
        None if redaction is None else decode(redaction, redaction_exact),
        created_at,
        updated_at or created_at,
    )
