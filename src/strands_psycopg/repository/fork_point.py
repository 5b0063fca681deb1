"""The state of an agent at the point of its conversation at which a fork begins.

That is a checkpoint, which has the whole state, or a message index, at which the conversation is truncated. The current
state may refer to messages from that index on. A conversation manager counts the messages that it has removed from
memory, and may keep a summary of them; pending interrupts belong to the last message.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from strands.types.content import Message
from strands.types.session import SessionAgent

from strands_psycopg.errors import SessionForkError
from strands_psycopg.repository.agents import StoredAgent
from strands_psycopg.repository.checkpoints import PINNED
from strands_psycopg.repository.window import Variant, Window, plain_start, stored_places

# The keys in the states of Strands' conversation managers. Any other key may refer to messages too.
_KNOWN_KEYS = {"__name__", "removed_message_count", "model_call_count", "summary_message"}

_NO_INTERRUPTS = {"interrupts": {}, "context": {}, "activated": False}

_INTERNAL_KEYS = ("interrupt_state", "model_state", PINNED)


class ForkedAgent(NamedTuple):
    """An agent as it begins in a fork.

    Attributes:
        agent: The agent.
        window: Which messages it holds in memory; None if they are the end of its log.
        message_count: The number of messages in its log.
    """

    agent: SessionAgent
    window: Window | None
    message_count: int


def at_checkpoint(agent_id: str, data: dict[str, Any], window: Window | None, message_count: int) -> ForkedAgent:
    """Return an agent as it was at a checkpoint, from the checkpoint's columns."""
    manager_state = data.get("conversation_manager_state", {})
    internal_state = {key: data[key] for key in _INTERNAL_KEYS if key in data}
    places = window.places(message_count) if window else []
    plain = list(range(plain_start(manager_state), message_count))
    # Without a window, the summary is restored with the end of the log.
    is_plain = places == plain and not manager_state.get("summary_message")
    return ForkedAgent(
        SessionAgent(agent_id, data["state"], manager_state, internal_state),
        None if is_plain else Window.of(places, message_count),
        message_count,
    )


class ForkPoint:
    """The message index at which an agent's conversation is truncated.

    Args:
        session_id: The session.
        stored: The agent, with more than ``until`` messages in its log.
        variants: The variants in its window.
        until: The index, and so the number of messages that remain.
        last_prompt: Returns the index of the last user prompt up to an index; 0 if there is none.
    """

    def __init__(
        self,
        session_id: str,
        stored: StoredAgent,
        variants: Sequence[Variant],
        *,
        until: int,
        last_prompt: Callable[[int], int],
    ) -> None:
        self._session_id = session_id
        self._agent = stored.agent
        self._end = stored.next_message_id
        self._until = until
        self._last_prompt = last_prompt
        self._has_window = stored.window is not None
        places = stored_places(stored.window, stored.agent.conversation_manager_state, self._end)
        by_id = {each.variant_id: each for each in variants}
        # What the agent holds: the indexes of messages of the log, and variants.
        self._held = [by_id[-place] if place < 0 else place for place in places if place >= 0 or -place in by_id]

    def truncated(self) -> ForkedAgent:
        """Return the agent with its truncated conversation; in memory it holds the end of it, as the log has it.

        It holds as many messages as before, or a few more, so that the first one is a user prompt. A summary that
        covers only messages that remain is kept, with the messages after it. One that covers others is left out, and
        the agent holds all messages that remain.

        Raises:
            SessionForkError: A conversation manager's state of unknown form refers to messages that are left out, or
                the model's provider stores the conversation, so it cannot be truncated.
        """
        state, start = self._truncated_manager_state()
        if plain_start(state) != start and "removed_message_count" in state:
            state = {**state, "removed_message_count": start}
        internal_state = self._truncated_internal_state()
        if not start and not state.get("summary_message"):
            # So that the first messages are pinned again.
            internal_state = {key: value for key, value in internal_state.items() if key != PINNED}
        agent = replace(self._agent, conversation_manager_state=state, _internal_state=internal_state)
        return ForkedAgent(agent, None if plain_start(state) == start else Window((), start), self._until)

    def _truncated_manager_state(self) -> tuple[dict[str, Any], int]:
        """Return the conversation manager's state, and the index of the first message that the agent holds."""
        state = self._agent.conversation_manager_state
        removed = plain_start(state)
        first_kept = self._first_kept()
        if removed and not state.keys() <= _KNOWN_KEYS:
            if first_kept <= self._until:
                return state, first_kept
            raise self._fork_error(
                f"its conversation manager has removed {removed} messages from memory, and is of a kind that this "
                f"package cannot restore with fewer messages; truncate at {first_kept} or later"
            )
        if not state.get("summary_message"):
            return state, self._moved_start()
        after_summary = self._after_summary(state["summary_message"])
        if after_summary is not None and first_kept <= self._until:
            return state, min(self._until, *(after_summary or [first_kept]))
        return {**state, "summary_message": None}, self._moved_start() if after_summary is None else 0

    def _first_kept(self) -> int:
        """Return the index from which memory has all messages of the log, so that no summary covers them."""
        held = set(self._indexes(self._held))
        return next((index + 1 for index in reversed(range(self._end)) if index not in held), 0)

    def _after_summary(self, summary: Message) -> list[int] | None:
        """Return the indexes of the messages after the summary in memory; None if memory does not have the summary."""
        if not self._has_window:
            return self._indexes(self._held)
        positions = [n for n, each in enumerate(self._held) if isinstance(each, Variant) and each.message == summary]
        return self._indexes(self._held[positions[0] + 1 :]) if positions else None

    @staticmethod
    def _indexes(held: Sequence[int | Variant]) -> list[int]:
        """Return the indexes in the log of held messages, whatever their form, without those that it does not have."""
        indexes = (each.original if isinstance(each, Variant) else each for each in held)
        return [index for index in indexes if index is not None]

    def _moved_start(self) -> int:
        """Return the index of the first of the last messages before ``until``, about as many as the agent held."""
        size = len(self._held)
        if not size:
            return self._until
        return self._last_prompt(self._until - size) if self._until > size else 0

    def _truncated_internal_state(self) -> dict[str, Any]:
        """Return Strands' internal state of the agent, without pending interrupts."""
        state = self._agent._internal_state
        if state.get("interrupt_state"):
            state = {**state, "interrupt_state": _NO_INTERRUPTS}
        if state.get("model_state"):
            if self._until:
                raise self._fork_error(
                    "its model's provider stores the conversation, which cannot be truncated there; fork all messages, "
                    "or none (until=0)"
                )
            state = {**state, "model_state": {}}
        return state

    def _fork_error(self, reason: str) -> SessionForkError:
        return SessionForkError(
            f"truncating agent {self._agent.agent_id!r} of session {self._session_id!r} at message {self._until}: "
            f"{reason}",
            session_id=self._session_id,
            agent_id=self._agent.agent_id,
        )
