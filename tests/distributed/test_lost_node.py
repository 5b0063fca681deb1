"""Sessions and memories while a node of a Citus cluster is lost.

Those on other nodes go on without an error; writes to those on the lost node are retried, and succeed once it is back.
"""

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeAlias

import pytest
from strands import Agent

from strands_psycopg import PostgresMemoryStore, PostgresSessionRepository
from support import agents
from support.memories import needs_memory
from support.retries import Retries
from support.waiting import wait_until

pytestmark = pytest.mark.citus

Build: TypeAlias = Callable[..., PostgresMemoryStore]
Node: TypeAlias = tuple[str, int]
NodeOf: TypeAlias = Callable[[str, str], Node]
Lost: TypeAlias = Callable[[Node], AbstractContextManager[None]]


def on_two_nodes(node_of: NodeOf, table: str) -> tuple[str, str]:
    """Return two values of a table's distribution column whose rows are on different nodes."""
    first, *others = (f"{table}{number}" for number in range(100))
    return first, next(each for each in others if node_of(table, each) != node_of(table, first))


def turn(agent: Agent, number: int) -> None:
    """Run a turn of an agent after one of the messages in its memory was edited."""
    agent.messages[-1]["content"] = [{"text": f"edited before turn {number}"}]
    agent(f"turn {number}")


def test_turns_with_edited_messages(
    repository: PostgresSessionRepository, retries: Retries, node_of: NodeOf, lost: Lost
) -> None:
    sessions = on_two_nodes(node_of, "strands_sessions")
    living, dead = (agents.build(repository, session_id, [["ok"]] * 9) for session_id in sessions)
    for agent in (living, dead):
        agent("first")
        turn(agent, 0)
    with ThreadPoolExecutor(1) as executor:
        with lost(node_of("strands_sessions", sessions[1])):
            for number in range(1, 4):
                turn(living, number)
            assert retries() == []
            running = executor.submit(turn, dead, 1)
            wait_until(retries)
            turn(living, 4)
            assert not running.done()
        running.result()
    turn(dead, 2)

    for agent, session_id, count in ((living, sessions[0], 12), (dead, sessions[1], 8)):
        assert agents.dump(agents.build(repository, session_id)) == agents.dump(agent)
        assert len(repository.list_messages(session_id, "default")) == count


@needs_memory
def test_memories(
    repository: PostgresSessionRepository, build: Build, retries: Retries, node_of: NodeOf, lost: Lost
) -> None:
    owners = on_two_nodes(node_of, "strands_memories")
    living, dead = (build(repository, owner) for owner in owners)

    async def write(store: PostgresMemoryStore, number: int) -> None:
        await store.update(await store.add(f"memory {number}"), content=f"edited {number}")
        await store.add(f"memory {number}", {"a": 1})
        await store.add(f"memory {number}", {"b": 2})
        lines = [line async for line in store.export_lines()]
        await store.forget(metadata={"a": 1})
        await store.import_lines(lines)

    for store in (living, dead):
        asyncio.run(write(store, 0))
    with ThreadPoolExecutor(1) as executor:
        with lost(node_of("strands_memories", owners[1])):
            asyncio.run(write(living, 1))
            assert retries() == []
            running = executor.submit(asyncio.run, write(dead, 1))
            wait_until(retries)
            asyncio.run(write(living, 2))
            assert not running.done()
        running.result()

    for store, count in ((living, 3), (dead, 2)):
        texts = itertools.chain(*([f"edited {number}", f"memory {number}"] for number in range(count)))
        page = asyncio.run(store.list())
        assert sorted(each.content for each in page.memories) == sorted(texts)
        if store._embedder is not None:
            assert asyncio.run(store.embed_missing()) == 0
