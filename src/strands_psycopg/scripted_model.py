"""A model that returns scripted replies and needs no network: for the demo, for tests, for experiments."""

import json
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from typing import Any, TypeVar

from strands.models.model import Model
from strands.types.content import Messages
from strands.types.streaming import StreamEvent
from strands.types.tools import ToolSpec

_T = TypeVar("_T")


class ScriptedModel(Model):
    """Returns the replies of a script one after another, and the last one from then on.

    Args:
        replies: For each call, the content blocks of its reply: a string is a text, a dict with ``name`` and
            ``input`` (and optionally ``toolUseId``) a tool call.

    Attributes:
        calls: The messages passed to each call, as JSON.
    """

    def __init__(self, replies: Sequence[Sequence[str | dict[str, Any]]]) -> None:
        self.replies = list(replies)
        self.calls: list[str] = []

    def update_config(self, **model_config: Any) -> None:
        """Ignore the configuration."""

    def get_config(self) -> Any:
        """Return an empty configuration."""
        return {}

    def structured_output(
        self, output_model: type[_T], prompt: Messages, system_prompt: str | None = None, **kwargs: Any
    ) -> AsyncGenerator[dict[str, _T | Any], None]:
        """Raise an error: a script has no structured output.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("ScriptedModel does not support structured output")

    async def stream(
        self,
        messages: Messages,
        tool_specs: list[ToolSpec] | None = None,
        system_prompt: str | None = None,
        **kwargs: Any,
    ) -> AsyncIterable[StreamEvent]:
        """Stream the script's next reply."""
        number = len(self.calls)
        self.calls.append(json.dumps(messages, default=repr))
        reply = self.replies[min(number, len(self.replies) - 1)]
        yield {"messageStart": {"role": "assistant"}}
        for block in reply:
            if isinstance(block, str):
                yield {"contentBlockStart": {"start": {}}}
                yield {"contentBlockDelta": {"delta": {"text": block}}}
            else:
                tool_use_id = block.get("toolUseId", f"tooluse_{number}")
                yield {"contentBlockStart": {"start": {"toolUse": {"name": block["name"], "toolUseId": tool_use_id}}}}
                yield {"contentBlockDelta": {"delta": {"toolUse": {"input": json.dumps(block["input"])}}}}
            yield {"contentBlockStop": {}}
        calls_tools = any(not isinstance(block, str) for block in reply)
        yield {"messageStop": {"stopReason": "tool_use" if calls_tools else "end_turn"}}
        yield {
            "metadata": {
                "usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15},
                "metrics": {"latencyMs": 1},
            }
        }
