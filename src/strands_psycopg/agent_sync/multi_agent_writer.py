"""Storing graphs and swarms as they are in memory."""

import threading
from collections import deque
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from strands_psycopg.agent_sync.event_scope import EventScope
from strands_psycopg.agent_sync.write_guard import WriteGuard
from strands_psycopg.errors import SessionExistsError
from strands_psycopg.repository.tables import SessionTables

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase


class MultiAgentWriter(EventScope):
    """Restores and stores one graph or swarm.

    Args:
        tables: Where it is stored.
        session_id: Its session.
        multi_agent: The graph or swarm.
        guard: The guard of its manager's writes.
    """

    def __init__(
        self, tables: SessionTables, session_id: str, multi_agent: "MultiAgentBase", guard: WriteGuard
    ) -> None:
        super().__init__()
        self._rows = tables.multi_agents
        self._workers = tables.database.workers
        self._session_id = session_id
        self._multi_agent = multi_agent
        self._guard = guard
        self._write_id: UUID
        # The newest state that has to be written, if there is one; other threads may replace it at any time.
        self._due: deque[dict[str, Any]] = deque(maxlen=1)
        # Held during a write, so that writes keep their order.
        self._lock = threading.Lock()

    def initialize(self) -> None:
        """Restore the multi-agent if it is stored; otherwise store it.

        The loser of a race between two processes finds what the winner has stored, as if it had come later.
        """
        stored = self._rows.read(self._session_id, self._multi_agent.id, owner=self._guard.owner)
        if stored is None:
            write_id = uuid4()
            with self._guard.writing(self._multi_agent.id):
                try:
                    self._rows.create(
                        self._session_id,
                        self._multi_agent.id,
                        self._multi_agent.serialize_state(),
                        write_id=write_id,
                        owner=self._guard.owner,
                        term=self._guard.term,
                    )
                except SessionExistsError:
                    stored = self._rows.read(self._session_id, self._multi_agent.id, owner=self._guard.owner)
                    if stored is None:
                        raise
        if stored is None:
            self._write_id = write_id
        else:
            self._write_id = stored.write_id
            self._multi_agent.deserialize_state(stored.state)

    def sync(self) -> None:
        """Store the present state; together with the event's other writes, if this is an event.

        The state is taken at once, in the caller's thread, since a graph's other nodes go on changing it.
        """
        self._due.append(self._multi_agent.serialize_state())
        if not self.is_handling_event:
            self._workers.run(self.write)

    def is_write_due(self) -> bool:
        """Return whether something that was asked for must be written."""
        return bool(self._due)

    def write(self) -> None:
        """Write what was asked for; an older state never follows a newer one.

        Raises:
            SessionConflictError: Another writer was first.
            StrandsPsycopgError: The write failed, or an earlier one of the manager has failed.
        """
        with self._lock, self._guard.writing(self._multi_agent.id):
            if self._due:
                state, write_id = self._due.popleft(), uuid4()
                self._rows.update(
                    self._session_id,
                    self._multi_agent.id,
                    state,
                    write_id=write_id,
                    expected=self._write_id,
                    term=self._guard.term,
                )
                self._write_id = write_id
