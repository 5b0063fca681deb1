"""Forking of sessions inside the database."""

from typing import Any
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8
from strands.types.content import Message

from strands_psycopg.arguments import check_id, check_index
from strands_psycopg.database import Database
from strands_psycopg.errors import (
    SessionExistsError,
    SessionForkError,
    SessionNotFoundError,
    owner_error,
    suppressed_error,
)
from strands_psycopg.payload import Payloads
from strands_psycopg.repository.agents import AgentChange, agent_parameters, decode_stored_agent
from strands_psycopg.repository.annotations import check_owner
from strands_psycopg.repository.conversations import decode_stored_message
from strands_psycopg.repository.fork_copy import AGENT_TABLES, MULTI_AGENT_TABLES, ForkCopy
from strands_psycopg.repository.fork_point import ForkedAgent, ForkPoint, at_checkpoint
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.listing import Listing, SessionSummary
from strands_psycopg.repository.sessions import Sessions
from strands_psycopg.repository.window import Variant, Window
from strands_psycopg.storage.session_values import SessionValues

# In seconds, for the whole transaction. A million messages take half a minute.
_RESPONSE_TIMEOUT = 600.0

_ALL_MESSAGES = 2**63 - 1

# The fork is one snapshot of the session, which may be written meanwhile.
_REPEATABLE_READ = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"

_WRITE_ID = "SELECT write_id::text FROM {sessions} WHERE session_id = %(session_id)s"

_SOURCE = """
    SELECT t.session_type, {annotations_of_t} FROM {sessions} AS t WHERE t.session_id = %(source_id)s
"""

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

# A user message with a tool result is not a prompt: it must follow the call (see ``_is_prompt``).
_LAST_PROMPT = """
    SELECT message_id FROM {messages}
    WHERE session_id = %(source_id)s AND agent_id = %(agent_id)s AND message_id <= %(index)s
        AND coalesce(redact_message, message)->>'role'::text = 'user'
        AND NOT pg_catalog.jsonb_path_exists(coalesce(redact_message, message), '$.content[*].toolResult')
    ORDER BY message_id DESC LIMIT 1
"""

# With a payload codec, messages are decoded to find it, from the end.
_LAST_MESSAGES = """
    SELECT message_id, message::text, message_exact, redact_message::text, redact_message_exact FROM {messages}
    WHERE session_id = %(source_id)s AND agent_id = %(agent_id)s AND message_id <= %(index)s
    ORDER BY message_id DESC LIMIT %(limit)s
"""

_LAST_MESSAGES_PAGE = 10


class SessionForker:
    """Forks sessions of one database, schema and prefix."""

    def __init__(self, database: Database, payloads: Payloads, sessions: Sessions, listing: Listing) -> None:
        self._database = database
        self._payloads = payloads
        self._sessions = sessions
        self._listing = listing
        self._write_id = compose(database, _WRITE_ID)
        self._source = compose(database, _SOURCE)
        self._source_agents = compose(database, _SOURCE_AGENTS)
        self._source_agent = compose(database, _SOURCE_AGENT)
        self._source_variants = compose(database, _SOURCE_VARIANTS)
        self._source_checkpoint = compose(database, _SOURCE_CHECKPOINT)
        self._agents_copy = ForkCopy(database, payloads, AGENT_TABLES)
        self._multi_agents_copy = ForkCopy(database, payloads, MULTI_AGENT_TABLES)
        self._values = SessionValues(database)
        self._update_agent = compose(database, "{update_agent}")
        self._last_prompt = compose(database, _LAST_PROMPT)
        self._last_messages = compose(database, _LAST_MESSAGES)

    def fork(
        self,
        session_id: str,
        new_session_id: str,
        *,
        agent_id: str | None = None,
        until: int | None = None,
        snapshot_id: UUID | None = None,
        owner: str | None = None,
        write_id: UUID,
        term: UUID | None = None,
    ) -> SessionSummary:
        """Fork a session, or one agent of it, in one transaction.

        Args:
            session_id: The session to fork.
            new_session_id: The id of the fork.
            agent_id: Fork this agent only; None forks all agents and multi-agents.
            until: The index at which the agent's conversation is truncated; None does not truncate it.
            snapshot_id: The checkpoint of an agent that is forked as it was then; None forks it as it is now.
            owner: Fork the session only if it belongs to this owner; None forks any session.
            write_id: The write id of this call.
            term: The term of the lease on the new session, if this process holds one.

        Raises:
            DatabaseError: The database did not store everything.
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionExistsError: The new session already exists.
            SessionForkError: The conversation cannot be truncated.
            SessionNotFoundError: The session, agent or checkpoint does not exist.
            SessionOwnerError: The session does not belong to ``owner``.
            ValueError: Both ``until`` and ``snapshot_id`` are passed.
        """
        if until is not None and snapshot_id is not None:
            raise ValueError("until and snapshot_id are mutually exclusive: a checkpoint says where the fork begins")
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
        check_owner(owner)
        operation = f"forking session {session_id!r} to {new_session_id!r}"

        def fork_within(cursor: Cursor[TupleRow]) -> SessionSummary:
            cursor.execute(_REPEATABLE_READ)
            written = cursor.execute(self._write_id, key).fetchall()
            if written and written[0][0] != str(write_id):
                raise SessionExistsError(f"{operation}: session {new_session_id!r} already exists; choose another id")
            # With this write id, the fork was stored by an attempt whose acknowledgement was lost. Both sessions may
            # have been written since.
            if not written:
                session, agent_ids = self._read_source(cursor, key, operation, agent_id, owner)
                forked = None
                if snapshot_id is not None:
                    forked = self._read_checkpoint(cursor, {**key, "agent_ids": agent_ids}, operation, agent_id)
                    agent_ids = [forked.agent.agent_id]
                elif until is not None and agent_ids:
                    forked = self._truncate(cursor, key, session_id, agent_ids, until)
                copied = {
                    **key,
                    **session,
                    "agent_ids": agent_ids,
                    "is_whole": forked is None,
                    "message_count": Int8(_ALL_MESSAGES if forked is None else forked.message_count),
                }
                self._sessions.create_within(cursor, copied, operation)
                self._agents_copy.run(cursor, copied, operation)
                if agent_id is None and snapshot_id is None:
                    self._multi_agents_copy.run(cursor, copied, operation)
                if not self._values.copy(cursor, session_id, new_session_id, write_id, self._payloads):
                    raise suppressed_error(operation)
                if forked is not None:
                    change = AgentChange.of(forked.agent, forked.window)
                    row = agent_parameters(self._payloads, new_session_id, change, write_id, term)
                    cursor.execute(self._update_agent, row)
            return self._listing.read_within(cursor, new_session_id)

        return self._database.transact(operation, fork_within, response_timeout=_RESPONSE_TIMEOUT)

    def _read_source(
        self,
        cursor: Cursor[TupleRow],
        key: dict[str, object],
        operation: str,
        agent_id: str | None,
        owner: str | None,
    ) -> tuple[dict[str, object], list[str]]:
        """Return the columns of the session that the fork has too, and the ids of the agents to fork."""
        source = cursor.execute(self._source, key).fetchall()
        source_id = str(key["source_id"])
        if not source:
            raise SessionNotFoundError(f"{operation}: session {source_id!r} does not exist")
        session_type, stored_owner, title, metadata, metadata_exact = source[0]
        if owner is not None and stored_owner != owner:
            raise owner_error(operation, source_id)
        if title is not None:
            decoded = self._payloads.decode_title(title, source_id)
            title = self._payloads.encode_title(decoded, str(key["session_id"]))
        session = {
            "session_type": session_type,
            "owner": stored_owner,
            "title": title,
            "metadata": metadata,
            "metadata_exact": metadata_exact,
        }
        agent_ids = [each for (each,) in cursor.execute(self._source_agents, key)]
        if agent_id is None:
            return session, agent_ids
        if agent_id not in agent_ids:
            raise SessionNotFoundError(f"{operation}: the session has no agent {agent_id!r}")
        return session, [agent_id]

    def _read_checkpoint(
        self, cursor: Cursor[TupleRow], key: dict[str, object], operation: str, agent_id: str | None
    ) -> ForkedAgent:
        """Return the agent of a checkpoint, as it was then."""
        found = cursor.execute(self._source_checkpoint, key).fetchall()
        if not found:
            searched = "the session" if agent_id is None else f"agent {agent_id!r}"
            raise SessionNotFoundError(f"{operation}: {searched} has no checkpoint {key['snapshot_id']}")
        found_agent_id, message_count, window, data, data_exact = found[0]
        source_id, index = str(key["source_id"]), str(key["snapshot_id"])
        decoded = self._payloads.decode(data, data_exact, source_id, found_agent_id, "checkpoint", index)
        return at_checkpoint(found_agent_id, decoded, Window.loads(window), message_count)

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
            if self._payloads.has_codec:
                return self._find_last_prompt(cursor, key, session_id, agent_id, index)
            found = cursor.execute(self._last_prompt, {**key, "index": Int8(index)}).fetchall()
            return int(found[0][0]) if found else 0

        rows = cursor.execute(self._source_agent, {"session_id": session_id, "agent_id": agent_id}).fetchall()
        stored = decode_stored_agent(self._payloads, session_id, agent_id, rows[0])
        if until >= stored.next_message_id:
            return None
        variant_ids = stored.window.variant_ids if stored.window else []
        found = cursor.execute(self._source_variants, {**key, "variant_ids": variant_ids})
        variants = []
        for variant_id, original, text, exact in found:
            message = self._payloads.decode(text, exact, session_id, agent_id, "variant", variant_id)
            variants.append(Variant(variant_id, original, message))
        return ForkPoint(session_id, stored, variants, until=until, last_prompt=last_prompt).truncated()

    def _find_last_prompt(
        self, cursor: Cursor[TupleRow], key: dict[str, object], session_id: str, agent_id: str, index: int
    ) -> int:
        """Return the index of the last user prompt up to an index; 0 if there is none."""
        while True:
            page = {**key, "index": Int8(index), "limit": Int8(_LAST_MESSAGES_PAGE)}
            rows = cursor.execute(self._last_messages, page).fetchall()
            for row in rows:
                if _is_prompt(decode_stored_message(self._payloads, session_id, agent_id, row).message):
                    return int(row[0])
            if len(rows) < _LAST_MESSAGES_PAGE:
                return 0
            index = rows[-1][0] - 1


def _is_prompt(message: Message) -> bool:
    content: Any = message.get("content")
    blocks = content if isinstance(content, list) else [content]
    has_result = any(isinstance(block, dict) and "toolResult" in block for block in blocks)
    return message.get("role") == "user" and not has_result
