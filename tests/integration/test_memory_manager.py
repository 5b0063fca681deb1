"""Strands' ``MemoryManager`` with a memory store of ours: its tools, its injection and its extraction."""

import asyncio
import json
from typing import Any

import pytest

from strands_psycopg import PostgresMemoryStore, PostgresSessionRepository, SchemaError
from strands_psycopg.scripted_model import ScriptedModel
from support.memories import needs_memory

pytestmark = needs_memory

Replies = list[list[str | dict[str, Any]]]


def agent_with(store: PostgresMemoryStore, replies: Replies, **options: Any) -> Any:
    """Build an agent whose extraction, if the store has any, runs after each turn."""
    from strands import Agent
    from strands.memory import MemoryManager

    manager = MemoryManager(stores=[store], **options)
    return Agent(model=ScriptedModel(replies), memory_manager=manager, callback_handler=None)


def contents(store: PostgresMemoryStore) -> list[str]:
    return [memory.content for memory in asyncio.run(store.list()).memories]


def use(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "input": arguments}


def test_agent_adds_searches_and_forgets_by_its_tools(repository: PostgresSessionRepository) -> None:
    store = PostgresMemoryStore("notes", repository, description="What the user likes.", forget_tool=True)
    agent_with(store, [[use("add_memory", entries=["likes tea", "likes chess"])], ["noted"]], add_tool_config=True)(
        "I like tea and chess"
    )
    assert sorted(contents(store)) == ["likes chess", "likes tea"]

    agent = agent_with(store, [[use("search_memory", query="tea?")], ["you like tea"]], injection=False)
    agent("what do I like?")
    result = json.dumps(agent.messages[2])
    assert "likes tea" in result
    assert "likes chess" not in result
    [memory_id] = [each.memory_id for each in asyncio.run(store.list()).memories if each.content == "likes tea"]
    assert memory_id in result

    agent = agent_with(store, [[use("forget_memory", memory_id=memory_id)], ["done"]], injection=False)
    agent("forget that")
    assert '{"forgotten": 1}' in str(agent.messages[2])
    assert contents(store) == ["likes chess"]


def test_memory_is_injected_before_the_model_is_called(repository: PostgresSessionRepository) -> None:
    store = PostgresMemoryStore("notes", repository, owner="alice")
    asyncio.run(store.add("Alice drinks green tea"))
    agent = agent_with(store, [["yes"]])

    agent("Do I drink tea?")

    assert "Alice drinks green tea" in agent.model.calls[0]
    assert "green tea" not in json.dumps(agent.messages)


def test_extraction_distills_facts_and_stores_each_once(repository: PostgresSessionRepository) -> None:
    from strands.memory import InvocationTrigger

    store = PostgresMemoryStore("notes", repository, extraction={"trigger": InvocationTrigger()})
    facts = json.dumps([{"content": "The user likes tea."}, {"content": "The user lives in Rome."}])

    for _ in range(2):
        agent_with(store, [["fine"], [facts]], injection=False)("I like tea, in Rome")

    assert sorted(contents(store)) == ["The user likes tea.", "The user lives in Rome."]


def test_extraction_is_of_facts_by_default(repository: PostgresSessionRepository) -> None:
    """A store with ``add_messages`` would be given the raw messages."""
    from strands.memory.extraction.resolve_extraction_config import _resolve_extraction_config

    store = PostgresMemoryStore("notes", repository, extraction=True)
    resolved = _resolve_extraction_config(store.extraction, store)

    assert resolved is not None
    assert type(resolved.extractor).__name__ == "ModelExtractor"


def test_agent_is_not_built_on_missing_tables(empty_dsn: str, pool_options: dict[str, Any]) -> None:
    with (
        PostgresMemoryStore("notes", empty_dsn, **pool_options) as store,
        pytest.raises(SchemaError, match="call ensure_schema"),
    ):
        agent_with(store, [["never"]])


def test_tools_of_stores_can_have_names_of_their_own(repository: PostgresSessionRepository) -> None:
    stores = [
        PostgresMemoryStore("a", repository, forget_tool={"name": "forget_a", "description": "Forget."}),
        PostgresMemoryStore("b", repository, forget_tool=True),
        PostgresMemoryStore("c", repository),
    ]
    tools = [tool for store in stores for tool in store.get_tools()]

    assert [tool.tool_name for tool in tools] == ["forget_a", "forget_memory"]
    assert tools[0].tool_spec["description"] == "Forget."
