"""Processes that begin a new session at the same moment: one creates it, and the others find it there."""

from support.crew import Crew
from support.scale import scale
from support.tables import Connection, one, texts

_PROCESSES = scale(8, 16)

# Every process brings a first message of its own.
AGENT = """
import sys
from support.agents import build
from strands_psycopg import PostgresSessionRepository

dsn, rounds, number = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with PostgresSessionRepository(dsn) as repository:
    for session in range(rounds):
        ready()
        given = {"role": "user", "content": [{"text": f"given by {number}"}]}
        agent = build(repository, f"s{session}", messages=[given])
        print("|".join(message["content"][0]["text"] for message in agent.messages), flush=True)
"""

SWARM = """
import sys
from strands import Agent
from strands.multiagent import Swarm
from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel

dsn, number = sys.argv[1:]
with PostgresSessionRepository(dsn) as repository:
    ready()
    node = Agent(name="only", model=ScriptedModel([["ok"]]), callback_handler=None)
    Swarm([node], id="swarm", session_manager=PostgresSessionManager("s", repository))
    print("built", flush=True)
"""

TURN = """
import sys
from support.agents import build
from strands_psycopg import PostgresSessionRepository

dsn, number = sys.argv[1:]
with PostgresSessionRepository(dsn) as repository:
    ready()
    with repository.lease("s", wait=60):
        build(repository, replies=[[f"answer {number}"]])(f"ask {number}")
"""


def test_one_process_stores_the_agent_and_all_others_restore_it(crew: Crew, dsn: str, connection: Connection) -> None:
    rounds = scale(2, 50)
    with crew.of(_PROCESSES, AGENT, dsn, str(rounds)) as members:
        for session in range(rounds):
            if session:
                assert {member.line() for member in members} == {"ready"}
            for member in members:
                member.release()

            built = {member.line() for member in members}

            assert built == {"|".join(texts(connection, f"s{session}"))}
            assert len(texts(connection, f"s{session}")) == 1
        for member in members:
            assert member.result() == []
    assert one(connection, "SELECT count(*) FROM strands_sessions") == rounds
    assert one(connection, "SELECT count(*) FROM strands_agents") == rounds


def test_one_process_stores_the_multi_agent_and_all_others_restore_it(
    crew: Crew, dsn: str, connection: Connection
) -> None:
    with crew.of(_PROCESSES, SWARM, dsn) as members:
        for member in members:
            member.release()
        assert [member.result() for member in members] == [["built"]] * _PROCESSES

    assert one(connection, "SELECT count(*) FROM strands_sessions") == 1
    assert one(connection, "SELECT count(*) FROM strands_multi_agents") == 1


def test_every_process_has_its_first_turn_if_each_holds_the_session(
    crew: Crew, dsn: str, connection: Connection
) -> None:
    with crew.of(_PROCESSES, TURN, dsn) as members:
        for member in members:
            member.release()
        for member in members:
            assert member.result() == []

    stored = texts(connection)
    order = [text.removeprefix("ask ") for text in stored[::2]]
    assert sorted(order, key=int) == [str(number) for number in range(_PROCESSES)]
    assert stored[1::2] == [f"answer {number}" for number in order]
    assert one(connection, "SELECT count(*) FROM strands_agents") == 1
