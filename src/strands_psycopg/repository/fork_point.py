"""The state of an agent whose conversation is truncated at a message index.

The state may refer to messages from that index on. A conversation manager counts the messages that it has removed from
the beginning of the conversation, and may keep a summary of them; an agent is restored from that summary and the
messages after them. Pending interrupts belong to the last message.
"""

from collections.abc import Callable
from typing import Any

from strands_psycopg.errors import SessionForkError

# The keys in the state of a conversation manager that only drops messages, and of one that summarizes them. Any other
# key may refer to messages too.
_DROPPING_KEYS = {"__name__", "removed_message_count", "model_call_count"}
_SUMMARIZING_KEYS = _DROPPING_KEYS | {"summary_message"}

_NO_INTERRUPTS = {"interrupts": {}, "context": {}, "activated": False}


class ForkPoint:
    """The message index at which an agent's conversation is truncated.

    Args:
        session_id: The session.
        agent_id: The agent.
        until: The index, and so the number of messages that remain.
        stored: The number of messages of the original conversation; more than ``until``.
        last_prompt: Returns the index of the last user prompt up to an index; 0 if there is none.
    """

    def __init__(
        self, session_id: str, agent_id: str, *, until: int, stored: int, last_prompt: Callable[[int], int]
    ) -> None:
        self._session_id = session_id
        self._agent_id = agent_id
        self._until = until
        self._stored = stored
        self._last_prompt = last_prompt

    def conversation_manager_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the conversation manager's state for the truncated conversation.

        A manager that drops messages is restored with as many messages as it had in memory, or a few more, so that the
        first one is a user prompt. A summary that covers removed messages is dropped; the manager is then restored with
        all remaining messages.

        Raises:
            SessionForkError: A state of unknown form refers to removed messages.
        """
        removed = state.get("removed_message_count")
        if not isinstance(removed, int) or not removed:
            return state
        if state.keys() <= _DROPPING_KEYS:
            return {**state, "removed_message_count": min(removed, self._window_start(self._stored - removed))}
        if removed <= self._until:
            return state
        if state.keys() <= _SUMMARIZING_KEYS:
            return {**state, "summary_message": None, "removed_message_count": 0}
        raise self._fork_error(
            f"its conversation manager has removed {removed} messages from memory, and is of a kind that this package "
            f"cannot restore with fewer messages; truncate at {removed} or later"
        )

    def _window_start(self, size: int) -> int:
        if size <= 0:
            return self._until
        return self._last_prompt(self._until - size) if self._until > size else 0

    def internal_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return Strands' internal state of the agent for the truncated conversation, without pending interrupts.

        Raises:
            SessionForkError: The model's provider stores the conversation, so it cannot be truncated.
        """
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
            f"truncating agent {self._agent_id!r} of session {self._session_id!r} at message {self._until}: {reason}",
            session_id=self._session_id,
            agent_id=self._agent_id,
        )
