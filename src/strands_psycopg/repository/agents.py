"""Rows of agents."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from strands.types.session import SessionAgent, SessionMessage

from strands_psycopg.codec import decode, encode
from strands_psycopg.database import UNTIMED, Database
from strands_psycopg.errors import SessionConflictError, SessionExistsError, SessionNotFoundError
from strands_psycopg.repository.fragments import check_lease, compose
from strands_psycopg.repository.identifiers import check_id
from strands_psycopg.repository.messages import Messages, message_row, refused

_CREATE = """
    WITH {lease}, {active}, t AS (
        INSERT INTO {agents} AS a (
            session_id, agent_id, state, state_exact, conversation_manager_state, conversation_manager_state_exact,
            _internal_state, _internal_state_exact, write_id, created_at, updated_at
        )
        SELECT %(session_id)s::text, %(agent_id)s::text, %(state)s::jsonb, %(state_exact)s::text,
            %(conversation_manager_state)s::jsonb, %(conversation_manager_state_exact)s::text,
            %(_internal_state)s::jsonb, %(_internal_state_exact)s::text, %(write_id)s::uuid, now(), now()
        WHERE {fenced}
        ON CONFLICT (session_id, agent_id) DO UPDATE SET write_id = EXCLUDED.write_id
        WHERE a.write_id = EXCLUDED.write_id
        RETURNING a.created_at, a.updated_at
    )
    SELECT {allowed_at}, {times_of_t} FROM (SELECT 1) AS one LEFT JOIN t ON true
"""  # without times: another call created it first

_READ = """
    SELECT {stored_agent}
    FROM {agents} AS t WHERE t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s
"""

_UPDATE = """
    WITH {lease}, {active}, t AS (
        {update_agent} AND {expected} AND {fenced} RETURNING created_at, updated_at
    )
    SELECT {allowed_at}, a.agent_id IS NOT NULL, {times_of_t}
    FROM (SELECT 1) AS one LEFT JOIN t ON true
    LEFT JOIN {agents} AS a ON a.session_id = %(session_id)s AND a.agent_id = %(agent_id)s
"""  # without times: someone else has written the agent

_UPDATE_AND_APPEND = """
    WITH {lease}, {active}, seen AS (
        SELECT write_id FROM {agents} WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
        FOR NO KEY UPDATE
    ), t AS (
        {insert_message} FROM seen WHERE {fenced} AND {expected} AND {is_next} {unless_taken}
    ), u AS (
        {update_agent} AND EXISTS (SELECT FROM t) RETURNING created_at, updated_at
    )
    SELECT {allowed_at}, a.agent_id IS NOT NULL, {times_of_t}, {times_of_u},
        CASE WHEN t.created_at IS NULL THEN coalesce({next_message_id}, 0) END
    FROM (SELECT 1) AS one LEFT JOIN t ON true LEFT JOIN u ON true
    LEFT JOIN {agents} AS a ON a.session_id = %(session_id)s AND a.agent_id = %(agent_id)s
"""  # both are stored or neither; without times: someone else has written

_DELETE = """
    WITH {lease}, {active}, t AS (
        DELETE FROM {agents} WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND {fenced}
        RETURNING agent_id
    )
    SELECT {allowed_at}, t.agent_id IS NOT NULL FROM (SELECT 1) AS one LEFT JOIN t ON true
"""


class EncodedAgent(NamedTuple):
    """What is kept of an agent, each as its JSONB and its exact text."""

    state: tuple[str, str | None]
    conversation_manager_state: tuple[str, str | None]
    internal_state: tuple[str, str | None]

    @classmethod
    def of(cls, agent: SessionAgent) -> "EncodedAgent":
        """Encode an agent's documents; equal ones are stored alike."""
        return cls(encode(agent.state), encode(agent.conversation_manager_state), encode(agent._internal_state))

    @property
    def length(self) -> int:
        """In characters."""
        return sum(len(text) for document in self for text in document if text is not None)


class StoredAgent(NamedTuple):
    """An agent as a writer needs it.

    Attributes:
        agent: The agent.
        write_id: Of the last write to its row.
        next_message_id: The index that its next message will have.
    """

    agent: SessionAgent
    write_id: UUID
    next_message_id: int


class Agents:
    """The agents of one database, schema and prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._messages = Messages(database)
        self._create = compose(database, _CREATE)
        self._read = compose(database, _READ)
        self._update = compose(database, _UPDATE)
        self._update_and_append = compose(database, _UPDATE_AND_APPEND)
        self._delete = compose(database, _DELETE)

    def create(
        self,
        session_id: str,
        agent: SessionAgent,
        messages: Sequence[SessionMessage] = (),
        *,
        write_id: UUID,
        term: UUID | None = None,
    ) -> None:
        """Store a new agent, and its first messages with it or not at all, and set their times.

        Args:
            session_id: The session.
            agent: The agent.
            messages: Its first messages, numbered from 0.
            write_id: Of this call.
            term: Of the lease under which it is made, if any.

        Raises:
            LeaseLostError: ``term`` is not in force.
            SessionExistsError: Another write created it.
            SessionNotFoundError: The session does not exist.
        """
        row = _agent_row(session_id, agent, write_id, term)
        operation = f"creating agent {agent.agent_id!r} in session {session_id!r}"
        if messages:
            message_rows = [message_row(session_id, agent.agent_id, message, write_id, term) for message in messages]

            def store(cursor: Cursor[TupleRow]) -> list[TupleRow]:
                cursor.execute(self._create, {**row, **UNTIMED})
                created = cursor.fetchall()
                if created[0][1] is not None:
                    self._messages.append_many(cursor, message_rows)
                return created

            rows = self._database.transact(operation, store)
        else:
            rows = self._database.write(operation, self._create, row).rows
        allowed_at, created_at, _ = rows[0]
        check_lease(allowed_at, operation, session_id)
        if created_at is None:
            raise SessionExistsError(f"{operation}: the agent already exists; read it instead")
        agent.created_at = agent.updated_at = created_at
        for message in messages:
            message.created_at = message.updated_at = created_at

    def read(self, session_id: str, agent_id: str) -> StoredAgent | None:
        """Give an agent, or None."""
        key = {"session_id": check_id("session_id", session_id), "agent_id": check_id("agent_id", agent_id)}
        rows = self._database.fetch(f"reading agent {agent_id!r} of session {session_id!r}", self._read, key).rows
        return stored_agent(agent_id, rows[0]) if rows else None

    def update(
        self,
        session_id: str,
        agent: SessionAgent,
        documents: EncodedAgent | None = None,
        *,
        write_id: UUID,
        expected: UUID | None = None,
        term: UUID | None = None,
    ) -> None:
        """Store an agent's present state and set its times.

        Args:
            session_id: The session.
            agent: The agent.
            documents: Its documents, if they are encoded already.
            write_id: Of this call.
            expected: Of the write that the caller knows to be the last one; None is any.
            term: Of the lease under which it is made, if any.

        Raises:
            LeaseLostError: ``term`` is not in force.
            SessionConflictError: Another write came after the expected one.
            SessionNotFoundError: There is no such agent.
        """
        operation = f"updating agent {agent.agent_id!r} of session {session_id!r}"
        row = {**_agent_row(session_id, agent, write_id, term, documents), "expected": expected}
        allowed_at, exists, created_at, updated_at = self._database.write(operation, self._update, row).rows[0]
        check_lease(allowed_at, operation, session_id)
        if not exists:
            raise SessionNotFoundError(f"{operation}: the agent does not exist")
        if created_at is None:
            raise _overtaken(operation, session_id, agent.agent_id)
        agent.created_at, agent.updated_at = created_at, updated_at or created_at

    def update_and_append(
        self,
        session_id: str,
        agent: SessionAgent,
        message: SessionMessage,
        documents: EncodedAgent | None = None,
        *,
        write_id: UUID,
        expected: UUID | None = None,
        term: UUID | None = None,
    ) -> None:
        """Store an agent's present state and its next message, both or neither, and set their times.

        Args:
            session_id: The session.
            agent: The agent.
            message: Its next message.
            documents: The agent's documents, if they are encoded already.
            write_id: Of this call.
            expected: Of the write to the agent that the caller knows to be the last one; None is any.
            term: Of the lease under which it is made, if any.

        Raises:
            LeaseLostError: ``term`` is not in force.
            SessionConflictError: Another write came after the expected one, or the message's index is taken by
                another write, or is not the next.
            SessionNotFoundError: There is no such agent.
        """
        operation = (
            f"storing message {message.message_id} and state of agent {agent.agent_id!r} in session {session_id!r}"
        )
        row = {
            **_agent_row(session_id, agent, write_id, term, documents),
            **message_row(session_id, agent.agent_id, message, write_id, term),
            "expected": expected,
        }
        answer = self._database.write(operation, self._update_and_append, row)
        allowed_at, exists, created_at, updated_at, agent_created_at, agent_updated_at, next_index = answer.rows[0]
        check_lease(allowed_at, operation, session_id)
        if not exists:
            raise SessionNotFoundError(f"{operation}: the agent does not exist")
        if created_at is None and next_index == message.message_id:
            raise _overtaken(operation, session_id, agent.agent_id, message.message_id)
        if created_at is None:
            raise refused(operation, session_id, agent.agent_id, message, next_index)
        message.created_at, message.updated_at = created_at, updated_at or created_at
        agent.created_at, agent.updated_at = agent_created_at, agent_updated_at or agent_created_at

    def delete(self, session_id: str, agent_id: str, *, term: UUID | None = None) -> None:
        """Delete an agent and its messages.

        Raises:
            LeaseLostError: ``term`` is not in force.
            SessionNotFoundError: There is none; unless this call was repeated, and so may have deleted it.
        """
        key = {"session_id": check_id("session_id", session_id), "agent_id": check_id("agent_id", agent_id)}
        operation = f"deleting agent {agent_id!r} of session {session_id!r}"
        answer = self._database.write(operation, self._delete, {**key, "term": term})
        allowed_at, deleted = answer.rows[0]
        check_lease(allowed_at, operation, session_id)
        if not deleted and not answer.repeated:
            raise SessionNotFoundError(f"{operation}: the agent does not exist")


def stored_agent(agent_id: str, row: Sequence[Any]) -> StoredAgent:
    """Decode the columns of ``{stored_agent}``."""
    *documents, write_id, index, created_at, updated_at = row
    return StoredAgent(session_agent(agent_id, documents, created_at, updated_at), UUID(write_id), index)


def session_agent(agent_id: str, documents: Sequence[Any], created_at: str, updated_at: str | None) -> SessionAgent:
    """Decode the columns of an agent; ``documents`` are those of its three, in the table's order."""
    state, state_exact, manager, manager_exact, internal, internal_exact = documents
    return SessionAgent(
        agent_id,
        decode(state, state_exact),
        decode(manager, manager_exact),
        decode(internal, internal_exact),
        created_at,
        updated_at or created_at,
    )


def _overtaken(operation: str, session_id: str, agent_id: str, message_id: int | None = None) -> SessionConflictError:
    return SessionConflictError(
        f"{operation}: the agent has been written by someone else since it was read here; nothing was stored. Build a "
        "new session manager and agent to go on from what is stored, or hold a lease while you write",
        session_id=session_id,
        agent_id=agent_id,
        message_id=message_id,
    )


def _agent_row(
    session_id: str, agent: SessionAgent, write_id: UUID, term: UUID | None, documents: EncodedAgent | None = None
) -> dict[str, object]:
    """Encode an agent as the parameters of a statement."""
    (state, state_exact), (manager, manager_exact), (internal, internal_exact) = documents or EncodedAgent.of(agent)
    return {
        "session_id": check_id("session_id", session_id),
        "agent_id": check_id("agent_id", agent.agent_id),
        "state": state,
        "state_exact": state_exact,
        "conversation_manager_state": manager,
        "conversation_manager_state_exact": manager_exact,
        "_internal_state": internal,
        "_internal_state_exact": internal_exact,
        "write_id": write_id,
        "term": term,
    }
