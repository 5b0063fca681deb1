"""What the end of a turn will do to an agent, so that the turn's last message can be stored together with it.

When a turn has ended, Strands lets the conversation manager drop what no longer fits, and then has the agent stored. A
sliding window that is full does so in every turn; what it will drop is known as soon as the last message is there.
"""

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING

from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.content import Message
from strands.types.exceptions import ContextWindowOverflowException
from strands.types.session import SessionAgent

if TYPE_CHECKING:
    from strands.types.agent import LocalAgent


def after_turn(agent: "LocalAgent", message: Message) -> SessionAgent | None:
    """Give an agent as it will be stored after the turn that a message ends.

    None if the message may not end it, or what comes then cannot be told or changes nothing.
    """
    manager = getattr(agent, "conversation_manager", None)
    # A subclass may do anything; messages that it pins, a window marks as such.
    if type(manager) is not SlidingWindowConversationManager or getattr(manager, "pin_first", None):
        return None
    if message["role"] != "assistant" or any("toolUse" in block for block in message["content"]):
        return None
    if len(agent.messages) <= manager.window_size:
        return None
    ahead = copy.copy(manager)
    try:
        ahead.apply_management(SimpleNamespace(messages=list(agent.messages)))  # type: ignore[arg-type]
    except ContextWindowOverflowException:
        return None
    stored = SessionAgent.from_agent(agent)
    stored.conversation_manager_state = ahead.get_state()
    return stored
