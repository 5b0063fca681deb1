"""What a manager knows of what it writes."""

import threading
from dataclasses import dataclass, field
from uuid import UUID

from strands_psycopg.repository.agents import Documents
from strands_psycopg.view.transcript import Transcript


@dataclass
class Writer:
    """What this manager knows of an agent or multi-agent that it writes.

    Attributes:
        write_id: Of the last write to the row that this manager has seen; None if it is new to it.
        unchanged: An agent's documents as the row has them, if what comes next may be the same: after a restore, and
            after a write ahead.
        ahead: The agent's row is ahead of the agent, by what the end of the turn will do.
        transcript: An agent's messages.
        serialized: How many states of a multi-agent were given to be stored.
        stored: The number of the newest of them that is stored.
        lock: Held during a write, so that writes keep their order.
    """

    write_id: UUID | None
    unchanged: Documents | None = None
    ahead: bool = False
    transcript: Transcript = field(default_factory=Transcript)
    serialized: int = 0
    stored: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
