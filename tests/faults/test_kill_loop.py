"""A writing process that is killed at random moments, again and again: what it had acknowledged is there afterwards."""

import json
import random
import signal
import time

from psycopg.conninfo import make_conninfo
from strands import Agent
from strands.types.content import Message

from strands_psycopg import PostgresSessionRepository
from support.agents import build
from support.crew import Crew
from support.scale import scale
from support.tables import Connection, one
from support.waiting import wait_until

# A life is at most so many times what a process takes from its start to its first message.
_LONGEST_LIFE = 4

# Two tool calls in each turn. What the session manager has stored is printed: its hook comes before this one.
WRITE = """
import json, sys
from strands import Agent, tool
from strands.hooks import HookProvider, MessageAddedEvent
from support.agents import build
from strands_psycopg import PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel

dsn, life = sys.argv[1:]

class Acknowledge(HookProvider):
    def register_hooks(self, registry, **kwargs):
        registry.add_callback(MessageAddedEvent, lambda event: print(json.dumps(event.message["content"]), flush=True))

@tool
def count_up(number: int) -> int:
    '''Count.'''
    return number + 1

class Model(ScriptedModel):
    number = 0

    async def stream(self, messages, *arguments, **kwargs):
        self.number += 1
        if "toolResult" in messages[-1]["content"][0]:
            self.replies = [[f"answer {life}.{self.number}"]]
        else:
            names = [f"call {life}.{self.number}{letter}" for letter in "ab"]
            self.replies = [[{"name": "count_up", "input": {"number": 1}, "toolUseId": name} for name in names]]
        async for event in super().stream(messages, *arguments, **kwargs):
            yield event

with PostgresSessionRepository(dsn) as repository:
    agent = build(repository, model=Model([]), tools=[count_up], hooks=[Acknowledge()])
    turn = 0
    while True:
        agent.state.set("turn", turn)
        agent(f"ask {life}.{turn}")
        turn += 1
"""


def stored(connection: Connection) -> list[str]:
    """Read the content of all messages, whose indexes must have no gap."""
    rows = connection.execute(
        "SELECT message_id, message->'content' FROM strands_messages WHERE session_id = 's' ORDER BY message_id"
    ).fetchall()
    assert [index for index, _ in rows] == list(range(len(rows)))
    return [json.dumps(content, sort_keys=True) for _, content in rows]


def ids(message: Message, kind: str) -> list[str]:
    return [block[kind]["toolUseId"] for block in message["content"] if kind in block]  # type: ignore[literal-required]


def assert_pairs(agent: Agent) -> None:
    """Check that every tool call has its result in the next message, and every result its call in the last one."""
    for message, following in zip(agent.messages, [*agent.messages[1:], None], strict=True):
        results = [] if following is None else ids(following, "toolResult")
        assert sorted(ids(message, "toolUse")) == sorted(results)


def test_acknowledged_messages_survive_any_number_of_kills(
    crew: Crew,
    dsn: str,
    repository: PostgresSessionRepository,
    connection: Connection,
) -> None:
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    acknowledged: list[str] = []
    longest_life = 0.0
    for life in range(scale(6, 200)):
        started = time.monotonic()
        writer = crew.start(WRITE, make_conninfo(dsn, application_name="writer"), str(life))
        if life == 0:
            acknowledged.append(json.dumps(json.loads(writer.line()), sort_keys=True))
            longest_life = _LONGEST_LIFE * (time.monotonic() - started)
        # A random moment, so there is no condition to wait for.
        time.sleep(moments.uniform(0, longest_life))
        writer.signal(signal.SIGKILL)
        acknowledged += [json.dumps(json.loads(line), sort_keys=True) for line in writer.lines()]
        assert writer.end() == -signal.SIGKILL, writer.errors()
        writer.close()
        # Until then its last write may still land.
        wait_until(
            lambda: one(connection, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'writer'") == 0
        )

        agent = build(repository, replies=[[f"still works {life}"]])
        agent(f"check {life}")

        assert_pairs(agent)
        contents = stored(connection)
        wanted = set(acknowledged)
        assert [content for content in contents if content in wanted] == acknowledged, f"seed {seed}"
        assert contents[-1] == json.dumps([{"text": f"still works {life}"}])
    assert len(acknowledged) > life
    print(f"{life + 1} kills, {len(acknowledged)} messages acknowledged, {len(contents)} stored")
