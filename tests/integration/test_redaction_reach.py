"""After a redaction the raw text is in no column of any row of the session, whatever has copied the message."""

import asyncio
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from psycopg import sql
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.hooks import BeforeModelCallEvent, MessageAddedEvent
from strands.session import FileSessionManager
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types.content import Message
from strands.types.exceptions import SessionException

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import GuardedModel, Replies, build, dump, restore_checkpoint, save_checkpoint
from support.tables import Connection

SECRET = "4111 1111 1111 1111"
GONE = "[gone]"

# What the guardrail redacts is what Strands' own manager redacts, too.
Managed = Callable[[str], Any]


def rows_with(connection: Connection, text: str) -> list[str]:
    """Return all rows of all tables that hold a text, in whatever column."""
    tables = connection.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
    ).fetchall()
    assert len(tables) > 6
    query = sql.SQL("SELECT {name} || ': ' || to_jsonb(t)::text FROM {table} AS t WHERE to_jsonb(t)::text LIKE %s")
    return [
        row[0]
        for (table,) in tables
        for row in connection.execute(
            query.format(name=sql.Literal(table), table=sql.Identifier(table)), [f"%{text}%"]
        ).fetchall()
    ]


def saying(text: str, role: Any = "user") -> Message:
    return {"role": role, "content": [{"text": text}]}


def manager_of(agent: Agent) -> PostgresSessionManager:
    return cast(PostgresSessionManager, agent._session_manager)


def log(repository: PostgresSessionRepository, session_id: str = "s", agent_id: str = "default") -> list[str]:
    messages = repository.list_messages(session_id, agent_id)
    assert [message.message_id for message in messages] == list(range(len(messages)))
    return [str(message.to_message()["content"][0].get("text", "-")) for message in messages]


class Guarded(GuardedModel):
    """Has only prompts with the secret redacted."""

    def __init__(self, replies: Replies = (("ok",),)) -> None:
        super().__init__(replies, GONE)

    async def stream(self, messages: Any, *arguments: Any, **kwargs: Any) -> Any:
        plain = ScriptedModel.stream(self, messages, *arguments, **kwargs)
        async for event in super().stream(messages, *arguments, **kwargs) if SECRET in str(messages[-1]) else plain:
            yield event


def copy_all(agent: Agent) -> None:
    agent.messages = copy.deepcopy(agent.messages)


def copy_and_trim(agent: Agent) -> None:
    agent.messages = copy.deepcopy(agent.messages[-3:])


def copy_and_insert(agent: Agent) -> None:
    agent.messages = [saying("context"), saying("context", "assistant"), *copy.deepcopy(agent.messages)]


def rewrite(agent: Agent) -> None:
    last = agent.messages[-1]
    agent.messages[-1] = {**last, "content": [{"text": "<context/>"}, *last["content"]]}


def rewrite_without_id(agent: Agent) -> None:
    last = agent.messages[-1]
    agent.messages[-1] = {"role": last["role"], "content": [{"text": "<context/>"}, *last["content"]]}


def edit_in_place(agent: Agent) -> None:
    agent.messages[-1]["content"].insert(0, {"text": "<context/>"})


def pin(agent: Agent) -> None:
    cast(dict[str, Any], agent.messages[-1])["metadata"] = {"custom": {"pinned": True}}


def edit_and_sync(agent: Agent) -> None:
    edit_in_place(agent)
    manager_of(agent).sync_agent(agent)


def rewrite_and_sync(agent: Agent) -> None:
    rewrite_without_id(agent)
    manager_of(agent).sync_agent(agent)


def save_checkpoints(agent: Agent) -> None:
    manager = manager_of(agent)
    for _ in range(2):
        manager._agents["default"].save_checkpoint()
        edit_in_place(agent)


def say_again(agent: Agent) -> None:
    agent.messages.append(agent.messages[-1])


def nothing(agent: Agent) -> None:
    pass


MEANWHILE = [
    *(nothing, copy_all, copy_and_trim, copy_and_insert, rewrite, rewrite_without_id, edit_in_place, pin),
    *(edit_and_sync, rewrite_and_sync, save_checkpoints, say_again),
]


@pytest.mark.parametrize("event", [MessageAddedEvent, BeforeModelCallEvent])
def test_guardrails_redaction_reaches_whatever_hooks_have_made_of_the_prompt(
    repository: PostgresSessionRepository, connection: Connection, event: type[Any]
) -> None:
    for meanwhile in MEANWHILE:
        session_id = meanwhile.__name__
        agent = build(repository, session_id, model=Guarded())
        agent("yes")
        agent("yes")

        def act(event: Any, meanwhile: Any = meanwhile) -> None:
            if SECRET in str(event.agent.messages[-1]):
                meanwhile(event.agent)

        agent.hooks.add_callback(event, act)
        agent(f"my card is {SECRET}")

        assert rows_with(connection, SECRET) == [], session_id
        assert log(repository, session_id) == ["yes", "ok", "yes", "ok", GONE, "ok"]
        assert SECRET not in json.dumps(agent.messages)
        assert dump(build(repository, session_id)) == dump(agent), session_id
        agent("go on")
        assert dump(build(repository, session_id)) == dump(agent), session_id
        assert rows_with(connection, SECRET) == [], session_id


def test_file_session_manager_gives_back_the_same_messages(
    repository: PostgresSessionRepository, tmp_path: Path
) -> None:
    def stored(manager: Managed, meanwhile: Any) -> list[Message]:
        session_id = meanwhile.__name__
        agent = Agent(model=Guarded(), session_manager=manager(session_id), callback_handler=None)
        agent.hooks.add_callback(BeforeModelCallEvent, lambda event: meanwhile(event.agent))
        agent("hello")
        agent(f"my card is {SECRET}")
        restored = Agent(model=Guarded(), session_manager=manager(session_id), callback_handler=None)
        return [{"role": message["role"], "content": message["content"]} for message in restored.messages]

    for meanwhile in (nothing, pin):
        ours = stored(lambda session_id: PostgresSessionManager(session_id, repository), meanwhile)
        files = stored(lambda session_id: FileSessionManager(session_id, storage_dir=str(tmp_path)), meanwhile)
        assert ours == files, meanwhile.__name__
        assert ours[2]["content"] == [{"text": GONE}]


@tool
def read_card() -> str:
    """Read a card."""
    return f"the number is {SECRET}"


def test_redacted_tool_result_is_redacted_in_all_its_forms(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(
        repository, model=Guarded([[{"name": "read_card", "input": {}, "toolUseId": "t1"}], ["No."]]), tools=[read_card]
    )
    agent.hooks.add_callback(BeforeModelCallEvent, lambda event: edit_and_sync(event.agent))
    agent("What is the number?")

    assert rows_with(connection, SECRET) == []
    assert [list(block) for block in repository.list_messages("s", "default")[2].to_message()["content"]] == [
        ["toolResult"]
    ]
    assert dump(build(repository)) == dump(agent)


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("how", ["the message", "a copy", "a message without an id"])
def test_direct_call_redacts_the_last_message_of_the_role(
    repository: PostgresSessionRepository, connection: Connection, how: str, restored: bool
) -> None:
    agent = build(repository)
    agent("yes")
    agent(f"my card is {SECRET}")
    asyncio.run(manager_of(agent).save_snapshot(agent))
    if restored:
        agent = build(repository)
    message = agent.messages[2] if how == "the message" else copy.deepcopy(agent.messages[2])
    message["content"] = [{"text": GONE}]
    if how == "a message without an id":
        message.pop("tracking_id", None)
    manager_of(agent).redact_latest_message(message, agent)

    assert rows_with(connection, SECRET) == []
    assert log(repository) == ["yes", "ok", GONE, "ok"]
    # Memory is the caller's. What was redacted is not stored again, whatever memory holds.
    agent("go on")
    agent.messages[2]["content"].append({"text": "more"})
    manager_of(agent).sync_agent(agent)
    assert rows_with(connection, SECRET) == []
    agent.messages[2] = message
    manager_of(agent).sync_agent(agent)
    assert dump(build(repository)) == dump(agent)


def test_message_that_has_left_memory_is_redacted_and_no_other(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository, conversation_manager=SlidingWindowConversationManager(window_size=2))
    agent(f"my card is {SECRET}")
    snapshot = agent.take_snapshot(preset="session")
    asyncio.run(manager_of(agent).save_snapshot(agent))
    agent("next")
    message = copy.deepcopy(snapshot.data["messages"][0])
    if "tracking_id" not in message:
        pytest.skip("strands-agents has no tracking ids yet")
    assert all(each["tracking_id"] != message["tracking_id"] for each in agent.messages)
    message["content"] = [{"text": GONE}]
    manager_of(agent).redact_latest_message(message, agent)

    assert rows_with(connection, SECRET) == []
    assert log(repository) == [GONE, "ok", "next", "ok"]
    assert dump(build(repository, conversation_manager=SlidingWindowConversationManager())) == dump(agent)

    # Not even if it comes back.
    agent.load_snapshot(snapshot)
    agent.messages[0]["content"].append({"text": "edited"})
    manager_of(agent).sync_agent(agent)
    assert rows_with(connection, SECRET) == []
    assert build(repository).messages[0]["content"] == [{"text": GONE}]


def test_message_that_gets_its_id_after_its_redaction_is_not_stored_again(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository, messages=[saying(f"my card is {SECRET}"), saying("ok", "assistant")])
    manager_of(agent).redact_latest_message(saying(GONE), agent)
    # Strands gives it one now.
    agent("go on")

    assert rows_with(connection, SECRET) == []
    assert log(repository) == [GONE, "ok", "go on", "ok"]


def test_redacted_message_does_not_come_back_from_a_snapshot_in_another_process(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository)
    agent(f"my card is {SECRET}")
    snapshot = agent.take_snapshot(preset="session")
    if "tracking_id" not in agent.messages[0]:
        pytest.skip("strands-agents has no tracking ids yet")
    message = copy.deepcopy(agent.messages[0])
    message["content"] = [{"text": GONE}]
    manager_of(agent).redact_latest_message(message, agent)
    restored = build(repository)
    restored.load_snapshot(snapshot)
    restored("go on")

    assert rows_with(connection, SECRET) == []
    assert log(repository) == [GONE, "ok", "go on", "ok"]
    assert build(repository).messages[0]["content"] == [{"text": GONE}]


def test_redacted_message_of_a_checkpoint_is_not_stored_again_by_another_process(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    def restored() -> Agent:
        return build(repository, conversation_manager=SlidingWindowConversationManager(window_size=2))

    agent = restored()
    agent(f"my card is {SECRET}")
    original = copy.deepcopy(agent.messages[0])
    if "tracking_id" not in original:
        pytest.skip("strands-agents has no tracking ids yet")
    checkpoint = save_checkpoint(agent)
    agent("next")
    manager_of(agent).redact_latest_message({**original, "content": [{"text": GONE}]}, agent)
    another = restored()
    restore_checkpoint(another, checkpoint)
    assert another.messages[0]["content"] == [{"text": GONE}]
    another.messages[0] = original
    manager_of(another).sync_agent(another)

    assert rows_with(connection, SECRET) == []


def test_message_that_agents_of_a_session_share_is_redacted_in_all(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    manager = PostgresSessionManager("s", repository)
    agents = [
        Agent(agent_id=name, model=ScriptedModel([["ok"]]), session_manager=manager, callback_handler=None)
        for name in ("planner", "writer", "critic")
    ]
    shared = saying(f"my card is {SECRET}")
    for agent in agents[:2]:
        agent([shared])
    agents[2]("something else")
    assert len(rows_with(connection, SECRET)) == 2
    shared["content"] = [{"text": GONE}]
    manager.redact_latest_message(shared, agents[0])

    assert rows_with(connection, SECRET) == []
    for agent in agents:
        agent("go on")
    assert [log(repository, agent_id=agent.agent_id)[0] for agent in agents] == [GONE, GONE, "something else"]
    assert rows_with(connection, SECRET) == []


def test_copies_of_the_message_in_other_agents_are_redacted_by_their_tracking_id(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    first = build(repository, agent_id="planner")
    first(f"my card is {SECRET}")
    if "tracking_id" not in first.messages[0]:
        pytest.skip("strands-agents has no tracking ids yet")
    other = build(repository, agent_id="writer", messages=copy.deepcopy(first.messages))
    edit_in_place(other)
    manager_of(other).sync_agent(other)
    asyncio.run(manager_of(other).save_snapshot(other))
    redacted = {**first.messages[0], "content": [{"text": GONE}]}
    manager_of(first).redact_latest_message(cast(Message, redacted), first)

    assert rows_with(connection, SECRET) == []


@pytest.mark.parametrize("same_object", [True, False])
def test_retried_prompt_is_redacted_wherever_it_is(
    repository: PostgresSessionRepository, connection: Connection, same_object: bool
) -> None:
    agent = build(repository, model=Guarded())
    failures = iter([True])

    def fail(event: BeforeModelCallEvent) -> None:
        if next(failures, False):
            raise RuntimeError("no network")

    agent.hooks.add_callback(BeforeModelCallEvent, lambda event: fail(event))
    prompt = saying(f"my card is {SECRET}")
    with pytest.raises(Exception, match="no network"):
        agent([prompt])
    if not same_object and "tracking_id" not in prompt:
        pytest.skip("strands-agents has no tracking ids yet")
    agent([prompt if same_object else copy.deepcopy(prompt)])

    assert rows_with(connection, SECRET) == []
    assert log(repository) == [GONE, GONE, "ok"]


def test_redaction_by_strands_own_manager_reaches_the_row_and_its_other_forms(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository)
    agent(f"my card is {SECRET}")
    agent.messages[0]["content"].append({"text": "more"})
    asyncio.run(manager_of(agent).save_snapshot(agent))

    manager = RepositorySessionManager("s", repository)
    plain = Agent(model=Guarded(), session_manager=manager, callback_handler=None)
    plain.hooks.add_callback(BeforeModelCallEvent, lambda event: copy_all(event.agent))
    plain(f"again: {SECRET}")
    stored = repository.list_messages("s", "default")[0]
    stored.redact_message = saying(GONE)
    repository.update_message("s", "default", stored)

    assert rows_with(connection, SECRET) == []
    assert log(repository) == [GONE, "ok", GONE, "ok"]


def test_redaction_without_anything_to_redact_is_refused_and_the_manager_goes_on(
    repository: PostgresSessionRepository,
) -> None:
    agent = build(repository)
    for message in (saying(GONE), {**saying(GONE), "tracking_id": "unknown"}):
        with pytest.raises(SessionException, match="no message to redact"):
            manager_of(agent).redact_latest_message(cast(Message, message), agent)
    agent("go on")
    assert log(repository) == ["go on", "ok"]
