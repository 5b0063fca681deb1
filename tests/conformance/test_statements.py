"""How many statements, round trips and commits things cost, as libpq's own trace of the connection tells."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.content import Message
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository, SessionConflictError
from strands_psycopg.scripted_model import ScriptedModel
from support.multi_agents import Team
from support.wire import ONE, Wire

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="psycopg gives access to libpq's trace on Linux only")


def saying(text: str) -> Message:
    return {"role": "user", "content": [{"text": text}]}


def new_agent(agent_id: str) -> SessionAgent:
    return SessionAgent(agent_id, {"z": 1, "a": 2}, {})


def new_message(index: int) -> SessionMessage:
    return SessionMessage(saying("hello\0"), index)


# They can be called one after the other.
METHODS: dict[str, Callable[[PostgresSessionRepository], object]] = {
    "create_session": lambda repository: repository.create_session(Session("new", SessionType.AGENT)),
    "read_session": lambda repository: repository.read_session("s"),
    "create_agent": lambda repository: repository.create_agent("s", new_agent("new")),
    "read_agent": lambda repository: repository.read_agent("s", "a"),
    "update_agent": lambda repository: repository.update_agent("s", new_agent("a")),
    "create_message": lambda repository: repository.create_message("s", "a", new_message(2)),
    "read_message": lambda repository: repository.read_message("s", "a", 1),
    "update_message": lambda repository: repository.update_message("s", "a", new_message(1)),
    "list_messages": lambda repository: repository.list_messages("s", "a"),
    "create_multi_agent": lambda repository: repository.create_multi_agent("s", Team("new", {"a": 1})),
    "read_multi_agent": lambda repository: repository.read_multi_agent("s", "t"),
    "update_multi_agent": lambda repository: repository.update_multi_agent("s", Team("t", {"a": 1})),
    "list_sessions": lambda repository: repository.list_sessions(limit=10),
    "list_agents": lambda repository: repository.list_agents("s"),
    "delete_agent": lambda repository: repository.delete_agent("s", "a"),
    "delete_session": lambda repository: repository.delete_session("s"),
}


def fill(repository: PostgresSessionRepository) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_agent("s", new_agent("a"))
    for index in range(2):
        repository.create_message("s", "a", new_message(index))
    repository.create_multi_agent("s", Team("t", {"a": 1}))


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture(params=["own pool", "caller's pool"])
def repository_of_any_pool(
    request: pytest.FixtureRequest, dsn: str, wire: Wire, kwargs: dict[str, Any]
) -> Iterator[PostgresSessionRepository]:
    """A repository on a session; a caller's pool is as psycopg makes it, out of autocommit."""
    options: dict[str, Any] = {"min_size": 1, "max_size": 1, "kwargs": kwargs, "configure": wire.configure}
    if request.param == "own pool":
        with PostgresSessionRepository(dsn, **options) as repository:
            fill(repository)
            yield repository
    else:
        with ConnectionPool(dsn, connection_class=psycopg.Connection, **options) as pool:
            repository = PostgresSessionRepository(pool)
            fill(repository)
            yield repository


@pytest.fixture
def kwargs() -> dict[str, Any]:
    return {}


def test_each_method_is_one_statement_one_round_trip_and_one_commit(
    repository_of_any_pool: PostgresSessionRepository, wire: Wire
) -> None:
    found = {name: wire.during(partial(call, repository_of_any_pool))[1:] for name, call in METHODS.items()}
    assert found == dict.fromkeys(METHODS, ONE)


@pytest.mark.parametrize("kwargs", [{"prepare_threshold": 0}], ids=["prepared at once"])
def test_each_method_sends_the_same_statement_every_time(
    repository_of_any_pool: PostgresSessionRepository, wire: Wire
) -> None:
    for call in METHODS.values():
        call(repository_of_any_pool)
    repository_of_any_pool.delete_session("new")
    fill(repository_of_any_pool)
    found = {name: wire.during(partial(call, repository_of_any_pool)) for name, call in METHODS.items()}
    assert found == dict.fromkeys(METHODS, ([], *ONE))


def test_page_of_a_prefix_is_one_statement_too(repository_of_any_pool: PostgresSessionRepository, wire: Wire) -> None:
    assert wire.during(lambda: repository_of_any_pool.list_sessions(prefix="s"))[1:] == ONE


def test_fork_is_one_transaction(repository_of_any_pool: PostgresSessionRepository, wire: Wire) -> None:
    exchange = wire.during(lambda: repository_of_any_pool.fork_session("s", "fork", until=1))
    assert exchange.states[-1] == "I"
    assert set(exchange.states[:-1]) == {"T"}


def test_batch_of_a_purge_is_one_transaction(
    repository_of_any_pool: PostgresSessionRepository, wire: Wire, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("UPDATE strands_sessions SET updated_at = '2020-01-01'")
    exchange = wire.during(lambda: repository_of_any_pool.purge_sessions(idle_for=1))
    # First it looks for idle sessions, outside of the transaction, and at the end for leases.
    assert exchange.states[0] == exchange.states[-2] == exchange.states[-1] == "I"
    assert set(exchange.states[1:-2]) == {"T"}


def test_refused_write_is_explained_by_two_more_statements(
    repository_of_any_pool: PostgresSessionRepository, wire: Wire
) -> None:
    def conflict() -> None:
        with pytest.raises(SessionConflictError):
            repository_of_any_pool.create_message("s", "a", new_message(0))

    # The server's time, since the write may have been late, and what is stored.
    assert wire.during(conflict)[1:] == (3, ["I", "I", "I"])


def test_agent_with_its_first_messages_is_one_transaction(
    repository_of_any_pool: PostgresSessionRepository, wire: Wire
) -> None:
    messages = [new_message(index) for index in range(20)]
    exchange = wire.during(
        lambda: repository_of_any_pool._tables.agents.create("s", new_agent("new"), messages, write_id=uuid4())
    )
    assert exchange.completed == len(["BEGIN", "agent", *messages, "COMMIT"])
    assert exchange.states[-1] == "I"
    assert set(exchange.states[:-1]) == {"T"}
    # The messages go together.
    assert len(exchange.states) <= 6


# A live agent. Statements are not prepared, so that their texts are seen.


@pytest.fixture
def repository(dsn: str, wire: Wire) -> Iterator[PostgresSessionRepository]:
    with PostgresSessionRepository(
        dsn, min_size=1, max_size=1, kwargs={"prepare_threshold": None}, configure=wire.configure
    ) as repository:
        repository.read_session("s")
        yield repository


def build(repository: PostgresSessionRepository, *replies: list[str | dict[str, Any]], **options: Any) -> Agent:
    return Agent(
        model=ScriptedModel(replies or [["ok"]]),
        session_manager=PostgresSessionManager("s", repository),
        callback_handler=None,
        **options,
    )


def test_new_session_is_two_statements_for_itself_and_two_for_its_agent(
    repository: PostgresSessionRepository, wire: Wire
) -> None:
    exchange = wire.during(lambda: build(repository))
    assert exchange.changes == [[], ["INSERT sessions"], [], ["INSERT agents"]]
    assert exchange[1:] == (4, ["I"] * 4)


def test_restore_is_two_statements(repository: PostgresSessionRepository, wire: Wire) -> None:
    build(repository)("hello")
    exchange = wire.during(lambda: build(repository))
    assert exchange.changes == [[], []]
    assert exchange[1:] == (2, ["I"] * 2)


def test_first_turn_is_two_statements(repository: PostgresSessionRepository, wire: Wire) -> None:
    agent = build(repository)
    exchange = wire.during(lambda: agent("hello"))
    assert exchange.changes == [["INSERT messages"], ["INSERT messages"]]
    assert exchange[1:] == (2, ["I"] * 2)


def test_restored_agent_is_not_written_before_it_changes(repository: PostgresSessionRepository, wire: Wire) -> None:
    build(repository)("hello")
    agent = build(repository)
    exchange = wire.during(lambda: agent("hello"))
    assert exchange.changes == [["INSERT messages"], ["INSERT messages"]]
    assert exchange[1:] == (2, ["I"] * 2)
    agent.state.set("a", 1)
    exchange = wire.during(lambda: agent("hello"))
    assert exchange.changes == [["INSERT messages", "UPDATE agents"], ["INSERT messages"]]


def test_further_turn_is_two_inserts(repository: PostgresSessionRepository, wire: Wire) -> None:
    agent = build(repository)
    agent("hello")
    exchange = wire.during(lambda: agent("hello"))
    assert exchange.changes == [["INSERT messages"], ["INSERT messages"]]
    assert exchange[1:] == (2, ["I"] * 2)


def test_turn_with_a_tool_call_is_one_statement_for_each_message(
    repository: PostgresSessionRepository, wire: Wire
) -> None:
    @tool
    def look() -> str:
        """Look."""
        return "seen"

    agent = build(repository, ["ok"], [{"name": "look", "input": {}}], ["done"], tools=[look])
    agent("hello")
    exchange = wire.during(lambda: agent("hello"))
    assert len(agent.messages) == 6
    # Strands counts a call of tools as a change of the agent's state, which is stored with the tools' results.
    assert [changes[:1] for changes in exchange.changes] == [["INSERT messages"]] * 4
    assert exchange[1:] == (4, ["I"] * 4)


def test_changed_state_is_stored_with_the_next_message(repository: PostgresSessionRepository, wire: Wire) -> None:
    agent = build(repository)
    agent("hello")
    agent.state.set("a", 1)
    exchange = wire.during(lambda: agent("hello"))
    assert exchange.changes == [["INSERT messages", "UPDATE agents"], ["INSERT messages"]]
    assert exchange[1:] == (2, ["I"] * 2)


def test_turn_with_a_full_sliding_window_takes_along_what_the_window_drops(
    repository: PostgresSessionRepository, wire: Wire
) -> None:
    agent = build(repository, conversation_manager=SlidingWindowConversationManager(window_size=2))
    agent("hello")
    exchange = wire.during(lambda: agent("hello"))
    assert exchange.changes == [["INSERT messages"], ["INSERT messages", "UPDATE agents"]]
    assert exchange[1:] == (2, ["I"] * 2)
    assert agent.conversation_manager.removed_message_count == 2
    stored = repository.read_agent("s", "default")
    assert stored is not None
    assert stored.conversation_manager_state == agent.conversation_manager.get_state()
