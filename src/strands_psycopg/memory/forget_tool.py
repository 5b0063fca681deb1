"""The tool by which an agent forgets."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from strands import tool
from strands.types.tools import AgentTool

_NAME = "forget_memory"
_DESCRIPTION = (
    "Delete one entry from long-term memory, for good. Use when the user asks to forget something, or when an entry is "
    "wrong or outdated. The id of an entry is the _memory_id in its metadata, which search_memory returns."
)


def forget_tool(forget: Callable[[str], Awaitable[int]], config: Mapping[str, Any]) -> AgentTool:
    """Return the tool.

    Args:
        forget: Forgets the memory with an id, and returns how many there were.
        config: May have a ``name`` and a ``description`` other than the default ones.
    """

    async def forget_memory(memory_id: str) -> dict[str, int]:
        """Delete an entry from long-term memory.

        Args:
            memory_id: The id of the entry.

        Returns:
            The number of deleted entries: 0 if there is none with that id.
        """
        return {"forgotten": await forget(memory_id)}

    return tool(name=config.get("name", _NAME), description=config.get("description", _DESCRIPTION))(forget_memory)
