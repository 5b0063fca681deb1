"""What Strands repairs in memory when it restores an agent, and what that means for where the next restore begins.

Strands adds a message of tool results that are missing between two others, and drops one whose results answer no call.
The stored messages stay as they were, so from then on the positions in memory are not the stored indexes. But the
conversation manager goes on counting in memory how many messages it has removed, and the next restore would take that
count for an index.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from strands.types.session import SessionMessage

if TYPE_CHECKING:
    from strands.types.agent import LocalAgent


class Repairs:
    """The repairs that a restore has made.

    Args:
        agent: The agent, restored.
        stored: The messages from which it was.
    """

    def __init__(self, agent: "LocalAgent", stored: Sequence[SessionMessage]) -> None:
        self._agent = agent
        self._first_index = stored[0].message_id if stored else 0
        indexes = {id(message.to_message()): message.message_id for message in stored}
        positions = [position for position, message in enumerate(agent.messages) if id(message) in indexes]
        # What stands before the first stored message is a summary, which the conversation manager does not count.
        counted = agent.messages[positions[0] :] if positions else []
        self._added = [message for message in counted if id(message) not in indexes]
        kept = {indexes[id(agent.messages[position])] for position in positions}
        self._dropped = sorted(set(indexes.values()) - kept)

    def __bool__(self) -> bool:
        return bool(self._added or self._dropped)

    def index_after(self, removed: int) -> int:
        """Give the index of the first stored message that the agent still has.

        Args:
            removed: How many messages the conversation manager has removed, as it counts them.
        """
        held = {id(message) for message in self._agent.messages}
        index = removed - sum(id(message) not in held for message in self._added)
        for dropped in self._dropped:
            index += dropped <= index
        return max(index, self._first_index)
