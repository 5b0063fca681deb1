"""Graphs and swarms whose process is killed at one node after the other: the next process goes on where it was."""

import json
import signal
from importlib.metadata import version
from typing import Any, NamedTuple

import pytest

from strands_psycopg import PostgresSessionRepository
from support.crew import Crew
from support.waiting import wait_until

# A node of the name ``stop`` is started and never ends; "before" it, its process stops as soon as the last node is
# stored. What is printed are the nodes that run, and at the end what all of them have said.
RUN = """
import asyncio, json, sys
from strands import Agent
from strands.hooks import BeforeNodeCallEvent, HookProvider
from strands.multiagent import GraphBuilder, Swarm
from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel

dsn, kind, stop = sys.argv[1:]

async def stop_at(name):
    if name == stop:
        print("stopped", flush=True)
        await asyncio.Event().wait()

class Node(ScriptedModel):
    def __init__(self, name, replies):
        super().__init__(replies)
        self.name = name

    async def stream(self, *arguments, **kwargs):
        if not self.calls:
            print(f"runs {self.name}", flush=True)
        await stop_at(self.name)
        async for event in super().stream(*arguments, **kwargs):
            yield event

class StopBefore(HookProvider):
    def register_hooks(self, registry, **kwargs):
        registry.add_callback(BeforeNodeCallEvent, self.stop)

    async def stop(self, event):
        await stop_at(f"before {event.node_id}")

def agent(name, *replies):
    return Agent(name=name, model=Node(name, [*replies, [f"{name} has said"]]), callback_handler=None)

def graph(id, nodes, edges):
    builder = GraphBuilder()
    for name, node in nodes.items():
        builder.add_node(node, name)
    for edge in edges:
        builder.add_edge(*edge)
    builder.set_graph_id(id).set_max_node_executions(20).set_hook_providers([StopBefore()])
    return builder.set_session_manager(PostgresSessionManager("s", repository)).build()

def hand_over(to):
    return [{"name": "handoff_to_agent", "input": {"agent_name": to, "message": "yours"}, "toolUseId": f"to {to}"}]

def build():
    if kind == "swarm":
        agents = [agent("a", hand_over("b")), agent("b", hand_over("c")), agent("c")]
        manager = PostgresSessionManager("s", repository)
        return Swarm(agents, id="swarm", hooks=[StopBefore()], session_manager=manager)
    if kind == "nested":
        inner = graph("inner", {"b": agent("b"), "c": agent("c")}, [("b", "c")])
        return graph("graph", {"a": agent("a"), "inner": inner, "d": agent("d")}, [("a", "inner"), ("inner", "d")])
    edges = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    return graph("graph", {name: agent(name) for name in "abcd"}, edges)

with PostgresSessionRepository(dsn) as repository:
    result = build()("go")
    said = {name: [str(each).strip() for each in node.get_agent_results()] for name, node in result.results.items()}
    print(json.dumps([result.status.value, said]), flush=True)
"""


class Life(NamedTuple):
    """One of the processes.

    Attributes:
        stop: Where it is killed; nowhere if empty.
        stored: Which nodes are stored as completed by then.
        runs: Which nodes it runs.
    """

    stop: str
    stored: set[str]
    runs: list[str]


LIVES = {
    # a, then b and c at once, then d.
    "graph": [
        Life("before a", set(), []),
        Life("a", set(), ["a"]),
        Life("before b", {"a", "c"}, ["a", "c"]),
        Life("b", {"a", "c"}, ["b"]),
        Life("before d", {"a", "b", "c"}, ["b"]),
        Life("d", {"a", "b", "c"}, ["d"]),
        Life("", {"a", "b", "c", "d"}, ["d"]),
    ],
    # a, then a graph of b and then c, then d.
    "nested": [
        Life("a", set(), ["a"]),
        Life("b", {"a"}, ["a", "b"]),
        Life("before c", {"a"}, ["b"]),
        Life("c", {"a"}, ["c"]),
        Life("d", {"a", "inner"}, ["c", "d"]),
        Life("", {"a", "inner", "d"}, ["d"]),
    ],
    # a hands over to b, and b to c.
    "swarm": [
        Life("before a", set(), []),
        Life("a", set(), ["a"]),
        Life("before b", {"a"}, ["a"]),
        Life("b", {"a"}, ["b"]),
        Life("c", {"a", "b"}, ["b", "c"]),
        Life("", {"a", "b", "c"}, ["c"]),
    ],
}

# Before, a swarm forgot whose turn it was, and a node that waits for several was run after one of them.
pytestmark = pytest.mark.skipif(
    tuple(map(int, version("strands-agents").split(".")[:2])) < (1, 52),
    reason="strands-agents before 1.52 does not always go on where it was",
)


def completed(repository: PostgresSessionRepository, kind: str) -> set[str]:
    state = repository.read_multi_agent("s", "swarm" if kind == "swarm" else "graph")
    return set(state["node_history" if kind == "swarm" else "completed_nodes"]) if state else set()


@pytest.mark.parametrize("kind", LIVES)
def test_node_that_was_stored_is_not_run_again_and_the_others_are(
    kind: str, crew: Crew, dsn: str, repository: PostgresSessionRepository
) -> None:
    said: Any = None
    for life in LIVES[kind]:
        process = crew.start(RUN, dsn, kind, life.stop)
        try:
            lines, line = [], ""
            for line in process:
                if line == "stopped":
                    break
                lines.append(line)
            assert (line == "stopped") == bool(life.stop), process.errors()
            wait_until(lambda: completed(repository, kind) >= life.stored)  # noqa: B023
            process.signal(signal.SIGKILL)
            if not life.stop:
                assert process.end() == 0, process.errors()
                said = json.loads(lines.pop())
            else:
                # A node beside the one that stopped may have run since.
                lines += process.lines()
                assert process.end() == -signal.SIGKILL
        finally:
            process.close()
        assert sorted(lines) == [f"runs {name}" for name in life.runs], life
        assert completed(repository, kind) == life.stored

    nodes = {"graph": "abcd", "swarm": "abc", "nested": "ad"}[kind]
    inner = {"inner": ["b has said", "c has said"]} if kind == "nested" else {}
    assert said == ["completed", {name: [f"{name} has said"] for name in nodes} | inner]
