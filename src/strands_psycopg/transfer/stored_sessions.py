"""Complete reads of stored sessions, without holding a transaction or all messages in memory."""

from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any, NamedTuple

from psycopg import Cursor
from psycopg.rows import TupleRow
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg.arguments import check_id
from strands_psycopg.errors import SessionNotFoundError, TransferError
from strands_psycopg.payload import Payloads
from strands_psycopg.repository import PostgresSessionRepository, session_tables
from strands_psycopg.repository.agents import decode_agent
from strands_psycopg.repository.annotations import Annotations
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.messages import Messages
from strands_psycopg.repository.window import Window
from strands_psycopg.transfer.rows import MessageRow, PartRow, ValueRow, message_row
from strands_psycopg.transfer.spooled_parts import PartsReader, SpooledParts
from strands_psycopg.watchdog import watchdog

# For this transaction only: its statements see one snapshot.
_REPEATABLE_READ = b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

_SESSION = """
    SELECT t.write_id::text, t.session_type, {times_of_t}, {annotations_of_t}
    FROM {sessions} AS t WHERE t.session_id = %(session_id)s
"""

_AGENTS = """
    SELECT t.agent_id, t.state::text, t.state_exact, t.conversation_manager_state::text,
        t.conversation_manager_state_exact, t._internal_state::text, t._internal_state_exact, t.memory_window::text,
        coalesce((
            SELECT pg_catalog.max(m.message_id) + 1 FROM {messages} AS m
            WHERE m.session_id = %(session_id)s AND m.agent_id = t.agent_id
        ), 0),
        {times_of_t}
    FROM {agents} AS t WHERE t.session_id = %(session_id)s ORDER BY t.agent_id
"""

_MULTI_AGENTS = """
    SELECT t.multi_agent_id, t.state::text, t.state_exact, {times_of_t}
    FROM {multi_agents} AS t WHERE t.session_id = %(session_id)s ORDER BY t.multi_agent_id
"""

# The write id of a session and the creation times of its agents change if they are deleted and created again.
_AGENT_IDENTITIES = """
    SELECT s.write_id::text, t.agent_id, {times_of_t}
    FROM {sessions} AS s LEFT JOIN {agents} AS t ON t.session_id = %(session_id)s
    WHERE s.session_id = %(session_id)s
"""

_IDS = """
    SELECT session_id FROM {sessions}
    WHERE session_id >= %(first)s AND (%(after)s::text IS NULL OR session_id > %(after)s)
    ORDER BY session_id LIMIT %(limit)s
"""

_IDS_PAGE = 1_000

# A page of messages has about this many characters of JSON, so that memory use does not grow with long messages.
_PAGE_CHARACTERS = 2**20
_FIRST_PAGE_MESSAGES = 16
_MAX_PAGE_MESSAGES = 1_000

# In seconds, for the whole transaction that reads a snapshot; a single response has the database's own limit.
_SNAPSHOT_TIMEOUT = 600.0


class MultiAgentWithTimes(NamedTuple):
    """A multi-agent with its times."""

    multi_agent_id: str
    state: dict[str, Any]
    created_at: str
    updated_at: str


class AgentWithWindow(NamedTuple):
    """An agent, its window (None if that is the end of its log), and the number of its messages."""

    agent: SessionAgent
    window: Window | None
    messages: int


class StoredSession:
    """A session as of one snapshot.

    Messages are read on demand, up to the last one of the snapshot. Those that have been redacted or replaced since
    are returned as they are now. Variants, checkpoints and values are those of the snapshot (see ``SpooledParts``).

    Attributes:
        session: The session.
        agents: Its agents by id.
        multi_agents: Its multi-agents by id.
        raw: Whether documents are as they are stored, and not decoded by a payload codec.
    """

    def __init__(
        self,
        sessions: "StoredSessions",
        write_id: str,
        session: Session,
        agents: dict[str, AgentWithWindow],
        multi_agents: dict[str, MultiAgentWithTimes],
        spooled: SpooledParts,
    ) -> None:
        self.session = session
        self.agents = agents
        self.multi_agents = multi_agents
        self.raw = sessions.raw
        self._spooled = spooled
        self._sessions = sessions
        self._write_id = write_id

    def parts(self, agent_id: str) -> Iterator[PartRow]:
        """Yield an agent's messages, then its variants, then its checkpoints, each in order.

        Raises:
            TransferError: Some messages were deleted after the snapshot.
        """
        return chain(self.messages(agent_id), self._spooled.variants(agent_id), self._spooled.checkpoints(agent_id))

    @property
    def value_keys(self) -> Collection[str]:
        """The keys of the values of its storage, in order."""
        return self._spooled.value_keys

    def value(self, key: str) -> ValueRow:
        """Return a value of its storage."""
        return self._spooled.value(key)

    def values(self) -> Iterator[ValueRow]:
        """Yield the values of its storage in the order of their keys."""
        return (self.value(key) for key in self.value_keys)

    def checkpoint_count(self, agent_id: str) -> int:
        """Return the number of an agent's checkpoints."""
        return self._spooled.checkpoint_count(agent_id)

    def messages(self, agent_id: str) -> Iterator[MessageRow]:
        """Yield an agent's messages in order.

        Raises:
            TransferError: Some were deleted after the snapshot.
        """
        session_id, end = self.session.session_id, self.agents[agent_id].messages
        offset, limit = 0, _FIRST_PAGE_MESSAGES
        while offset < end:
            page = self._sessions.message_page(session_id, agent_id, offset, min(limit, end - offset))
            if [message.message_id for message in page] != list(range(offset, offset + min(limit, end - offset))):
                raise _deleted_error(session_id)
            rows = [message_row(agent_id, message, raw=self.raw) for message in page]
            yield from rows
            offset += len(page)
            characters = sum(len(row.message) for row in rows)
            limit = max(1, min(_MAX_PAGE_MESSAGES, _PAGE_CHARACTERS * len(page) // characters))

    def check_not_deleted(self) -> None:
        """Check that all messages read belong to the session and agents of the snapshot.

        Raises:
            TransferError: The session or an agent was deleted after the snapshot, even if it was created again.
        """
        current = self._sessions.agent_identities(self.session.session_id)
        expected = {(self._write_id, agent_id, stored.agent.created_at) for agent_id, stored in self.agents.items()}
        if not current or current[0][0] != self._write_id or not expected <= set(current):
            raise _deleted_error(self.session.session_id)


class StoredSessions:
    """The sessions of a repository.

    Args:
        repository: The repository.
        raw: Whether documents are read as they are stored, and not decoded by the repository's payload codec.

    Attributes:
        raw: The same.
    """

    def __init__(self, repository: PostgresSessionRepository, *, raw: bool = False) -> None:
        tables = session_tables(repository)
        self.raw = raw
        self._database = tables.database
        self._payloads = Payloads() if raw else tables.payloads
        self._messages = Messages(self._database, self._payloads) if raw else tables.messages
        self._session = compose(self._database, _SESSION)
        self._agents = compose(self._database, _AGENTS)
        self._multi_agents = compose(self._database, _MULTI_AGENTS)
        self._parts = PartsReader(self._database, self._payloads, raw=raw)
        self._agent_identities = compose(self._database, _AGENT_IDENTITIES)
        self._ids = compose(self._database, _IDS)

    def read(self, session_id: str) -> StoredSession:
        """Return a session as of now.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        key = {"session_id": check_id("session_id", session_id)}
        operation = f"reading session {session_id!r}"

        def read_snapshot(cursor: Cursor[TupleRow]) -> tuple[list[list[TupleRow]], SpooledParts]:
            with watchdog.watch(cursor.connection, self._database.response_timeout):
                cursor.execute(_REPEATABLE_READ)
                statements = (self._session, self._agents, self._multi_agents)
                found = [cursor.execute(statement, key).fetchall() for statement in statements]
            return found, self._parts.read(cursor, session_id)

        (sessions, agents, multi_agents), spooled = self._database.transact(
            operation, read_snapshot, response_timeout=_SNAPSHOT_TIMEOUT
        )
        if not sessions:
            raise SessionNotFoundError(f"{operation}: the session does not exist")
        write_id, session_type, created_at, updated_at, *columns = sessions[0]
        session = Session(session_id, SessionType(session_type), created_at, updated_at or created_at)
        return StoredSession(
            self,
            write_id,
            Annotations.decode(columns, self._payloads, session_id).annotated(session),
            {row[0]: self._parse_agent(session_id, row) for row in agents},
            {row[0]: self._parse_multi_agent(session_id, row) for row in multi_agents},
            spooled,
        )

    def ids(self, prefix: str) -> Iterator[str]:
        """Yield the ids of all sessions whose id starts with a prefix, ordered as Python orders strings."""
        after = None
        while True:
            parameters = {"first": prefix, "after": after, "limit": _IDS_PAGE}
            rows = self._database.fetch("listing sessions", self._ids, parameters).rows
            for (session_id,) in rows:
                if not session_id.startswith(prefix):
                    return
                yield session_id
            if len(rows) < _IDS_PAGE:
                return
            after = rows[-1][0]

    def message_page(self, session_id: str, agent_id: str, offset: int, limit: int) -> list[SessionMessage]:
        """Return a page of an agent's messages in order.

        Raises:
            TransferError: The agent does not exist anymore.
        """
        try:
            return self._messages.list(session_id, agent_id, limit=limit, offset=offset)
        except SessionNotFoundError as error:
            raise _deleted_error(session_id) from error

    def agent_identities(self, session_id: str) -> list[tuple[str, str, str]]:
        """Return, for each agent of a session, the session's write id, the agent's id and its creation time."""
        operation = f"reading session {session_id!r}"
        rows = self._database.fetch(operation, self._agent_identities, {"session_id": session_id}).rows
        return [(write_id, agent_id, created_at) for write_id, agent_id, created_at, _ in rows]

    def _parse_agent(self, session_id: str, row: TupleRow) -> AgentWithWindow:
        agent_id, *documents, window, messages, created_at, updated_at = row
        agent = decode_agent(self._payloads, session_id, agent_id, documents, created_at, updated_at)
        return AgentWithWindow(agent, Window.loads(window), messages)

    def _parse_multi_agent(self, session_id: str, row: TupleRow) -> MultiAgentWithTimes:
        multi_agent_id, text, exact, created_at, updated_at = row
        state = self._payloads.decode(text, exact, session_id, multi_agent_id, "multi_agent")
        return MultiAgentWithTimes(multi_agent_id, state, created_at, updated_at or created_at)


def _deleted_error(session_id: str) -> TransferError:
    return TransferError(
        f"session {session_id!r}, or an agent or messages of it, was deleted while it was being read; read it again"
    )


def session_ids(repository: PostgresSessionRepository, prefix: str = "") -> Iterator[str]:
    """Yield the ids of all sessions whose id starts with ``prefix``, ordered as Python orders strings.

    They are fetched page by page.
    """
    return StoredSessions(repository).ids(prefix)
