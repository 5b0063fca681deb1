"""Agents whose conversation managers drop or summarize messages: the session keeps all and restores what they held."""

import json
from contextlib import suppress
from typing import Any

import pytest
from strands import Agent
from strands.agent.conversation_manager import (
    NullConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.hooks import MessageAddedEvent
from strands.types.content import Message
from strands.types.exceptions import ContextWindowOverflowException

from strands_psycopg import PostgresSessionRepository
from support.agents import LOOK_UP, OverflowingModel, Replies, build, dump, look_up


def stored_texts(repository: PostgresSessionRepository) -> list[str]:
    messages = repository.list_messages("s", "default")
    assert [message.message_id for message in messages] == list(range(len(messages)))
    return [message.message["content"][0]["text"] for message in messages]


def texts(messages: list[Message]) -> list[str]:
    return [message["content"][0]["text"] for message in messages]


def summarizing() -> dict[str, Any]:
    """Return an agent's options: its fourth turn overflows; the script's last reply is also its summary."""
    return {
        "conversation_manager": SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2),
        "model": OverflowingModel([["one"], ["two"], ["three"], ["four"]], overflows={3}),
    }


def test_window_is_restored_and_goes_on_after_all_that_is_stored(repository: PostgresSessionRepository) -> None:
    def agent() -> Any:
        return build(repository, conversation_manager=SlidingWindowConversationManager(window_size=4, per_turn=True))

    first = agent()
    for number in range(5):
        first(str(number))
    assert texts(first.messages) == ["3", "ok", "4", "ok"]
    assert first.conversation_manager.get_state()["removed_message_count"] == 6

    second = agent()
    assert dump(second) == dump(first)
    second("5")

    assert texts(second.messages) == ["4", "ok", "5", "ok"]
    assert stored_texts(repository) == ["0", "ok", "1", "ok", "2", "ok", "3", "ok", "4", "ok", "5", "ok"]
    assert dump(agent()) == dump(second)


def test_summary_is_restored_before_the_messages_that_it_left(repository: PostgresSessionRepository) -> None:
    first = build(repository, **summarizing())
    for number in range(1, 5):
        first(str(number))
    manager_state = first.conversation_manager.get_state()
    assert manager_state["removed_message_count"] > 0
    assert first.messages[0] == manager_state["summary_message"]

    second = build(repository, **summarizing())

    assert dump(second) == dump(first)
    assert json.dumps(second.messages[0]) == json.dumps(first.messages[0])


def test_turn_after_a_restored_summary_is_stored_after_all_messages(repository: PostgresSessionRepository) -> None:
    first = build(repository, **summarizing())
    for number in range(1, 5):
        first(str(number))

    second = build(repository, replies=[["five"]], conversation_manager=SummarizingConversationManager())
    second("5")

    assert stored_texts(repository) == ["1", "one", "2", "two", "3", "three", "4", "four", "5", "five"]
    assert dump(build(repository, conversation_manager=SummarizingConversationManager())) == dump(second)


def test_context_overflow_is_synced_before_the_model_is_called_again(repository: PostgresSessionRepository) -> None:
    class Watching(OverflowingModel):
        async def stream(self, *arguments: Any, **kwargs: Any) -> Any:
            stored = repository.read_agent("s", "default")
            assert stored is not None
            removed.append(stored.conversation_manager_state["removed_message_count"])
            async for event in super().stream(*arguments, **kwargs):
                yield event

    removed: list[int] = []
    agent = build(
        repository,
        model=Watching([["ok"]], overflows={2}),
        conversation_manager=SlidingWindowConversationManager(window_size=40),
    )

    for number in range(3):
        agent(str(number))

    assert removed == [0, 0, 0, 2]
    assert dump(build(repository)) == dump(agent)


def test_null_manager_restores_everything(repository: PostgresSessionRepository) -> None:
    first = build(repository, conversation_manager=NullConversationManager())
    for number in range(25):
        first(str(number))

    second = build(repository, conversation_manager=NullConversationManager())

    assert len(second.messages) == 50
    assert dump(second) == dump(first)


def test_agent_whose_manager_dropped_more_than_is_stored_goes_on_after_the_last_index(
    repository: PostgresSessionRepository,
) -> None:
    build(repository)("1")
    agent = repository.read_agent("s", "default")
    assert agent is not None
    agent.conversation_manager_state["removed_message_count"] = 100
    repository.update_agent("s", agent)

    restored = build(repository, replies=[["two"]])
    assert restored.messages == []
    restored("2")

    assert stored_texts(repository) == ["1", "ok", "2", "two"]


@pytest.mark.parametrize("window_size", [0, 2, 3, 4])
@pytest.mark.parametrize("replies", [(("ok",),), [*LOOK_UP] * 5], ids=["texts", "tools"])
def test_full_window_is_stored_as_it_is_after_each_turn(
    repository: PostgresSessionRepository, window_size: int, replies: Replies
) -> None:
    def agent() -> Agent:
        window = SlidingWindowConversationManager(window_size=window_size)
        return build(repository, replies=replies, tools=[look_up], conversation_manager=window)

    agent_of_all_turns = agent()
    for number in range(5):
        agent_of_all_turns(str(number))
        assert dump(agent()) == dump(agent_of_all_turns)


def test_turn_that_dies_after_its_last_message_is_restored_as_if_it_had_ended(
    repository: PostgresSessionRepository,
) -> None:
    def agent() -> Agent:
        return build(repository, conversation_manager=SlidingWindowConversationManager(window_size=2))

    first = agent()
    first("1")
    restored = []
    first.hooks.add_callback(MessageAddedEvent, lambda _: restored.append(dump(agent())))
    first("2")
    assert len(restored) == 2
    assert restored[-1] == dump(first)


def test_message_is_stored_though_the_end_of_its_turn_cannot_be_foreseen(
    repository: PostgresSessionRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("cannot be copied")

    agent = build(repository, conversation_manager=SlidingWindowConversationManager(window_size=2))
    agent("1")
    with monkeypatch.context() as patch:
        patch.setattr("strands_psycopg.agent_sync.turn_end.copy.copy", fail)
        agent("2")
    agent("3")
    assert stored_texts(repository)[:3] == ["1", "ok", "2"]
    assert stored_texts(repository)[-2:] == ["3", "ok"]
    assert len(stored_texts(repository)) == agent.conversation_manager.removed_message_count + len(agent.messages)


def test_turn_that_does_not_end_as_was_foreseen_is_stored_as_it_did(repository: PostgresSessionRepository) -> None:
    def drop(event: MessageAddedEvent) -> None:
        if event.message["role"] == "assistant":
            del event.agent.messages[:-2]

    agent = build(repository, conversation_manager=SlidingWindowConversationManager(window_size=2))
    agent("1")
    agent.hooks.add_callback(MessageAddedEvent, drop)
    agent("2")
    stored = repository.read_agent("s", "default")
    assert stored is not None
    assert stored.conversation_manager_state == agent.conversation_manager.get_state()
    assert stored.conversation_manager_state["removed_message_count"] == 0


def test_window_that_cannot_be_reduced_is_left_to_strands(repository: PostgresSessionRepository) -> None:
    replies: Replies = [({"name": "look_up", "input": {"city": "Köln"}},)] * 3 + [("It is warm.",)]
    window = SlidingWindowConversationManager(window_size=1)
    agent = build(repository, replies=replies, tools=[look_up], conversation_manager=window)
    with suppress(ContextWindowOverflowException):  # as Strands did before 1.46
        agent("1")
    assert [message.message for message in repository.list_messages("s", "default")][-1] == agent.messages[-1]
