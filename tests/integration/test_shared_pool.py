"""Twenty agents at once, with all that Strands can store of them, on the four connections of one repository."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from strands import Agent, tool

from strands_psycopg import PostgresSessionRepository, PostgresStorage
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import LOOK_UP, build, dump, look_up
from support.scale import scale
from support.storage import chunks, needs_storage, values
from support.tables import one, texts

pytestmark = needs_storage

Connection = psycopg.Connection[Any]

AGENTS, TURNS, CONNECTIONS = 20, scale(1, 5), 4

OF_THE_POOL = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'strands-psycopg'
"""


class Recorded(PostgresStorage):
    """Keeps what should be stored."""

    def __init__(self, repository: PostgresSessionRepository) -> None:
        super().__init__(repository)
        self.expected: dict[str, bytes] = {}

    async def write(self, key: str, data: bytes) -> None:
        await super().write(key, data)
        self.expected[self._full_key(key)] = data

    async def delete(self, key: str) -> None:
        await super().delete(key)
        self.expected.pop(self._full_key(key), None)


@tool
def report(number: int) -> str:
    """Return a report of about 20 KB."""
    return "\n".join(f"report {number}, line {line}: {'x' * (line % 40)}" for line in range(500))


def script(number: int) -> list[list[str | dict[str, Any]]]:
    """Each turn, an agent asks for a report, remembers a line, searches for it and answers."""
    turns = []
    for turn in range(TURNS):
        # What is offloaded is stored under the id of its tool use, for all agents alike.
        name = f"{number}.{turn}"
        fact = f"# Fact {number} {turn}\nthe colour of {name} is blue"
        turns += [
            [{"name": "report", "input": {"number": number * 100 + turn}, "toolUseId": f"report {name}"}],
            [{"name": "add_memory", "input": {"entries": [fact]}, "toolUseId": f"add {name}"}],
            [
                {
                    "name": "search_memory",
                    "input": {"query": f"Fact {number} {turn}"},
                    "toolUseId": f"search {name}",
                }
            ],
            [f"answer {turn}"],
        ]
    return turns  # type: ignore[return-value]


def snapshot_agent(storage: PostgresStorage, number: int, replies: list[Any]) -> Agent:
    """An agent whose large results are offloaded, with a memory, in a session of snapshots."""
    from strands.memory import MemoryManager
    from strands.session import SnapshotSessionManager
    from strands.vended_memory_stores.file_memory_store import FileMemoryStore
    from strands.vended_plugins.context_offloader import ContextOffloader

    memory = FileMemoryStore(name=f"memory-{number}", storage=storage)
    return Agent(
        model=ScriptedModel(replies),
        tools=[report],
        plugins=[ContextOffloader(storage=storage, max_result_tokens=100, preview_tokens=20)],
        memory_manager=MemoryManager(stores=[memory], add_tool_config=True, injection=False),
        session_manager=SnapshotSessionManager(
            session_id=f"snapshots-{number}", storage=storage, snapshot_trigger=lambda **_: True
        ),
        callback_handler=None,
    )


def test_twenty_agents_share_four_connections(
    dsn: str, pool_options: dict[str, Any], connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    ended, most = threading.Event(), []

    def watch() -> None:
        with psycopg.connect(connection.info.dsn, password=connection.info.password, autocommit=True) as watcher:
            while not ended.wait(0.01):
                most.append(one(watcher, OF_THE_POOL))

    def snapshots(number: int) -> str:
        agent = snapshot_agent(storage, number, script(number))
        for turn in range(TURNS):
            assert str(agent(f"ask {turn}")) == f"answer {turn}\n"
        return dump(agent)

    def messages(number: int) -> str:
        agent = build(repository, f"messages-{number}", [*LOOK_UP] * TURNS, tools=[look_up])
        for turn in range(TURNS):
            agent(f"ask {turn}")
        return dump(agent)

    with (
        PostgresSessionRepository(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, **pool_options) as repository,
        ThreadPoolExecutor(AGENTS + 1) as threads,
    ):
        storage = Recorded(repository)
        watching = threads.submit(watch)
        try:
            # Every call of an agent has an event loop of its own.
            by_snapshots = [threads.submit(snapshots, number) for number in range(AGENTS // 2)]
            by_messages = [threads.submit(messages, number) for number in range(AGENTS // 2)]
            dumps = [[each.result() for each in kind] for kind in (by_snapshots, by_messages)]
        finally:
            ended.set()
        watching.result()

        assert 0 < max(most) <= CONNECTIONS
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert values(connection) == storage.expected
        assert (chunks(connection).unused, chunks(connection).miscounted) == (0, 0)
        for number in range(AGENTS // 2):
            assert dump(snapshot_agent(storage, number, [["never"]])) == dumps[0][number]
            assert dump(build(repository, f"messages-{number}", tools=[look_up])) == dumps[1][number]
            assert texts(connection, f"messages-{number}").count("ask 0") == 1
            memory = storage.namespace(f"memory/memory-{number}")
            assert len(asyncio.run(memory.list(""))) == TURNS
            history = asyncio.run(storage.list(f"session/snapshots-{number}/"))
            assert len([key for key in history if "immutable_history" in key]) == TURNS
            for turn in range(TURNS):
                offloaded = values(connection)[f"offloader/report {number}.{turn}_0"]
                assert offloaded.endswith(report(number * 100 + turn).encode())
