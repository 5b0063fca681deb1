"""SessionForker of sessions, made in the database."""

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

# In seconds, for all of a copy. A million messages take half a minute.
_RESPONSE_TIMEOUT = 600.0

_NO_CUT = 2**63 - 1

# What is copied belongs together, though the session is being written.
_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"

_WRITE_ID = "SELECT write_id::text FROM {sessions} WHERE session_id = %(session_id)s"

_SOURCE = "SELECT session_type FROM {sessions} WHERE session_id = %(source_id)s"

_SOURCE_AGENTS = "SELECT agent_id FROM {agents} WHERE session_id = %(source_id)s"

_COPY_AGENTS = """
    INSERT INTO {agents} (
        session_id, agent_id, state, state_exact, conversation_manager_state, conversation_manager_state_exact,
        _internal_state, _internal_state_exact, write_id, created_at, updated_at
    )
    SELECT %(session_id)s::text, a.agent_id, a.state, a.state_exact, a.conversation_manager_state,
        a.conversation_manager_state_exact, a._internal_state, a._internal_state_exact, %(write_id)s::uuid, now(), now()
    FROM {agents} AS a WHERE a.session_id = %(source_id)s AND a.agent_id = ANY(%(agent_ids)s)
"""

_COPY_MESSAGES = """
    INSERT INTO {messages} (
        session_id, agent_id, message_id, message, message_exact, redact_message, redact_message_exact, write_id,
        created_at, updated_at
    )
    SELECT %(session_id)s::text, m.agent_id, m.message_id, m.message, m.message_exact, m.redact_message,
        m.redact_message_exact, %(write_id)s::uuid, m.created_at, m.updated_at
    FROM {messages} AS m
    WHERE m.session_id = %(source_id)s AND m.agent_id = ANY(%(agent_ids)s) AND m.message_id < %(until)s
"""

_COPY_MULTI_AGENTS = """
    INSERT INTO {multi_agents} (session_id, multi_agent_id, state, state_exact, write_id, created_at, updated_at)
    SELECT %(session_id)s::text, a.multi_agent_id, a.state, a.state_exact, %(write_id)s::uuid, now(), now()
    FROM {multi_agents} AS a WHERE a.session_id = %(source_id)s
"""

_DOCUMENTS = """
    SELECT a.conversation_manager_state::text, a.conversation_manager_state_exact, a._internal_state::text,
        a._internal_state_exact, coalesce({messages_of_a}, 0)
    FROM {agents} AS a WHERE a.session_id = %(source_id)s AND a.agent_id = %(agent_id)s
"""

_CUT = """
    UPDATE {agents} SET
        conversation_manager_state = %(conversation_manager_state)s,
        conversation_manager_state_exact = %(conversation_manager_state_exact)s,
        _internal_state = %(_internal_state)s, _internal_state_exact = %(_internal_state_exact)s
    WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
"""

# With a plain message, not with the result of a tool that was called before.
_PROMPT_BEFORE = """
    SELECT message_id FROM {messages}
    WHERE session_id = %(source_id)s AND agent_id = %(agent_id)s AND message_id <= %(index)s
        AND coalesce(redact_message, message)->>'role' = 'user'
        AND NOT jsonb_path_exists(coalesce(redact_message, message), '$.content[*].toolResult')
    ORDER BY message_id DESC LIMIT 1
"""


class SessionForker:
    """SessionForker sessions of one database, schema and prefix."""

    def __init__(self, database: Database, sessions: Sessions, listing: Listing) -> None:
        self._database = database
        self._sessions = sessions
        self._listing = listing
        self._write_id = compose(database, _WRITE_ID)
        self._source = compose(database, _SOURCE)
        self._source_agents = compose(database, _SOURCE_AGENTS)
        self._copy_agents = compose(database, _COPY_AGENTS)
        self._copy_messages = compose(database, _COPY_MESSAGES)
        self._copy_multi_agents = compose(database, _COPY_MULTI_AGENTS)
        self._documents = compose(database, _DOCUMENTS)
        self._cut = compose(database, _CUT)
        self._prompt_before = compose(database, _PROMPT_BEFORE)

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
        """Copy a session, or one agent of it, in one transaction.

        Args:
            session_id: The session.
            new_session_id: The copy.
            agent_id: The only agent to be copied; None is all of them, and the multi-agents.
            until: How many of the agent's messages are copied at most; None is all.
            write_id: Of this call.
            term: Of the lease on the copy under which it is made, if any.

        Raises:
            LeaseLostError: ``term`` is not in force.
            SessionExistsError: The copy exists.
            SessionForkError: The cut is not possible.
            SessionNotFoundError: The session or agent does not exist.
        """
        key: dict[str, object] = {
            "source_id": check_id("session_id", session_id),
            "session_id": check_id("new_session_id", new_session_id),
            "write_id": write_id,
            "term": term,
            "until": Int8(_NO_CUT if until is None else check_index("until", until)),
        }
        if agent_id is not None:
            check_id("agent_id", agent_id)
        operation = f"forking session {session_id!r} to {new_session_id!r}"

        def copy(cursor: Cursor[TupleRow]) -> SessionSummary:
            cursor.execute(_SNAPSHOT)
            written = cursor.execute(self._write_id, key).fetchall()
            if written and written[0][0] != str(write_id):
                raise SessionExistsError(f"{operation}: session {new_session_id!r} already exists; choose another id")
            # Otherwise by an attempt whose answer was lost. Since then more may have been said, in both sessions.
            if not written:
                session_type, agent_ids = self._read_source(cursor, key, operation, agent_id)
                fork_point = None
                if until is not None and agent_ids:
                    fork_point = self._documents_at_fork_point(cursor, key, session_id, agent_ids, until)
                self._sessions.add(cursor, {**key, "session_type": session_type}, operation)
                cursor.execute(self._copy_agents, {**key, "agent_ids": agent_ids})
                cursor.execute(self._copy_messages, {**key, "agent_ids": agent_ids})
                if agent_id is None:
                    cursor.execute(self._copy_multi_agents, key)
                if fork_point:
                    cursor.execute(self._cut, {**key, **fork_point})
            return self._listing.read_within(cursor, new_session_id)

        return self._database.transact(operation, copy, response_timeout=_RESPONSE_TIMEOUT)

    def _read_source(
        self, cursor: Cursor[TupleRow], key: dict[str, object], operation: str, agent_id: str | None
    ) -> tuple[str, list[str]]:
        """Give the session's type and the ids of those of its agents that are to be copied."""
        source = cursor.execute(self._source, key).fetchall()
        if not source:
            raise SessionNotFoundError(f"{operation}: session {key['source_id']!r} does not exist")
        agent_ids = [each for (each,) in cursor.execute(self._source_agents, key)]
        if agent_id is None:
            return source[0][0], agent_ids
        if agent_id not in agent_ids:
            raise SessionNotFoundError(f"{operation}: the session has no agent {agent_id!r}")
        return source[0][0], [agent_id]

    def _documents_at_fork_point(
        self, cursor: Cursor[TupleRow], key: dict[str, object], session_id: str, agent_ids: list[str], until: int
    ) -> dict[str, object] | None:
        """Give what fits the agent to the messages that are copied with it; None if those are all of its."""
        if len(agent_ids) > 1:
            raise SessionForkError(
                f"session {session_id!r} has {len(agent_ids)} agents; name the one whose messages are to be cut at "
                f"{until} (agent_id)",
                session_id=session_id,
            )
        key = {**key, "agent_id": agent_ids[0]}

        def prompt_before(index: int) -> int:
            found = cursor.execute(self._prompt_before, {**key, "index": Int8(index)}).fetchall()
            return int(found[0][0]) if found else 0

        manager, manager_exact, internal, internal_exact, stored = cursor.execute(self._documents, key).fetchall()[0]
        if until >= stored:
            return None
        fork_point = ForkPoint(session_id, agent_ids[0], until=until, stored=stored, prompt_before=prompt_before)
        manager, manager_exact = encode(fork_point.conversation_manager_state(decode(manager, manager_exact)))
        internal, internal_exact = encode(fork_point.internal_state(decode(internal, internal_exact)))
        return {
            "agent_id": agent_ids[0],
            "conversation_manager_state": manager,
            "conversation_manager_state_exact": manager_exact,
            "_internal_state": internal,
            "_internal_state_exact": internal_exact,
        }
