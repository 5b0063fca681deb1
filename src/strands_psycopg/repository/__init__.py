"""Strands' ``SessionRepository`` on PostgreSQL: each of its methods is one statement.

Every write has a write id, drawn once per call and stored in the row. A write that is retried because its
acknowledgement was lost finds its own id and succeeds. Any other write to the same row is a conflict, detected by the
statement itself.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from psycopg_pool import ConnectionPool
from strands.session.session_repository import SessionRepository
from strands.types.session import Session, SessionAgent, SessionMessage
from typing_extensions import Unpack

from strands_psycopg.arguments import check_id, parse_snapshot_id
from strands_psycopg.closeable import Closeable
from strands_psycopg.database import Database
from strands_psycopg.lease import Lease
from strands_psycopg.migrator import Migrator
from strands_psycopg.payload import PayloadCodec, Payloads
from strands_psycopg.pool_options import PoolOptions
from strands_psycopg.repository.annotations import UNCHANGED, Annotations, Metadata, Unchanged, check_owner
from strands_psycopg.repository.erasure import ErasureResult
from strands_psycopg.repository.listing import AgentSummary, SessionPage, SessionSummary
from strands_psycopg.repository.retention import PurgeResult
from strands_psycopg.repository.status import Status, read_status
from strands_psycopg.repository.tables import SessionTables
from strands_psycopg.storage import PostgresStorage, SessionStorage
from strands_psycopg.uncopyable import Uncopyable

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase

_MAX_TTL = 86_400.0


class PostgresSessionRepository(Uncopyable, Closeable, SessionRepository):
    """A Strands ``SessionRepository`` that stores sessions in PostgreSQL.

    It is thread-safe; one per process is enough. The constructor does not connect. A pool built from a DSN opens at
    first use, separately in every process, so a repository may be created before a fork; ``close`` or the context
    manager (``with`` or ``async with``) closes it. A pool that the caller passes in is used as it is and never closed.

    Ids of sessions, agents and multi-agents are strings of 1 to 255 characters without NUL or lone surrogates. Message
    indexes are integers from 0 up. Anything else is a ``ValueError`` that names the argument. So is a document that
    cannot be stored; if it holds something that JSON cannot, it is a ``TypeError``. Times are the server's, in UTC as
    ISO 8601; methods that create or update set both on the object that is passed in.

    Every method that accesses the database can raise ``DatabaseUnavailableError``, ``SchemaError`` or
    ``DatabaseError``, and one that reads or writes documents ``PayloadCodecError`` if there is a ``payload_codec``.
    Methods with an ``owner`` check in their own statement that the session belongs to it, unless it is None.
    Every method that writes to a session, or forks into one, raises ``LeaseLostError`` and stores nothing if this
    repository's lease on that session has been taken over by another holder. The ``**kwargs`` that Strands' interface
    has are ignored.

    Args:
        conninfo: A DSN (URL or ``key=value`` form), a callable that returns one for each new connection, such as one
            with a renewed password, or a ``psycopg_pool.ConnectionPool`` that the caller owns.
        schema: The schema of the tables; ``public`` if None. It must match ``[a-z_][a-z0-9_]{0,39}``.
        table_prefix: The prefix of the names of all tables, indexes and views; it must match the same pattern.
        retry_timeout: Seconds for which a statement is retried after a failure that may pass, such as a lost
            connection; 0 disables retries. The default is 30, but 5 until a server has answered this process.
        response_timeout: Seconds without a response after which a connection counts as lost.
        payload_codec: Changes each document on its way to and from the database, to encrypt or scrub it (see
            ``PayloadCodec``): messages, states, checkpoints, titles, and the values of storages on this repository.
        **pool_options: Arguments of ``ConnectionPool``, by its own names; the defaults of ``min_size`` and
            ``max_size`` are 0 and 10.

    Raises:
        TypeError: ``conninfo`` is of another type, or pool options are passed together with a pool, or
            ``payload_codec`` is not an object with the methods of a ``PayloadCodec``.
        ValueError: An argument is out of range, or the DSN cannot be parsed.
    """

    _why_uncopyable = "has connections; share it within a process, and build one from its DSN in another process"

    def __init__(
        self,
        conninfo: str | Callable[[], str] | ConnectionPool[Any],
        *,
        schema: str | None = None,
        table_prefix: str = "strands_",
        retry_timeout: float | None = None,
        response_timeout: float = 30.0,
        payload_codec: PayloadCodec | None = None,
        **pool_options: Unpack[PoolOptions],
    ) -> None:
        payloads = Payloads(payload_codec)
        self._database = Database(
            conninfo,
            schema=schema,
            table_prefix=table_prefix,
            retry_timeout=retry_timeout,
            response_timeout=response_timeout,
            pool_options=pool_options,
        )
        self._tables = SessionTables(self._database, payloads)

    def ensure_schema(self) -> None:
        """Create or upgrade the tables, in one transaction; any number of processes may call it at once.

        If no migration is pending, it waits for no lock and needs no privilege but SELECT.

        Raises:
            SchemaError: The database is newer than this package, was migrated from different files, has tables of
                these names without a ledger of migrations, or does not use the encoding UTF8.
        """
        Migrator(self._database).apply()

    def status(self) -> Status:
        """Return the server, the version of the tables and their sizes; needs no privilege but SELECT.

        Tables that are missing, or that are not this package's, are not an error; the result says so.
        """
        return read_status(self._database)

    def close(self) -> None:
        """Release all leases of this repository, and close the pool unless the caller owns it."""
        self._tables.leases.close()
        self._database.close()

    def __repr__(self) -> str:
        database = self._database
        return (
            f"<{type(self).__name__} {database.address} schema={database.schema} table_prefix={database.table_prefix}>"
        )

    def lease(self, session_id: str, *, wait: float = 30.0, ttl: float = 60.0, owner: str | None = None) -> Lease:
        """Return a lease, a context manager (``with`` or ``async with``) that holds a session exclusively.

        Entering it waits for the current holder and raises ``SessionBusyError`` after ``wait`` seconds. While it is
        held, this repository's writes to the session check it; once another holder has taken over, they raise
        ``LeaseLostError`` and store nothing. Build the session's manager inside the block. Leases do not stop writers
        that take none.

        With ``owner``, entering it raises ``SessionOwnerError`` if the session exists and does not belong to it.

        Args:
            session_id: The session, which need not exist.
            wait: Seconds to wait until the session is free, without holding a connection; 0 does not wait.
            ttl: Seconds after which the session is free if its holder dies, at most 86,400. A background thread
                renews the lease every third of that time.
            owner: Whose session it is; None leases any session.

        Raises:
            ValueError: An argument is out of range.
        """
        check_id("session_id", session_id)
        check_owner(owner)
        if not wait >= 0:
            raise ValueError(f"wait must be 0 or more seconds, not {wait}")
        if not 0 < ttl <= _MAX_TTL:
            raise ValueError(f"ttl must be more than 0 and at most {_MAX_TTL} seconds, not {ttl}")
        return Lease(self._tables.leases, session_id, wait=wait, ttl=ttl, owner=owner)

    def storage(
        self,
        session_id: str,
        *,
        owner: str | None = None,
        expires_in: timedelta | float | None = None,
        text_search_config: str = "simple",
        search_limit: int = 100,
    ) -> PostgresStorage:
        """Return the storage of a session, for what its agents stash, offload and snapshot.

        Its values belong to the session: they are deleted, forked, exported and imported with it, and its lease fences
        their writes, as it does those of messages. It guards against overwriting, as a ``PostgresStorage`` with
        ``guard_overwrites`` does. A write to a session that does not exist, or no longer exists, raises
        ``PostgresStorageError``, whose cause is a ``SessionNotFoundError``, so build the session's manager first.

        With ``owner``, each call checks in its own statement that the session, if it exists, belongs to it. Otherwise
        it raises ``PostgresStorageError``, whose cause is a ``SessionOwnerError``.

        Each call returns a writer of its own. Managers and agents that work on the session together share one.

        Args:
            session_id: The session.
            owner: Whose session it is; None if any session may be read and written.
            expires_in: The time after which values expire, as for ``PostgresStorage``.
            text_search_config: As for ``PostgresStorage``.
            search_limit: As for ``PostgresStorage``.

        Raises:
            ImportError: The installed strands-agents is older than 1.54.
            ValueError: An argument is out of range.
        """
        return SessionStorage(
            self._database,
            self._tables.payloads,
            self._tables.leases,
            check_id("session_id", session_id),
            owner=check_owner(owner),
            expires_in=expires_in,
            text_search_config=text_search_config,
            search_limit=search_limit,
        )

    def create_session(
        self,
        session: Session,
        *,
        owner: str | None = None,
        title: str | None = None,
        metadata: Metadata | None = None,
        **kwargs: Any,
    ) -> Session:
        """Store a new session, set its times and return it.

        Args:
            session: The session. An ``AnnotatedSession`` has an owner, a title and metadata itself.
            owner: Whose session it is, as the application names its users: 1 to 255 characters.
            title: A title for lists, of up to 1,000 characters.
            metadata: A dict by which ``list_sessions`` finds the session.
            **kwargs: Ignored.

        Raises:
            SessionExistsError: The session already exists.
        """
        noted = Annotations.of(session)
        annotations = Annotations(
            noted.owner if owner is None else owner,
            noted.title if title is None else title,
            noted.metadata if metadata is None else metadata,
        )
        self._tables.sessions.create(session, annotations, write_id=uuid4(), term=self._term(session.session_id))
        return session

    def read_session(self, session_id: str, *, owner: str | None = None, **kwargs: Any) -> Session | None:
        """Return a session, or None if it does not exist.

        It is an ``AnnotatedSession`` if it has an owner, a title or metadata.

        Raises:
            SessionOwnerError: The session does not belong to ``owner``, and that is not None.
        """
        return self._tables.sessions.read(session_id, owner=owner)

    def annotate_session(
        self,
        session_id: str,
        *,
        owner: str | Unchanged | None = UNCHANGED,
        title: str | Unchanged | None = UNCHANGED,
        metadata: Metadata | Unchanged | None = UNCHANGED,
        expected_owner: str | None = None,
    ) -> None:
        """Set the owner, title or metadata of a session.

        Args:
            session_id: The session.
            owner: Whose session it is from now on; None is nobody's. An argument that is not passed changes nothing.
            title: Its title; None removes it.
            metadata: Its metadata, which replaces the previous one; None removes it.
            expected_owner: Whose session it is so far; None annotates any session.

        Raises:
            SessionNotFoundError: The session does not exist.
            SessionOwnerError: The session does not belong to ``expected_owner``, and that is not None.
        """
        self._tables.sessions.annotate(
            session_id,
            owner=owner,
            title=title,
            metadata=metadata,
            expected_owner=expected_owner,
            term=self._term(session_id),
        )

    def delete_session(self, session_id: str, *, owner: str | None = None, **kwargs: Any) -> None:
        """Delete a session with everything in it: agents, messages, checkpoints, multi-agents, its storage, its lease.

        A lease that this repository itself holds on the session remains until its block ends.

        Raises:
            SessionNotFoundError: The session does not exist.
            SessionOwnerError: The session does not belong to ``owner``, and that is not None.
        """
        self._tables.sessions.delete(session_id, owner=owner, term=self._term(session_id))

    def list_sessions(
        self,
        *,
        limit: int = 100,
        before: str | None = None,
        active_since: datetime | None = None,
        prefix: str | None = None,
        owner: str | None = None,
        metadata: Metadata | None = None,
    ) -> SessionPage:
        """Return a page of sessions with their counts, the most recently active first.

        The time of the last activity is accurate to a minute. A session that becomes active while pages are being
        read moves to the front and may be missing from the later pages.

        Args:
            limit: The maximum number of sessions, from 1 to 1,000.
            before: The ``next`` of the previous page; None for the first page.
            active_since: Only sessions that were active at this time or later; it must have a time zone.
            prefix: Only sessions whose id starts with this string.
            owner: Only sessions of this owner.
            metadata: Only sessions whose metadata contains this, as PostgreSQL's ``@>`` defines it.

        Raises:
            ValueError: An argument is out of range, or ``before`` is not the ``next`` of a page.
        """
        return self._tables.listing.sessions(
            limit=limit, before=before, active_since=active_since, prefix=prefix, owner=owner, metadata=metadata
        )

    def fork_session(
        self,
        session_id: str,
        new_session_id: str,
        *,
        agent_id: str | None = None,
        until: int | None = None,
        snapshot_id: str | None = None,
        owner: str | None = None,
    ) -> SessionSummary:
        """Copy a session inside the database, in one transaction, and return the summary of the copy.

        The messages of the fork have the same bytes, redactions and times as the original ones, its agents the same
        state, messages in memory and checkpoints; and it has the same owner, title and metadata. The original session
        may be written meanwhile; the fork is a snapshot of it.

        All values of the session's storage are copied as they are now, whatever else is: those of other agents, and
        those that were written after the checkpoint or the last message of the fork. The keys of what Strands stashes
        and snapshots contain the session's id; in the fork they contain that of the fork.

        With ``snapshot_id``, one agent is copied as it was at that checkpoint: its messages in memory, its state and
        that of its conversation manager, pending interrupts and the model's state. Its log and its checkpoints end
        there. Messages that were redacted since are redacted. The system prompt is that of the agent that is built on
        the fork.

        With ``until``, the conversation is truncated, and the agent holds the end of it in memory: as many messages as
        before, or a few more, in the form in which they were said. A summary that covers removed messages is dropped,
        and the agent is restored with all remaining messages; interrupts that wait for a response are dropped, and so
        are later checkpoints. The rest of the agent's state is the current one, not that of the time of the last
        message.

        Args:
            session_id: The session to fork.
            new_session_id: The id of the fork, which must not exist yet.
            agent_id: Copy this agent only; None copies all agents and multi-agents.
            until: Copy the messages before this index, so that it is their number; None, or more than there are,
                copies all messages. It requires ``agent_id`` if the session has several agents.
            snapshot_id: Copy the agent of this checkpoint (see ``PostgresSessionManager.save_snapshot``).
            owner: Whose session it is; None forks any session.

        Raises:
            SessionExistsError: The new session already exists.
            SessionForkError: ``until`` requires an ``agent_id``; or the conversation cannot be truncated there, because
                the model's provider stores it, or because the state of an unknown conversation manager refers to
                removed messages.
            SessionNotFoundError: The session, agent or checkpoint does not exist.
            SessionOwnerError: The session does not belong to ``owner``.
            ValueError: ``until`` is negative, ``snapshot_id`` is not the id of a checkpoint, or both are passed.
        """
        return self._tables.forker.fork(
            session_id,
            new_session_id,
            agent_id=agent_id,
            until=until,
            snapshot_id=None if snapshot_id is None else parse_snapshot_id(snapshot_id),
            owner=owner,
            write_id=uuid4(),
            term=self._term(new_session_id),
        )

    def purge_sessions(
        self,
        *,
        idle_for: timedelta | float,
        owner: str | None = None,
        metadata: Metadata | None = None,
        batch_size: int = 1000,
        dry_run: bool = False,
    ) -> PurgeResult:
        """Delete the sessions that have been idle for some time, in batches, and return how much was deleted.

        Sessions on which a lease is held, and those that become active meanwhile, are kept. Any number of processes may
        purge at once; each counts what it has deleted itself. Since the time of the last activity is accurate to a
        minute, a session may be kept for one minute more. A batch whose acknowledgement was lost is not counted.

        Leases that expired more than a day ago, whose holders must have died, are deleted too, of any session.

        Args:
            idle_for: The time since the last activity, as a timedelta or in seconds; up to 36,500 days.
            owner: Only sessions of this owner.
            metadata: Only sessions whose metadata contains this, as for ``list_sessions``.
            batch_size: The maximum number of sessions per transaction, from 1 to 10,000. If they have many messages,
                a transaction deletes fewer.
            dry_run: Only count the sessions that would be deleted.

        Raises:
            ValueError: An argument is out of range.
        """
        batches = self._tables.retention.purge(
            idle_for=idle_for, owner=owner, metadata=metadata, batch_size=batch_size, dry_run=dry_run
        )
        return sum(batches, PurgeResult())

    def erase(self, *, owner: str, dry_run: bool = False) -> ErasureResult:
        """Delete everything that belongs to an owner so far, and return how much was deleted from each table.

        That is the sessions of this owner with everything in them, and the values of storages and memories with this
        owner. Running agents and their leases do not stop it: an agent's next write raises ``SessionNotFoundError``. It
        deletes in small transactions. If it fails, call it again. A batch whose acknowledgement was lost is not
        counted.

        Sessions, values and memories that are stored under the owner after it has started remain, so end the owner's
        access first. Another call with ``dry_run`` counts what is left.

        Args:
            owner: The owner, as it was given to managers and storages.
            dry_run: Only count what would be deleted.

        Raises:
            ValueError: ``owner`` cannot be one.
        """
        return sum(self._tables.erasure.erase(owner, dry_run=dry_run), ErasureResult())

    def list_agents(self, session_id: str) -> list[AgentSummary]:
        """Return a session's agents with the number of their messages, oldest first.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        return self._tables.listing.agents(session_id)

    def delete_agent(self, session_id: str, agent_id: str, *, owner: str | None = None) -> None:
        """Delete an agent with its messages, its checkpoints and, in the session's storage, its stash.

        The snapshots that Strands' own ``SnapshotSessionManager`` stores there are deleted too. The keys of other
        values do not name their agent: those of Strands' ``ContextOffloader``, and those in a namespace of the
        application. They remain until the session is deleted.

        Raises:
            SessionNotFoundError: The agent does not exist.
            SessionOwnerError: The session does not belong to ``owner``, and that is not None.
        """
        self._tables.agents.delete(session_id, agent_id, owner=owner, term=self._term(session_id))

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Store a new agent and set its times.

        Raises:
            SessionExistsError: The agent already exists.
            SessionNotFoundError: The session does not exist.
        """
        self._tables.agents.create(session_id, session_agent, write_id=uuid4(), term=self._term(session_id))

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """Return an agent, or None if it does not exist."""
        stored = self._tables.agents.read(session_id, agent_id)
        return None if stored is None else stored.agent

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Replace the stored state of an agent, even if another writer has changed it, and set its times.

        Raises:
            SessionNotFoundError: The agent does not exist.
        """
        self._tables.agents.update(session_id, session_agent, write_id=uuid4(), term=self._term(session_id))

    def create_message(self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any) -> None:
        """Append a message to an agent's conversation and set its times.

        Raises:
            SessionConflictError: A message with its index already exists, or its index is not the next one.
            SessionNotFoundError: The agent does not exist.
        """
        self._tables.messages.append(
            session_id, agent_id, session_message, write_id=uuid4(), term=self._term(session_id)
        )

    def read_message(self, session_id: str, agent_id: str, message_id: int, **kwargs: Any) -> SessionMessage | None:
        """Return a message, or None if it does not exist."""
        return self._tables.messages.read(session_id, agent_id, message_id)

    def update_message(self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any) -> None:
        """Replace the stored content and redaction of a message, and set its times.

        Raises:
            SessionNotFoundError: The message does not exist.
        """
        self._tables.messages.update(
            session_id, agent_id, session_message, write_id=uuid4(), term=self._term(session_id)
        )

    def list_messages(
        self, session_id: str, agent_id: str, limit: int | None = None, offset: int = 0, **kwargs: Any
    ) -> list[SessionMessage]:
        """Return up to ``limit`` messages of an agent, oldest first, starting at index ``offset``.

        Args:
            session_id: The session.
            agent_id: The agent.
            limit: The maximum number of messages; None returns all.
            offset: The index of the first message.
            **kwargs: Ignored.

        Raises:
            SessionNotFoundError: The agent does not exist.
            ValueError: ``limit`` or ``offset`` is negative.
        """
        return self._tables.messages.list(session_id, agent_id, limit=limit, offset=offset)

    def create_multi_agent(self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any) -> None:
        """Store the state of a new multi-agent (a graph or swarm).

        Raises:
            SessionExistsError: The multi-agent already exists.
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
        """Return the state of a multi-agent, or None if it does not exist."""
        stored = self._tables.multi_agents.read(session_id, multi_agent_id)
        return None if stored is None else stored.state

    def update_multi_agent(self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any) -> None:
        """Replace the stored state of a multi-agent, even if another writer has changed it.

        Raises:
            SessionNotFoundError: The multi-agent does not exist.
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
    """Return the tables of a repository, for modules of this package that need more than its public methods."""
    return repository._tables
