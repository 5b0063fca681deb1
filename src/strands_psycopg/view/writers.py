"""What a manager knows of an agent that it writes."""

import threading
from dataclasses import dataclass, field
from uuid import UUID

from strands_psycopg.repository.agents import EncodedAgent
from strands_psycopg.view.transcript import Transcript


@dataclass
class Writer:
    """What this manager knows of an agent that it writes.

    Attributes:
        write_id: Of the last write to the row that this manager has seen.
        unchanged: The agent's documents as the row has them, if what comes next may be the same: after a restore, and
            after a write ahead.
        ahead: The row is ahead of the agent, by what the end of the turn will do.
        transcript: The agent's messages.
        lock: Held during a write, so that writes keep their order.
    """

    write_id: UUID
    unchanged: EncodedAgent | None = None
    ahead: bool = False
    transcript: Transcript = field(default_factory=Transcript)
    lock: threading.Lock = field(default_factory=threading.Lock)
