"""Rows of messages."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8
from strands.types.content import Message
from strands.types.session import SessionMessage

from strands_psycopg.codec import decode, encode
from strands_psycopg.database import UNTIMED, Database
from strands_psycopg.errors import SessionConflictError, SessionNotFoundError
from strands_psycopg.repository.fragments import check_lease, compose
from strands_psycopg.repository.identifiers import check_id, check_index

_APPEND = """
    WITH {lease}, {active}, t AS ({insert_message} WHERE {fenced} AND {is_next} {unless_taken})
    SELECT {allowed_at}, a.agent_id IS NOT NULL, {times_of_t},
        CASE WHEN t.created_at IS NULL THEN coalesce({next_message_id}, 0) END
    FROM (SELECT 1) AS one LEFT JOIN t ON true
    LEFT JOIN {agents} AS a ON a.session_id = %(session_id)s AND a.agent_id = %(agent_id)s
"""  # without times: the index is taken or not the next, which is looked up for the error

_READ = """
    SELECT t.message_id, t.message::text, t.message_exact, t.redact_message::text, t.redact_message_exact, {times_of_t}
    FROM {messages} AS t
    WHERE t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s AND t.message_id = %(message_id)s
"""

_LIST = """
    SELECT t.message_id, t.message::text, t.message_exact, t.redact_message::text, t.redact_message_exact, {times_of_t}
    FROM {agents} AS a LEFT JOIN LATERAL (
        SELECT m.message_id, m.message, m.message_exact, m.redact_message, m.redact_message_exact, m.created_at,
            m.updated_at
        FROM {messages} AS m
        WHERE m.session_id = %(session_id)s AND m.agent_id = %(agent_id)s AND m.message_id >= %(offset)s
        ORDER BY m.message_id LIMIT %(limit)s
    ) AS t ON true
    WHERE a.session_id = %(session_id)s AND a.agent_id = %(agent_id)s
"""  # no row: no agent; one row without an index: no message

_UPDATE = """
    WITH {lease}, {active}, t AS (
        UPDATE {messages} SET
            message = %(message)s, message_exact = %(message_exact)s, redact_message = %(redact_message)s,
            redact_message_exact = %(redact_message_exact)s, write_id = %(write_id)s, updated_at = now()
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND message_id = %(message_id)s AND {fenced}
        RETURNING created_at, updated_at
    )
    SELECT {allowed_at}, {times_of_t} FROM (SELECT 1) AS one LEFT JOIN t ON true
"""  # without times: no such message

# From the end, where a message that is to be replaced mostly stands.
_REPLACE = """
    WITH {lease}, {active}, t AS (
        UPDATE {messages} SET
            message = %(message)s, message_exact = %(message_exact)s, write_id = %(write_id)s, updated_at = now()
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND message_id = (
            SELECT m.message_id FROM {messages} AS m
            WHERE m.session_id = %(session_id)s AND m.agent_id = %(agent_id)s
                AND m.message->>'tracking_id' = %(tracking_id)s
            ORDER BY m.message_id DESC LIMIT 1
        ) AND {fenced}
        RETURNING message_id
    )
    SELECT {allowed_at}, t.message_id FROM (SELECT 1) AS one LEFT JOIN t ON true
"""  # without an index: no such message


class Messages:
    """The messages of one database, schema and prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._append = compose(database, _APPEND)
        self._read = compose(database, _READ)
        self._list = compose(database, _LIST)
        self._update = compose(database, _UPDATE)
        self._replace = compose(database, _REPLACE)

    def append(
        self,
        session_id: str,
        agent_id: str,
        message: SessionMessage,
        *,
        write_id: UUID,
        term: UUID | None = None,
    ) -> None:
        """Store the next message of an agent and set its times.

        Args:
            session_id: The session.
            agent_id: The agent.
            message: The message.
            write_id: Of this call.
            term: Of the lease under which it is made, if any.

        Raises:
            LeaseLostError: ``term`` is not in force.
            SessionConflictError: Its index is taken by another write, or is not the next.
            SessionNotFoundError: The agent does not exist.
        """
        operation = f"storing message {message.message_id} of agent {agent_id!r} in session {session_id!r}"
        row = message_row(session_id, agent_id, message, write_id, term)
        answer = self._database.write(operation, self._append, row)
        allowed_at, exists, created_at, updated_at, next_index = answer.rows[0]
        check_lease(allowed_at, operation, session_id)
        if not exists:
            raise SessionNotFoundError(f"{operation}: the agent does not exist")
        if created_at is None:
            raise refused(operation, session_id, agent_id, message, next_index)
        message.created_at, message.updated_at = created_at, updated_at or created_at

    def append_many(self, cursor: Cursor[TupleRow], rows: Sequence[dict[str, object]]) -> None:
        """Store the first messages of an agent that the same transaction creates."""
        cursor.executemany(self._append, [{**row, **UNTIMED} for row in rows])

    def read(self, session_id: str, agent_id: str, message_id: int) -> SessionMessage | None:
        """Give a message, or None."""
        key = {
            "session_id": check_id("session_id", session_id),
            "agent_id": check_id("agent_id", agent_id),
            "message_id": check_index("message_id", message_id),
        }
        operation = f"reading message {message_id} of agent {agent_id!r} in session {session_id!r}"
        rows = self._database.fetch(operation, self._read, key).rows
        return stored_message(*rows[0]) if rows else None

    def list(self, session_id: str, agent_id: str, *, limit: int | None, offset: int) -> list[SessionMessage]:
        """Give an agent's messages from index ``offset`` on, ``limit`` at most, in order.

        Raises:
            SessionNotFoundError: The agent does not exist.
            ValueError: ``limit`` or ``offset`` is negative or no integer.
        """
        operation = f"listing messages of agent {agent_id!r} in session {session_id!r}"
        window = {
            "session_id": check_id("session_id", session_id),
            "agent_id": check_id("agent_id", agent_id),
            "offset": Int8(check_index("offset", offset)),
            # At least one, since no row at all would mean that there is no agent.
            "limit": None if limit is None else Int8(max(check_index("limit", limit), 1)),
        }
        rows = self._database.fetch(operation, self._list, window).rows
        if not rows:
            raise SessionNotFoundError(f"{operation}: the agent does not exist")
        if rows[0][0] is None or limit == 0:
            return []
        # They arrive in order; no ORDER BY over the join promises it without sorting the documents.
        rows.sort(key=itemgetter(0))
        with gc_paused():
            return [stored_message(*row) for row in rows]

    def update(
        self,
        session_id: str,
        agent_id: str,
        message: SessionMessage,
        *,
        write_id: UUID,
        term: UUID | None = None,
    ) -> None:
        """Store a message's present content, and what it is redacted to, and set its times.

        Args:
            session_id: The session.
            agent_id: The agent.
            message: The message.
            write_id: Of this call.
            term: Of the lease under which it is made, if any.

        Raises:
            LeaseLostError: ``term`` is not in force.
            SessionNotFoundError: There is no such message.
        """
        operation = f"updating message {message.message_id} of agent {agent_id!r} in session {session_id!r}"
        row = message_row(session_id, agent_id, message, write_id, term)
        allowed_at, created_at, updated_at = self._database.write(operation, self._update, row).rows[0]
        check_lease(allowed_at, operation, session_id)
        if created_at is None:
            raise SessionNotFoundError(f"{operation}: the message does not exist")
        message.created_at, message.updated_at = created_at, updated_at or created_at

    def replace(
        self, session_id: str, agent_id: str, message: Message, *, write_id: UUID, term: UUID | None = None
    ) -> None:
        """Store a message in the place of the last one that has its tracking id; a redaction stays.

        Args:
            session_id: The session.
            agent_id: The agent.
            message: The message, with a ``tracking_id``.
            write_id: Of this call.
            term: Of the lease under which it is made, if any.

        Raises:
            LeaseLostError: ``term`` is not in force.
            SessionNotFoundError: There is no such message.
        """
        tracking_id = message["tracking_id"]
        operation = f"replacing message {tracking_id!r} of agent {agent_id!r} in session {session_id!r}"
        content, content_exact = encode(message)
        row = {
            "session_id": check_id("session_id", session_id),
            "agent_id": check_id("agent_id", agent_id),
            "tracking_id": tracking_id,
            "message": content,
            "message_exact": content_exact,
            "write_id": write_id,
            "term": term,
        }
        allowed_at, message_id = self._database.write(operation, self._replace, row).rows[0]
        check_lease(allowed_at, operation, session_id)
        if message_id is None:
            raise SessionNotFoundError(f"{operation}: no stored message has this tracking id")


def message_row(
    session_id: str, agent_id: str, message: SessionMessage, write_id: UUID, term: UUID | None
) -> dict[str, object]:
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
        "term": term,
    }


def refused(
    operation: str, session_id: str, agent_id: str, message: SessionMessage, next_index: int
) -> SessionConflictError:
    """Tell why a message was not stored."""
    if message.message_id > next_index:
        reason = f"the next index is {next_index}"
    else:
        reason = "a message with this index already exists"
    return SessionConflictError(
        f"{operation}: {reason}, since another writer came first; nothing was stored. Build a new session manager and "
        "agent to go on from what is stored, or hold a lease while you write",
        session_id=session_id,
        agent_id=agent_id,
        message_id=message.message_id,
    )


@contextmanager
def gc_paused() -> Iterator[None]:
    """Keep the garbage collector from looking again and again through what is being built, none of which is garbage.

    Otherwise it takes longer than the decoding.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def stored_message(
    message_id: int,
    content: str,
    content_exact: str | None,
    redaction: str | None,
    redaction_exact: str | None,
    created_at: str,
    updated_at: str | None,
) -> SessionMessage:
    """Decode the columns of a message."""
    return SessionMessage(
        decode(content, content_exact),
        message_id,
        None if redaction is None else decode(redaction, redaction_exact),
        created_at,
        updated_at or created_at,
    )
