"""Subclasses of the session manager that override its public methods.

The method that a subclass overrides is called once for each event. What it raises is what the turn raises, what it lets
through is stored, and no message is lost.
"""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.hooks import HookRegistry, MessageAddedEvent
from strands.multiagent import GraphBuilder
from strands.types.content import Message
from strands.types.exceptions import EventLoopException

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import LOOK_UP, GuardedModel, build, dump, look_up

# What an override does with the call that it overrides.
Call = Callable[[], object]
Behaviour = Callable[[Call], object]


class RefusedError(Exception):
    """Raised by an override."""


class Overridden:
    """A subclass in which one method is overridden.

    Attributes:
        calls: How often it was called.
        behaviour: What it does.
    """

    def __init__(self, repository: PostgresSessionRepository, method: str, behaviour: Behaviour) -> None:
        self.calls = 0
        self.behaviour = behaviour

        def override(manager: PostgresSessionManager, *arguments: Any, **kwargs: Any) -> object:
            self.calls += 1
            return self.behaviour(partial(getattr(PostgresSessionManager, method), manager, *arguments, **kwargs))

        subclass = type("Overriding", (PostgresSessionManager,), {method: override})
        self.manager: PostgresSessionManager = subclass("s", repository)

    def agent(self, **options: Any) -> Agent:
        options.setdefault("model", ScriptedModel(LOOK_UP))
        return Agent(session_manager=self.manager, tools=[look_up], callback_handler=None, **options)


def wrap(call: Call) -> object:
    return call()


def suppress(call: Call) -> None:
    try:
        call()
    except Exception as error:
        raise AssertionError(f"{error!r} with a healthy database") from error


def skip(call: Call) -> None:
    """Refuse silently."""


def refuse(call: Call) -> None:
    raise RefusedError


def call_and_refuse(call: Call) -> None:
    call()
    raise RefusedError


@pytest.fixture
def take() -> Callable[[Any, str], None]:
    """Takes turns, of a caller without a loop and of one with a loop in turn."""
    turns = itertools.count()

    def take(agent: Any, prompt: str) -> None:
        if next(turns) % 2:
            asyncio.run(agent.invoke_async(prompt))
        else:
            agent(prompt)

    return take


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def log(repository: PostgresSessionRepository) -> list[Message]:
    messages = repository.list_messages("s", "default")
    assert [message.message_id for message in messages] == list(range(len(messages)))
    return [message.to_message() for message in messages]


def restored(repository: PostgresSessionRepository) -> str:
    return dump(build(repository, conversation_manager=SlidingWindowConversationManager()))


def failure_of(turn: Callable[[], object]) -> Exception:
    """Return the error that ends a turn. Strands wraps some of those that come after the turn's first message."""
    try:
        turn()
    except EventLoopException as error:
        return error.original_exception
    except Exception as error:
        return error
    raise AssertionError("the turn did not fail")


# A turn of four messages, with a sync after each and one at its end.
CALLS = {"append_message": 4, "sync_agent": 5, "initialize": 1, "register_hooks": 1}


@pytest.mark.parametrize("behaviour", [wrap, suppress])
@pytest.mark.parametrize("method", CALLS)
def test_override_that_passes_its_calls_on_changes_nothing(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None], method: str, behaviour: Behaviour
) -> None:
    overridden = Overridden(repository, method, behaviour)
    agent = overridden.agent(state={"mood": "good"})
    take(agent, "How is the weather in Köln?")

    assert overridden.calls == CALLS[method]
    assert json.dumps(log(repository)) == json.dumps(agent.messages)
    assert restored(repository) == dump(agent)


def test_two_turns_of_a_manager_that_goes_on_after_errors_are_stored(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    errors: list[Exception] = []

    class BestEffort(PostgresSessionManager):
        def append_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
            try:
                super().append_message(message, agent, **kwargs)
            except Exception as error:
                errors.append(error)

    manager = BestEffort("s", repository)
    agent = Agent(model=ScriptedModel([["ok"]]), session_manager=manager, callback_handler=None)
    take(agent, "one")
    take(agent, "two")

    assert errors == []
    assert json.dumps(log(repository)) == json.dumps(agent.messages)
    assert len(agent.messages) == 4


@pytest.mark.parametrize("behaviour", [wrap, suppress])
def test_overridden_redaction_is_called_once(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None], behaviour: Behaviour
) -> None:
    overridden = Overridden(repository, "redact_latest_message", behaviour)
    agent = overridden.agent(model=GuardedModel([["ok"]], "[gone]"))
    take(agent, "SECRET")

    assert overridden.calls == 1
    assert "SECRET" not in json.dumps(log(repository))
    assert restored(repository) == dump(agent)


@pytest.mark.parametrize("when", ["after the turn", "in a thread, after the turn", "in a thread, meanwhile"])
@pytest.mark.parametrize("method", ["append_message", "sync_agent"])
def test_delayed_calls_are_stored_when_they_are_made(
    repository: PostgresSessionRepository,
    take: Callable[[Any, str], None],
    executor: ThreadPoolExecutor,
    method: str,
    when: str,
) -> None:
    delayed: list[Call] = []
    meanwhile: list[Future[object]] = []

    def delay(call: Call) -> None:
        if when == "in a thread, meanwhile":
            meanwhile.append(executor.submit(call))
        else:
            delayed.append(call)

    agent = Overridden(repository, method, delay).agent()
    for number in range(3):
        agent.state.set("turn", number)
        take(agent, f"How is the weather in Köln? {number}")
        for call in delayed:
            if when == "after the turn":
                call()
            else:
                executor.submit(call).result()
        for future in meanwhile:
            future.result()
        delayed.clear()
        meanwhile.clear()
        assert json.dumps(log(repository)) == json.dumps(agent.messages)
        assert restored(repository) == dump(agent)


def test_message_whose_call_is_made_at_the_next_event_is_stored_in_its_place(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    """The last call of all is made from outside an event."""
    delayed: list[Call] = []

    def delay(call: Call) -> None:
        while delayed:
            delayed.pop()()
        delayed.append(call)

    agent = Overridden(repository, "append_message", delay).agent()
    for _ in range(2):
        take(agent, "How is the weather in Köln?")
        # What is in memory is restored, whether the log has it yet or not.
        assert restored(repository) == dump(agent)
    delayed.pop()()

    assert json.dumps(log(repository)) == json.dumps(agent.messages)
    assert restored(repository) == dump(agent)


@pytest.mark.parametrize("behaviour", [refuse, call_and_refuse])
@pytest.mark.parametrize("method", ["append_message", "sync_agent"])
def test_what_an_override_raises_is_what_the_turn_raises_and_no_message_is_lost(
    repository: PostgresSessionRepository,
    take: Callable[[Any, str], None],
    method: str,
    behaviour: Behaviour,
) -> None:
    overridden = Overridden(repository, method, wrap)
    agent = overridden.agent()
    take(agent, "one")
    overridden.behaviour = behaviour
    overridden.calls = 0

    assert isinstance(failure_of(lambda: take(agent, "two")), RefusedError)

    assert overridden.calls == (1 if method == "append_message" else 2)
    assert [message["content"][0].get("text") for message in agent.messages][4:] == ["two"]
    is_stored = method == "sync_agent" or behaviour is call_and_refuse
    assert json.dumps(log(repository)) == json.dumps(agent.messages[: 5 if is_stored else 4])
    overridden.behaviour = wrap
    take(agent, "three")
    assert restored(repository) == dump(agent)
    assert [message["content"][0].get("text") for message in log(repository)][-2:] == ["three", "It is warm."]


def test_message_that_is_let_through_before_the_override_raises_is_stored_before_the_event_ends(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    class Refusing(PostgresSessionManager):
        def append_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
            super().append_message(message, agent, **kwargs)
            raise RefusedError

        def sync_agent(self, agent: Any, **kwargs: Any) -> None:
            pass

    agent = Agent(model=ScriptedModel([["ok"]]), session_manager=Refusing("s", repository), callback_handler=None)

    assert isinstance(failure_of(lambda: take(agent, "one")), RefusedError)

    assert json.dumps(log(repository)) == json.dumps(agent.messages)
    assert len(agent.messages) == 1


def test_messages_that_an_override_keeps_out_of_the_log_are_restored_all_the_same(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    overridden = Overridden(repository, "append_message", skip)
    agent = overridden.agent()
    take(agent, "one")

    assert overridden.calls == 4
    assert log(repository) == []
    assert restored(repository) == dump(agent)
    overridden.behaviour = wrap
    take(agent, "two")
    assert json.dumps(log(repository)) == json.dumps(agent.messages[4:])
    assert restored(repository) == dump(agent)


def test_messages_are_stored_though_an_override_never_syncs(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    overridden = Overridden(repository, "sync_agent", skip)
    agent = overridden.agent()
    take(agent, "one")

    assert json.dumps(log(repository)) == json.dumps(agent.messages)
    assert build(repository).state.get() == {}


def test_failed_redaction_ends_the_turn(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    overridden = Overridden(repository, "redact_latest_message", refuse)
    agent = overridden.agent(model=GuardedModel([["ok"]], "[gone]"))

    assert isinstance(failure_of(lambda: take(agent, "SECRET")), RefusedError)

    assert overridden.calls == 1
    assert restored(repository) == dump(agent)


@pytest.mark.parametrize("method", ["initialize", "register_hooks"])
def test_refused_initialization_is_what_building_the_agent_raises(
    repository: PostgresSessionRepository, method: str
) -> None:
    overridden = Overridden(repository, method, refuse)
    with pytest.raises(RefusedError):
        overridden.agent()
    assert overridden.calls == 1
    assert repository.read_agent("s", "default") is None


def test_agent_whose_hooks_are_not_registered_is_not_stored(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    agent = Overridden(repository, "register_hooks", skip).agent()
    take(agent, "one")
    assert len(agent.messages) == 4
    assert repository.read_agent("s", "default") is None


def test_hooks_of_an_override_are_called_beside_those_of_the_manager(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    class Auditing(PostgresSessionManager):
        def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
            registry.add_callback(MessageAddedEvent, lambda _: seen.append(("before", len(log(repository)))))
            super().register_hooks(registry, **kwargs)
            registry.add_callback(MessageAddedEvent, lambda _: seen.append(("after", len(log(repository)))))

    seen: list[tuple[str, int]] = []
    agent = Agent(model=ScriptedModel([["ok"]]), session_manager=Auditing("s", repository), callback_handler=None)
    take(agent, "one")

    assert seen == [("before", 0), ("after", 1), ("before", 1), ("after", 2)]


def test_agents_that_an_override_keeps_out_of_the_session_run_without_it(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    class OnlyTheFirst(PostgresSessionManager):
        def initialize(self, agent: Any, **kwargs: Any) -> None:
            if agent.agent_id == "default":
                super().initialize(agent, **kwargs)

        def append_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
            if agent.agent_id == "default":
                super().append_message(message, agent, **kwargs)

        def sync_agent(self, agent: Any, **kwargs: Any) -> None:
            if agent.agent_id == "default":
                super().sync_agent(agent, **kwargs)

    manager = OnlyTheFirst("s", repository)
    agents = [
        Agent(agent_id=name, model=ScriptedModel([["ok"]]), session_manager=manager, callback_handler=None)
        for name in ("default", "other")
    ]
    for agent in agents:
        take(agent, "one")

    assert [len(agent.messages) for agent in agents] == [2, 2]
    assert len(log(repository)) == 2
    assert repository.read_agent("s", "other") is None


def test_initialization_may_be_delayed_until_the_first_turn(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    first = build(repository)
    first("one")
    delayed: list[Call] = []
    agent = Overridden(repository, "initialize", delayed.append).agent()
    assert agent.messages == []
    for call in delayed:
        call()
    assert json.dumps(agent.messages) == json.dumps(first.messages)
    take(agent, "two")

    assert json.dumps(log(repository)) == json.dumps(agent.messages)
    assert len(agent.messages) == 6


def graph(overridden: Overridden) -> Any:
    builder = GraphBuilder()
    nodes = [Agent(agent_id=name, model=ScriptedModel([[name]]), callback_handler=None) for name in ("one", "two")]
    builder.add_node(nodes[0], "one")
    builder.add_node(nodes[1], "two")
    builder.add_edge("one", "two")
    builder.set_entry_point("one")
    builder.set_graph_id("graph")
    builder.set_max_node_executions(9)
    builder.set_session_manager(overridden.manager)
    return builder.build()


@pytest.mark.parametrize("behaviour", [wrap, suppress])
@pytest.mark.parametrize(("method", "calls"), [("sync_multi_agent", 3), ("initialize_multi_agent", 1)])
def test_override_of_a_graphs_method_is_called_once_for_each_event(
    repository: PostgresSessionRepository,
    take: Callable[[Any, str], None],
    method: str,
    calls: int,
    behaviour: Behaviour,
) -> None:
    overridden = Overridden(repository, method, behaviour)
    team = graph(overridden)
    take(team, "go")

    assert overridden.calls == calls
    stored = repository.read_multi_agent("s", "graph")
    assert json.dumps(stored) == json.dumps(team.serialize_state())


@pytest.mark.parametrize("method", ["sync_multi_agent", "initialize_multi_agent"])
def test_what_the_override_of_a_graphs_method_raises_is_what_its_run_raises(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None], method: str
) -> None:
    overridden = Overridden(repository, method, refuse)

    with pytest.raises(RefusedError):
        take(graph(overridden), "go")


def test_delayed_state_of_a_graph_is_the_one_at_the_time_of_the_call(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None], executor: ThreadPoolExecutor
) -> None:
    delayed: list[Call] = []
    team = graph(Overridden(repository, "sync_multi_agent", delayed.append))
    take(team, "go")
    for call in delayed:
        executor.submit(call).result()

    assert len(delayed) == 3
    stored = repository.read_multi_agent("s", "graph")
    assert json.dumps(stored) == json.dumps(team.serialize_state())


def test_graph_that_an_override_keeps_out_of_the_session_runs_without_it(
    repository: PostgresSessionRepository, take: Callable[[Any, str], None]
) -> None:
    class NoGraphs(PostgresSessionManager):
        def initialize_multi_agent(self, source: Any, **kwargs: Any) -> None:
            pass

        def sync_multi_agent(self, source: Any, **kwargs: Any) -> None:
            pass

    overridden = Overridden(repository, "initialize", wrap)
    overridden.manager = NoGraphs("s", repository)
    team = graph(overridden)
    take(team, "go")

    assert repository.read_multi_agent("s", "graph") is None
