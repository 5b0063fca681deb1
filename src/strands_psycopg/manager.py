"""Strands' session manager on PostgreSQL, with its hooks off the event loop."""

import asyncio
import inspect
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from strands.hooks import events
from strands.hooks.registry import BaseHookEvent, HookCallback, HookRegistry
from strands.session.session_manager import SessionManager
from strands.session.session_repository import SessionRepository
from strands.types.content import Message
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionType
from typing_extensions import Self

from strands_psycopg import telemetry
from strands_psycopg.agent_sync.agent_writer import AgentWriter
from strands_psycopg.agent_sync.multi_agent_writer import MultiAgentWriter
from strands_psycopg.agent_sync.record import AgentRecord
from strands_psycopg.agent_sync.restore import new_agent, new_record, restore
from strands_psycopg.agent_sync.write_guard import WriteGuard
from strands_psycopg.arguments import parse_snapshot_id
from strands_psycopg.closeable import Closeable
from strands_psycopg.errors import SessionExistsError, SessionNotFoundError, owner_error
from strands_psycopg.repository import PostgresSessionRepository, session_tables
from strands_psycopg.repository.annotations import AnnotatedSession, Annotations, Metadata
from strands_psycopg.uncopyable import Uncopyable

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase
    from strands.types.agent import LocalAgent

logger = logging.getLogger(__name__)

# Strands calls the hooks of these while an agent is being built, where nothing can be awaited.
_SYNCHRONOUS = {"AgentInitializedEvent", "BidiAgentInitializedEvent"}

# The callbacks of these read from the database themselves, so they run in a worker thread.
_INITIALIZING = {events.MultiAgentInitializedEvent}

# The methods of Strands' interface that the manager does not call, since each of its writes stores more at once.
_UNCALLED = {
    name for name, value in vars(SessionRepository).items() if callable(value) and not name.startswith("_")
} - {"create_session", "read_session"}


class SnapshotTrigger(Protocol):
    """Decides after each invocation of an agent whether a checkpoint of it is saved."""

    def __call__(self, *, agent_data: "LocalAgent", **kwargs: Any) -> bool:
        """Return whether to save a checkpoint of ``agent_data``."""


class PostgresSessionManager(Uncopyable, Closeable, SessionManager):
    """A Strands session manager that stores the agents of a session in PostgreSQL, message by message.

    It differs from Strands' ``RepositorySessionManager`` in three ways. While an agent runs, its hooks wait for the
    database in worker threads, not on the event loop. A write that would overwrite what another writer stored raises
    ``SessionConflictError``. After a failed write, every later write raises the same error; build a new manager then.
    A message or state that cannot be stored is a failed write too: its error is a ``ValueError`` or ``TypeError``.

    The constructor reads the session, or creates it if it does not exist; building an agent reads or creates the agent.
    Both wait for the database.

    The hooks are coroutine functions. Strands refuses to invoke them synchronously: ``agent.hooks.invoke_callbacks``
    raises a RuntimeError. For an application that calls it, for example to add messages of its own, there is
    ``blocking_hooks``: the hooks are then plain functions that write before they return, as those of Strands' own
    session managers are. They block the thread that invokes them, and with it the event loop that runs there.

    Args:
        session_id: The id of the session.
        repository: The repository that stores it; the manager does not close it. It can be passed by Strands' name,
            ``session_repository``, too.
        owner: Whose session it is, as the application names its users: 1 to 255 characters. The manager opens no
            session of another owner, or of none. None opens any session.
        title: A title for lists, of up to 1,000 characters; None leaves it as it is.
        metadata: A dict by which ``list_sessions`` finds the session; None leaves it as it is.
        snapshot_trigger: Decides after each invocation whether a checkpoint is saved; None saves none.
        keep_snapshots: How many checkpoints of each agent are kept; None keeps all.
        blocking_hooks: Whether hooks are plain functions, which write before they return.

    Attributes:
        session_id: The id of the session.
        session: The session, as it was read or created.
        session_repository: The repository.

    Raises:
        TypeError: ``repository`` is not a ``PostgresSessionRepository``, or overrides a method that the manager does
            not call, such as ``create_message``.
        ValueError: ``session_id``, ``owner``, ``title``, ``metadata`` or ``keep_snapshots`` is not valid.
        SessionOwnerError: The session does not belong to ``owner``.
        SchemaError: The tables are missing.
        DatabaseUnavailableError: The database could not be reached in time.
    """

    _why_uncopyable = "is the writer of its agents; build another manager for the session, in the process that uses it"

    def __init__(
        self,
        session_id: str,
        repository: PostgresSessionRepository | None = None,
        *,
        owner: str | None = None,
        title: str | None = None,
        metadata: Metadata | None = None,
        snapshot_trigger: SnapshotTrigger | None = None,
        keep_snapshots: int | None = None,
        blocking_hooks: bool = False,
        session_repository: PostgresSessionRepository | None = None,
    ) -> None:
        repository = _check_repository(session_id, session_repository if repository is None else repository)
        if keep_snapshots is not None and (type(keep_snapshots) is not int or keep_snapshots < 1):
            raise ValueError(f"keep_snapshots must be an integer from 1 up or None, not {keep_snapshots!r}")
        _check_overrides(repository)
        self.session_id = session_id
        self.session_repository = repository
        self._tables = session_tables(repository)
        self._workers = self._tables.database.workers
        self._guard = WriteGuard(session_id, self._tables.leases, owner=owner)
        self._agents: dict[str, AgentWriter] = {}
        self._multi_agents: dict[str, MultiAgentWriter] = {}
        self._snapshot_trigger = snapshot_trigger
        self._keep_snapshots = keep_snapshots
        self._blocking_hooks = blocking_hooks
        self._own_repository: PostgresSessionRepository | None = None
        self.session = self._open_session(Annotations(owner, title, metadata).check())

    def _open_session(self, annotations: Annotations) -> Session:
        session = self._read_session(annotations.owner)
        if session is None:
            new = annotations.annotated(Session(self.session_id, SessionType.AGENT))
            try:
                return self._check_owner(self.session_repository.create_session(new), annotations.owner)
            except SessionExistsError:
                session = self._read_session(annotations.owner)
                if session is None:  # another process has created it, and a third one has deleted it
                    raise
        changed = annotations.changes_of(session)
        if changed:
            # As in ``_read_session``.
            expected = {} if annotations.owner is None else {"expected_owner": annotations.owner}
            self.session_repository.annotate_session(self.session_id, **{**changed, **expected})
            session = AnnotatedSession(**{**vars(session), **changed})
        return session

    def _read_session(self, owner: str | None) -> Session | None:
        # A repository that overrides it need not know owners, unless there is one.
        options = {} if owner is None else {"owner": owner}
        session = self.session_repository.read_session(self.session_id, **options)
        return None if session is None else self._check_owner(session, owner)

    def _check_owner(self, session: Session, owner: str | None) -> Session:
        # The repository has checked it, unless it overrides the method and does not pass the owner on.
        if owner is not None and Annotations.of(session).owner != owner:
            raise owner_error(f"opening session {self.session_id!r}", self.session_id)
        return session

    @classmethod
    def from_dsn(
        cls,
        session_id: str,
        dsn: str,
        *,
        owner: str | None = None,
        title: str | None = None,
        metadata: Metadata | None = None,
        snapshot_trigger: SnapshotTrigger | None = None,
        keep_snapshots: int | None = None,
        blocking_hooks: bool = False,
        **options: Any,
    ) -> Self:
        """Return a manager that owns its repository; ``close`` or the context manager closes it.

        ``dsn`` is the ``conninfo`` of the ``PostgresSessionRepository``, and ``options`` are the repository's other
        arguments. All others are those of the constructor.

        Raises:
            TypeError: As ``PostgresSessionRepository`` does.
            ValueError: An argument is out of range, the DSN cannot be parsed, or ``session_id`` is not a valid id.
            SessionOwnerError: The session does not belong to ``owner``.
            SchemaError: The tables are missing.
            DatabaseUnavailableError: The database could not be reached in time.
        """
        repository = PostgresSessionRepository(dsn, **options)
        try:
            manager = cls(
                session_id,
                repository,
                owner=owner,
                title=title,
                metadata=metadata,
                snapshot_trigger=snapshot_trigger,
                keep_snapshots=keep_snapshots,
                blocking_hooks=blocking_hooks,
            )
        except BaseException:
            repository.close()
            raise
        manager._own_repository = repository
        return manager

    def close(self) -> None:
        """Close the repository if this manager owns it."""
        if self._own_repository is not None:
            self._own_repository.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} session_id={self.session_id!r} repository={self.session_repository!r}>"

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        """Register the hooks of Strands' session managers: as coroutines that write in worker threads, or blocking."""
        by_event = _CallbacksByEvent(registry)
        super().register_hooks(by_event, **kwargs)
        by_event.add_callback(events.AfterInvocationEvent, self._evaluate_trigger)
        message_updated = getattr(events, "MessageUpdatedEvent", None)
        if message_updated is not None:
            by_event.add_callback(message_updated, lambda event: self.replace_message(event.message, event.agent))
        for agent_stopped in _events_of_bidi_agents("BidiAgentStopEvent", "BidiBeforeConnectionRestartEvent"):
            by_event.add_callback(agent_stopped, lambda event: self.sync_agent(event.agent))
            by_event.add_callback(agent_stopped, self._evaluate_trigger)
        for event_type, callbacks in by_event.callbacks.items():
            if self._blocking_hooks:
                dispatch = _in_turn
            else:
                dispatch = self._in_worker if event_type in _INITIALIZING else self._off_loop
            registry.add_callback(event_type, dispatch(callbacks))

    def _off_loop(self, callbacks: Sequence[HookCallback[Any]]) -> HookCallback[Any]:
        async def dispatch(event: BaseHookEvent) -> None:
            ending = sys.exc_info()[1]
            try:
                writer = self._event_writer(event)
                try:
                    with self._guard.recording(), nullcontext() if writer is None else writer.handling_event():
                        _in_turn(callbacks)(event)
                finally:
                    # What an override has passed on before it raised an error is stored nevertheless.
                    if writer is not None and writer.is_write_due():
                        await self._workers.run_async(writer.write)
            except Exception as failure:
                # A cancelled turn still ends with a sync. If that fails, the turn must end as cancelled nevertheless.
                if isinstance(ending, asyncio.CancelledError):
                    raise ending from failure
                raise

        return dispatch

    def _in_worker(self, callbacks: Sequence[HookCallback[Any]]) -> HookCallback[Any]:
        async def dispatch(event: BaseHookEvent) -> None:
            for callback in callbacks:
                await self._workers.run_async(partial(callback, event))

        return dispatch

    def _event_writer(self, event: Any) -> AgentWriter | MultiAgentWriter | None:
        """Return the writer of an event's agent; None if a subclass does not store this agent."""
        agent = getattr(event, "agent", None)
        return self._multi_agents.get(event.source.id) if agent is None else self._agents.get(agent.agent_id)

    def _agent_writer(self, agent: "LocalAgent") -> AgentWriter:
        writer = self._agents.get(agent.agent_id)
        if writer is None:
            raise SessionNotFoundError(
                f"agent {agent.agent_id!r} is not one of this session manager's; build the agent with "
                "session_manager=..."
            )
        return writer

    def _evaluate_trigger(self, event: Any) -> None:
        if self._snapshot_trigger is None:
            return
        try:
            if self._snapshot_trigger(agent_data=event.agent):
                self._agent_writer(event.agent).request_checkpoint()
        except Exception:
            # The messages of the turn are stored nevertheless.
            logger.exception(
                "session_id=<%s>, agent_id=<%s> | snapshot_trigger raised, no checkpoint is saved",
                self.session_id,
                event.agent.agent_id,
            )

    def initialize(self, agent: "LocalAgent", **kwargs: Any) -> None:
        """Restore an agent as it was left; if it is new, store it with its messages, in one transaction.

        Raises:
            SessionException: The manager has an agent of this id already.
            StrandsPsycopgError: The agent could not be read or stored.
        """
        if agent.agent_id in self._agents:
            raise SessionException("The `agent_id` of an agent must be unique in a session.")
        record = self._workers.run(partial(self._restore, agent))
        self._agents[agent.agent_id] = AgentWriter(
            self._tables, self.session_id, agent, record, self._guard, keep_snapshots=self._keep_snapshots
        )

    def _restore(self, agent: "LocalAgent") -> AgentRecord:
        with telemetry.span("session.restore", self.session_id, agent.agent_id):
            return self._read_or_create_agent(agent)

    def _read_or_create_agent(self, agent: "LocalAgent") -> AgentRecord:
        # The session may have been deleted since it was opened, and created again by another owner.
        key, owner = (self.session_id, agent.agent_id), self._guard.owner
        conversation = self._tables.conversations.read(*key, owner=owner)
        if conversation is None:
            stored, messages, window = new_agent(agent)
            write_id = uuid4()
            with self._guard.writing(agent.agent_id):
                try:
                    self._tables.agents.create(
                        self.session_id,
                        stored,
                        messages,
                        window=window,
                        write_id=write_id,
                        owner=owner,
                        term=self._guard.term,
                    )
                except SessionExistsError:
                    # The loser of a race restores what the winner has stored, as if it had come later.
                    conversation = self._tables.conversations.read(*key, owner=owner)
                    if conversation is None:
                        raise
        return new_record(agent, stored, window, write_id) if conversation is None else restore(agent, conversation)

    def append_message(self, message: Message, agent: "LocalAgent", **kwargs: Any) -> None:
        """Append a message to an agent's log; one that continues the last message takes its place.

        Outside of an event it is stored when this returns.

        Raises:
            StrandsPsycopgError: It could not be stored.
        """
        self._agent_writer(agent).append(message)

    def sync_agent(self, agent: "LocalAgent", **kwargs: Any) -> None:
        """Store an agent as it is in memory, if it has changed.

        Outside of an event it is stored when this returns.

        Raises:
            StrandsPsycopgError: It could not be stored.
        """
        self._agent_writer(agent).sync()

    def replace_message(self, message: Message, agent: "LocalAgent") -> None:
        """Replace the message of an agent's log with the same tracking id, such as the placeholder of a transcript.

        Outside of an event it is stored when this returns.

        Raises:
            SessionNotFoundError: The agent has no message with its tracking id.
            StrandsPsycopgError: It could not be stored.
        """
        self._agent_writer(agent).replace(message)

    def redact_latest_message(self, redact_message: Message, agent: "LocalAgent", **kwargs: Any) -> None:
        """Replace a message, wherever it is stored, with what it is redacted to.

        It is the message with the tracking id of ``redact_message``, even if memory no longer holds it. If there is
        none, it is the message in memory that ``redact_message`` is or has replaced; otherwise the last one of its
        role. It is redacted in other agents of this manager that share it, too. After that, no row of the
        session contains its text, except what was derived from it: the agent's state, summaries, answers, offloaded
        content in a storage.

        Raises:
            SessionException: The agent has no message to redact.
            StrandsPsycopgError: The redaction could not be stored.
        """
        writer = self._agent_writer(agent)
        writer.redact(redact_message)
        for other in list(self._agents.values()):
            if other is not writer:
                other.redact_if_held(redact_message)

    async def save_snapshot(self, agent: "LocalAgent", *, is_latest: bool = False) -> str | None:
        """Save a checkpoint of an agent as it is now.

        Args:
            agent: The agent.
            is_latest: Store the agent only, as every event does, without a checkpoint.

        Returns:
            The id of the checkpoint, for ``restore_snapshot`` and ``fork_session``; None if ``is_latest``.

        Raises:
            StrandsPsycopgError: It could not be stored.
        """
        writer = self._agent_writer(agent)
        if is_latest:
            await self._workers.run_async(writer.sync)
            return None
        return str(await self._workers.run_async(writer.save_checkpoint))

    async def list_snapshot_ids(
        self, agent: "LocalAgent", *, limit: int | None = None, start_after: str | None = None
    ) -> list[str]:
        """Return the ids of an agent's checkpoints, oldest first.

        Args:
            agent: The agent.
            limit: How many to return at most; None returns all.
            start_after: Only those after this id.

        Raises:
            ValueError: ``start_after`` is not a snapshot id.
            StrandsPsycopgError: They could not be read.
        """
        after = None if start_after is None else parse_snapshot_id(start_after)
        if limit is not None and limit <= 0:
            return []
        read = partial(self._tables.checkpoints.list, self.session_id, agent.agent_id, limit=limit, start_after=after)
        return await self._workers.run_async(read)

    async def restore_snapshot(self, agent: "LocalAgent", *, snapshot_id: str | None = None) -> bool:
        """Set an agent to a checkpoint, or to its stored state.

        The conversation goes on from there. The log keeps what was said after the checkpoint.

        Args:
            agent: The agent, of this manager. A bidirectional agent must be stopped.
            snapshot_id: The checkpoint; None is the agent as it is stored.

        Returns:
            Whether there is such a checkpoint.

        Raises:
            ValueError: ``snapshot_id`` is not a snapshot id.
            RuntimeError: A bidirectional agent is running, or background tasks are.
            StrandsPsycopgError: It could not be read.
        """
        writer = self._agent_writer(agent)
        if snapshot_id is None:
            return await self._workers.run_async(writer.reload)
        return await self._workers.run_async(partial(writer.load_checkpoint, parse_snapshot_id(snapshot_id)))

    def initialize_multi_agent(self, source: "MultiAgentBase", **kwargs: Any) -> None:
        """Restore a multi-agent from the session, or store it if it is new.

        Raises:
            StrandsPsycopgError: It could not be read or stored.
        """
        writer = MultiAgentWriter(self._tables, self.session_id, source, self._guard)
        writer.initialize()
        self._multi_agents[source.id] = writer

    def sync_multi_agent(self, source: "MultiAgentBase", **kwargs: Any) -> None:
        """Store the current state of a multi-agent.

        Outside of an event it is stored when this returns.

        Raises:
            StrandsPsycopgError: It could not be stored.
        """
        writer = self._multi_agents.get(source.id)
        if writer is None:
            raise SessionNotFoundError(
                f"multi-agent {source.id!r} is not one of this session manager's; build it with session_manager=..."
            )
        writer.sync()

    # Before strands-agents 1.57 bidirectional agents had methods of their own.

    def initialize_bidi_agent(self, agent: Any, **kwargs: Any) -> None:
        """Do what ``initialize`` does, for a bidirectional agent."""
        self.initialize(agent)

    def append_bidi_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
        """Do what ``append_message`` does, for a bidirectional agent."""
        self.append_message(message, agent)

    def sync_bidi_agent(self, agent: Any, **kwargs: Any) -> None:
        """Do what ``sync_agent`` does, for a bidirectional agent."""
        self.sync_agent(agent)


def _check_repository(session_id: object, repository: object) -> PostgresSessionRepository:
    """Return what was passed as a repository if it is one.

    Raises:
        TypeError: It is not; the text says what to pass.
    """
    if isinstance(repository, PostgresSessionRepository):
        return repository
    if isinstance(session_id, PostgresSessionRepository):
        raise TypeError("the session's id comes first: PostgresSessionManager(session_id, repository)")
    # It is not quoted, since it may be a DSN.
    raise TypeError(
        f"repository must be a PostgresSessionRepository, not {type(repository).__name__}; build one for the process "
        "and pass it to each manager, or use PostgresSessionManager.from_dsn(session_id, dsn)"
    )


def _check_overrides(repository: PostgresSessionRepository) -> None:
    """Check that a repository overrides no method that Strands' manager would call and this one does not.

    Raises:
        TypeError: It does.
    """
    overridden = []
    for name in sorted(_UNCALLED):
        definer = next((each for each in type(repository).__mro__ if name in vars(each)), PostgresSessionRepository)
        if definer not in PostgresSessionRepository.__mro__ or name in getattr(repository, "__dict__", {}):
            overridden.append(name)
    if overridden:
        raise TypeError(
            f"{type(repository).__name__} overrides {', '.join(overridden)}, which PostgresSessionManager does not "
            "call: it would store and read as if they were not overridden. To change documents on their way to and "
            "from the database, pass payload_codec to the repository; to change what is stored, override the methods "
            "of the manager; or use Strands' RepositorySessionManager, which calls them"
        )


def _in_turn(callbacks: Sequence[HookCallback[Any]]) -> HookCallback[Any]:
    def dispatch(event: BaseHookEvent) -> None:
        for callback in callbacks:
            callback(event)

    return dispatch


def _events_of_bidi_agents(*names: str) -> list[type[BaseHookEvent]]:
    """Return event classes of bidirectional agents; none if their module is not imported, so that no agent exists."""
    module = sys.modules.get("strands.bidi.hooks")
    return [getattr(module, name) for name in names if hasattr(module, name)]


class _CallbacksByEvent(HookRegistry):
    """A registry that collects, by event, the callbacks that may wait for the database.

    Callbacks that Strands calls synchronously, and coroutine functions, are passed on to the original registry.

    Attributes:
        callbacks: The collected callbacks, in the order of registration.
    """

    def __init__(self, registry: HookRegistry) -> None:
        super().__init__()
        self._registry = registry
        self.callbacks: dict[type[BaseHookEvent], list[HookCallback[Any]]] = {}

    def add_callback(self, event_type: Any, callback: HookCallback[Any], **options: Any) -> None:
        event_types = event_type if isinstance(event_type, list) else [event_type]
        for each in event_types:
            if each is None or each.__name__ in _SYNCHRONOUS or options or inspect.iscoroutinefunction(callback):
                self._registry.add_callback(each, callback, **options)
            else:
                self.callbacks.setdefault(each, []).append(callback)
