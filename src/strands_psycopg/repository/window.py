"""Which messages an agent holds in memory, where they are not simply the end of its log.

The log of an agent is all that was said, one message at each index. Its window is what it holds in memory: messages of
the log, and variants, which are messages in a form that the log does not have, such as a summary or an edited message.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from strands.types.content import Message

from strands_psycopg.payload import Payloads

# See ``dumps_window``.
_PLAIN = "plain"

# Larger than any index of the log, and within PostgreSQL's bigint.
_MAX_START = 10**18


@dataclass(frozen=True)
class Window:
    """The messages of an agent by their places.

    A place is the index of a message in the agent's log (from 0 up), or minus the id of a variant: a message that is
    not in the log in this form, such as a summary.

    Attributes:
        items: In order, ranges of the log as (first index, index after the last) and ids of variants.
        next: The log from this index on follows the items, so messages that are only appended leave a window as it
            is. None if nothing follows.
    """

    items: tuple[tuple[int, int] | int, ...]
    next: int | None

    @classmethod
    def of(cls, places: Sequence[int], end: int | None = None) -> "Window":
        """Return the shortest window that has these places.

        Args:
            places: The places, in order.
            end: The index that the log's next message will have, if messages that are appended are to follow; None
                for a window that stays as it is.
        """
        items: list[tuple[int, int] | int] = []
        for place in places:
            if place < 0:
                items.append(-place)
            elif items and isinstance(last := items[-1], tuple) and last[1] == place:
                items[-1] = (last[0], place + 1)
            else:
                items.append((place, place + 1))
        following = end
        if items and isinstance(last := items[-1], tuple) and last[1] == end:
            following = last[0]
            del items[-1]
        return cls(tuple(items), following)

    @classmethod
    def loads(cls, text: str | None) -> "Window | None":
        """Read the column; None stands for the end of the log (see ``plain_start`` and ``dumps_window``)."""
        if text is None:
            return None
        stored = json.loads(text)
        if stored.get(_PLAIN):
            return None
        return cls(tuple(tuple(item) if isinstance(item, list) else item for item in stored["items"]), stored["next"])

    def dumps(self) -> str:
        """Return the text for the column."""
        return json.dumps({"items": self.items, "next": self.next})

    def places(self, end: int) -> list[int]:
        """Return the places, in order.

        Args:
            end: The index that the log's next message will have.
        """
        places: list[int] = []
        for item in self.items:
            places.extend(range(*item) if isinstance(item, tuple) else (-item,))
        if self.next is not None:
            places.extend(range(self.next, end))
        return places

    @property
    def variant_ids(self) -> list[int]:
        """The ids of the variants in it."""
        return [-place for place in self.places(0) if place < 0]


class Variant(NamedTuple):
    """A message in a form that the log does not have.

    Attributes:
        variant_id: Its id.
        original: The index of the message of the log that it is a form of; None if there is none.
        message: The message.
    """

    variant_id: int
    original: int | None
    message: Message


def plain_start(conversation_manager_state: dict[str, Any]) -> int:
    """Return where Strands' own restore begins to read the log: after the messages that were removed from memory."""
    removed = conversation_manager_state.get("removed_message_count")
    return removed if type(removed) is int and 0 <= removed < _MAX_START else 0


def dumps_window(window: Window | None, start: int, payloads: Payloads) -> str | None:
    """Return the text for the column.

    Args:
        window: The window; None is the end of the log.
        start: Where that end begins. Statements read it from the conversation manager's state, but with a payload codec
            they cannot, so the column has it then.
        payloads: What encodes documents; it says whether there is one.
    """
    if window is not None:
        return window.dumps()
    return json.dumps({"items": [], "next": start, _PLAIN: True}) if payloads.has_codec else None


def stored_places(window: Window | None, conversation_manager_state: dict[str, Any], end: int) -> list[int]:
    """Return the places of the messages from which an agent is restored.

    Args:
        window: The agent's window; None if it is the end of the log.
        conversation_manager_state: The state that is stored with it.
        end: The index that the log's next message will have.
    """
    return list(range(plain_start(conversation_manager_state), end)) if window is None else window.places(end)
