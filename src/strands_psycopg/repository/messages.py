"""The table of messages."""

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

from strands_psycopg.arguments import check_id, check_index
from strands_psycopg.database import NO_DEADLINE, Database
from strands_psycopg.errors import SessionNotFoundError, suppressed_error
from strands_psycopg.payload import Payloads
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.redactions import Redactions
from strands_psycopg.repository.refusals import AgentWrites, check_lease, retry_if_suppressed

_APPEND = """
    WITH t AS (
        {insert_message} FROM {seen} AND {may_write} AND {is_next} AND {unchanged} {on_message_conflict}
    ), {touch_session_of_t}
    SELECT {server_time}, {times_of_t} FROM t
"""  # no row: it was refused (see AgentWrites)

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
"""  # no row: no agent; one row whose index is NULL: no message

_OF_MESSAGE = """
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND message_id = %(message_id)s AND {fence_holds}
        RETURNING created_at, updated_at
    )
    SELECT {allowed_at}, {times_of_t},
        t.created_at IS NULL AND fence.holds AND EXISTS (
            SELECT true FROM {messages}
            WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND message_id = %(message_id)s
        ) AS suppressed
    FROM fence LEFT JOIN t ON true
"""  # times are NULL: no such message

_UPDATE = """
    WITH {fence}, {touch_session}, t AS (
        UPDATE {messages} SET
            message = %(message)s, message_exact = %(message_exact)s, redact_message = %(redact_message)s,
            redact_message_exact = %(redact_message_exact)s, write_id = %(write_id)s, updated_at = pg_catalog.now()
        {of_message}
""".replace("{of_message}", _OF_MESSAGE)

# A redacted message stays redacted: a message that continues it contains nothing that was redacted.
_REPLACE = """
    WITH {fence}, {touch_session}, t AS (
        UPDATE {messages} SET
            message = %(message)s, message_exact = %(message_exact)s,
            redact_message = CASE WHEN redact_message IS NOT NULL THEN %({redaction})s::jsonb END,
            redact_message_exact = CASE WHEN redact_message IS NOT NULL THEN %({redaction}_exact)s END,
            write_id = %(write_id)s, updated_at = pg_catalog.now()
        {of_message}
""".replace("{of_message}", _OF_MESSAGE)


class Messages:
    """Reads and writes messages in one database, schema and prefix."""

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self._database = database
        self._payloads = payloads
        self._append = compose(database, _APPEND)
        self._read = compose(database, _READ)
        self._list = compose(database, _LIST)
        self._update = compose(database, _UPDATE)
        redaction = "redact_message" if payloads.has_codec else "message"
        self._replace = compose(database, _REPLACE.replace("{redaction}", redaction))
        self._redactions = Redactions(database, payloads)
        self._writes = AgentWrites(database)

    def append(
        self,
        session_id: str,
        agent_id: str,
        message: SessionMessage,
        *,
        write_id: UUID,
        expected: UUID | None = None,
        term: UUID | None = None,
    ) -> None:
        """Append a message to an agent's conversation and set its times.

        Args:
            session_id: The session.
            agent_id: The agent.
            message: The message.
            write_id: The write id of this call.
            expected: The write id that the agent's row must have; None if it may have any.
            term: The term of the lease on the session, if this process holds one.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionConflictError: A message with this index already exists, or the index is not the next one, or the
                agent's row has another write id than the expected one.
            SessionNotFoundError: The agent does not exist.
        """
        operation = f"storing message {message.message_id} of agent {agent_id!r} in session {session_id!r}"
        row = message_parameters(self._payloads, session_id, agent_id, message, write_id, term)
        row["expected"] = expected
        _, created_at, updated_at = self._writes.run(operation, self._append, row, message.message_id)
        message.created_at, message.updated_at = created_at, updated_at or created_at

    def append_many(self, cursor: Cursor[TupleRow], rows: Sequence[dict[str, object]], operation: str) -> None:
        """Store the first messages of an agent, in the transaction that creates it.

        Raises:
            DatabaseError: A trigger has suppressed one.
        """
        parameters = [{**row, **NO_DEADLINE, "expected": None} for row in rows]
        cursor.executemany(self._append, parameters, returning=True)
        while True:
            if not cursor.fetchall():
                raise suppressed_error(operation)
            if not cursor.nextset():
                return

    def read(self, session_id: str, agent_id: str, message_id: int) -> SessionMessage | None:
        """Return a message, or None if it does not exist."""
        key = {
            "session_id": check_id("session_id", session_id),
            "agent_id": check_id("agent_id", agent_id),
            "message_id": check_index("message_id", message_id),
        }
        operation = f"reading message {message_id} of agent {agent_id!r} in session {session_id!r}"
        rows = self._database.fetch(operation, self._read, key).rows
        return decode_session_message(self._payloads, session_id, agent_id, *rows[0]) if rows else None

    def list(self, session_id: str, agent_id: str, *, limit: int | None, offset: int) -> list[SessionMessage]:
        """Return up to ``limit`` messages, oldest first, starting at index ``offset``; None is no limit.

        Raises:
            SessionNotFoundError: The agent does not exist.
            ValueError: ``limit`` or ``offset`` is negative or not an integer.
        """
        operation = f"listing messages of agent {agent_id!r} in session {session_id!r}"
        parameters = {
            "session_id": check_id("session_id", session_id),
            "agent_id": check_id("agent_id", agent_id),
            "offset": Int8(check_index("offset", offset)),
            # At least 1: the absence of any row means that the agent does not exist.
            "limit": None if limit is None else Int8(max(check_index("limit", limit), 1)),
        }
        rows = self._database.fetch(operation, self._list, parameters).rows
        if not rows:
            raise SessionNotFoundError(f"{operation}: the agent does not exist")
        if rows[0][0] is None or limit == 0:
            return []
        # The rows arrive in order, but only an ORDER BY over the join would guarantee it, and that sorts the documents.
        rows.sort(key=itemgetter(0))
        with gc_paused(self._payloads):
            return [decode_session_message(self._payloads, session_id, agent_id, *row) for row in rows]

    def update(
        self,
        session_id: str,
        agent_id: str,
        message: SessionMessage,
        *,
        write_id: UUID,
        term: UUID | None = None,
    ) -> None:
        """Replace the stored content of a message, and set its times; a redaction replaces every stored form of it.

        Arguments are as for ``append``.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionNotFoundError: The message does not exist.
        """
        if message.redact_message is None:
            row = message_parameters(self._payloads, session_id, agent_id, message, write_id, term)
            self._update_one(self._update, session_id, agent_id, message, row)
            return
        index = check_index("message_id", message.message_id)
        operation = f"redacting message {index} of agent {agent_id!r} in session {session_id!r}"
        rows, _ = self._redactions.store(
            operation, session_id, agent_id, message.redact_message, [index], [], write_id=write_id, term=term
        )
        times = [row[2:4] for row in rows if row[:2] == (agent_id, index)]
        if not times:
            raise SessionNotFoundError(f"{operation}: the message does not exist")
        created_at, updated_at = times[0]
        message.created_at, message.updated_at = created_at, updated_at or created_at

    def replace(
        self,
        session_id: str,
        agent_id: str,
        message: SessionMessage,
        *,
        write_id: UUID,
        term: UUID | None = None,
    ) -> None:
        """Replace the stored content of a message, and what it is redacted to if it is, and set its times.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionNotFoundError: The message does not exist.
        """
        row = message_parameters(self._payloads, session_id, agent_id, message, write_id, term)
        if self._payloads.has_codec:
            # In case the message is redacted: with a codec each column has a document of its own.
            index = message.message_id
            columns = self._payloads.encode(message.message, session_id, agent_id, "redaction", index)
            row["redact_message"], row["redact_message_exact"] = columns
        self._update_one(self._replace, session_id, agent_id, message, row)

    def _update_one(
        self, statement: bytes, session_id: str, agent_id: str, message: SessionMessage, row: dict[str, object]
    ) -> None:
        operation = f"updating message {message.message_id} of agent {agent_id!r} in session {session_id!r}"
        result = retry_if_suppressed(operation, lambda: self._database.write(operation, statement, row))
        allowed_at, created_at, updated_at, _ = result.rows[0]
        check_lease(allowed_at, operation, session_id, self._database)
        if created_at is None:
            raise SessionNotFoundError(f"{operation}: the message does not exist")
        message.created_at, message.updated_at = created_at, updated_at or created_at

    def redact(
        self,
        session_id: str,
        agent_id: str,
        message: Message,
        *,
        message_ids: Sequence[int],
        variant_ids: Sequence[int],
        write_id: UUID,
        term: UUID | None = None,
    ) -> Sequence[int] | None:
        """Replace messages, and all their variants, with what they are redacted to.

        The same message of other agents of the session, by its tracking id, is redacted too.

        Args:
            session_id: The session.
            agent_id: The agent.
            message: The redacted message.
            message_ids: The indexes of the messages in the agent's log.
            variant_ids: Variants of messages that are not in the log.
            write_id: The write id of this call.
            term: The term of the lease on the session, if this process holds one.

        Returns:
            The indexes of all messages of the agent's log that were redacted; None if nothing was, anywhere.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
        """
        operation = f"redacting messages {list(message_ids)} of agent {agent_id!r} in session {session_id!r}"
        rows, any_variant = self._redactions.store(
            operation, session_id, agent_id, message, message_ids, variant_ids, write_id=write_id, term=term
        )
        return [row[1] for row in rows if row[0] == agent_id] if rows or any_variant else None


def message_parameters(
    payloads: Payloads,
    session_id: str,
    agent_id: str,
    message: SessionMessage,
    write_id: UUID,
    term: UUID | None,
) -> dict[str, object]:
    """Return the parameters with which a statement stores a message."""
    key = check_id("session_id", session_id), check_id("agent_id", agent_id)
    index = check_index("message_id", message.message_id)
    redaction: tuple[str | None, str | None] = (None, None)
    content, content_exact = payloads.encode(message.message, *key, "message", index)
    if message.redact_message is not None:
        redaction = payloads.encode(message.redact_message, *key, "redaction", index)
    redacted, redacted_exact = redaction
    return {
        "session_id": session_id,
        "agent_id": agent_id,
        # The type must not depend on the value, or there would be one prepared statement per type.
        "message_id": Int8(index),
        "message": content,
        "message_exact": content_exact,
        "redact_message": redacted,
        "redact_message_exact": redacted_exact,
        "write_id": write_id,
        "term": term,
    }


@contextmanager
def gc_paused(payloads: Payloads) -> Iterator[None]:
    """Disable garbage collection while many objects are created, none of which is garbage.

    The collector would scan them again and again, which takes longer than decoding them. With a payload codec, which
    may take its time, it is not disabled.
    """
    enabled = gc.isenabled() and not payloads.has_codec
    if enabled:
        gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def decode_session_message(
    payloads: Payloads,
    session_id: str,
    agent_id: str,
    message_id: int,
    content: str,
    content_exact: str | None,
    redaction: str | None,
    redaction_exact: str | None,
    created_at: str,
    updated_at: str | None,
) -> SessionMessage:
    """Decode the columns of a message, in the order in which statements select them."""
    message = payloads.decode(content, content_exact, session_id, agent_id, "message", message_id)
    redacted = None
    if redaction is not None:
        redacted = payloads.decode(redaction, redaction_exact, session_id, agent_id, "redaction", message_id)
    return SessionMessage(message, message_id, redacted, created_at, updated_at or created_at)
