"""Forking of sessions inside the database."""

from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.codec import decode, encode
from strands_psycopg.database import Database
from strands_psycopg.errors import SessionExistsError, SessionForkError, SessionNotFoundError
from strands_psycopg.repository.fork_point import ForkPoint
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.identifiers import check_id, check_index
from strands_psycopg.repository.listing import Listing, SessionSummary
from strands_psycopg.repository.sessions import Sessions

# In seconds, for the whole transaction. A million messages take half a minute.
_RESPONSE_TIMEOUT = 600.0

_ALL_MESSAGES = 2**63 - 1

# The fork is one snapshot of the session, which may be written meanwhile.
_REPEATABLE_READ = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"

_WRITE_ID = "SELECT write_id::text FROM {sessions} WHERE session_id = %(session_id)s"

_SOURCE = "SELECT session_type FROM {sessions} WHERE session_id = %(source_id)s"

_SOURCE_AGENTS = "SELECT agent_id FROM {agents} WHERE session_id = %(source_id)s"

_FORK_AGENTS = """
    INSERT INTO {agents} (
        session_id, agent_id, state, state_exact, conversation_manager_state, conversation_manager_state_exact,
        _internal_state, _internal_state_exact, write_id, created_at, updated_at
    )
    SELECT %(session_id)s::text, a.agent_id, a.state, a.state_exact, a.conversation_manager_state,
        a.conversation_manager_state_exact, a._internal_state, a._internal_state_exact, %(write_id)s::uuid, now(), now()
    FROM {agents} AS a WHERE a.session_id = %(source_id)s AND a.agent_id = ANY(%(agent_ids)s)
"""

_FORK_MESSAGES = """
    INSERT INTO {messages} (
        session_id, agent_id, message_id, message, message_exact, redact_message, redact_message_exact, write_id,
        created_at, updated_at
    )
    SELECT %(session_id)s::text, m.agent_id, m.message_id, m.message, m.message_exact, m.redact_message,
        m.redact_message_exact, %(write_id)s::uuid, m.created_at, m.updated_at
    FROM {messages} AS m
    WHERE m.session_id = %(source_id)s AND m.agent_id = ANY(%(agent_ids)s) AND m.message_id < %(until)s
"""

_FORK_MULTI_AGENTS = """
    INSERT INTO {multi_agents} (session_id, multi_agent_id, state, state_exact, write_id, created_at, updated_at)
    SELECT %(session_id)s::text, a.multi_agent_id, a.state, a.state_exact, %(write_id)s::uuid, now(), now()
    FROM {multi_agents} AS a WHERE a.session_id = %(source_id)s
"""

_SOURCE_STATE = """
    SELECT a.conversation_manager_state::text, a.conversation_manager_state_exact, a._internal_state::text,
        a._internal_state_exact, coalesce({messages_of_a}, 0)
    FROM {agents} AS a WHERE a.session_id = %(source_id)s AND a.agent_id = %(agent_id)s
"""

_TRUNCATE_STATE = """
    UPDATE {agents} SET
        conversation_manager_state = %(conversation_manager_state)s,
        conversation_manager_state_exact = %(conversation_manager_state_exact)s,
        _internal_state = %(_internal_state)s, _internal_state_exact = %(_internal_state_exact)s
    WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
"""

# A user message with a tool result is not a prompt: it must follow the call.
_LAST_PROMPT = """
    SELECT message_id FROM {messages}
    WHERE session_id = %(source_id)s AND agent_id = %(agent_id)s AND message_id <= %(index)s
        AND coalesce(redact_message, message)->>'role' = 'user'
        AND NOT jsonb_path_exists(coalesce(redact_message, message), '$.content[*].toolResult')
    ORDER BY message_id DESC LIMIT 1
"""


class SessionForker:
    """Forks sessions of one database, schema and prefix."""

    def __init__(self, database: Database, sessions: Sessions, listing: Listing) -> None:
        self._database = database
        self._sessions = sessions
        self._listing = listing
        self._write_id = compose(database, _WRITE_ID)
        self._source = compose(database, _SOURCE)
        self._source_agents = compose(database, _SOURCE_AGENTS)
        self._fork_agents = compose(database, _FORK_AGENTS)
        self._fork_messages = compose(database, _FORK_MESSAGES)
        self._fork_multi_agents = compose(database, _FORK_MULTI_AGENTS)
        self._source_state = compose(database, _SOURCE_STATE)
        self._truncate_state = compose(database, _TRUNCATE_STATE)
        self._last_prompt = compose(database, _LAST_PROMPT)

    def fork(
        self,
        session_id: str,
        new_session_id: str,
        *,
        agent_id: str | None = None,
        until: int | None = None,
        write_id: UUID,
        term: UUID | None = None,
    ) -> SessionSummary:
        """Fork a session, or one agent of it, in one transaction.

        Args:
            session_id: The session to fork.
            new_session_id: The id of the fork.
            agent_id: Fork this agent only; None is all agents and multi-agents.
            until: The index at which the agent's conversation is truncated; None is not to truncate it.
            write_id: The write id of this call.
            term: The term of the lease on the new session, if this process holds one.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionExistsError: The new session already exists.
            SessionForkError: The conversation cannot be truncated.
            SessionNotFoundError: The session or agent does not exist.
        """
        key: dict[str, object] = {
            "source_id": check_id("session_id", session_id),
            "session_id": check_id("new_session_id", new_session_id),
            "write_id": write_id,
            "term": term,
            "until": Int8(_ALL_MESSAGES if until is None else check_index("until", until)),
        }
        if agent_id is not None:
            check_id("agent_id", agent_id)
        operation = f"forking session {session_id!r} to {new_session_id!r}"

        def fork_within(cursor: Cursor[TupleRow]) -> SessionSummary:
            cursor.execute(_REPEATABLE_READ)
            written = cursor.execute(self._write_id, key).fetchall()
            if written and written[0][0] != str(write_id):
                raise SessionExistsError(f"{operation}: session {new_session_id!r} already exists; choose another id")
            # With this write id, the fork was stored by an attempt whose acknowledgement was lost. Both sessions may
            # have been written since.
            if not written:
                session_type, agent_ids = self._read_source(cursor, key, operation, agent_id)
                truncated_state = None
                if until is not None and agent_ids:
                    truncated_state = self._truncated_state(cursor, key, session_id, agent_ids, until)
                self._sessions.create_within(cursor, {**key, "session_type": session_type}, operation)
                cursor.execute(self._fork_agents, {**key, "agent_ids": agent_ids})
                cursor.execute(self._fork_messages, {**key, "agent_ids": agent_ids})
                if agent_id is None:
                    cursor.execute(self._fork_multi_agents, key)
                if truncated_state:
                    cursor.execute(self._truncate_state, {**key, **truncated_state})
            return self._listing.read_within(cursor, new_session_id)

        return self._database.transact(operation, fork_within, response_timeout=_RESPONSE_TIMEOUT)

    def _read_source(
        self, cursor: Cursor[TupleRow], key: dict[str, object], operation: str, agent_id: str | None
    ) -> tuple[str, list[str]]:
        """Return the type of the session and the ids of the agents to fork."""
        source = cursor.execute(self._source, key).fetchall()
        if not source:
            raise SessionNotFoundError(f"{operation}: session {key['source_id']!r} does not exist")
        agent_ids = [each for (each,) in cursor.execute(self._source_agents, key)]
        if agent_id is None:
            return source[0][0], agent_ids
        if agent_id not in agent_ids:
            raise SessionNotFoundError(f"{operation}: the session has no agent {agent_id!r}")
        return source[0][0], [agent_id]

    def _truncated_state(
        self, cursor: Cursor[TupleRow], key: dict[str, object], session_id: str, agent_ids: list[str], until: int
    ) -> dict[str, object] | None:
        """Return the agent's state for its truncated conversation; None if it has no more than ``until`` messages."""
        if len(agent_ids) > 1:
            raise SessionForkError(
                f"session {session_id!r} has {len(agent_ids)} agents; name the one whose conversation is to be "
                f"truncated at {until} (agent_id)",
                session_id=session_id,
            )
        key = {**key, "agent_id": agent_ids[0]}

        def last_prompt(index: int) -> int:
            found = cursor.execute(self._last_prompt, {**key, "index": Int8(index)}).fetchall()
            return int(found[0][0]) if found else 0

        manager, manager_exact, internal, internal_exact, stored = cursor.execute(self._source_state, key).fetchall()[0]
        if until >= stored:
            return None
        fork_point = ForkPoint(session_id, agent_ids[0], until=until, stored=stored, last_prompt=last_prompt)
        manager, manager_exact = encode(fork_point.conversation_manager_state(decode(manager, manager_exact)))
        internal, internal_exact = encode(fork_point.internal_state(decode(internal, internal_exact)))
        return {
            "agent_id": agent_ids[0],
            "conversation_manager_state": manager,
            "conversation_manager_state_exact": manager_exact,
            "_internal_state": internal,
            "_internal_state_exact": internal_exact,
        }
