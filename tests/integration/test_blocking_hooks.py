"""Managers whose hooks are plain functions, for applications that invoke them synchronously."""

import asyncio
import inspect
from typing import Any

import psycopg
import pytest
from strands import Agent
from strands.hooks import MessageAddedEvent
from strands.types.content import Message

from strands_psycopg import DatabaseError, PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import LOOK_UP, Replies, build, dump, look_up
from support.multi_agents import Team

NOTE: Message = {"role": "user", "content": [{"text": "a note"}]}


def with_manager(
    repository: PostgresSessionRepository,
    replies: Replies = (("ok",),),
    *,
    kind: type[PostgresSessionManager] = PostgresSessionManager,
    tools: Any = None,
    **options: Any,
) -> Agent:
    manager = kind("s", repository, **options)
    return Agent(model=ScriptedModel(replies), session_manager=manager, tools=tools, callback_handler=None)


def add(agent: Agent, message: Message) -> None:
    """Add a message as an application does that invokes hooks synchronously."""
    agent.messages.append(message)
    agent.hooks.invoke_callbacks(MessageAddedEvent(agent=agent, message=message))


def stored(repository: PostgresSessionRepository) -> list[Any]:
    return [each.to_message()["content"] for each in repository.list_messages("s", "default")]


def test_message_that_is_added_synchronously_is_stored_when_the_call_returns(
    repository: PostgresSessionRepository,
) -> None:
    agent = with_manager(repository, blocking_hooks=True)

    add(agent, NOTE)

    assert stored(repository) == [NOTE["content"]]
    agent("hello")
    assert dump(build(repository)) == dump(agent)


def test_message_is_stored_on_a_running_loop_too(repository: PostgresSessionRepository) -> None:
    agent = with_manager(repository, blocking_hooks=True)

    async def add_and_ask() -> None:
        add(agent, NOTE)
        assert stored(repository) == [NOTE["content"]]
        await agent.invoke_async("hello")

    asyncio.run(add_and_ask())

    assert dump(build(repository)) == dump(agent)


def test_without_blocking_hooks_strands_refuses_to_invoke_them_synchronously(
    repository: PostgresSessionRepository,
) -> None:
    agent = with_manager(repository)

    with pytest.raises(RuntimeError, match="use invoke_callbacks_async"):
        add(agent, NOTE)

    assert stored(repository) == []


def test_no_hook_is_a_coroutine_function(repository: PostgresSessionRepository) -> None:
    agent = with_manager(repository, blocking_hooks=True)

    callbacks = [
        entry.callback if hasattr(entry, "callback") else entry
        for entries in agent.hooks._registered_callbacks.values()
        for entry in entries
    ]

    ours = [callback for callback in callbacks if callback.__module__.startswith("strands_psycopg")]
    assert len(ours) > 3
    assert not any(map(inspect.iscoroutinefunction, ours))


def test_turns_are_stored_as_they_were(repository: PostgresSessionRepository) -> None:
    agent = with_manager(repository, [*LOOK_UP, ["bye"]], tools=[look_up], blocking_hooks=True)
    agent("weather?")
    agent.state.set("mood", "good")
    agent.messages[0]["content"] = [{"text": "edited"}]
    agent("bye")

    assert len(agent.messages) == 6
    assert dump(build(repository)) == dump(agent)


def test_checkpoint_of_a_trigger_holds_the_turn(repository: PostgresSessionRepository) -> None:
    agent = with_manager(repository, [["one"], ["two"]], snapshot_trigger=lambda **_: True, blocking_hooks=True)
    agent("first")
    then = dump(agent)
    agent("second")
    manager = agent._session_manager
    assert isinstance(manager, PostgresSessionManager)

    async def restore_first() -> int:
        ids = await manager.list_snapshot_ids(agent)
        assert await manager.restore_snapshot(agent, snapshot_id=ids[0])
        return len(ids)

    assert asyncio.run(restore_first()) == 2
    assert dump(agent) == then


class BestEffort(PostgresSessionManager):
    """Goes on if a message cannot be stored."""

    failures: list[Exception]

    def append_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
        try:
            super().append_message(message, agent, **kwargs)
        except DatabaseError as error:
            self.failures.append(error)

    def sync_agent(self, agent: Any, **kwargs: Any) -> None:
        if not self.failures:
            super().sync_agent(agent, **kwargs)


def test_override_hears_that_its_message_could_not_be_stored(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("ALTER TABLE strands_messages ADD CONSTRAINT refused CHECK (message_id < 2)")
    agent = with_manager(repository, [["one"], ["two"]], kind=BestEffort, blocking_hooks=True)
    manager = agent._session_manager
    assert isinstance(manager, BestEffort)
    manager.failures = []

    agent("first")
    assert manager.failures == []
    agent("second")

    assert len(agent.messages) == 4
    assert [str(failure).partition(":")[0] for failure in manager.failures] == [
        "storing message 2 of agent 'default' in session 's'"
    ] * 2
    assert len(stored(repository)) == 2


def test_multi_agents_are_stored_by_blocking_hooks(repository: PostgresSessionRepository) -> None:
    from strands.hooks import HookRegistry, MultiAgentInitializedEvent
    from strands.hooks.events import AfterMultiAgentInvocationEvent

    manager = PostgresSessionManager("s", repository, blocking_hooks=True)
    hooks = HookRegistry()
    hooks.add_hook(manager)
    team = Team("m", {"step": 1})

    hooks.invoke_callbacks(MultiAgentInitializedEvent(team))
    assert repository.read_multi_agent("s", "m") == {"step": 1}
    team.state = {"step": 2}
    hooks.invoke_callbacks(AfterMultiAgentInvocationEvent(team))

    assert repository.read_multi_agent("s", "m") == {"step": 2}


def test_manager_from_a_dsn_has_blocking_hooks_too(repository: PostgresSessionRepository, dsn: str) -> None:
    with PostgresSessionManager.from_dsn("s", dsn, blocking_hooks=True) as manager:
        agent = Agent(model=ScriptedModel([["ok"]]), session_manager=manager, callback_handler=None)
        add(agent, NOTE)

    assert stored(repository) == [NOTE["content"]]
