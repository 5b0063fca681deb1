"""An agent's messages as one manager knows them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from strands.types.content import Message, Messages
from strands.types.session import SessionMessage

from strands_psycopg.view.repairs import Repairs

if TYPE_CHECKING:
    from strands.types.agent import LocalAgent


class Transcript:
    """What has been read or written of an agent's messages.

    Args:
        next_message_id: The index of the next message.

    Attributes:
        next_message_id: The index of the next message.
        latest: The last message, as Strands' manager holds it.
    """

    def __init__(self, next_message_id: int = 0) -> None:
        self.next_message_id = next_message_id
        self.latest: SessionMessage | None = None
        self._restored_more_than_once: dict[str, list[SessionMessage]] = {}
        self._repairs: Repairs | None = None

    def restore(self, agent: "LocalAgent", stored: Sequence[SessionMessage]) -> None:
        """Take note of what an agent was restored from, at the end of it."""
        self.latest = stored[-1]
        self.next_message_id = max(self.next_message_id, self.latest.message_id + 1)
        by_tracking_id: dict[str, list[SessionMessage]] = {}
        for message in stored:
            if tracking_id := _tracking_id(message.message):
                by_tracking_id.setdefault(tracking_id, []).append(message)
        self._restored_more_than_once = {key: same for key, same in by_tracking_id.items() if len(same) > 1}
        if not agent.model.stateful:
            self._repairs = Repairs(agent, stored) or None

    @property
    def repaired(self) -> bool:
        """Whether positions in memory are not the stored indexes."""
        return self._repairs is not None

    def others(self, message: SessionMessage) -> list[SessionMessage]:
        """Give the restored messages that are the same one, stored again when a turn that had failed was retried."""
        same = self._restored_more_than_once.get(_tracking_id(message.message) or "", [])
        return [other for other in same if other is not message]

    def continue_latest(self, message: Message, in_memory: Messages) -> SessionMessage | None:
        """Put a message that was announced as new in the last one's place, and give that, if so it was done in memory.

        So Strands continues a message: one with its tracking id, its content and more stands in its place.
        """
        tracking_id = _tracking_id(message)
        if self.latest is None or tracking_id is None or _tracking_id(self.latest.to_message()) != tracking_id:
            return None
        if [_tracking_id(each) for each in in_memory].count(tracking_id) > 1:
            return None
        _replace(self.latest, message)
        return self.latest

    def replace_latest(self, message: Message) -> None:
        """Put a message in the last one's place if it has its tracking id."""
        if self.latest is not None and _tracking_id(self.latest.to_message()) == _tracking_id(message):
            _replace(self.latest, message)

    def first_index(self, removed: int) -> int:
        """Give the index of the first stored message that the agent still has, of which so many were removed."""
        return removed if self._repairs is None else self._repairs.index_after(removed)


def _replace(stored: SessionMessage, message: Message) -> None:
    stored.message = message
    stored.redact_message = None if stored.redact_message is None else message


def _tracking_id(message: Message) -> str | None:
    """Give what tells a message from every other one; Strands before 1.48 has nothing that does."""
    return message.get("tracking_id")
