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
        unchanged: What an agent was restored from, until the row is first written.
        transcript: An agent's messages.
        serialized: How many states of a multi-agent were given to be stored.
        stored: The number of the newest of them that is stored.
        lock: Held during a write, so that writes keep their order.
    """

    write_id: UUID | None
    unchanged: Documents | None = None
    transcript: Transcript = field(default_factory=Transcript)
    serialized: int = 0
    stored: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
