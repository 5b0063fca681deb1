"""Where Strands' own repository manager stores imperfectly what its agents have in memory, and ours does not."""

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager, SummarizingConversationManager
from strands.hooks import BeforeModelCallEvent, HookProvider, HookRegistry
from strands.session.file_session_manager import FileSessionManager
from strands.types.content import Message, Messages

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import GuardedModel, build, dump

try:
    from strands.agent import _continuation
except ImportError:
    _continuation = None  # type: ignore[assignment]

needs_continuation = pytest.mark.skipif(_continuation is None, reason="this strands-agents continues no messages")
needs_tracking = pytest.mark.skipif(
    "tracking_id" not in Message.__annotations__, reason="strands-agents before 1.48 gives messages no tracking id"
)


class Continuation(HookProvider):
    """Has more said before the model is first called, as a background task that has ended does."""

    def __init__(self, text: str = "and more") -> None:
        self._inputs = [text]

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        registry.add_callback(BeforeModelCallEvent, self._continue)

    def _continue(self, event: BeforeModelCallEvent) -> None:
        if self._inputs:
            _continuation.add_input(event, _continuation._ContinuationInput(args=self._inputs.pop()))


def by_files(folder: Path, replies: Any = (("ok",),), **options: Any) -> Agent:
    """Build an agent with Strands' own manager."""
    options.setdefault("model", ScriptedModel(replies))
    manager = FileSessionManager("s", storage_dir=str(folder))
    return Agent(session_manager=manager, callback_handler=None, **options)


def texts(messages: Messages) -> list[list[str]]:
    return [[block.get("text", "-") for block in message["content"]] for message in messages]


def stored(repository: PostgresSessionRepository) -> list[list[str]]:
    messages = repository.list_messages("s", "default")
    assert [message.message_id for message in messages] == list(range(len(messages)))
    return texts([message.to_message() for message in messages])


@needs_continuation
def test_a_continued_message_is_stored_once(repository: PostgresSessionRepository) -> None:
    agent = build(repository, hooks=[Continuation()])
    agent("hello")

    assert texts(agent.messages) == stored(repository) == [["hello", "and more"], ["ok"]]
    assert dump(build(repository)) == dump(agent)
    agent("next")
    assert stored(repository) == [["hello", "and more"], ["ok"], ["next"], ["ok"]]


@needs_continuation
def test_strands_own_manager_stores_a_continued_message_twice(tmp_path: Path) -> None:
    agent = by_files(tmp_path, hooks=[Continuation()])
    agent("hello")

    assert texts(agent.messages) == [["hello", "and more"], ["ok"]]
    assert texts(by_files(tmp_path).messages) == [["hello"], ["hello", "and more"], ["ok"]]


@needs_continuation
def test_a_restored_message_can_be_continued(repository: PostgresSessionRepository) -> None:
    first = build(repository, model=FailingModel())
    with pytest.raises(Exception, match="no model"):
        first("hello")
    agent = build(repository, hooks=[Continuation()])
    agent([])

    assert texts(agent.messages) == stored(repository) == [["hello", "and more"], ["ok"]]
    assert dump(build(repository)) == dump(agent)


@needs_continuation
def test_redaction_of_a_continued_message_leaves_nothing_of_it(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    agent = build(repository, hooks=[Continuation()], model=GuardedModel((("ok",),), "[removed]"))
    agent("secret")

    assert stored(repository) == [["[removed]"], ["ok"]]
    rows = connection.execute("SELECT strands_messages::text FROM strands_messages").fetchall()
    assert not [row for (row,) in rows if "secret" in row]


class FailingModel(ScriptedModel):
    def __init__(self) -> None:
        super().__init__([["never"]])

    def stream(self, *arguments: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no model")


@needs_tracking
def test_a_prompt_that_is_tried_again_is_stored_as_often_as_it_is_in_memory(
    repository: PostgresSessionRepository,
) -> None:
    prompt: Message = {"role": "user", "content": [{"text": "hello"}]}
    agent = build(repository, model=FailingModel())
    for copied in (False, False, True):
        again: Messages = [{**prompt}] if copied else [prompt]
        with pytest.raises(Exception, match="no model"):
            agent(again)

    assert len({message["tracking_id"] for message in agent.messages}) == 1
    assert texts(agent.messages) == stored(repository) == [["hello"]] * 3
    assert dump(build(repository)) == dump(agent)


@needs_tracking
def test_redaction_reaches_every_row_of_a_prompt_that_was_tried_again(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    fail_twice(build(repository, model=FailingModel()))
    restored = build(repository, model=GuardedModel((("ok",),), "[removed]"))
    restored([])

    assert stored(repository) == [["[removed]"], ["[removed]"], ["ok"]]
    rows = connection.execute("SELECT strands_messages::text FROM strands_messages").fetchall()
    assert not [row for (row,) in rows if "secret" in row]


@needs_tracking
def test_strands_own_manager_redacts_one_of_them(tmp_path: Path) -> None:
    fail_twice(by_files(tmp_path, model=FailingModel()))
    by_files(tmp_path, model=GuardedModel((("ok",),), "[removed]"))([])

    assert texts(by_files(tmp_path).messages) == [["secret"], ["[removed]"], ["ok"]]


def fail_twice(agent: Agent) -> None:
    prompt: Message = {"role": "user", "content": [{"text": "secret"}]}
    for _ in range(2):
        with pytest.raises(Exception, match="no model"):
            agent([prompt])


# A call without a result in the middle, and a result without a call.
BROKEN: Messages = [
    {"role": "user", "content": [{"toolResult": {"toolUseId": "0", "status": "success", "content": []}}]},
    {"role": "user", "content": [{"text": "0"}]},
    {"role": "assistant", "content": [{"toolUse": {"toolUseId": "1", "name": "look_up", "input": {}}}]},
    {"role": "user", "content": [{"text": "1"}]},
    {"role": "assistant", "content": [{"text": "2"}]},
]


def window() -> SlidingWindowConversationManager:
    return SlidingWindowConversationManager(window_size=6)


@pytest.mark.parametrize("broken", [BROKEN[1:], BROKEN[:2] + BROKEN[3:], BROKEN], ids=["added", "dropped", "both"])
def test_repaired_messages_do_not_shift_the_next_restore(
    repository: PostgresSessionRepository, broken: Messages
) -> None:
    build(repository, messages=json.loads(json.dumps(broken)))
    agent = build(repository, conversation_manager=window())
    for number in range(8):
        agent(f"turn {number}")
        in_memory = texts(agent.messages)
        restored = build(repository, conversation_manager=window())
        assert texts(restored.messages) == in_memory
        if number in (2, 5):
            agent = restored
    assert stored(repository)[: len(broken)] == texts(broken)


def test_strands_own_manager_loses_a_message_after_a_repair(tmp_path: Path) -> None:
    by_files(tmp_path, messages=json.loads(json.dumps(BROKEN[1:])))
    agent = by_files(tmp_path, conversation_manager=window())
    for number in range(3):
        agent(f"turn {number}")

    assert texts(by_files(tmp_path, conversation_manager=window()).messages) == texts(agent.messages)[1:]


def test_repaired_messages_do_not_shift_a_summary(repository: PostgresSessionRepository) -> None:
    def summarizing() -> SummarizingConversationManager:
        return SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)

    build(repository, messages=json.loads(json.dumps(BROKEN[1:])), conversation_manager=summarizing())
    agent = build(repository, conversation_manager=summarizing())
    for number in range(6):
        agent(f"turn {number}")
        if number in (1, 3):
            agent.conversation_manager.reduce_context(agent)
            agent("after a summary")
        restored = build(repository, conversation_manager=summarizing())
        assert texts(restored.messages) == texts(agent.messages)
        if number == 4:
            agent = restored


def test_a_manager_of_an_agent_that_was_not_restored_counts_as_strands_does(
    repository: PostgresSessionRepository,
) -> None:
    manager = PostgresSessionManager("s", repository)
    agent = Agent(
        session_manager=manager,
        callback_handler=None,
        model=ScriptedModel([["ok"]]),
        conversation_manager=window(),
    )
    for number in range(6):
        agent(f"turn {number}")
    session_agent = repository.read_agent("s", "default")
    assert session_agent is not None
    assert session_agent.conversation_manager_state["removed_message_count"] == 6
