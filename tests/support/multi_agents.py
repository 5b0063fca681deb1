"""A multi-agent that runs nothing and has whatever state a test gives it."""

from typing import Any

from strands.multiagent.base import MultiAgentBase, MultiAgentResult


class Team(MultiAgentBase):
    """Serializes to ``state``."""

    def __init__(self, id: str, state: dict[str, Any]) -> None:
        self.id = id
        self.state = state

    def serialize_state(self) -> dict[str, Any]:
        return self.state

    def deserialize_state(self, payload: dict[str, Any]) -> None:
        self.state = payload

    async def invoke_async(self, *arguments: Any, **kwargs: Any) -> MultiAgentResult:
        raise NotImplementedError
