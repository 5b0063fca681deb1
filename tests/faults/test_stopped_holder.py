"""A process that holds a session and stands still until another has taken over: it can write nothing any more.

A takeover between a write's check and the write itself is staged in ``integration/test_lease.py``.
"""

import json

from strands_psycopg import PostgresSessionRepository
from support.agents import build
from support.crew import Crew
from support.stopping import stopped
from support.tables import Connection, contents, one, texts
from support.waiting import wait_until

BETWEEN_TURNS = """
import json, sys
from strands import Agent
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType
from support.agents import build
from support.multi_agents import Team
from strands_psycopg import PostgresSessionRepository, SessionNotFoundError
from strands_psycopg.scripted_model import ScriptedModel

def saying(text):
    return {"role": "user", "content": [{"text": text}]}

with PostgresSessionRepository(sys.argv[1]) as repository:
    with repository.lease("s", ttl=1):
        agent = build(repository, replies=[["first answer"], ["never said"]])
        manager = agent._session_manager
        agent("first")
        team = Team("m", {})
        manager.initialize_multi_agent(team)
        ready()
        writes = {
            "create_session": lambda: repository.create_session(Session("s", SessionType.AGENT)),
            "create_agent": lambda: repository.create_agent("s", SessionAgent("b", {}, {}, {})),
            "update_agent": lambda: repository.update_agent("s", SessionAgent("default", {"late": True}, {}, {})),
            "create_message": lambda: repository.create_message("s", "default", SessionMessage(saying("late"), 4)),
            "update_message": lambda: repository.update_message("s", "default", SessionMessage(saying("late"), 0)),
            "create_multi_agent": lambda: repository.create_multi_agent("s", Team("n", {})),
            "update_multi_agent": lambda: repository.update_multi_agent("s", Team("m", {"late": True})),
            "delete_session": lambda: repository.delete_session("s"),
            "a new agent's turn": lambda: build(repository, agent_id="c")("late"),
            "a turn": lambda: agent("late"),
            "sync": lambda: (agent.state.set("late", True), manager.sync_agent(agent)),
            "redact": lambda: manager.redact_latest_message(saying("late"), agent),
            "sync of a multi-agent": lambda: manager.sync_multi_agent(team),
        }
        for name, write in writes.items():
            try:
                write()
                outcome = "stored"
            except Exception as error:
                outcome = type(error).__name__
            print(json.dumps([name, outcome]), flush=True)
        print(json.dumps(["calls of the model", len(agent.model.calls)]))
"""

IN_THE_MODEL = """
import sys
from strands.types.exceptions import EventLoopException
from support.agents import build
from strands_psycopg import PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel

class Model(ScriptedModel):
    async def stream(self, *arguments, **kwargs):
        ready()
        async for event in super().stream(*arguments, **kwargs):
            yield event

with PostgresSessionRepository(sys.argv[1]) as repository:
    with repository.lease("s", ttl=1):
        agent = build(repository, model=Model([["late answer"]]))
        for text in ("first", "again"):
            try:
                agent(text)
                print("stored")
            except Exception as error:
                print(type(getattr(error, "original_exception", error)).__name__)
"""


def take_over(repository: PostgresSessionRepository, connection: Connection) -> None:
    """Wait until the session is free, hold it, and take a turn."""
    wait_until(lambda: one(connection, "SELECT expires_at < now() FROM strands_leases"))
    repository.lease("s", wait=0, ttl=600).__enter__()
    build(repository, replies=[["their answer"]])("theirs")


def test_every_write_of_a_holder_that_was_overtaken_is_refused(
    crew: Crew, dsn: str, repository: PostgresSessionRepository, connection: Connection
) -> None:
    with crew.of(1, BETWEEN_TURNS, dsn) as [holder]:
        with stopped(holder.pid):
            take_over(repository, connection)
            before = contents(connection)
        holder.release()
        outcomes = dict(json.loads(line) for line in holder.result())

    assert outcomes.pop("calls of the model") == 1
    assert len(outcomes) == 13
    assert {name: outcome for name, outcome in outcomes.items() if outcome != "LeaseLostError"} == {}
    assert contents(connection) == before
    assert texts(connection) == ["first", "first answer", "theirs", "their answer"]


def test_turn_that_was_overtaken_during_its_model_call_stores_nothing_more(
    crew: Crew, dsn: str, repository: PostgresSessionRepository, connection: Connection
) -> None:
    with crew.of(1, IN_THE_MODEL, dsn) as [holder]:
        assert texts(connection) == ["first"]
        with stopped(holder.pid):
            take_over(repository, connection)
            before = contents(connection)
        holder.release()
        assert holder.result() == ["LeaseLostError", "LeaseLostError"]

    assert contents(connection) == before
    assert texts(connection) == ["first", "theirs", "their answer"]


def test_holder_that_nobody_overtook_goes_on(crew: Crew, dsn: str, connection: Connection) -> None:
    with crew.of(1, IN_THE_MODEL, dsn) as [holder]:
        term = one(connection, "SELECT term FROM strands_leases")
        with stopped(holder.pid):
            wait_until(lambda: one(connection, "SELECT expires_at < now() FROM strands_leases"))
        wait_until(lambda: one(connection, "SELECT expires_at > now() FROM strands_leases"))
        assert one(connection, "SELECT term FROM strands_leases") == term
        # For the model's first call, and for its second one.
        holder.release()
        holder.release()
        assert holder.result() == ["stored", "ready", "stored"]

    assert texts(connection) == ["first", "late answer", "again", "late answer"]
