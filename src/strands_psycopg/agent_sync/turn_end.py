"""What the end of a turn does to an agent, so that a turn's last message can be stored together with it.

When a turn has ended, Strands lets the conversation manager remove messages, and a sliding window that is full does so
in every turn. So the manager is applied beforehand, to copies. If the turn ends in another way, the next comparison
shows it.
"""

import copy
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from strands.agent.conversation_manager import SlidingWindowConversationManager

from strands_psycopg.agent_sync.comparison import InMemoryAgent

if TYPE_CHECKING:
    from strands.types.agent import LocalAgent

logger = logging.getLogger(__name__)


def agent_after_turn(agent: "LocalAgent") -> InMemoryAgent | None:
    """Return an agent as it will be after the turn that its last message ends.

    None if that message may not end a turn, or if what the manager will do cannot be predicted or changes nothing.
    """
    manager = getattr(agent, "conversation_manager", None)
    if type(manager) is not SlidingWindowConversationManager or len(agent.messages) <= manager.window_size:
        return None
    # Pinning the first messages edits them.
    if getattr(manager, "pin_first", None) and not manager._pin_first_applied:
        return None
    messages = list(agent.messages)
    try:
        if messages[-1]["role"] != "assistant" or any("toolUse" in block for block in messages[-1]["content"]):
            return None
        copied = copy.copy(manager)
        copied.apply_management(cast(Any, SimpleNamespace(messages=messages)))
        return InMemoryAgent(agent, messages, copied.get_state())
    except Exception as error:
        logger.debug("agent_id=<%s>, error=<%s> | end of turn cannot be predicted", agent.agent_id, error)
        return None
