"""What an agent holds in memory is what a restore gives, whatever has edited it; its log is what was said."""

import asyncio
import contextlib
import copy
import inspect
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import psycopg
import pytest
from strands import Agent, tool
from strands.agent.conversation_manager import (
    ConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.hooks import events
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types.content import Message, Messages
from strands.types.exceptions import ContextWindowOverflowException, EventLoopException

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository, PostgresStorage
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import LOOK_UP, OverflowingModel, build, dump, look_up, manager_of
from support.tables import Connection, one

HAS_PINS = "pin_first" in inspect.signature(SlidingWindowConversationManager).parameters
HAS_STASH = "context_manager" in inspect.signature(Agent).parameters
HAS_STORAGE = "storage" in inspect.signature(Agent).parameters
needs_pins = pytest.mark.skipif(not HAS_PINS, reason="strands-agents has no pins yet")
needs_stash = pytest.mark.skipif(not HAS_STASH, reason="strands-agents has no context manager yet")


def log(repository: PostgresSessionRepository, session_id: str = "s", agent_id: str = "default") -> str:
    messages = repository.list_messages(session_id, agent_id)
    assert [message.message_id for message in messages] == list(range(len(messages)))
    return json.dumps([message.to_message() for message in messages])


def texts(messages: Messages) -> list[str]:
    return [str(message["content"][0].get("text", "-")) for message in messages]


def without_ids(agent: Agent) -> Any:
    """Return all that a session keeps of an agent, without what Strands draws at random."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stripped(each) for key, each in value.items() if key not in ("tracking_id", "metrics")}
        return [stripped(each) for each in value] if isinstance(value, list) else value

    return stripped(json.loads(dump(agent)))


def pinned_window(**pins: Any) -> ConversationManager:
    return SlidingWindowConversationManager(window_size=6, **pins)


def pinned_summary(**pins: Any) -> ConversationManager:
    return SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2, **pins)


@needs_pins
@pytest.mark.parametrize("pin", ["first", "message", "both"])
@pytest.mark.parametrize("manager", [pinned_window, pinned_summary])
def test_restored_agent_pins_and_drops_what_the_living_one_does(
    repository: PostgresSessionRepository, manager: Callable[..., ConversationManager], pin: str
) -> None:
    from strands.agent.conversation_manager.compression.pin_message import pin_message

    def agent(session_id: str, turn: int) -> Agent:
        pins = {} if pin == "message" else {"pin_first": 2}
        # Every third call overflows, and the next one gives the summary.
        model = OverflowingModel([[f"answer {turn}"]], overflows=range(2 - turn % 3, 99, 3))
        return build(repository, session_id, model=model, conversation_manager=manager(**pins))

    living = agent("living", 0)
    for turn in range(9):
        restored = agent("restored", turn)
        living.model = agent(f"unused {turn}", turn).model
        for each in (living, restored):
            # All that could be summarized is pinned.
            with contextlib.suppress(ContextWindowOverflowException):
                each(f"ask {turn}")
            if turn == 2 and pin != "first":
                pin_message(each.messages, 3)
        assert without_ids(restored) == without_ids(living)
        assert dump(agent("restored", turn)) == dump(restored) or (turn == 2 and pin != "first")
        cast(PostgresSessionManager, restored._session_manager).sync_agent(restored)
        assert dump(agent("restored", turn)) == dump(restored)
    assert len(living.messages) < 18
    if pin != "message":
        assert texts(living.messages)[:2] == ["ask 0", "answer 0"]
    if pin != "first":
        assert "pinned" in json.dumps(living.messages)
    said = json.loads(log(repository, "restored"))
    assert [text for text in texts(said) if "ask" in text] == [f"ask {turn}" for turn in range(9)]


@tool
def read_file(name: str) -> str:
    """Read a file."""
    return f"{name}: " + " ".join(f"{name}-line-{number}" for number in range(3_000))


@needs_stash
@pytest.mark.parametrize("mode", ["auto", "agentic"])
def test_agent_with_a_context_manager_is_restored_with_its_offloaded_results(
    repository: PostgresSessionRepository, connection: Connection, mode: str
) -> None:
    def call(tool_name: str, number: int, **arguments: Any) -> list[dict[str, Any]]:
        return [{"name": tool_name, "input": arguments, "toolUseId": f"use-{number}"}]

    script = [
        *(call("read_file", 1, name="one"), ["first"]),
        *(call("read_file", 2, name="two"), ["second"]),
        *((call("pin_context", 3, select=[0]), ["third"]) if mode == "agentic" else (["third"],)),
        *((call("truncate_context", 4, keep_recent=4), ["fourth"]) if mode == "agentic" else (["fourth"],)),
        ["fifth"],
    ]

    class Model(ScriptedModel):
        """Goes on with the script wherever the conversation is."""

        def get_config(self) -> Any:
            return {"context_window_limit": 200_000}

        async def stream(self, *arguments: Any, **kwargs: Any) -> Any:
            self.replies = [script.pop(0)]
            self.calls.clear()
            async for event in super().stream(*arguments, **kwargs):
                yield event

    options: dict[str, Any] = {"storage": PostgresStorage(repository)} if HAS_STORAGE else {}

    def agent() -> Agent:
        return build(repository, model=Model([]), tools=[read_file], context_manager=mode, **options)

    living = agent()
    for prompt in ("read one", "read two", "pin it", "drop the oldest"):
        living(prompt)
        restored = agent()
        assert dump(restored) == dump(living)
    characters = sum(len(json.dumps(message)) for message in living.messages)
    assert characters < 40_000
    if HAS_STORAGE:
        # Before, results were offloaded before they were said.
        assert len(log(repository)) > 40_000
    variants = one(connection, "SELECT count(*) FROM strands_message_variants")

    # Nothing is offloaded or dropped again: a turn of the restored agent only adds to what was restored.
    before = copy.deepcopy(restored.messages)
    assert script == [["fifth"]]
    restored("go on")

    assert json.dumps(restored.messages[: len(before)]) == json.dumps(before)
    assert len(restored.messages) == len(before) + 2
    assert one(connection, "SELECT count(*) FROM strands_message_variants") == variants
    assert dump(agent()) == dump(restored)


def drop_half(agent: Agent) -> None:
    del agent.messages[: len(agent.messages) // 2]


def replace_list(agent: Agent) -> None:
    agent.messages = copy.deepcopy(agent.messages[-3:])


def load_earlier(agent: Agent) -> None:
    snapshot = agent.take_snapshot(preset="session")
    snapshot.data["messages"] = snapshot.data["messages"][:2]
    agent.load_snapshot(snapshot)


def insert_before(agent: Agent) -> None:
    agent.messages.insert(0, {"role": "user", "content": [{"text": "context"}]})


def edit_in_place(agent: Agent) -> None:
    if agent.messages:
        agent.messages[0]["content"].append({"text": "edited"})


def append_silently(agent: Agent) -> None:
    agent.messages.append({"role": "user", "content": [{"text": "unannounced"}]})


EDITS: dict[str, Callable[[Agent], object]] = {
    "clear": lambda agent: agent.messages.clear(),
    "pop": lambda agent: agent.messages.pop() if agent.messages else None,
    "pop the first": lambda agent: agent.messages.pop(0) if agent.messages else None,
    "drop half": drop_half,
    "replace the list": replace_list,
    "load a snapshot": load_earlier,
    "insert": insert_before,
    "edit": edit_in_place,
    "append": append_silently,
}


@pytest.mark.parametrize("edit", EDITS)
def test_edit_of_the_application_is_restored_after_the_next_event(
    repository: PostgresSessionRepository, connection: Connection, edit: str
) -> None:
    agent = build(repository, replies=[["one"], ["two"], ["three"]])
    agent("1")
    agent("2")
    EDITS[edit](agent)
    cast(PostgresSessionManager, agent._session_manager).sync_agent(agent)

    assert dump(build(repository)) == dump(agent)
    assert texts(json.loads(log(repository))) == ["1", "one", "2", "two"]

    agent("3")
    assert dump(build(repository)) == dump(agent)
    assert texts(json.loads(log(repository))) == ["1", "one", "2", "two", "3", "three"]


EVENTS = [
    events.BeforeInvocationEvent,
    events.MessageAddedEvent,
    events.BeforeModelCallEvent,
    events.AfterModelCallEvent,
    events.BeforeToolCallEvent,
    events.AfterToolCallEvent,
    events.AfterInvocationEvent,
]


@pytest.mark.parametrize("event", EVENTS)
def test_edit_of_a_hook_at_any_event_is_restored_after_the_turn(
    repository: PostgresSessionRepository, event: type[Any]
) -> None:
    """The hook is called after the session manager's own in most events, so only the next event can store its edit."""
    for name, edit in EDITS.items():
        agent = build(repository, name, replies=LOOK_UP, tools=[look_up])
        agent("1")
        said: list[Message] = []
        listen(agent, said)
        edits = iter([edit])
        agent.hooks.add_callback(event, lambda event, edits=edits: next(edits, lambda _: None)(event.agent))
        # Some edits leave no conversation that can go on.
        with contextlib.suppress(IndexError, KeyError, ValueError, EventLoopException):
            agent("2")
        assert dump(build(repository, name)) == repaired(agent), name
        stored = json.loads(log(repository, name))
        assert [message["content"] for message in stored[4:]] == [message["content"] for message in said], name


def listen(agent: Agent, said: list[Message]) -> None:
    agent.hooks.add_callback(events.MessageAddedEvent, lambda event: said.append(copy.deepcopy(event.message)))


def repaired(agent: Agent) -> str:
    """Return the agent, as Strands repairs it at a restore."""
    lived = copy.copy(agent)
    lived.messages = RepositorySessionManager._fix_broken_tool_use(None, copy.deepcopy(agent.messages))  # type: ignore[arg-type]
    return dump(lived)


@pytest.fixture(autouse=True)
def _no_random_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strands' repair draws an id for what it inserts."""
    repair = "strands.session.repository_session_manager._generate_tracking_id"
    monkeypatch.setattr(repair, lambda: "of the repair", raising=False)


def test_truncated_tool_results_stay_truncated_and_the_log_whole(repository: PostgresSessionRepository) -> None:
    def agent() -> Agent:
        replies: Any = [[{"name": "read_file", "input": {"name": "one"}}], ["done"]]
        return build(repository, model=OverflowingModel(replies, overflows={2}), tools=[read_file])

    living = agent()
    living("read one")
    whole = json.dumps(living.messages)
    living("again")

    assert "truncated:" in json.dumps(living.messages)
    assert dump(agent()) == dump(living)
    assert log(repository)[: len(whole) - 1] == whole[:-1]


def test_pruned_forms_are_deleted_and_the_log_never_changes(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository)
    agent("1")
    manager = cast(PostgresSessionManager, agent._session_manager)
    written = "SELECT string_agg(write_id::text, ',' ORDER BY message_id) FROM strands_messages"
    before = one(connection, written)
    for number in range(5):
        agent.messages[0]["content"][0]["text"] = f"edited {number}"
        manager.sync_agent(agent)
        assert one(connection, "SELECT count(*) FROM strands_message_variants") == 1
    assert dump(build(repository)) == dump(agent)
    agent.messages[0]["content"][0]["text"] = "1"
    agent.messages.pop(0)
    manager.sync_agent(agent)

    assert one(connection, "SELECT count(*) FROM strands_message_variants") == 0
    assert one(connection, written) == before
    assert dump(build(repository)) == dump(agent)


def test_plain_manager_of_strands_makes_the_window_plain_again(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository)
    agent("1")
    agent.messages[0]["content"][0]["text"] = "edited"
    agent("2")
    assert one(connection, "SELECT count(*) FROM strands_message_variants") == 1

    plain = Agent(
        model=ScriptedModel([["ok"]]), session_manager=RepositorySessionManager("s", repository), callback_handler=None
    )
    assert texts(plain.messages) == ["1", "ok", "2", "ok"]
    plain.state.set("mood", "good")
    plain("3")

    assert one(connection, "SELECT count(*) FROM strands_message_variants") == 0
    assert dump(build(repository)) == dump(plain)


def odd_messages() -> dict[str, Any]:
    shared: Any = [{"text": "shared"}]
    twice: Any = {"role": "user", "content": [{"text": "twice"}]}
    return {
        "no content": [{"role": "user"}],
        "no role": [{"content": [{"text": "?"}]}],
        "nothing": [{}],
        "content of null": [{"role": "user", "content": None}],
        "content of text": [{"role": "user", "content": "text"}],
        "bytes": [{"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": bytes(range(256))}}}]}],
        "floats": [{"role": "user", "content": [{"json": [math.nan, -math.inf, -0.0, 1e300, 5e-324, 1.0, 1]}]}],
        "huge": [{"role": "user", "content": [{"text": "x" * 100_000}]}],
        "huge and odd": [{"role": "user", "content": [{"text": "\0\ud800" * 10_000}], "metadata": {"a": [{}] * 50}}],
        "tuples": [{"role": "user", "content": ({"text": "tuple"}, {"json": (1, (2,))})}],
        "subclasses": [OrderedDict(role="user", content=[OrderedDict(b=1, a=2), {"n": NamedNumber(3)}])],
        "dataclass with an odd id": [{"role": "user", "content": [], "tracking_id": 7}],
        "list as an id": [{"role": "user", "content": [], "tracking_id": ["x"]}],
        "object shared": [{"role": "user", "content": shared}, {"role": "assistant", "content": shared}],
        "the same twice": [twice, twice],
        "copies": [twice, copy.deepcopy(twice), copy.deepcopy(twice)],
    }


class NamedNumber(float):
    """A float of another type, such as those of numpy."""


def as_json(agent: Agent) -> str:
    return json.dumps(json.loads(dump(agent)))


@pytest.mark.parametrize("how", ["appended", "announced", "at the start", "in a checkpoint"])
def test_odd_messages_come_back_as_they_were(repository: PostgresSessionRepository, how: str) -> None:
    for name, messages in odd_messages().items():
        options = {"messages": messages} if how == "at the start" else {}
        agent = build(repository, name, **options)
        manager = cast(PostgresSessionManager, agent._session_manager)
        if how != "at the start":
            agent.messages.extend(messages)
        if how == "announced":
            for message in messages:
                manager.append_message(message, agent)
        if how == "in a checkpoint":
            snapshot_id = asyncio.run(manager.save_snapshot(agent))
            agent.messages.clear()
            manager.sync_agent(agent)
            assert asyncio.run(manager.restore_snapshot(agent, snapshot_id=snapshot_id))
            assert len(agent.messages) == len(messages)
        manager.sync_agent(agent)
        assert as_json(build(repository, name)) == as_json(agent), name
        # What is stored is known to be.
        assert not manager._agents["default"].is_write_due()
        agent.messages.insert(0, {"role": "assistant", "content": [{"text": "first"}]})
        manager.sync_agent(agent)
        assert as_json(build(repository, name)) == as_json(agent), name


@pytest.mark.parametrize("size", [1, 10_000])
def test_edits_that_compare_equal_are_stored(repository: PostgresSessionRepository, size: int) -> None:
    """A large message, or one of other types than JSON's, is compared otherwise than a small one."""
    values: list[Any] = [1, True, 1.0, "1", 0.0, -0.0, math.nan, {"a": 1, "b": 2}, {"b": 2, "a": 1}, [1], ()]
    agent = build(repository)
    manager = cast(PostgresSessionManager, agent._session_manager)
    for kind in (dict, OrderedDict):
        agent.messages[:] = [{"role": "user", "content": [{"json": kind(value=None, padding="x" * size)}]}]  # type: ignore[typeddict-unknown-key]
        content: Any = agent.messages[0]["content"]
        for value in values:
            content[0]["json"]["value"] = value
            manager.sync_agent(agent)
            assert as_json(build(repository)) == as_json(agent), (kind, value)


def test_prompt_that_is_said_again_is_in_the_log_again(repository: PostgresSessionRepository) -> None:
    prompt: Message = {"role": "user", "content": [{"text": "please"}]}
    agent = build(repository)

    def fail(event: events.BeforeModelCallEvent) -> None:
        if len(agent.messages) < 2:
            raise RuntimeError("no network")

    agent.hooks.add_callback(events.BeforeModelCallEvent, fail)
    for _ in range(2):
        with pytest.raises(Exception, match="no network"):
            agent([prompt])
        agent.messages.clear()
    agent.messages.append({"role": "assistant", "content": [{"text": "Well?"}]})
    agent([prompt])

    assert texts(json.loads(log(repository))) == ["please", "please", "please", "ok"]
    assert dump(build(repository)) == dump(agent)


def test_ids_that_strands_gives_to_messages_without_are_stored_with_them(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    """Initial messages, and those of a session that older Strands has written."""
    messages: Messages = [
        {"role": "user", "content": [{"text": "hello"}]},
        {"role": "assistant", "content": [{"text": "x" * 20_000}]},
    ]
    agent = build(repository, messages=messages)
    agent("1")
    assert dump(build(repository)) == dump(agent)
    assert log(repository) == json.dumps(agent.messages)
    assert one(connection, "SELECT count(*) FROM strands_message_variants") == 0
    assert one(connection, "SELECT count(memory_window) FROM strands_agents") == 0


def test_agents_that_share_their_messages_are_each_restored_as_left(repository: PostgresSessionRepository) -> None:
    def both(messages: Messages | None) -> list[Agent]:
        manager = PostgresSessionManager("s", repository)
        return [
            Agent(
                agent_id=name,
                model=ScriptedModel([[name]]),
                session_manager=manager,
                callback_handler=None,
                messages=messages,
            )
            for name in ("planner", "writer")
        ]

    planner, writer = both([{"role": "user", "content": [{"text": "shared"}]}])
    assert planner.messages is writer.messages
    planner("plan")
    writer("write")
    planner.messages[0]["content"][0]["text"] = "edited"
    planner("plan again")
    writer("write again")

    restored = both(None)
    # What the other one has appended since is in the memory of both, but not the business of the first.
    cast(PostgresSessionManager, planner._session_manager).sync_agent(planner)
    restored = both(None)
    assert [dump(each) for each in restored] == [dump(planner), dump(writer)]
    assert texts(json.loads(log(repository, agent_id="writer"))) == [
        "shared",
        "write",
        "writer",
        "write again",
        "writer",
    ]


def test_memory_that_changes_while_an_event_is_written_is_stored_with_the_next(
    repository: PostgresSessionRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = build(repository, replies=LOOK_UP, tools=[look_up])
    manager = cast(PostgresSessionManager, agent._session_manager)
    database = repository._tables.messages._database
    write, edits = database.write, [drop_half, edit_in_place, insert_before, replace_list]

    def write_meanwhile(*arguments: Any) -> Any:
        assert threading.current_thread().name.startswith("strands-psycopg")
        if edits:
            edits.pop()(agent)
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(database, "write", write_meanwhile)
        agent("1")
    assert not edits
    manager.sync_agent(agent)

    assert dump(build(repository)) == dump(agent)
    assert texts(json.loads(log(repository))) == ["1", "-", "-", "It is warm."]


def test_state_that_others_change_all_the_time_does_not_break_a_turn(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    agent.state.set("large", {str(number): number for number in range(5_000)})
    ended = threading.Event()

    def change() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            agent.state.set(f"key {number % 2_000}", number)
            agent.state.delete(f"key {(number + 1_000) % 2_000}")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for number in range(3):
            agent(str(number))
    finally:
        ended.set()
        thread.join()
    agent("last")

    assert dump(build(repository)) == dump(agent)


def test_summary_that_was_removed_from_memory_stays_out(repository: PostgresSessionRepository) -> None:
    def summarizing() -> ConversationManager:
        return SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)

    agent = build(repository, model=OverflowingModel([["ok"]], overflows={3}), conversation_manager=summarizing())
    for number in range(4):
        agent(str(number))
    assert agent.conversation_manager.get_state()["summary_message"] == agent.messages.pop(0)
    manager_of(agent).sync_agent(agent)
    assert dump(build(repository, conversation_manager=summarizing())) == dump(agent)


def test_summary_is_the_conversation_managers_own_object_after_a_restore(
    repository: PostgresSessionRepository,
) -> None:
    """So that an edit of it in memory is one of both, as before the restore."""

    def agent() -> Agent:
        model = OverflowingModel([["answer"]], overflows={3})
        return build(repository, model=model, conversation_manager=pinned_summary())

    living = agent()
    for number in range(4):
        living(str(number))
    for each in (living, agent()):
        summary = cast(SummarizingConversationManager, each.conversation_manager)._summary_message
        assert any(message is summary for message in each.messages)


def test_many_large_messages_are_compared_in_linear_time(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    messages: Any = [{"role": "user", "content": [{"text": f"{number} " + "x" * 20_000}]} for number in range(100)]
    agent = build(repository, messages=messages)
    compared: list[object] = []

    class Counted(str):
        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    for message in agent.messages:
        message["content"][0]["text"] = Counted(message["content"][0]["text"])
    manager = cast(PostgresSessionManager, agent._session_manager)
    manager.sync_agent(agent)
    compared.clear()
    agent.messages.pop(50)
    manager.sync_agent(agent)
    assert len(compared) < 20 * len(messages)
