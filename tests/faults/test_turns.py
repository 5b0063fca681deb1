"""Several writers of one session: without leases none overwrites another, with leases each turn is a whole."""

import json
from collections import Counter

from strands_psycopg import PostgresSessionRepository
from support.agents import build
from support.crew import Crew
from support.scale import scale
from support.tables import Connection, texts

_PROCESSES = 8

# An agent is used until it is refused. The model takes some time, in which others write.
WITHOUT_LEASES = """
import asyncio, json, sys
from strands.types.exceptions import EventLoopException
from support.agents import build
from strands_psycopg import PostgresSessionRepository, SessionConflictError
from strands_psycopg.scripted_model import ScriptedModel

class Slow(ScriptedModel):
    async def stream(self, *arguments, **kwargs):
        self.called = True
        await asyncio.sleep(0.01)
        async for event in super().stream(*arguments, **kwargs):
            yield event

dsn, turns, number = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with PostgresSessionRepository(dsn) as repository:
    repository.read_session("s")
    ready()
    agent = None
    for turn in range(turns):
        name = f"{number}.{turn}"
        agent = agent or build(repository)
        agent.model = Slow([[f"answer {name}"]])
        agent.model.called = False
        try:
            agent(f"ask {name}")
            outcome = "stored"
        except (SessionConflictError, EventLoopException) as error:
            conflict = getattr(error, "original_exception", error)
            assert isinstance(conflict, SessionConflictError)
            # Without a message, it was the agent's state after the last one.
            overtaken = "answered" if conflict.message_id is None else "overtaken"
            outcome = overtaken if agent.model.called else "refused"
            agent = None
        print(json.dumps([name, outcome]), flush=True)
"""

# Half of the processes are asynchronous.
WITH_LEASES = """
import asyncio, sys
from support.agents import build
from strands_psycopg import PostgresSessionRepository

dsn, turns, number = sys.argv[1], int(sys.argv[2]), sys.argv[3]

async def take_turn(repository, name):
    async with repository.lease("s", wait=60):
        await build(repository, replies=[[f"answer {name}"]]).invoke_async(f"ask {name}")

with PostgresSessionRepository(dsn) as repository:
    repository.read_session("s")
    ready()
    for turn in range(turns):
        name = f"{number}.{turn}"
        if int(number) % 2:
            asyncio.run(take_turn(repository, name))
        else:
            with repository.lease("s", wait=60):
                build(repository, replies=[[f"answer {name}"]])(f"ask {name}")
        print(name, flush=True)
"""


def test_processes_without_leases_lose_and_overwrite_nothing(
    crew: Crew, dsn: str, repository: PostgresSessionRepository, connection: Connection
) -> None:
    turns = scale(8, 100)
    with crew.of(_PROCESSES, WITHOUT_LEASES, dsn, str(turns)) as members:
        for member in members:
            member.release()
        outcomes = dict(json.loads(line) for member in members for line in member.result())

    expected = [f"ask {name}" for name, outcome in outcomes.items() if outcome != "refused"]
    expected += [f"answer {name}" for name, outcome in outcomes.items() if outcome in ("stored", "answered")]
    assert len(outcomes) == _PROCESSES * turns
    assert Counter(texts(connection)) == Counter(expected)
    # Some of each kind, or nothing was tried.
    assert set(outcomes.values()) >= {"stored", "overtaken", "refused"}
    build(repository, replies=[["still works"]])("the next turn")
    assert texts(connection)[-2:] == ["the next turn", "still works"]


def test_processes_with_leases_take_turns_strictly_one_after_another(
    crew: Crew, dsn: str, connection: Connection
) -> None:
    turns = scale(5, 100)
    with crew.of(_PROCESSES, WITH_LEASES, dsn, str(turns)) as members:
        for member in members:
            member.release()
        for number, member in enumerate(members):
            assert member.result() == [f"{number}.{turn}" for turn in range(turns)]

    stored = texts(connection)
    order = [text.removeprefix("ask ") for text in stored[::2]]
    assert stored == [text for name in order for text in (f"ask {name}", f"answer {name}")]
    for number in range(_PROCESSES):
        assert [name for name in order if name.startswith(f"{number}.")] == [
            f"{number}.{turn}" for turn in range(turns)
        ]
    assert len(order) == _PROCESSES * turns
    roles = [
        role for (role,) in connection.execute("SELECT message->>'role' FROM strands_messages ORDER BY message_id")
    ]
    assert roles == ["user", "assistant"] * len(order)
