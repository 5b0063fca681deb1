"""Agents whose session is in a repository, with their models, tools and hooks."""

import asyncio
import json
from collections.abc import AsyncIterable, Collection, Sequence
from typing import Any, cast

from strands import Agent, ToolContext, tool
from strands.hooks import BeforeToolCallEvent, HookProvider, HookRegistry
from strands.types.content import Messages
from strands.types.exceptions import ContextWindowOverflowException
from strands.types.session import encode_bytes_values
from strands.types.streaming import StreamEvent

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel

Replies = Sequence[Sequence[str | dict[str, Any]]]

# For an agent with the tool ``look_up``: a turn of four messages.
LOOK_UP: Replies = (({"name": "look_up", "input": {"city": "Köln"}},), ("It is warm.",))


def build(
    repository: PostgresSessionRepository, session_id: str = "s", replies: Replies = (("ok",),), **options: Any
) -> Agent:
    """Build an agent with a manager of its own; ``options`` are ``Agent``'s."""
    options.setdefault("model", ScriptedModel(replies))
    manager = PostgresSessionManager(session_id, repository)
    return Agent(session_manager=manager, callback_handler=None, **options)


def manager_of(agent: Agent) -> PostgresSessionManager:
    """Return the session manager of an agent that ``build`` has built."""
    return cast(PostgresSessionManager, agent._session_manager)


def save_checkpoint(agent: Agent) -> str:
    """Save a checkpoint of an agent and return its id."""
    snapshot_id = asyncio.run(manager_of(agent).save_snapshot(agent))
    assert snapshot_id is not None
    return snapshot_id


def restore_checkpoint(agent: Agent, snapshot_id: str) -> None:
    """Set an agent to a checkpoint."""
    assert asyncio.run(manager_of(agent).restore_snapshot(agent, snapshot_id=snapshot_id))


def dump(agent: Agent) -> str:
    """Return all that a session keeps of an agent, as one JSON text, in which the order of keys counts."""
    return json.dumps(
        encode_bytes_values(
            {
                "messages": agent.messages,
                "state": agent.state.get(),
                "conversation_manager_state": agent.conversation_manager.get_state(),
                "interrupt_state": agent._interrupt_state.to_dict(),
                "model_state": agent._model_state,
            }
        )
    )


class GuardedModel(ScriptedModel):
    """Has the prompt of every call redacted, as a provider's guardrail does."""

    def __init__(self, replies: Replies, redaction: str) -> None:
        super().__init__(replies)
        self._redaction = redaction

    async def stream(self, messages: Messages, *arguments: Any, **kwargs: Any) -> AsyncIterable[StreamEvent]:
        async for event in super().stream(messages, *arguments, **kwargs):
            yield event
        yield {"redactContent": {"redactUserContentMessage": self._redaction, "redactAssistantContentMessage": None}}


class OverflowingModel(ScriptedModel):
    """Finds the context too large at some of its calls, counted from 0."""

    def __init__(self, replies: Replies, overflows: Collection[int]) -> None:
        super().__init__(replies)
        self._overflows = overflows
        self._number = 0

    async def stream(self, messages: Messages, *arguments: Any, **kwargs: Any) -> AsyncIterable[StreamEvent]:
        number = self._number
        self._number += 1
        if number in self._overflows:
            raise ContextWindowOverflowException("the context is too large")
        async for event in super().stream(messages, *arguments, **kwargs):
            yield event


class StatefulModel(ScriptedModel):
    """Keeps the conversation on its side, under the id of its last response."""

    @property
    def stateful(self) -> bool:
        return True

    async def stream(self, messages: Messages, *arguments: Any, **kwargs: Any) -> AsyncIterable[StreamEvent]:
        async for event in super().stream(messages, *arguments, **kwargs):
            yield event
        model_state: dict[str, Any] = kwargs["model_state"]
        model_state["response_id"] = f"response-{int(model_state.get('response_id', 'response-0')[9:]) + 1}"


@tool(context=True)
def look_up(city: str, tool_context: ToolContext) -> dict[str, Any]:
    """Look up a city's weather, and keep in the agent's state that it was asked for."""
    tool_context.agent.state.set("asked", [*(tool_context.agent.state.get("asked") or []), city])
    return {
        "toolUseId": tool_context.tool_use["toolUseId"],
        "status": "success",
        "content": [{"text": f"{city}: 21 °C"}, {"json": {"wind": -0.0, "a": 1e16, "é": [1, 1.0, "\ud83d"], "": None}}],
    }


class Approval(HookProvider):
    """Asks a human before a tool is called."""

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        registry.add_callback(BeforeToolCallEvent, self._ask)

    def _ask(self, event: BeforeToolCallEvent) -> None:
        answer = event.interrupt("approval", reason={"tool": event.tool_use["name"], "a": [1, {"z": 0, "b": "\0"}]})
        if answer != "yes":
            event.cancel_tool = "not approved"
