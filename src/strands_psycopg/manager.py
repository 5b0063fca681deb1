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
    """Keeps one session's agents in PostgreSQL, message by message.

    Strands' own manager on a ``PostgresSessionRepository``, with these differences: while an agent runs, its hooks
    wait for the database in worker threads; what another writer stored is never overwritten; and after a write that
    failed, every later write raises that same error until a new manager is built.

    The session is read, and created if it is new, while the manager is built, and so is each agent's while the agent
    is built: both wait for the database.

    Args:
        session_id: The session.
        repository: Where it is stored; it stays the caller's to close.
        **kwargs: For Strands' manager.

    Raises:
        ValueError: ``session_id`` cannot be stored.
        SchemaError: The tables are missing.
        DatabaseUnavailableError: The database could not be reached in time.
    """

    def __init__(self, session_id: str, repository: PostgresSessionRepository, **kwargs: Any) -> None:
        self._view = SessionView(session_id, repository)
        self._own_repository: PostgresSessionRepository | None = None
        super().__init__(session_id, self._view, **kwargs)

    @classmethod
    def from_dsn(cls, session_id: str, dsn: str, **options: Any) -> Self:
        """Build a manager that owns its repository; ``close`` or the context manager closes it.

        Args:
            session_id: The session.
            dsn: As ``conninfo`` of ``PostgresSessionRepository``.
            **options: As the other arguments of ``PostgresSessionRepository``.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def session_repository(self) -> SessionRepository:
        """The repository as this manager sees it. Strands' manager reads it just before it reads or writes."""
        self._view.leave_loop()
        return self._view

    @session_repository.setter
    def session_repository(self, view: SessionRepository) -> None:
        """Let Strands' constructor assign what it was given."""

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        """Register Strands' own hooks, as coroutines that wait for the database in worker threads."""
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
                # A cancelled turn has its last sync all the same; if that fails, the turn still was cancelled.
                if isinstance(ending, asyncio.CancelledError):
                    raise ending from failure
                raise

        return dispatch

    async def _dispatch(self, callbacks: Sequence[HookCallback[Any]], event: BaseHookEvent) -> None:
        """Leave the loop only if there is something to write, and then once."""
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
        """Restore an agent from the session, or store it with its messages if it is new, in one transaction."""
        with self._view.initializing_agent(agent):
            super().initialize(agent, **kwargs)

    def append_message(self, message: Message, agent: "LocalAgent", **kwargs: Any) -> None:
        """Store an agent's next message; one that continues the last one, in its place."""
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
        """Store what has taken a message's place, such as the transcript for which a placeholder was stored.

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
        """Store a multi-agent's present state."""
        self._view.update_multi_agent(self.session_id, source)


def _event_of_bidi_agents(name: str) -> type[BaseHookEvent] | None:
    """Give an event of bidirectional agents; None where there can be none, since their module was not imported."""
    return getattr(sys.modules.get("strands.bidi.hooks"), name, None)


class _CallbacksByEvent(HookRegistry):
    """Stands in for a registry and keeps back, by event, the callbacks that may wait for the database.

    Those that Strands calls synchronously, and any that are coroutines already, go straight to the registry.

    Attributes:
        callbacks: What was kept back, in the order of registration.
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
