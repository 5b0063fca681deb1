"""Agents whose model costs next to nothing and needs no network."""

import asyncio
import importlib.util
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from strands import Agent, tool
from strands.agent.conversation_manager import NullConversationManager, SlidingWindowConversationManager

# Loaded from its file, since a peer's Python does not have the package.
_FILE = Path(__file__).parents[2] / "src" / "strands_psycopg" / "scripted_model.py"
_SPECIFICATION = importlib.util.spec_from_file_location("benchmarks.scripted_model", _FILE)
assert _SPECIFICATION is not None
assert _SPECIFICATION.loader is not None
_MODULE = importlib.util.module_from_spec(_SPECIFICATION)
_SPECIFICATION.loader.exec_module(_MODULE)

_RANDOM = random.Random(7)
_WORDS = ["".join(_RANDOM.choices("abcdefghijklmnopqrstuvwxyz", k=_RANDOM.randint(2, 9))) for _ in range(3000)]


def text(words: int) -> str:
    """Return some words, about six bytes each."""
    return " ".join(_RANDOM.choices(_WORDS, k=words))


def conversation(messages: int) -> list[dict[str, Any]]:
    """Return a conversation as Strands keeps it: prompts of about 150 bytes, answers of about 600."""
    return [assistant_message() if index % 2 else user_message() for index in range(messages)]


def user_message() -> dict[str, Any]:
    """Return a prompt as a message."""
    return {"role": "user", "content": [{"text": text(25)}], "tracking_id": str(uuid4())}


def assistant_message() -> dict[str, Any]:
    """Return an answer as a message."""
    return {
        "role": "assistant",
        "content": [{"text": text(100)}],
        "metadata": {
            "usage": {"inputTokens": 1200, "outputTokens": 130, "totalTokens": 1330},
            "metrics": {"latencyMs": 2100, "timeToFirstByteMs": 400},
        },
        "tracking_id": str(uuid4()),
    }


class _Model(_MODULE.ScriptedModel):  # type: ignore[name-defined, misc]
    """Lets others on the loop go on, as a real model does, and does not keep what it was asked."""

    async def stream(self, messages: Any, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        async for event in super().stream([], *arguments, **options):
            yield event


@tool
def look_up(city: str) -> str:
    """Look up a city's weather."""
    return f"{city}: {text(50)}"


# Of different lengths, so that it is not by chance how many rows fit a page.
_ANSWERS: list[Any] = [[text(_RANDOM.randint(20, 180))] for _ in range(1000)]
_CALL: list[Any] = [{"name": "look_up", "input": {"city": "Lisbon"}}]
_WITH_CALLS: list[Any] = [reply for answer in _ANSWERS for reply in (_CALL, answer)]


def build(manager: Any, *, calls_tool: bool = False, window: int | None = None, messages: Any = None) -> Agent:
    """Build an agent.

    Args:
        manager: Its session manager, or None.
        calls_tool: Whether it calls a tool in each of its first thousand turns.
        window: Of its sliding window; None for a conversation manager that keeps everything.
        messages: With which it begins.
    """
    return Agent(
        model=_Model(_WITH_CALLS if calls_tool else _ANSWERS),
        session_manager=manager,
        conversation_manager=NullConversationManager() if window is None else SlidingWindowConversationManager(window),
        messages=messages,
        tools=[look_up],
        callback_handler=None,
    )
