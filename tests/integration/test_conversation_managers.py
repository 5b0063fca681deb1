"""Agents whose conversation managers drop or summarize messages: the session keeps all and restores what they held."""

import json
from typing import Any

from strands.agent.conversation_manager import (
    NullConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.types.content import Message

from strands_psycopg import PostgresSessionRepository
from support.agents import OverflowingModel, build, dump


def stored_texts(repository: PostgresSessionRepository) -> list[str]:
    messages = repository.list_messages("s", "default")
    assert [message.message_id for message in messages] == list(range(len(messages)))
    return [message.message["content"][0]["text"] for message in messages]


def texts(messages: list[Message]) -> list[str]:
    return [message["content"][0]["text"] for message in messages]


def summarizing() -> dict[str, Any]:
    """Give an agent's options: its fourth turn overflows; the script's last reply is also what it is summarized to."""
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
