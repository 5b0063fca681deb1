"""Strands' ``SessionRepository`` on PostgreSQL: one statement for each call.

Every write carries a write id, drawn once for the call and kept in the row. A write that is repeated because its
answer was lost finds its own id and succeeds; any other write to the same place is refused in the same statement.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg_pool import ConnectionPool
from strands.session.session_repository import SessionRepository
from strands.types.session import Session, SessionAgent, SessionMessage
from typing_extensions import Self

from strands_psycopg.database import Database
from strands_psycopg.lease import Lease
from strands_psycopg.migrator import Migrator
from strands_psycopg.repository.identifiers import check_id
from strands_psycopg.repository.listing import AgentSummary, SessionPage, SessionSummary
from strands_psycopg.repository.retention import PurgeResult
from strands_psycopg.repository.status import Status, read_status
from strands_psycopg.repository.tables import SessionTables

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase

_LONGEST_TTL = 86_400.0


class PostgresSessionRepository(SessionRepository):
    """Sessions in PostgreSQL; one object per process serves all its sessions and threads.

    Nothing connects here: a pool built from a DSN opens at first use, in every process anew (so an object may be
    made before a fork), and ``close`` or the context manager closes it. A caller's pool is never closed.

    Ids are strings of 1 to 255 characters without NUL and lone surrogates, indexes of messages integers from 0 up;
    anything else is a ``ValueError`` that names the field. Every method that reaches the database can raise
    ``DatabaseUnavailableError``, ``SchemaError`` and ``DatabaseError``.

    Args:
        conninfo: A DSN (URL or ``key=value`` form), a callable that gives one for each connect, or a
            ``psycopg_pool.ConnectionPool`` that the caller owns.
        schema: The schema of the tables; ``public`` if None.
        table_prefix: What the name of every table begins with.
        retry_timeout: For how many seconds a statement is tried again while the database is away.
        response_timeout: After how many seconds without an answer a connection counts as lost.
        **pool_options: Arguments for ``ConnectionPool`` by its own names; ``min_size`` is 1 and ``max_size`` 10
            unless given.

    Raises:
        TypeError: ``conninfo`` is of a wrong type, or a caller's pool comes with pool options.
        ValueError: An argument is out of range, or the DSN cannot be parsed.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str] | ConnectionPool[Connection[Any]],
        *,
        schema: str | None = None,
        table_prefix: str = "strands_",
        retry_timeout: float = 30.0,
        response_timeout: float = 30.0,
        **pool_options: Any,
    ) -> None:
        self._database = Database(
            conninfo,
            schema=schema,
            table_prefix=table_prefix,
            retry_timeout=retry_timeout,
            response_timeout=response_timeout,
            pool_options=pool_options,
        )
        self._tables = SessionTables(self._database)

    def ensure_schema(self) -> None:
        """Create or upgrade the tables; any number of processes may do so at once.

        If nothing is pending, it takes no lock and needs no right to create.

        Raises:
            SchemaError: The database is newer than this package, was migrated with other files, or holds tables of
                these names that are not this package's.
        """
        Migrator(self._database).apply()

    def status(self) -> Status:
        """Tell which server this is, which version its tables have and how much is in them.

        Tables that are missing, or not this package's, are no error here: the answer says so.
        """
        return read_status(self._database)

    def close(self) -> None:
        """Free the sessions that are held, and close the pool unless it is the caller's."""
        self._tables.leases.close()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def lease(self, session_id: str, *, wait: float = 30.0, ttl: float = 60.0) -> Lease:
        """Give a context manager, for ``with`` or ``async with``, in which no one else holds a session.

        While it is held, this repository's writes to the session carry its term; if another holder has taken over,
        they raise ``LeaseLostError`` and store nothing. Build the session's manager inside the block. A writer that
        takes no lease is not stopped by one.

        Args:
            session_id: The session; it need not exist.
            wait: For how many seconds to wait until it is free; 0 is not at all.
            ttl: After how many seconds it is free if its holder dies. It is renewed a third of that time apart.

        Raises:
            ValueError: ``wait`` is negative, or ``ttl`` is not positive.
        """
        check_id("session_id", session_id)
        if not wait >= 0:
            raise ValueError(f"wait must be 0 or more seconds, not {wait}")
        if not 0 < ttl <= _LONGEST_TTL:
            raise ValueError(f"ttl must be more than 0 and at most {_LONGEST_TTL} seconds, not {ttl}")
        return Lease(self._tables.leases, session_id, wait=wait, ttl=ttl)

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Store a new session; set its times and give it back.

        Raises:
            SessionExistsError: It already exists.
        """
        self._tables.sessions.create(session, write_id=uuid4(), term=self._term(session.session_id))
        return session

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """Give a session, or None if it does not exist."""
        return self._tables.sessions.read(session_id)

    def delete_session(self, session_id: str, **kwargs: Any) -> None:
        """Delete a session with its agents, messages and multi-agents.

        Raises:
            SessionNotFoundError: It does not exist.
        """
        self._tables.sessions.delete(session_id, term=self._term(session_id))

    def list_sessions(
        self,
        *,
        limit: int = 100,
        before: str | None = None,
        active_since: datetime | None = None,
        prefix: str | None = None,
    ) -> SessionPage:
        """Give a page of sessions with their counts, newest activity first.

        Activity is known to the minute. A session that becomes active between two pages moves to the front, and so
        may be missing from the later one.

        Args:
            limit: How many at most, up to 1,000.
            before: The ``next`` of the page before this one; None for the first.
            active_since: Only those that were active at this time or later.
            prefix: Only those whose id begins with this.

        Raises:
            ValueError: An argument is out of range, or ``before`` is not what a page gave.
        """
        return self._tables.listing.sessions(limit=limit, before=before, active_since=active_since, prefix=prefix)

    def fork_session(
        self, session_id: str, new_session_id: str, *, agent_id: str | None = None, until: int | None = None
    ) -> SessionSummary:
        """Copy a session inside the database, in one transaction, to go on from there in another way.

        Agents keep their state, messages their exact bytes, redactions and times. With ``until``, the fork has the
        messages before that index, and is restored from as many of them as the conversation manager holds: its window
        is moved back, and a summary of messages that were cut off is left out. Interrupts that wait for an answer are
        dropped with the cut, kept without. The rest of the agent's state is that of today.

        The session may be in use meanwhile; the fork is what was stored at one moment. If a lease is held on the new
        session through this repository, it must be in force.

        Args:
            session_id: The session.
            new_session_id: The fork, which must not exist yet.
            agent_id: The only agent to copy; None copies all of them, and the graphs and swarms.
            until: The index of the first message that is left out, so the number of messages that are copied; None,
                or more than there are, copies all. It needs ``agent_id`` if the session has several agents.

        Raises:
            SessionExistsError: The new session already exists.
            SessionForkError: ``until`` needs an ``agent_id``; or the agent cannot go on from there, since its model
                keeps the conversation on the provider's side, or since its conversation manager is of an unknown kind
                and has put aside more than is left.
            SessionNotFoundError: The session or agent does not exist.
            LeaseLostError: Another holder has taken over the new session.
        """
        return self._tables.forker.fork(
            session_id,
            new_session_id,
            agent_id=agent_id,
            until=until,
            write_id=uuid4(),
            term=self._term(new_session_id),
        )

    def purge_sessions(
        self, *, idle_for: timedelta | float, batch_size: int = 1000, dry_run: bool = False
    ) -> PurgeResult:
        """Delete the sessions that nobody has written for some time, batch by batch, and give what was deleted.

        Sessions that someone holds a lease on are left alone, and so are those that become active meanwhile. Any
        number of processes may purge at once; each counts what it has deleted itself. Since activity is known to the
        minute, a session may be kept for a minute longer. A batch whose acknowledgement was lost is not counted.

        Args:
            idle_for: For how long a session must have been idle; in seconds unless it is a timedelta.
            batch_size: How many sessions are deleted in one transaction at most, up to 10,000. Those with many
                messages are taken fewer at a time.
            dry_run: Whether to count only.

        Raises:
            ValueError: ``idle_for`` or ``batch_size`` is out of range.
        """
        return sum(
            self._tables.retention.purge(idle_for=idle_for, batch_size=batch_size, dry_run=dry_run), PurgeResult()
        )

    def list_agents(self, session_id: str) -> list[AgentSummary]:
        """Give a session's agents with the number of their messages, oldest first.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        return self._tables.listing.agents(session_id)

    def delete_agent(self, session_id: str, agent_id: str) -> None:
        """Delete an agent and its messages.

        Raises:
            SessionNotFoundError: It does not exist.
        """
        self._tables.agents.delete(session_id, agent_id, term=self._term(session_id))

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Store a new agent and set its times.

        Raises:
            SessionExistsError: It already exists.
            SessionNotFoundError: The session does not exist.
        """
        self._tables.agents.create(session_id, session_agent, write_id=uuid4(), term=self._term(session_id))

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """Give an agent, or None if it does not exist."""
        stored = self._tables.agents.read(session_id, agent_id)
        return None if stored is None else stored.agent

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Store an agent's present state, whoever wrote it last, and set its times.

        Raises:
            SessionNotFoundError: It does not exist.
        """
        self._tables.agents.update(session_id, session_agent, write_id=uuid4(), term=self._term(session_id))

    def create_message(self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any) -> None:
        """Store the next message of an agent and set its times.

        Raises:
            SessionConflictError: A message with its index already exists, or its index is not the next.
            SessionNotFoundError: The agent does not exist.
        """
        self._tables.messages.append(
            session_id, agent_id, session_message, write_id=uuid4(), term=self._term(session_id)
        )

    def read_message(self, session_id: str, agent_id: str, message_id: int, **kwargs: Any) -> SessionMessage | None:
        """Give a message, or None if it does not exist."""
        return self._tables.messages.read(session_id, agent_id, message_id)

    def update_message(self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any) -> None:
        """Store a message's present content together with what it is redacted to, and set its times.

        Raises:
            SessionNotFoundError: It does not exist.
        """
        self._tables.messages.update(
            session_id, agent_id, session_message, write_id=uuid4(), term=self._term(session_id)
        )

    def list_messages(
        self, session_id: str, agent_id: str, limit: int | None = None, offset: int = 0, **kwargs: Any
    ) -> list[SessionMessage]:
        """Give an agent's messages in order.

        Args:
            session_id: The session.
            agent_id: The agent.
            limit: How many at most; None is all.
            offset: The index of the first.
            **kwargs: Ignored.

        Raises:
            SessionNotFoundError: The agent does not exist.
            ValueError: ``limit`` or ``offset`` is negative.
        """
        return self._tables.messages.list(session_id, agent_id, limit=limit, offset=offset)

    def create_multi_agent(self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any) -> None:
        """Store a new multi-agent's state.

        Raises:
            SessionExistsError: It already exists.
            SessionNotFoundError: The session does not exist.
        """
        self._tables.multi_agents.create(
            session_id,
            multi_agent.id,
            multi_agent.serialize_state(),
            write_id=uuid4(),
            term=self._term(session_id),
        )

    def read_multi_agent(self, session_id: str, multi_agent_id: str, **kwargs: Any) -> dict[str, Any] | None:
        """Give a multi-agent's state, or None if it does not exist."""
        stored = self._tables.multi_agents.read(session_id, multi_agent_id)
        return None if stored is None else stored.state

    def update_multi_agent(self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any) -> None:
        """Store a multi-agent's present state, whoever wrote it last.

        Raises:
            SessionNotFoundError: It does not exist.
        """
        self._tables.multi_agents.update(
            session_id,
            multi_agent.id,
            multi_agent.serialize_state(),
            write_id=uuid4(),
            term=self._term(session_id),
        )

    def _term(self, session_id: str) -> UUID | None:
        return self._tables.leases.term(session_id)


def session_tables(repository: PostgresSessionRepository) -> SessionTables:
    """Return the tables of a repository, for modules of this package that need more than its methods offer."""
    return repository._tables
