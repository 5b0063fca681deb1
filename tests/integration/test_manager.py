"""The manager's own promises: nothing half stored, nothing overwritten, and no writing on after a failure."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.content import Message
from strands.types.exceptions import EventLoopException

from strands_psycopg import (
    DatabaseError,
    DatabaseUnavailableError,
    PostgresSessionManager,
    PostgresSessionRepository,
    SchemaError,
    SessionConflictError,
)
from strands_psycopg.scripted_model import ScriptedModel
from support import processes
from support.agents import LOOK_UP, StatefulModel, build, dump, look_up
from support.proxy import Proxy
from support.waiting import wait_until

Connection = psycopg.Connection[Any]

# Two lines are read, so that both processes have imported everything before either begins.
OPEN_AND_TALK = """
import sys
from support.agents import build, dump
from strands_psycopg import PostgresSessionRepository
with PostgresSessionRepository(sys.argv[1]) as repository:
    repository.read_session("s")
    print("ready", flush=True)
    sys.stdin.readline()
    build(repository, messages=[{"role": "user", "content": [{"text": sys.argv[2]}]}])
    agent = build(repository, agent_id=sys.argv[2])
    agent("hello")
    print(dump(agent))
"""


def greeting(text: str = "hello") -> list[Message]:
    # Strands would add ids to messages without, in memory only.
    return [
        {"role": "user", "content": [{"text": text}], "tracking_id": "1"},
        {"role": "assistant", "content": [{"text": f"{text}!"}], "tracking_id": "2"},
    ]


def failure_of(turn: Callable[[], object]) -> Exception:
    """Return the error that ends a turn. Strands wraps some of those that come after the turn's first message."""
    try:
        turn()
    except EventLoopException as error:
        return error.original_exception
    except Exception as error:
        return error
    raise AssertionError("the turn did not fail")


def rows(connection: Connection) -> tuple[int, int, int]:
    """Count sessions, agents and messages."""
    tables = ("strands_sessions", "strands_agents", "strands_messages")
    counts = [connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchall()[0][0] for table in tables]
    return counts[0], counts[1], counts[2]


def texts(repository: PostgresSessionRepository) -> list[str]:
    messages = repository.list_messages("s", "default")
    assert [message.message_id for message in messages] == list(range(len(messages)))
    return [message.message["content"][0].get("text", "-") for message in messages]


def refuse_messages(connection: Connection, condition: str) -> Callable[[], object]:
    """Make the server refuse messages for which the condition is false, until what is returned is called."""
    name = "refused_by_test"
    connection.execute(f"ALTER TABLE strands_messages ADD CONSTRAINT {name} CHECK ({condition})".encode())
    return lambda: connection.execute(f"ALTER TABLE strands_messages DROP CONSTRAINT {name}".encode())


def test_messages_asked_for_after_the_restore_are_those_of_now(repository: PostgresSessionRepository) -> None:
    build(repository, messages=greeting())
    view = PostgresSessionManager("s", repository).session_repository
    assert view.read_agent("s", "default") is not None
    assert len(view.list_messages("s", "default")) == 2
    build(repository)("how are you")
    assert len(view.list_messages("s", "default")) == 4


def test_initial_messages_are_stored_with_their_agent(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository, messages=greeting(), state={"mood": "good"})
    assert rows(connection) == (1, 1, 2)
    assert dump(build(repository)) == dump(agent)

    agent("next")

    assert texts(repository) == ["hello", "hello!", "next", "ok"]
    assert dump(build(repository)) == dump(agent)


def test_nothing_of_an_agent_is_stored_if_one_of_its_initial_messages_is_refused(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    allow = refuse_messages(connection, "message_id < 1")
    with pytest.raises(DatabaseError) as raised:
        build(repository, messages=greeting())
    assert raised.value.sqlstate == "23514"
    assert rows(connection) == (1, 0, 0)

    allow()

    assert build(repository, messages=greeting()).messages == greeting()
    assert rows(connection) == (1, 1, 2)


def test_restored_messages_replace_initial_ones(repository: PostgresSessionRepository) -> None:
    first = build(repository, messages=greeting())

    assert dump(build(repository, messages=greeting("other"), state={"other": 1})) == dump(first)


def test_loser_of_a_race_for_a_new_agent_restores_what_the_winner_stored(
    repository: PostgresSessionRepository, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, winners = repository._tables.conversations.read, []

    def read_while_another_creates(session_id: str, agent_id: str, **options: Any) -> Any:
        found = read(session_id, agent_id, **options)
        monkeypatch.undo()
        winners.append(build(repository, messages=greeting("winner"), state={"winner": 1}))
        winners[0]("more")
        return found

    monkeypatch.setattr(repository._tables.conversations, "read", read_while_another_creates)
    loser = build(repository, messages=greeting("loser"), state={"loser": 1})

    assert dump(loser) == dump(winners[0])
    assert rows(connection) == (1, 1, 4)
    loser("I go on")
    assert texts(repository) == ["winner", "winner!", "more", "ok", "I go on", "ok"]
    assert dump(build(repository)) == dump(loser)


def test_loser_of_a_race_for_a_new_session_takes_the_winners(
    repository: PostgresSessionRepository, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = repository._tables.sessions.read

    def read_while_another_creates(session_id: str, **options: Any) -> Any:
        found = read(session_id, **options)
        monkeypatch.undo()
        build(repository, messages=greeting("winner"))
        return found

    monkeypatch.setattr(repository._tables.sessions, "read", read_while_another_creates)

    assert build(repository, messages=greeting("loser")).messages == greeting("winner")
    assert rows(connection) == (1, 1, 2)


def test_managers_that_open_new_sessions_at_the_same_moment_agree(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    rounds = 10
    barrier = threading.Barrier(2, timeout=30)

    def open_all(name: str) -> list[Agent]:
        agents = []
        for number in range(rounds):
            barrier.wait()
            agents.append(build(repository, f"session {number}", messages=greeting(f"{name} {number}")))
        return agents

    with ThreadPoolExecutor(2) as threads:
        pairs = list(zip(*threads.map(open_all, ("left", "right")), strict=True))

    assert rows(connection) == (rounds, rounds, 2 * rounds)
    for number, (left, right) in enumerate(pairs):
        assert dump(left) == dump(right) == dump(build(repository, f"session {number}"))
        left("hello")
        with pytest.raises(SessionConflictError):
            right("hello")


def test_processes_that_open_a_new_session_at_the_same_moment_share_it(
    dsn: str, repository: PostgresSessionRepository, connection: Connection
) -> None:
    both = [processes.start(OPEN_AND_TALK, dsn, name) for name in ("left", "right")]
    for process in both:
        assert process.line() == "ready"
    for process in both:
        process.write("go\n")
    ends = [process.finish() for process in both]

    assert [(status, errors) for status, _, errors in ends] == [(0, ""), (0, "")]
    assert rows(connection) == (1, 3, 5)
    assert [dump(build(repository, agent_id=name)) + "\n" for name in ("left", "right")] == [end[1] for end in ends]
    assert texts(repository) in (["left"], ["right"])


def test_stale_manager_is_refused_before_its_model_is_called(repository: PostgresSessionRepository) -> None:
    stale = build(repository)
    build(repository, replies=[["one"]])("1")

    with pytest.raises(SessionConflictError, match="another writer was first") as raised:
        stale("2")

    error = raised.value
    assert (error.session_id, error.agent_id, error.message_id) == ("s", "default", 0)
    assert isinstance(stale.model, ScriptedModel)
    assert stale.model.calls == []
    assert texts(repository) == ["1", "one"]


def test_manager_that_was_overtaken_between_its_turns_is_refused_at_the_next(
    repository: PostgresSessionRepository,
) -> None:
    first = build(repository, replies=[["one"]])
    first("1")
    build(repository, replies=[["two"]])("2")

    with pytest.raises(SessionConflictError) as raised:
        first("3")

    assert raised.value.message_id == 2
    assert isinstance(first.model, ScriptedModel)
    assert len(first.model.calls) == 1
    assert texts(repository) == ["1", "one", "2", "two"]


def test_overtaken_turn_is_refused_at_its_next_write(repository: PostgresSessionRepository) -> None:
    @tool
    def overtake() -> str:
        """Take a turn with another manager."""
        build(repository, replies=[["other"]])("overtaken")
        return "done"

    agent = build(repository, replies=[[{"name": "overtake", "input": {}}], ["never"]], tools=[overtake])

    error = failure_of(lambda: agent("1"))

    assert isinstance(error, SessionConflictError)
    assert (error.session_id, error.agent_id, error.message_id) == ("s", "default", 2)
    assert isinstance(agent.model, ScriptedModel)
    assert len(agent.model.calls) == 1
    # The other turn closed the pending tool call.
    assert texts(repository) == ["1", "-", "-", "overtaken", "other"]


def test_state_alone_of_an_overtaken_agent_is_refused(repository: PostgresSessionRepository) -> None:
    first = build(repository)
    first("1")
    second = build(repository)
    second.state.set("winner", True)
    second._session_manager.sync_agent(second)  # type: ignore[union-attr]
    first.state.set("winner", False)

    with pytest.raises(SessionConflictError) as raised:
        first._session_manager.sync_agent(first)  # type: ignore[union-attr]

    assert raised.value.message_id is None
    assert build(repository).state.get() == {"winner": True}


def test_message_of_an_agent_whose_state_alone_was_overtaken_is_refused(repository: PostgresSessionRepository) -> None:
    first = build(repository)
    second = build(repository)
    second.state.set("winner", True)
    second._session_manager.sync_agent(second)  # type: ignore[union-attr]

    with pytest.raises(SessionConflictError, match="another writer has updated") as raised:
        first("1")

    assert raised.value.message_id == 0
    assert isinstance(first.model, ScriptedModel)
    assert first.model.calls == []
    assert texts(repository) == []


def test_after_a_failed_write_every_later_one_raises_the_same_error(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository)
    manager = agent._session_manager
    assert isinstance(manager, PostgresSessionManager)
    other = Agent(agent_id="other", model=ScriptedModel([["ok"]]), session_manager=manager, callback_handler=None)
    agent("1")
    allow = refuse_messages(connection, "message_id < 2")
    agent.state.set("mood", "bad")

    with pytest.raises(DatabaseError) as failed:
        agent("2")
    allow()

    agent.state.set("mood", "worse")
    later: list[Callable[[], object]] = [
        lambda: agent("3"),
        lambda: other("3"),
        lambda: manager.append_message(greeting()[0], agent),
        lambda: manager.sync_agent(agent),
        lambda: manager.redact_latest_message(greeting()[0], agent),
        lambda: Agent(agent_id="new", model=ScriptedModel([["ok"]]), session_manager=manager, messages=greeting()),
    ]
    for write in later:
        with pytest.raises(DatabaseError) as refused:
            write()
        assert refused.value is failed.value
    assert failed.value.sqlstate == "23514"
    assert rows(connection) == (1, 2, 2)
    assert build(repository).state.get() == {}


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("window_size", [2, 40])
def test_state_that_cannot_be_stored_is_a_failed_write(
    repository: PostgresSessionRepository, window_size: int, restored: bool
) -> None:
    def new_agent() -> Agent:
        return build(repository, conversation_manager=SlidingWindowConversationManager(window_size=window_size))

    agent = new_agent()
    agent("1")
    if restored:
        agent = new_agent()
    agent.state.set("notes", {1: "a", "1": "b"})

    with pytest.raises(ValueError, match="two keys of one object") as failed:
        agent("2")
    agent.state.delete("notes")
    with pytest.raises(ValueError, match="two keys of one object") as refused:
        agent("3")

    assert refused.value is failed.value
    assert texts(repository) == ["1", "ok"]
    assert len(new_agent().messages) == 2


def test_sync_after_a_failed_write_raises_its_error_and_stores_nothing(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    """The turn's end is the only sync here: what the tool changed in the state was to be stored with its result."""
    agent = build(repository, replies=LOOK_UP, tools=[look_up])
    refuse_messages(connection, "message_id < 2")

    with pytest.raises(DatabaseError) as failed:
        agent("How is the weather in Köln?")

    assert failed.value.sqlstate == "23514"
    assert agent.state.get() == {"asked": ["Köln"]}
    assert build(repository).state.get() == {}
    assert len(texts(repository)) == 2


def test_new_manager_goes_on_after_a_failed_write(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository)
    agent("1")
    allow = refuse_messages(connection, "message_id < 3")
    assert isinstance(failure_of(lambda: agent("2")), DatabaseError)
    allow()

    after = build(repository, replies=[["three"]])
    after("3")

    assert texts(repository) == ["1", "ok", "2", "3", "three"]
    assert dump(build(repository)) == dump(after)


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_manager_whose_write_had_no_answer_is_refused_and_a_new_one_finds_what_was_stored(dsn: str, lost: str) -> None:
    """One connection, whose first uses are over: on another one, a check of the connection might be lost instead."""
    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn, retry_timeout=0, max_size=1) as repository:
        agent = build(repository)
        agent("1")
        getattr(proxy, f"lose_{lost}s")()

        with pytest.raises(DatabaseUnavailableError) as failed:
            agent("2")
        with pytest.raises(DatabaseUnavailableError) as refused:
            agent("3")

        assert refused.value is failed.value
        assert texts(repository) == ["1", "ok"] + ["2"] * (lost == "answer")


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_write_whose_answer_is_lost_is_repeated_and_stored_once(dsn: str, lost: str) -> None:
    with Proxy(dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        agent = build(repository, replies=[*LOOK_UP] * 4, tools=[look_up])
        for after in range(4):
            getattr(proxy, f"lose_{lost}s")(after=after)
            agent("How is the weather in Köln?")

        assert proxy.connections > 4
        assert len(agent.messages) == 16
        assert dump(build(repository)) == dump(agent)


def test_message_with_keys_that_collide_is_a_value_error_and_nothing_is_stored(
    repository: PostgresSessionRepository,
) -> None:
    @tool
    def count() -> dict[str, Any]:
        """Count."""
        return {"status": "success", "content": [{"json": {1: "one", "1": "uno"}}]}

    agent = build(repository, replies=[[{"name": "count", "input": {}}], ["never"]], tools=[count])

    error = failure_of(lambda: agent("Count"))

    assert isinstance(error, ValueError)
    assert "two keys of one object are the same in JSON" in str(error)
    assert texts(repository) == ["Count", "-"]


def test_manager_closes_the_repository_that_it_made(dsn: str) -> None:
    with PostgresSessionManager.from_dsn("s", dsn, max_size=2) as manager:
        agent = Agent(model=ScriptedModel([["ok"]]), session_manager=manager, callback_handler=None)
        agent("1")

    with pytest.raises(DatabaseUnavailableError, match="closed"):
        agent("2")


def test_manager_leaves_a_callers_repository_open(repository: PostgresSessionRepository) -> None:
    with PostgresSessionManager("s", repository):
        pass

    assert repository.read_session("s") is not None


def test_manager_that_cannot_be_built_leaves_no_connection_behind(
    empty_dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with pytest.raises(SchemaError):
        PostgresSessionManager.from_dsn("s", make_conninfo(empty_dsn, application_name="left behind"))

    wait_until(
        lambda: not connection.execute("SELECT FROM pg_stat_activity WHERE application_name = 'left behind'").fetchall()
    )


def test_state_that_is_changed_in_place_after_a_restore_is_stored(repository: PostgresSessionRepository) -> None:
    build(repository, model=StatefulModel([["one"]]))("1")
    agent = build(repository, model=StatefulModel([["two"]]))
    # Strands goes on working with the very dict that was restored.
    agent("2")

    assert agent._model_state == {"response_id": "response-2"}
    assert build(repository, model=StatefulModel([["three"]]))._model_state == agent._model_state


def test_repository_can_be_passed_by_strands_name(repository: PostgresSessionRepository) -> None:
    assert PostgresSessionManager("s", session_repository=repository).session_repository is repository


def test_what_is_no_repository_is_a_type_error_that_says_what_to_pass(
    repository: PostgresSessionRepository, dsn: str
) -> None:
    manager: Any = PostgresSessionManager
    for wrong in (dsn, None, 5):
        with pytest.raises(TypeError, match=r"not (str|NoneType|int); build one .* PostgresSessionManager.from_dsn\("):
            manager("s", wrong)
    with pytest.raises(TypeError, match=r"the session's id comes first: PostgresSessionManager\(session_id, repo"):
        manager(repository, "s")
    with pytest.raises(TypeError, match="keep_snapshot"):
        manager("s", repository, keep_snapshot=5)
