"""Graphs and swarms as one manager sees them."""

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from strands_psycopg.errors import SessionExistsError
from strands_psycopg.repository import multi_agents
from strands_psycopg.view.guard import Guard
from strands_psycopg.view.threads import Thread

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase


@dataclass
class _Writer:
    """What this manager knows of a multi-agent that it writes.

    Attributes:
        write_id: Of the last write to the row that this manager has seen.
        serialized: How many states were given to be stored.
        stored: The number of the newest of them that is stored.
        lock: Held during a write, so that writes keep their order.
    """

    write_id: UUID
    serialized: int = 0
    stored: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class MultiAgents:
    """The multi-agents of one session for one manager.

    Args:
        session_id: The session.
        rows: Where they are stored.
        thread: What each thread is operation with the view.
        guard: Of the manager's writes.
    """

    def __init__(self, session_id: str, rows: multi_agents.MultiAgents, thread: Thread, guard: Guard) -> None:
        self._session_id = session_id
        self._rows = rows
        self._thread = thread
        self._guard = guard
        self._writers: dict[str, _Writer] = {}

    def read(self, multi_agent_id: str) -> dict[str, Any] | None:
        """Give a stored state; None if there was none, though a multi-agent that is being initialized is stored now."""
        stored = self._rows.read(self._session_id, multi_agent_id)
        if stored is None and multi_agent_id in self._thread.new_multi_agents:
            with self._guard.writing():
                try:
                    self._store_new(self._thread.new_multi_agents[multi_agent_id])
                except SessionExistsError:
                    stored = self._rows.read(self._session_id, multi_agent_id)
        if stored is None:
            return None
        self._writers[multi_agent_id] = _Writer(stored.write_id)
        return stored.state

    def create(self, multi_agent: "MultiAgentBase") -> None:
        """Store a new one, unless ``read`` has."""
        if multi_agent.id not in self._thread.new_multi_agents:
            with self._guard.writing():
                self._store_new(multi_agent)

    def _store_new(self, multi_agent: "MultiAgentBase") -> None:
        write_id = uuid4()
        state = multi_agent.serialize_state()
        self._rows.create(self._session_id, multi_agent.id, state, write_id=write_id, term=self._guard.term)
        self._writers[multi_agent.id] = _Writer(write_id)

    def update(self, multi_agent: "MultiAgentBase") -> None:
        """Store a state where nobody else has written it.

        The state is taken at once, in the caller's thread, since a graph's other nodes go on changing it; on an event
        loop it is stored later.
        """
        writer = self._writers[multi_agent.id]
        writer.serialized += 1
        write = partial(self._write, writer, multi_agent.id, multi_agent.serialize_state(), writer.serialized)
        if self._thread.on_loop:
            self._thread.deferred.append(write)
        else:
            write()

    def _write(self, writer: _Writer, multi_agent_id: str, state: dict[str, Any], number: int) -> None:
        write_id = uuid4()
        with writer.lock, self._guard.writing():
            if number < writer.stored:
                return
            self._rows.update(
                self._session_id,
                multi_agent_id,
                state,
                write_id=write_id,
                expected=writer.write_id,
                term=self._guard.term,
            )
            writer.write_id, writer.stored = write_id, number
