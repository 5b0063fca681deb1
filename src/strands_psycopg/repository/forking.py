"""Forking of sessions inside the database."""

from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.codec import decode
from strands_psycopg.database import Database
from strands_psycopg.errors import SessionExistsError, SessionForkError, SessionNotFoundError
from strands_psycopg.repository.agents import EncodedAgent, agent_row, stored_agent
from strands_psycopg.repository.fork_point import ForkedAgent, ForkPoint, at_checkpoint
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.identifiers import check_id, check_index
from strands_psycopg.repository.listing import Listing, SessionSummary
from strands_psycopg.repository.sessions import Sessions
from strands_psycopg.repository.window import Variant, Window

# In seconds, for the whole transaction. A million messages take half a minute.
_RESPONSE_TIMEOUT = 600.0

_ALL_MESSAGES = 2**63 - 1

# The fork is one snapshot of the session, which may be written meanwhile.
_REPEATABLE_READ = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"

_WRITE_ID = "SELECT write_id::text FROM {sessions} WHERE session_id = %(session_id)s"

_SOURCE = "SELECT session_type FROM {sessions} WHERE session_id = %(source_id)s"

_SOURCE_AGENTS = "SELECT agent_id FROM {agents} WHERE session_id = %(source_id)s"

_SOURCE_AGENT = """
    SELECT {agent_columns} FROM {agents} AS t WHERE t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s
"""

_SOURCE_VARIANTS = """
    SELECT variant_id, message_id, message::text, message_exact FROM {message_variants}
    WHERE session_id = %(source_id)s AND agent_id = %(agent_id)s AND variant_id = ANY(%(variant_ids)s)
"""

_SOURCE_CHECKPOINT = """
    SELECT agent_id, message_count, memory_window::text, data::text, data_exact FROM {checkpoints}
    WHERE session_id = %(source_id)s AND agent_id = ANY(%(agent_ids)s) AND snapshot_id = %(snapshot_id)s
"""

_FORK_AGENTS = """
    INSERT INTO {agents} (
        session_id, agent_id, state, state_exact, conversation_manager_state, conversation_manager_state_exact,
        _internal_state, _internal_state_exact, memory_window, write_id, created_at, updated_at
    )
    SELECT %(session_id)s::text, a.agent_id, a.state, a.state_exact, a.conversation_manager_state,
        a.conversation_manager_state_exact, a._internal_state, a._internal_state_exact, a.memory_window,
        %(write_id)s::uuid, pg_catalog.now(), pg_catalog.now()
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
    WHERE m.session_id = %(source_id)s AND m.agent_id = ANY(%(agent_ids)s) AND m.message_id < %(message_count)s
"""

_IN_FORK = """
    c.session_id = %(source_id)s AND c.agent_id = ANY(%(agent_ids)s) AND c.message_count <= %(message_count)s
        AND (%(snapshot_id)s::uuid IS NULL OR c.snapshot_id <= %(snapshot_id)s::uuid)
"""

_FORK_CHECKPOINTS = (
    """
    INSERT INTO {checkpoints} (
        session_id, agent_id, snapshot_id, message_count, memory_window, variant_ids, data, data_exact, write_id,
        created_at
    )
    SELECT %(session_id)s::text, c.agent_id, c.snapshot_id, c.message_count, c.memory_window, c.variant_ids, c.data,
        c.data_exact, %(write_id)s::uuid, c.created_at
    FROM {checkpoints} AS c WHERE"""
    + _IN_FORK
)

# Of a truncated conversation, those that its checkpoints refer to.
_FORK_VARIANTS = (
    """
    INSERT INTO {message_variants} (
        session_id, agent_id, variant_id, message_id, message, message_exact, created_at
    )
    SELECT %(session_id)s::text, v.agent_id, v.variant_id, v.message_id, v.message, v.message_exact, v.created_at
    FROM {message_variants} AS v
    WHERE v.session_id = %(source_id)s AND v.agent_id = ANY(%(agent_ids)s) AND (
        %(is_whole)s OR EXISTS (
            SELECT true FROM {checkpoints} AS c
            WHERE v.agent_id = c.agent_id AND v.variant_id = ANY(c.variant_ids) AND"""
    + _IN_FORK
    + """
        )
    )
"""
)

_FORK_MULTI_AGENTS = """
    INSERT INTO {multi_agents} (session_id, multi_agent_id, state, state_exact, write_id, created_at, updated_at)
    SELECT %(session_id)s::text, a.multi_agent_id, a.state, a.state_exact, %(write_id)s::uuid, pg_catalog.now(),
        pg_catalog.now()
    FROM {multi_agents} AS a WHERE a.session_id = %(source_id)s
"""

# A user message with a tool result is not a prompt: it must follow the call.
_LAST_PROMPT = """
    SELECT message_id FROM {messages}
    WHERE session_id = %(source_id)s AND agent_id = %(agent_id)s AND message_id <= %(index)s
        AND coalesce(redact_message, message)->>'role'::text = 'user'
        AND NOT pg_catalog.jsonb_path_exists(coalesce(redact_message, message), '$.content[*].toolResult')
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
        self._source_agent = compose(database, _SOURCE_AGENT)
        self._source_variants = compose(database, _SOURCE_VARIANTS)
        self._source_checkpoint = compose(database, _SOURCE_CHECKPOINT)
        self._fork_agents = compose(database, _FORK_AGENTS)
        self._fork_messages = compose(database, _FORK_MESSAGES)
        self._fork_variants = compose(database, _FORK_VARIANTS)
        self._fork_checkpoints = compose(database, _FORK_CHECKPOINTS)
        self._fork_multi_agents = compose(database, _FORK_MULTI_AGENTS)
        self._update_agent = compose(database, "{update_agent}")
        self._last_prompt = compose(database, _LAST_PROMPT)

    def fork(
        self,
        session_id: str,
        new_session_id: str,
        *,
        agent_id: str | None = None,
        until: int | None = None,
        snapshot_id: UUID | None = None,
        write_id: UUID,
        term: UUID | None = None,
    ) -> SessionSummary:
        """Fork a session, or one agent of it, in one transaction.

        Args:
            session_id: The session to fork.
            new_session_id: The id of the fork.
            agent_id: Fork this agent only; None is all agents and multi-agents.
            until: The index at which the agent's conversation is truncated; None is not to truncate it.
            snapshot_id: The checkpoint of an agent that is forked as it was then; None is as it is now.
            write_id: The write id of this call.
            term: The term of the lease on the new session, if this process holds one.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionExistsError: The new session already exists.
            SessionForkError: The conversation cannot be truncated.
            SessionNotFoundError: The session, agent or checkpoint does not exist.
            ValueError: Both ``until`` and ``snapshot_id`` are passed.
        """
        if until is not None and snapshot_id is not None:
            raise ValueError("until and snapshot_id exclude each other: a checkpoint says where the fork begins")
        key: dict[str, object] = {
            "source_id": check_id("session_id", session_id),
            "session_id": check_id("new_session_id", new_session_id),
            "snapshot_id": snapshot_id,
            "write_id": write_id,
            "term": term,
        }
        if until is not None:
            until = check_index("until", until)
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
                forked = None
                if snapshot_id is not None:
                    forked = self._read_checkpoint(cursor, {**key, "agent_ids": agent_ids}, operation, agent_id)
                    agent_ids = [forked.agent.agent_id]
                elif until is not None and agent_ids:
                    forked = self._truncate(cursor, key, session_id, agent_ids, until)
                copied = {
                    **key,
                    "session_type": session_type,
                    "agent_ids": agent_ids,
                    "is_whole": forked is None,
                    "message_count": Int8(_ALL_MESSAGES if forked is None else forked.message_count),
                }
                self._sessions.create_within(cursor, copied, operation)
                cursor.execute(self._fork_agents, copied)
                cursor.execute(self._fork_messages, copied)
                cursor.execute(self._fork_variants, copied)
                cursor.execute(self._fork_checkpoints, copied)
                if agent_id is None and snapshot_id is None:
                    cursor.execute(self._fork_multi_agents, copied)
                if forked is not None:
                    agent = forked.agent
                    documents = EncodedAgent.of(agent)
                    row = agent_row(new_session_id, agent.agent_id, documents, forked.window, write_id, term)
                    cursor.execute(self._update_agent, row)
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

    def _read_checkpoint(
        self, cursor: Cursor[TupleRow], key: dict[str, object], operation: str, agent_id: str | None
    ) -> ForkedAgent:
        """Return the agent of a checkpoint, as it was then."""
        found = cursor.execute(self._source_checkpoint, key).fetchall()
        if not found:
            searched = "the session" if agent_id is None else f"agent {agent_id!r}"
            raise SessionNotFoundError(f"{operation}: {searched} has no checkpoint {key['snapshot_id']}")
        found_agent_id, message_count, window, data, data_exact = found[0]
        return at_checkpoint(found_agent_id, decode(data, data_exact), Window.loads(window), message_count)

    def _truncate(
        self, cursor: Cursor[TupleRow], key: dict[str, object], session_id: str, agent_ids: list[str], until: int
    ) -> ForkedAgent | None:
        """Return the agent with its truncated conversation; None if it has no more than ``until`` messages."""
        if len(agent_ids) > 1:
            raise SessionForkError(
                f"session {session_id!r} has {len(agent_ids)} agents; name the one whose conversation is to be "
                f"truncated at {until} (agent_id)",
                session_id=session_id,
            )
        agent_id = agent_ids[0]
        key = {**key, "agent_id": agent_id}

        def last_prompt(index: int) -> int:
            found = cursor.execute(self._last_prompt, {**key, "index": Int8(index)}).fetchall()
            return int(found[0][0]) if found else 0

        rows = cursor.execute(self._source_agent, {"session_id": session_id, "agent_id": agent_id}).fetchall()
        stored = stored_agent(agent_id, rows[0])
        if until >= stored.next_message_id:
            return None
        variant_ids = stored.window.variant_ids if stored.window else []
        variants = [
            Variant(variant_id, original, decode(message, message_exact))
            for variant_id, original, message, message_exact in cursor.execute(
                self._source_variants, {**key, "variant_ids": variant_ids}
            )
        ]
        return ForkPoint(session_id, stored, variants, until=until, last_prompt=last_prompt).truncated()
