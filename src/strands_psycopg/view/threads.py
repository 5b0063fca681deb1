"""What each thread is operation with a view; several may be, and one of them may run an event loop."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from strands.types.session import SessionAgent, SessionMessage

from strands_psycopg.repository.conversations import Conversation

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase
    from strands.types.agent import LocalAgent


class LeaveLoopError(Exception):
    """What was called on the event loop needs the database and must be called again in a worker thread."""


class Waiting(NamedTuple):
    """A message that waits for the write that follows it in the same event.

    Attributes:
        agent_id: Whose it is.
        message: The message.
        ahead: The agent as it will be after the turn that the message ends, if that can be told.
    """

    agent_id: str
    message: SessionMessage
    ahead: SessionAgent | None = None


class Thread(threading.local):
    """What a thread is operation with the view.

    Attributes:
        on_loop: It runs an event loop, and must not wait for the database.
        comparing: On the loop it compares what is stored with what is to be.
        deferred: Writes that it has left for a worker thread.
        group: Messages that wait for the write that follows them in the same event; None outside of one.
        new_agents: Agents that it is initializing. Other threads may be writing to one of the same id.
        new_multi_agents: Multi-agents that it is initializing.
        restored: What the agent that it is initializing is restored from.
    """

    def __init__(self) -> None:
        self.on_loop = False
        self.comparing = False
        self.deferred: list[Callable[[], None]] = []
        self.group: list[Waiting] | None = None
        self.new_agents: dict[str, LocalAgent] = {}
        self.new_multi_agents: dict[str, MultiAgentBase] = {}
        self.restored: Conversation | None = None
