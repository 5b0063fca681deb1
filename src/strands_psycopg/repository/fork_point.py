"""What becomes of an agent's documents when its conversation is cut short: they may point past the cut.

An agent is restored from the messages that its conversation manager has not removed (counted from the first), after
the summary of those that it has, if it makes one. Pending interrupts belong to the last message.
"""

from collections.abc import Callable
from typing import Any

from strands_psycopg.errors import SessionForkError

# What the state of a manager that only drops messages consists of, and of one that summarizes them. Any further key may
# point to messages too.
_DROPPING = {"__name__", "removed_message_count", "model_call_count"}
_SUMMARIZING = _DROPPING | {"summary_message"}

_NO_INTERRUPTS = {"interrupts": {}, "context": {}, "activated": False}


class ForkPoint:
    """A cut through an agent's conversation.

    Args:
        session_id: The session.
        agent_id: The agent.
        until: How many messages are left.
        stored: How many there were; more than ``until``.
        prompt_before: Gives the index of the last prompt of a user up to an index; 0 if there is none.
    """

    def __init__(
        self, session_id: str, agent_id: str, *, until: int, stored: int, prompt_before: Callable[[int], int]
    ) -> None:
        self._session_id = session_id
        self._agent_id = agent_id
        self._until = until
        self._stored = stored
        self._prompt_before = prompt_before

    def conversation_manager_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Give the state from which a conversation manager is restored with what is left.

        One that drops messages holds as many before the cut as it held of the whole, or a few more, so that the first
        is a user's prompt. A summary that reaches past the cut is left out, and what it stood for is there again.

        Raises:
            SessionForkError: The state points past the cut, and is of an unknown form.
        """
        removed = state.get("removed_message_count")
        if not isinstance(removed, int) or not removed:
            return state
        if state.keys() <= _DROPPING:
            return {**state, "removed_message_count": min(removed, self._first_of_window(self._stored - removed))}
        if removed <= self._until:
            return state
        if state.keys() <= _SUMMARIZING:
            return {**state, "summary_message": None, "removed_message_count": 0}
        raise self._refused(
            f"its conversation manager has put {removed} messages aside, and this package does not know how it would "
            f"take up what comes before; cut at {removed} or later"
        )

    def _first_of_window(self, width: int) -> int:
        if width <= 0:
            return self._until
        return self._prompt_before(self._until - width) if self._until > width else 0

    def internal_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Give Strands' own state of an agent without the interrupts that wait for an answer after the cut.

        Raises:
            SessionForkError: The model keeps the conversation on its provider's side, where nothing can be cut.
        """
        if state.get("interrupt_state"):
            state = {**state, "interrupt_state": _NO_INTERRUPTS}
        if state.get("model_state"):
            if self._until:
                raise self._refused(
                    "its model keeps the conversation on the provider's side, where it cannot be cut; fork all of it, "
                    "or none (until=0)"
                )
            state = {**state, "model_state": {}}
        return state

    def _refused(self, reason: str) -> SessionForkError:
        return SessionForkError(
            f"cutting agent {self._agent_id!r} of session {self._session_id!r} at message {self._until}: {reason}",
            session_id=self._session_id,
            agent_id=self._agent_id,
        )
