"""All that a running application does with the tables, for roles that may do no more."""

import asyncio
import random
from typing import Any

from strands_psycopg import (
    PostgresMemoryStore,
    PostgresSessionManager,
    PostgresSessionRepository,
    PostgresStorage,
    SessionBusyError,
)
from support.agents import LOOK_UP, GuardedModel, build, dump, look_up, restore_checkpoint, save_checkpoint
from support.memories import has_memory
from support.multi_agents import Team
from support.storage import has_storage


def run_all(
    repository: PostgresSessionRepository, session_id: str, prefix: str = "", *, owner: str | None = None
) -> None:
    """Run agents and a multi-agent under a lease, and store, find, replace and delete values; leaves the session."""
    repository.ensure_schema()
    assert repository.status().ready
    with repository.lease(session_id):
        PostgresSessionManager(session_id, repository, owner=owner)
        try:
            repository.lease(session_id, wait=0).__enter__()
            raise AssertionError("two hold the session")
        except SessionBusyError:
            pass
        agent = build(repository, session_id, [*LOOK_UP, ["ok"]], tools=[look_up])
        agent("ask")
        agent.state.set("mood", "good")
        agent("ask again")
        assert dump(build(repository, session_id)) == dump(agent)

        agent.messages[0]["content"] = [{"text": "edited"}]
        snapshot_id, then = save_checkpoint(agent), dump(agent)
        agent("go on")
        restore_checkpoint(agent, snapshot_id)
        assert dump(agent) == then
        agent("go on otherwise")

        build(repository, session_id, agent_id="guarded", model=GuardedModel([["no"]], "[redacted]"))("secret")
        guarded = build(repository, session_id, agent_id="guarded")
        assert guarded.messages[0]["content"] == [{"text": "[redacted]"}]

        repository.create_multi_agent(session_id, Team("m", {"step": 1}))
        repository.update_multi_agent(session_id, Team("m", {"step": 2}))
        assert repository.read_multi_agent(session_id, "m") == {"step": 2}
    repository.delete_session(session_id)
    assert repository.read_session(session_id) is None
    PostgresSessionManager(session_id, repository, owner=owner)
    build(repository, session_id)("of a new session")
    if has_storage:
        options: dict[str, Any] = {} if owner is None else {"owner": owner}
        asyncio.run(_keep_values(PostgresStorage(repository, prefix=prefix, **options)))
    if has_memory:
        asyncio.run(_keep_memories(PostgresMemoryStore("notes", repository, owner=owner or prefix or None)))


async def _keep_values(storage: PostgresStorage) -> None:
    large = random.Random(1).randbytes(300_000)
    await storage.write("small", b"some words")
    await storage.write("large", large)
    await storage.write("large", large[100_000:])
    assert await storage.read("large") == large[100_000:]
    assert [hit.key for hit in await storage.search("words")] == ["small"]
    assert sorted(await storage.list("")) == ["large", "small"]
    await storage.delete("large")
    assert await storage.read("large") is None


async def _keep_memories(store: PostgresMemoryStore) -> None:
    await store.initialize()
    memory_id = await store.add("some words", {"a": 1})
    assert await store.add("some words", {"b": 2}) == memory_id
    await store.update(memory_id, content="edited words")
    assert [entry.content for entry in await store.search("edited")] == ["edited words"]
    assert (await store.list()).memories[0].metadata == {"a": 1, "b": 2}
    assert await store.forget(memory_id) == 1
