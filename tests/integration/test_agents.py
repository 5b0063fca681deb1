"""Whole agents with their session in PostgreSQL: what a turn leaves there, and what the next process gets back."""

import asyncio
import json
from typing import Any

import psycopg
import pytest
from strands import Agent, tool
from strands.types.content import ContentBlock, Message
from strands.types.exceptions import SessionException

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel
from support import processes
from support.agents import LOOK_UP, Approval, GuardedModel, StatefulModel, build, dump, look_up

Connection = psycopg.Connection[Any]

# The name of the model's class decides what is restored.
RESTORE = """
import sys
from support.agents import ScriptedModel, StatefulModel, build, dump
from strands_psycopg import PostgresSessionRepository
with PostgresSessionRepository(sys.argv[1]) as repository:
    print(dump(build(repository, model=globals()[sys.argv[2]]([["ok"]]))), end="")
"""

RESUME = """
import sys
from support.agents import *
with PostgresSessionRepository(sys.argv[1]) as repository:
    agent = build(repository, replies=[["It is warm."]], tools=[look_up], hooks=[Approval()])
    result = agent([{"interruptResponse": {"interruptId": sys.argv[2], "response": sys.argv[3]}}])
    print(json.dumps([result.stop_reason, agent.messages, agent.state.get()]), end="")
"""


def stored(repository: PostgresSessionRepository, session_id: str = "s", agent_id: str = "default") -> list[Message]:
    messages = repository.list_messages(session_id, agent_id)
    assert [message.message_id for message in messages] == list(range(len(messages)))
    return [message.to_message() for message in messages]


def text_of_all_rows(connection: Connection) -> str:
    tables = ("strands_sessions", "strands_agents", "strands_messages")
    return "\n".join(
        row[0] for table in tables for row in connection.execute(f"SELECT t::text FROM {table} AS t".encode())
    )


def test_turn_with_a_tool_call_is_restored_exactly_in_another_process(
    dsn: str, repository: PostgresSessionRepository
) -> None:
    agent = build(repository, replies=LOOK_UP, tools=[look_up], state={"z": 0.1, "a": [True, None], "é": {"b": 1}})

    agent("How is the weather in Köln?")

    assert [list(block) for message in agent.messages for block in message["content"]] == [
        ["text"],
        ["toolUse"],
        ["toolResult"],
        ["text"],
    ]
    assert agent.state.get("asked") == ["Köln"]
    assert processes.run(RESTORE, dsn, "ScriptedModel") == dump(agent)


def test_nul_in_a_tool_result_neither_ends_the_turn_nor_is_lost(repository: PostgresSessionRepository) -> None:
    @tool
    def read_file() -> str:
        """Read a file."""
        return "a\0b\ud800"

    agent = build(repository, replies=[[{"name": "read_file", "input": {}}], ["done"]], tools=[read_file])

    assert agent("read it").stop_reason == "end_turn"
    assert agent.messages[2]["content"][0]["toolResult"]["content"] == [{"text": "a\0b\ud800"}]
    assert dump(build(repository)) == dump(agent)


def test_image_is_restored_as_bytes(repository: PostgresSessionRepository) -> None:
    content: list[ContentBlock] = [
        {"image": {"format": "png", "source": {"bytes": bytes(range(256))}}},
        {"text": "What is this?"},
    ]
    agent = build(repository)

    agent(content)

    restored = build(repository)
    assert restored.messages[0]["content"] == content
    assert dump(restored) == dump(agent)


def test_state_of_a_stateful_model_is_restored_and_its_messages_are_kept(
    dsn: str, repository: PostgresSessionRepository
) -> None:
    agent = build(repository, model=StatefulModel([["one"]]))
    agent("1")
    assert (agent.messages, agent._model_state) == ([], {"response_id": "response-1"})
    assert processes.run(RESTORE, dsn, "StatefulModel") == dump(agent)

    build(repository, model=StatefulModel([["two"]]))("2")

    assert build(repository, model=StatefulModel([["three"]]))._model_state == {"response_id": "response-2"}
    assert [message["content"] for message in stored(repository)] == [
        [{"text": "1"}],
        [{"text": "one"}],
        [{"text": "2"}],
        [{"text": "two"}],
    ]


@pytest.mark.parametrize("restored", [False, True], ids=["same manager", "new manager"])
def test_redacted_prompt_is_nowhere_in_the_database(
    repository: PostgresSessionRepository, connection: Connection, restored: bool
) -> None:
    agent = build(repository, model=GuardedModel([["No."]], "[removed]"))
    if restored:
        agent("Hello")
        agent = build(repository, model=GuardedModel([["No."]], "[removed]"))

    agent("My password is hunter2")

    assert agent.messages[-2]["content"] == [{"text": "[removed]"}]
    assert "hunter2" not in text_of_all_rows(connection)
    assert dump(build(repository)) == dump(agent)
    row = connection.execute(
        "SELECT message->'content', redact_message->'content' FROM strands_messages WHERE message_id = %s",
        [len(agent.messages) - 2],
    ).fetchone()
    assert row == ([{"text": "[removed]"}], [{"text": "[removed]"}])


def test_redacted_tool_result_is_nowhere_in_the_database(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    @tool
    def read_secret() -> str:
        """Read a secret."""
        return "hunter2\0"

    model = GuardedModel([[{"name": "read_secret", "input": {}, "toolUseId": "t1"}], ["No."]], "[removed]")
    agent = build(repository, model=model, tools=[read_secret])

    agent("What is the secret?")

    assert "hunter2" not in text_of_all_rows(connection)
    assert stored(repository)[2]["content"] == [
        {"toolResult": {"toolUseId": "t1", "status": "success", "content": [{"text": "[removed]"}]}}
    ]
    assert dump(build(repository)) == dump(agent)


@pytest.mark.parametrize(("answer", "status", "asked"), [("yes", "success", {"asked": ["Köln"]}), ("no", "error", {})])
def test_interrupted_turn_is_resumed_in_another_process(
    dsn: str, repository: PostgresSessionRepository, answer: str, status: str, asked: dict[str, Any]
) -> None:
    agent = build(repository, replies=LOOK_UP, tools=[look_up], hooks=[Approval()])
    result = agent("How is the weather in Köln?")
    assert result.stop_reason == "interrupt"
    assert result.interrupts
    assert processes.run(RESTORE, dsn, "ScriptedModel") == dump(agent)

    stop_reason, messages, state = json.loads(processes.run(RESUME, dsn, result.interrupts[0].id, answer))

    assert stop_reason == "end_turn"
    assert state == asked
    assert messages[:2] == agent.messages
    assert messages[2]["content"][0]["toolResult"]["status"] == status
    assert messages[3]["content"] == [{"text": "It is warm."}]
    assert json.dumps(stored(repository)) == json.dumps(messages)


def test_agents_of_one_session_are_kept_apart(repository: PostgresSessionRepository, connection: Connection) -> None:
    def both() -> list[Agent]:
        manager = PostgresSessionManager("s", repository)
        return [
            Agent(agent_id=name, model=ScriptedModel([[name]]), session_manager=manager, callback_handler=None)
            for name in ("planner", "writer")
        ]

    planner, writer = both()
    planner("plan")
    writer("write")
    planner("plan again")

    assert [dump(agent) for agent in both()] == [dump(planner), dump(writer)]
    assert [len(planner.messages), len(writer.messages)] == [4, 2]
    assert connection.execute("SELECT session_id FROM strands_sessions").fetchall() == [("s",)]
    assert connection.execute("SELECT agent_id FROM strands_agents ORDER BY 1").fetchall() == [
        ("planner",),
        ("writer",),
    ]


def test_agent_id_is_refused_a_second_time_and_the_first_agent_goes_on(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    with pytest.raises(SessionException, match="must be unique"):
        Agent(model=ScriptedModel([["no"]]), session_manager=agent._session_manager, callback_handler=None)

    agent("still here")

    assert dump(build(repository)) == dump(agent)
    assert len(agent.messages) == 2


def test_direct_tool_call_is_stored(repository: PostgresSessionRepository) -> None:
    agent = build(repository, tools=[look_up])

    agent.tool.look_up(city="Bonn")

    assert len(agent.messages) == 4
    assert json.dumps(stored(repository)) == json.dumps(agent.messages)


def test_state_set_between_turns_is_stored_with_the_next(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    agent("1")
    agent.state.set("mood", "good")
    assert build(repository).state.get() == {}

    agent("2")

    assert build(repository).state.get() == {"mood": "good"}


def test_turns_of_sync_and_async_callers_follow_each_other(repository: PostgresSessionRepository) -> None:
    agent = build(repository, replies=[["one"], ["two"], ["three"]])

    async def in_a_loop() -> None:
        await agent.invoke_async("2")
        agent("3")

    agent("1")
    asyncio.run(in_a_loop())

    assert [message["content"][0]["text"] for message in stored(repository)] == ["1", "one", "2", "two", "3", "three"]
    assert dump(build(repository)) == dump(agent)


def test_many_agents_take_their_turns_in_one_loop_at_a_time(repository: PostgresSessionRepository) -> None:
    names = [f"user-{number}" for number in range(20)]
    agents = [build(repository, name, [[f"hello {name}"]]) for name in names]

    async def turns() -> None:
        for _ in range(2):
            await asyncio.gather(*(agent.invoke_async("hello") for agent in agents))

    asyncio.run(turns())

    assert [dump(build(repository, name)) for name in names] == [dump(agent) for agent in agents]
    assert {len(agent.messages) for agent in agents} == {4}
