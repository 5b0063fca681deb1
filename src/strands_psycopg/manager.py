"""Strands' session manager on PostgreSQL, with its hooks off the event loop."""

import asyncio
import inspect
import sys
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from strands.hooks import events
from strands.hooks.registry import BaseHookEvent, HookCallback, HookRegistry
from strands.session.repository_session_manager import RepositorySessionManager
from strands.session.session_repository import SessionRepository
from strands.types.content import Message
from typing_extensions import Self

from strands_psycopg import worker
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.view import SessionView
from strands_psycopg.view.threads import LeaveLoopError

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase
    from strands.types.agent import LocalAgent

# Strands calls the hooks of these while an agent is being built, where nothing can be awaited.
_SYNCHRONOUS = {"AgentInitializedEvent", "BidiAgentInitializedEvent"}


class PostgresSessionManager(RepositorySessionManager):
    """A Strands session manager that stores the agents of a session in PostgreSQL, message by message.

    It differs from Strands' ``RepositorySessionManager`` in three ways. While an agent runs, its hooks wait for the
    database in worker threads, not on the event loop. A write that would overwrite what another writer stored raises
    ``SessionConflictError``. After a failed write, every later write raises the same error; build a new manager then.

    The constructor reads the session, or creates it if it does not exist; building an agent reads or creates the agent.
    Both wait for the database.

    Args:
        session_id: The id of the session.
        repository: The repository that stores it; the manager does not close it.
        **kwargs: Arguments for Strands' manager.

    Raises:
        ValueError: ``session_id`` is not a valid id.
        SchemaError: The tables are missing.
        DatabaseUnavailableError: The database could not be reached in time.
    """

    def __init__(self, session_id: str, repository: PostgresSessionRepository, **kwargs: Any) -> None:
        self._view = SessionView(session_id, repository)
        self._repository = repository
        self._own_repository: PostgresSessionRepository | None = None
        super().__init__(session_id, self._view, **kwargs)

    @classmethod
    def from_dsn(cls, session_id: str, dsn: str, **options: Any) -> Self:
        """Return a manager that owns its repository; ``close`` or the context manager closes it.

        Args:
            session_id: The id of the session.
            dsn: The ``conninfo`` of the ``PostgresSessionRepository``.
            **options: Its other arguments.

        Raises:
            TypeError: As ``PostgresSessionRepository`` does.
            ValueError: An argument is out of range, the DSN cannot be parsed, or ``session_id`` is not a valid id.
            SchemaError: The tables are missing.
            DatabaseUnavailableError: The database could not be reached in time.
        """
        repository = PostgresSessionRepository(dsn, **options)
        try:
            manager = cls(session_id, repository)
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
        return f"<{type(self).__name__} session_id={self.session_id!r} repository={self._repository!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def session_repository(self) -> SessionRepository:
        """The repository that Strands' manager accesses; it reads this property before each read or write."""
        self._view.leave_loop()
        return self._view

    @session_repository.setter
    def session_repository(self, view: SessionRepository) -> None:
        """Ignore the assignment in the constructor of Strands' manager."""

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        """Register the hooks of Strands' manager as coroutines that wait for the database in worker threads."""
        by_event = _CallbacksByEvent(registry)
        super().register_hooks(by_event, **kwargs)
        message_updated = getattr(events, "MessageUpdatedEvent", None)
        if message_updated is not None:
            by_event.add_callback(message_updated, lambda event: self.replace_message(event.message, event.agent))
        agent_stopped = _event_of_bidi_agents("BidiAgentStopEvent")
        if agent_stopped is not None:
            by_event.add_callback(agent_stopped, lambda event: self.sync_agent(event.agent))
        for event_type, callbacks in by_event.callbacks.items():
            registry.add_callback(event_type, self._off_loop(callbacks))

    def _off_loop(self, callbacks: Sequence[HookCallback[Any]]) -> HookCallback[Any]:
        async def dispatch(event: BaseHookEvent) -> None:
            ending = sys.exc_info()[1]
            try:
                await self._dispatch(callbacks, event)
            except Exception as failure:
                # A cancelled turn still ends with a sync. If that fails, the turn must end as cancelled all the same.
                if isinstance(ending, asyncio.CancelledError):
                    raise ending from failure
                raise

        return dispatch

    async def _dispatch(self, callbacks: Sequence[HookCallback[Any]], event: BaseHookEvent) -> None:
        """Call the callbacks on the loop; if one needs the database, call all of them in a worker thread."""
        try:
            with self._view.on_loop() as deferred:
                for callback in callbacks:
                    callback(event)
        except LeaveLoopError:
            await worker.run(partial(self._call_all, callbacks, event))
        else:
            for write in deferred:
                await worker.run(write)

    def _call_all(self, callbacks: Sequence[HookCallback[Any]], event: BaseHookEvent) -> None:
        with self._view.one_event():
            for callback in callbacks:
                callback(event)

    def initialize(self, agent: "LocalAgent", **kwargs: Any) -> None:
        """Restore an agent from the session; if it is new, store it with its messages, in one transaction."""
        with self._view.initializing_agent(agent):
            super().initialize(agent, **kwargs)

    def append_message(self, message: Message, agent: "LocalAgent", **kwargs: Any) -> None:
        """Store an agent's next message, or replace the last one if the message continues it."""
        # Strands' manager counts the message before it reads ``session_repository``.
        self._view.leave_loop()
        if not self._view.continue_latest(agent, message):
            super().append_message(message, agent, **kwargs)
            self._view.look_ahead(agent)

    def sync_agent(self, agent: "LocalAgent", **kwargs: Any) -> None:
        """Store an agent's state if it has changed."""
        with self._view.comparing(agent):
            super().sync_agent(agent, **kwargs)
        self._view.catch_up(agent)

    def replace_message(self, message: Message, agent: "LocalAgent") -> None:
        """Replace the stored message with the same tracking id, such as the placeholder of a transcript.

        Raises:
            SessionNotFoundError: No message with its tracking id is stored.
        """
        self._view.leave_loop()
        self._view.replace_message(agent.agent_id, message)

    def initialize_multi_agent(self, source: "MultiAgentBase", **kwargs: Any) -> None:
        """Restore a multi-agent from the session, or store it if it is new."""
        with self._view.initializing_multi_agent(source):
            super().initialize_multi_agent(source, **kwargs)

    def sync_multi_agent(self, source: "MultiAgentBase", **kwargs: Any) -> None:
        """Store the current state of a multi-agent."""
        self._view.update_multi_agent(self.session_id, source)


def _event_of_bidi_agents(name: str) -> type[BaseHookEvent] | None:
    """Return an event class of bidirectional agents, or None if their module is not imported, so that none exist."""
    return getattr(sys.modules.get("strands.bidi.hooks"), name, None)


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
            plain = each is None or each.__name__ in _SYNCHRONOUS or options or inspect.iscoroutinefunction(callback)
            if plain:
                self._registry.add_callback(each, callback, **options)
            else:
                self.callbacks.setdefault(each, []).append(callback)
