"""What any ``SessionRepository`` must do, on ours and on Strands' files; and what only ours promises."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from psycopg import sql
from strands.session import FileSessionManager
from strands.session.session_repository import SessionRepository
from strands.types.content import Message
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import (
    PostgresSessionRepository,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
)
from support.multi_agents import Team

Connection = psycopg.Connection[tuple[Any, ...]]
Call = Callable[[PostgresSessionRepository, Any], object]

HUGE = 2**70
REFUSED_IDS: list[Any] = ["", "x" * 256, "a\0b", "a\ud83d", 7, None]
ACCEPTED_IDS = [
    pytest.param("x", id="1 character"),
    pytest.param("x" * 255, id="255 characters"),
    pytest.param("😀" * 255, id="255 characters of 4 bytes"),
    pytest.param("../a b/%s'\"\\\n", id="characters with a meaning elsewhere"),
]


def new_session(session_id: str = "s") -> Session:
    return Session(session_id, SessionType.AGENT)


def new_agent(agent_id: str = "a", state: str = "first") -> SessionAgent:
    return SessionAgent(
        agent_id,
        {"z": state, "a": [1, None, {"é": "😀"}]},
        {"__name__": "SlidingWindowConversationManager", "removed_message_count": 0},
        {"interrupt_state": {"interrupts": {}, "context": {}, "activated": False}, "model_state": {}},
    )


def new_message(index: int, text: str = "hello") -> SessionMessage:
    return SessionMessage(saying(text), index)


def saying(text: str) -> Message:
    return {"role": "user", "content": [{"text": text}]}


def texts(messages: list[SessionMessage]) -> list[str]:
    return [message.message["content"][0]["text"] for message in messages]


def fill(repository: SessionRepository, messages: int = 0, *, session_id: str = "s", agent_id: str = "a") -> None:
    """Store a session, an agent in it, and messages that say their own index."""
    if repository.read_session(session_id) is None:
        repository.create_session(new_session(session_id))
    repository.create_agent(session_id, new_agent(agent_id))
    for index in range(messages):
        repository.create_message(session_id, agent_id, new_message(index, str(index)))


@pytest.fixture(params=["postgres", "files"])
def any_repository(request: pytest.FixtureRequest, tmp_path: Path) -> SessionRepository:
    if request.param == "files":
        return FileSessionManager("the manager's own", storage_dir=str(tmp_path))
    return cast(SessionRepository, request.getfixturevalue("repository"))


@pytest.fixture
def unconnected() -> PostgresSessionRepository:
    """A repository that no connection can be made for."""
    return PostgresSessionRepository("host=/nonexistent", retry_timeout=0)


# Sessions, on both.


def test_created_session_is_read_back(any_repository: SessionRepository) -> None:
    session = new_session()
    any_repository.create_session(session)
    assert any_repository.read_session("s") == session


def test_create_session_gives_the_session_back(any_repository: SessionRepository) -> None:
    session = new_session()
    assert any_repository.create_session(session) is session


def test_missing_session_reads_as_none(any_repository: SessionRepository) -> None:
    assert any_repository.read_session("s") is None


def test_existing_session_is_not_created_again(any_repository: SessionRepository) -> None:
    first = any_repository.create_session(new_session())
    with pytest.raises(SessionException, match="already exists"):
        any_repository.create_session(new_session())
    assert any_repository.read_session("s") == first


# Both have it, but it is not in Strands' abstract class.
def delete_session(repository: SessionRepository, session_id: str) -> None:
    cast(PostgresSessionRepository, repository).delete_session(session_id)


def test_deleted_session_is_gone_with_all_that_was_in_it(any_repository: SessionRepository) -> None:
    fill(any_repository, 1)
    any_repository.create_multi_agent("s", Team("t", {"a": 1}))
    delete_session(any_repository, "s")
    assert any_repository.read_session("s") is None
    any_repository.create_session(new_session())
    assert any_repository.read_agent("s", "a") is None
    assert any_repository.read_message("s", "a", 0) is None
    assert any_repository.read_multi_agent("s", "t") is None


def test_delete_leaves_other_sessions(any_repository: SessionRepository) -> None:
    fill(any_repository, 1)
    fill(any_repository, 2, session_id="other")
    delete_session(any_repository, "s")
    assert texts(any_repository.list_messages("other", "a")) == ["0", "1"]


def test_delete_of_a_missing_session_is_an_error(any_repository: SessionRepository) -> None:
    with pytest.raises(SessionException, match="does not exist"):
        delete_session(any_repository, "s")


# Agents, on both.


def test_created_agent_is_read_back(any_repository: SessionRepository) -> None:
    any_repository.create_session(new_session())
    agent = new_agent()
    any_repository.create_agent("s", agent)
    assert any_repository.read_agent("s", "a") == agent


@pytest.mark.parametrize("session_id", ["s", "missing"])
def test_missing_agent_reads_as_none(any_repository: SessionRepository, session_id: str) -> None:
    any_repository.create_session(new_session())
    assert any_repository.read_agent(session_id, "a") is None


def test_updated_agent_is_read_back(any_repository: SessionRepository) -> None:
    fill(any_repository)
    agent = SessionAgent("a", {"new": [1]}, {"__name__": "Other"}, {"interrupt_state": {"activated": True}})
    any_repository.update_agent("s", agent)
    assert any_repository.read_agent("s", "a") == agent


@pytest.mark.parametrize("session_id", ["s", "missing"])
def test_update_of_a_missing_agent_is_an_error(any_repository: SessionRepository, session_id: str) -> None:
    any_repository.create_session(new_session())
    with pytest.raises(SessionException, match="does not exist"):
        any_repository.update_agent(session_id, new_agent())
    assert any_repository.read_agent(session_id, "a") is None


def test_update_sets_the_time_of_creation_on_the_agent(any_repository: SessionRepository) -> None:
    any_repository.create_session(new_session())
    created = new_agent()
    any_repository.create_agent("s", created)
    updated = new_agent()
    updated.created_at = "of another time"
    any_repository.update_agent("s", updated)
    assert updated.created_at == created.created_at


def test_agents_of_a_session_are_kept_apart(any_repository: SessionRepository) -> None:
    fill(any_repository, 2, agent_id="a")
    fill(any_repository, 1, agent_id="b")
    any_repository.create_message("s", "b", new_message(1, "of b"))
    any_repository.update_agent("s", new_agent("b", state="second"))
    states = [stored.state["z"] for agent_id in "ab" if (stored := any_repository.read_agent("s", agent_id))]
    assert states == ["first", "second"]
    assert [texts(any_repository.list_messages("s", agent_id)) for agent_id in "ab"] == [["0", "1"], ["0", "of b"]]


def test_agents_of_the_same_id_in_two_sessions_are_kept_apart(any_repository: SessionRepository) -> None:
    fill(any_repository, 1, session_id="s")
    fill(any_repository, 0, session_id="other")
    any_repository.create_message("other", "a", new_message(0, "of the other"))
    any_repository.update_agent("other", new_agent(state="second"))
    stored = any_repository.read_agent("s", "a")
    assert stored is not None
    assert stored.state["z"] == "first"
    assert texts(any_repository.list_messages("s", "a")) == ["0"]
    assert texts(any_repository.list_messages("other", "a")) == ["of the other"]


# Messages, on both.


def test_created_message_is_read_back(any_repository: SessionRepository) -> None:
    fill(any_repository)
    message = new_message(0, "a\n\té😀")
    any_repository.create_message("s", "a", message)
    assert any_repository.read_message("s", "a", 0) == message


MISSING_MESSAGES = [("s", "a", 1), ("s", "missing", 0), ("missing", "a", 0), ("s", "a", HUGE)]


def test_missing_message_reads_as_none(any_repository: SessionRepository) -> None:
    fill(any_repository, 1)
    for missing in MISSING_MESSAGES:
        assert any_repository.read_message(*missing) is None


def test_updated_message_is_read_back(any_repository: SessionRepository) -> None:
    fill(any_repository, 2)
    message = SessionMessage(saying("other"), 1)
    any_repository.update_message("s", "a", message)
    assert any_repository.read_message("s", "a", 1) == message
    assert texts(any_repository.list_messages("s", "a")) == ["0", "other"]


def test_redacted_message_is_restored_as_what_it_was_redacted_to(any_repository: SessionRepository) -> None:
    fill(any_repository, 1)
    any_repository.update_message("s", "a", SessionMessage(saying("raw"), 0, redact_message=saying("redacted")))
    assert [message.to_message() for message in any_repository.list_messages("s", "a")] == [saying("redacted")]


def test_update_of_a_missing_message_is_an_error(any_repository: SessionRepository) -> None:
    fill(any_repository, 1)
    for session_id, agent_id, index in MISSING_MESSAGES:
        with pytest.raises(SessionException, match="does not exist"):
            any_repository.update_message(session_id, agent_id, new_message(index, "never"))
    assert texts(any_repository.list_messages("s", "a")) == ["0"]


def test_update_sets_the_time_of_creation_on_the_message(any_repository: SessionRepository) -> None:
    fill(any_repository)
    created = new_message(0)
    any_repository.create_message("s", "a", created)
    updated = new_message(0)
    updated.created_at = "of another time"
    any_repository.update_message("s", "a", updated)
    assert updated.created_at == created.created_at


WINDOWS: list[tuple[dict[str, Any], Sequence[int]]] = [
    ({}, range(12)),
    ({"limit": None, "offset": 0}, range(12)),
    ({"limit": 3}, range(3)),
    ({"limit": 100}, range(12)),
    ({"limit": HUGE}, range(12)),
    ({"limit": 0}, []),
    ({"offset": 9}, range(9, 12)),
    ({"offset": 12}, []),
    ({"offset": HUGE}, []),
    ({"limit": 2, "offset": 9}, [9, 10]),
    ({"limit": 2, "offset": 11}, [11]),
    ({"limit": 0, "offset": 12}, []),
]


def test_window_of_messages_is_listed_in_order(any_repository: SessionRepository) -> None:
    fill(any_repository, 12)
    for window, expected in WINDOWS:
        listed = any_repository.list_messages(session_id="s", agent_id="a", **window)
        assert [message.message_id for message in listed] == list(expected), window
        assert texts(listed) == [str(index) for index in expected], window


def test_messages_are_listed_as_they_are_read_one_by_one(any_repository: SessionRepository) -> None:
    fill(any_repository, 2)
    any_repository.update_message("s", "a", SessionMessage(saying("raw"), 1, redact_message=saying("redacted")))
    one_by_one = [any_repository.read_message("s", "a", index) for index in range(2)]
    assert any_repository.list_messages("s", "a") == one_by_one


def test_agent_without_messages_lists_none(any_repository: SessionRepository) -> None:
    fill(any_repository)
    assert any_repository.list_messages("s", "a") == []


def test_messages_of_a_missing_agent_are_an_error(any_repository: SessionRepository) -> None:
    fill(any_repository, 1)
    windows: list[dict[str, int]] = [{}, {"limit": 0}, {"offset": 5}]
    for (session_id, agent_id), window in itertools.product([("s", "missing"), ("missing", "a")], windows):
        with pytest.raises(SessionException):
            any_repository.list_messages(session_id, agent_id, **window)


# Multi-agents, on both.


def test_created_multi_agent_is_read_back(any_repository: SessionRepository) -> None:
    any_repository.create_session(new_session())
    state = {"type": "graph", "next": ["é", {"b": 1, "a": None}]}
    any_repository.create_multi_agent("s", Team("t", state))
    assert any_repository.read_multi_agent("s", "t") == state


@pytest.mark.parametrize("session_id", ["s", "missing"])
def test_missing_multi_agent_reads_as_none(any_repository: SessionRepository, session_id: str) -> None:
    any_repository.create_session(new_session())
    assert any_repository.read_multi_agent(session_id, "t") is None


def test_updated_multi_agent_is_read_back(any_repository: SessionRepository) -> None:
    any_repository.create_session(new_session())
    any_repository.create_multi_agent("s", Team("t", {"a": 1}))
    any_repository.create_multi_agent("s", Team("other", {"a": 1}))
    any_repository.update_multi_agent("s", Team("t", {"b": 2}))
    assert any_repository.read_multi_agent("s", "t") == {"b": 2}
    assert any_repository.read_multi_agent("s", "other") == {"a": 1}


@pytest.mark.parametrize("session_id", ["s", "missing"])
def test_update_of_a_missing_multi_agent_is_an_error(any_repository: SessionRepository, session_id: str) -> None:
    any_repository.create_session(new_session())
    with pytest.raises(SessionException, match="does not exist"):
        any_repository.update_multi_agent(session_id, Team("t", {}))
    assert any_repository.read_multi_agent(session_id, "t") is None


def test_agent_and_multi_agent_may_have_the_same_id(any_repository: SessionRepository) -> None:
    fill(any_repository)
    any_repository.create_multi_agent("s", Team("a", {"b": 2}))
    assert any_repository.read_multi_agent("s", "a") == {"b": 2}
    stored = any_repository.read_agent("s", "a")
    assert stored is not None
    assert stored.state == new_agent().state


# Signatures, on ours.


@pytest.mark.parametrize(
    "method", [name for name, member in vars(SessionRepository).items() if inspect.isfunction(member)]
)
def test_parameters_have_the_names_that_strands_calls_them_by(method: str) -> None:
    ours, strands = (
        inspect.signature(getattr(each, method)).parameters for each in (PostgresSessionRepository, SessionRepository)
    )
    # Ours may have more, which Strands does not pass.
    more = [name for name in ours if name not in strands]
    assert [name for name in ours if name in strands] == list(strands)
    assert [ours[name].kind for name in more] == [inspect.Parameter.KEYWORD_ONLY] * len(more)
    assert [ours[name].default for name in more] == [None] * len(more)


# Refused writes, on ours.


def test_existing_agent_is_not_created_again(repository: PostgresSessionRepository) -> None:
    fill(repository, 1)
    before = repository.read_agent("s", "a")
    with pytest.raises(SessionExistsError, match=r"agent 'a' in session 's'.*already exists"):
        repository.create_agent("s", new_agent(state="second"))
    assert repository.read_agent("s", "a") == before
    assert texts(repository.list_messages("s", "a")) == ["0"]


def test_existing_multi_agent_is_not_created_again(repository: PostgresSessionRepository) -> None:
    repository.create_session(new_session())
    repository.create_multi_agent("s", Team("t", {"a": 1}))
    with pytest.raises(SessionExistsError, match=r"multi-agent 't' in session 's'.*already exists"):
        repository.create_multi_agent("s", Team("t", {"a": 1}))
    assert repository.read_multi_agent("s", "t") == {"a": 1}


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda repository: repository.create_agent("missing", new_agent()), id="create_agent"),
        pytest.param(lambda repository: repository.update_agent("missing", new_agent()), id="update_agent"),
        pytest.param(lambda repository: repository.create_message("s", "missing", new_message(0)), id="create_message"),
        pytest.param(lambda repository: repository.update_message("s", "a", new_message(0)), id="update_message"),
        pytest.param(lambda repository: repository.list_messages("s", "missing"), id="list_messages"),
        pytest.param(
            lambda repository: repository.create_multi_agent("missing", Team("t", {})), id="create_multi_agent"
        ),
        pytest.param(lambda repository: repository.update_multi_agent("s", Team("t", {})), id="update_multi_agent"),
        pytest.param(lambda repository: repository.delete_session("missing"), id="delete_session"),
    ],
)
def test_what_needs_a_missing_thing_is_not_found(
    repository: PostgresSessionRepository, write: Callable[[PostgresSessionRepository], object]
) -> None:
    fill(repository)
    with pytest.raises(SessionNotFoundError, match="does not exist"):
        write(repository)


@pytest.mark.parametrize("text", ["1", "other"], ids=["equal content", "other content"])
def test_taken_index_is_a_conflict(repository: PostgresSessionRepository, text: str) -> None:
    fill(repository, 3)
    before = repository.list_messages("s", "a")
    with pytest.raises(SessionConflictError, match=r"message 1 of agent 'a' in session 's'.*already exists") as caught:
        repository.create_message("s", "a", new_message(1, text))
    assert (caught.value.session_id, caught.value.agent_id, caught.value.message_id) == ("s", "a", 1)
    assert repository.list_messages("s", "a") == before


@pytest.mark.parametrize(("stored", "index"), [(0, 1), (3, 4), (3, HUGE), (3, 2**63 - 1)])
def test_index_past_the_next_is_a_conflict(repository: PostgresSessionRepository, stored: int, index: int) -> None:
    fill(repository, stored)
    with pytest.raises(SessionConflictError, match=rf"message {index} .*the next index is {stored}") as caught:
        repository.create_message("s", "a", new_message(index))
    assert (caught.value.session_id, caught.value.agent_id, caught.value.message_id) == ("s", "a", index)
    assert texts(repository.list_messages("s", "a")) == [str(index) for index in range(stored)]


MESSAGE_INDEXES: dict[str, Call] = {
    "create": lambda repository, index: repository.create_message("s", "a", new_message(index)),
    "read": lambda repository, index: repository.read_message("s", "a", index),
    "update": lambda repository, index: repository.update_message("s", "a", new_message(index)),
}


@pytest.mark.parametrize("index", [True, -1, -HUGE, 1.0, "1", None], ids=repr)
@pytest.mark.parametrize("call", MESSAGE_INDEXES)
def test_index_must_be_an_integer_from_0_up(unconnected: PostgresSessionRepository, call: str, index: object) -> None:
    with pytest.raises(ValueError, match=r"^message_id must be "):
        MESSAGE_INDEXES[call](unconnected, index)


@pytest.mark.parametrize("value", [True, -1, -HUGE, 1.0, "1"], ids=repr)
@pytest.mark.parametrize("argument", ["limit", "offset"])
def test_window_must_be_of_integers_from_0_up(
    unconnected: PostgresSessionRepository, argument: str, value: object
) -> None:
    window: dict[str, Any] = {argument: value}
    with pytest.raises(ValueError, match=rf"^{argument} must be "):
        unconnected.list_messages("s", "a", **window)


# Ids, on ours.

SESSION_IDS: dict[str, Call] = {
    "create_session": lambda repository, id: repository.create_session(new_session(id)),
    "read_session": lambda repository, id: repository.read_session(id),
    "delete_session": lambda repository, id: repository.delete_session(id),
    "create_agent": lambda repository, id: repository.create_agent(id, new_agent()),
    "read_agent": lambda repository, id: repository.read_agent(id, "a"),
    "update_agent": lambda repository, id: repository.update_agent(id, new_agent()),
    "create_message": lambda repository, id: repository.create_message(id, "a", new_message(0)),
    "read_message": lambda repository, id: repository.read_message(id, "a", 0),
    "update_message": lambda repository, id: repository.update_message(id, "a", new_message(0)),
    "list_messages": lambda repository, id: repository.list_messages(id, "a"),
    "create_multi_agent": lambda repository, id: repository.create_multi_agent(id, Team("t", {})),
    "read_multi_agent": lambda repository, id: repository.read_multi_agent(id, "t"),
    "update_multi_agent": lambda repository, id: repository.update_multi_agent(id, Team("t", {})),
}
AGENT_IDS: dict[str, Call] = {
    "create_agent": lambda repository, id: repository.create_agent("s", new_agent(id)),
    "read_agent": lambda repository, id: repository.read_agent("s", id),
    "update_agent": lambda repository, id: repository.update_agent("s", new_agent(id)),
    "create_message": lambda repository, id: repository.create_message("s", id, new_message(0)),
    "read_message": lambda repository, id: repository.read_message("s", id, 0),
    "update_message": lambda repository, id: repository.update_message("s", id, new_message(0)),
    "list_messages": lambda repository, id: repository.list_messages("s", id),
}
MULTI_AGENT_IDS: dict[str, Call] = {
    "create_multi_agent": lambda repository, id: repository.create_multi_agent("s", Team(id, {})),
    "read_multi_agent": lambda repository, id: repository.read_multi_agent("s", id),
    "update_multi_agent": lambda repository, id: repository.update_multi_agent("s", Team(id, {})),
}


@pytest.mark.parametrize("method", SESSION_IDS)
def test_session_id_that_cannot_be_stored_is_refused(unconnected: PostgresSessionRepository, method: str) -> None:
    for id in REFUSED_IDS:
        with pytest.raises(ValueError, match=r"^session_id must "):
            SESSION_IDS[method](unconnected, id)


@pytest.mark.parametrize("method", AGENT_IDS)
def test_agent_id_that_cannot_be_stored_is_refused(unconnected: PostgresSessionRepository, method: str) -> None:
    for id in REFUSED_IDS:
        with pytest.raises(ValueError, match=r"^agent_id must "):
            AGENT_IDS[method](unconnected, id)


@pytest.mark.parametrize("method", MULTI_AGENT_IDS)
def test_multi_agent_id_that_cannot_be_stored_is_refused(unconnected: PostgresSessionRepository, method: str) -> None:
    for id in REFUSED_IDS:
        with pytest.raises(ValueError, match=r"^multi_agent_id must "):
            MULTI_AGENT_IDS[method](unconnected, id)


@pytest.mark.parametrize("id", ACCEPTED_IDS)
def test_id_of_1_to_255_characters_is_stored_as_it_is(repository: PostgresSessionRepository, id: str) -> None:
    session, agent, message = new_session(id), new_agent(id), new_message(0)
    repository.create_session(session)
    repository.create_agent(id, agent)
    repository.create_message(id, id, message)
    repository.create_multi_agent(id, Team(id, {"a": 1}))
    repository.update_agent(id, agent)
    repository.update_message(id, id, message)
    repository.update_multi_agent(id, Team(id, {"b": 2}))
    assert repository.read_session(id) == session
    assert repository.read_agent(id, id) == agent
    assert repository.list_messages(id, id) == [message]
    assert repository.read_multi_agent(id, id) == {"b": 2}


# Times, on ours.


def assert_now(connection: Connection, *times: str) -> None:
    """Check that these are the server's present time, as Strands writes times."""
    row = connection.execute("SELECT now()").fetchone()
    assert row is not None
    for each in times:
        time = datetime.fromisoformat(each)
        assert time.isoformat(timespec="microseconds") == each
        assert time.utcoffset() == timedelta(0)
        assert abs(row[0] - time) < timedelta(seconds=30)


def test_create_sets_the_servers_time_on_the_session(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    session = Session("s", SessionType.AGENT, created_at="once", updated_at="later")
    repository.create_session(session)
    assert session.created_at == session.updated_at
    assert_now(connection, session.created_at)


def test_create_sets_the_servers_time_on_the_agent(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    repository.create_session(new_session())
    agent = new_agent()
    agent.created_at, agent.updated_at = "once", "later"
    repository.create_agent("s", agent)
    assert agent.created_at == agent.updated_at
    assert_now(connection, agent.created_at)


def test_create_sets_the_servers_time_on_the_message(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository)
    message = SessionMessage(saying("hello"), 0, created_at="once", updated_at="later")
    repository.create_message("s", "a", message)
    assert message.created_at == message.updated_at
    assert_now(connection, message.created_at)


def test_update_sets_the_servers_times_on_the_agent(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    repository.create_session(new_session())
    created, updated = new_agent(), new_agent()
    repository.create_agent("s", created)
    connection.execute("UPDATE strands_agents SET created_at = '2001-02-03 04:05:06+00', updated_at = created_at")
    updated.created_at = updated.updated_at = "of another time"
    repository.update_agent("s", updated)
    assert updated.created_at == "2001-02-03T04:05:06.000000+00:00"
    assert_now(connection, updated.updated_at)
    assert repository.read_agent("s", "a") == updated


def test_update_sets_the_servers_times_on_the_message(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository, 1)
    connection.execute("UPDATE strands_messages SET created_at = '2001-02-03 04:05:06+00', updated_at = created_at")
    updated = SessionMessage(saying("other"), 0, created_at="once", updated_at="later")
    repository.update_message("s", "a", updated)
    assert updated.created_at == "2001-02-03T04:05:06.000000+00:00"
    assert_now(connection, updated.updated_at)
    assert repository.read_message("s", "a", 0) == updated


WRITERS: dict[str, Callable[[PostgresSessionRepository], object]] = {
    "create_agent": lambda repository: repository.create_agent("s", new_agent("b")),
    "update_agent": lambda repository: repository.update_agent("s", new_agent()),
    "create_message": lambda repository: repository.create_message("s", "a", new_message(1)),
    "update_message": lambda repository: repository.update_message("s", "a", new_message(0)),
    "create_multi_agent": lambda repository: repository.create_multi_agent("s", Team("u", {})),
    "update_multi_agent": lambda repository: repository.update_multi_agent("s", Team("t", {})),
}
READERS: dict[str, Callable[[PostgresSessionRepository], object]] = {
    "read_session": lambda repository: repository.read_session("s"),
    "read_agent": lambda repository: repository.read_agent("s", "a"),
    "read_message": lambda repository: repository.read_message("s", "a", 0),
    "list_messages": lambda repository: repository.list_messages("s", "a"),
    "read_multi_agent": lambda repository: repository.read_multi_agent("s", "t"),
}


def session_before_and_after(
    repository: PostgresSessionRepository,
    connection: Connection,
    call: Callable[[PostgresSessionRepository], object],
    *,
    idle: str,
) -> tuple[Session, Session]:
    """Return session "s" as it is after so much time without a write, and as a call then leaves it."""
    fill(repository, 1)
    repository.create_multi_agent("s", Team("t", {}))
    connection.execute(
        "UPDATE strands_sessions SET created_at = now() - interval '1 day', updated_at = now() - %s::interval", [idle]
    )
    before = repository.read_session("s")
    call(repository)
    after = repository.read_session("s")
    assert before is not None
    assert after is not None
    return before, after


@pytest.mark.parametrize("method", WRITERS)
def test_write_after_a_minute_says_that_the_session_is_active(
    repository: PostgresSessionRepository, connection: Connection, method: str
) -> None:
    before, after = session_before_and_after(repository, connection, WRITERS[method], idle="61 seconds")
    assert after.created_at == before.created_at
    assert_now(connection, after.updated_at)


@pytest.mark.parametrize("method", WRITERS)
def test_write_within_a_minute_leaves_the_session_alone(
    repository: PostgresSessionRepository, connection: Connection, method: str
) -> None:
    before, after = session_before_and_after(repository, connection, WRITERS[method], idle="30 seconds")
    assert after == before


@pytest.mark.parametrize("method", READERS)
def test_read_leaves_the_session_alone(
    repository: PostgresSessionRepository, connection: Connection, method: str
) -> None:
    before, after = session_before_and_after(repository, connection, READERS[method], idle="1 hour")
    assert after == before


def test_write_leaves_other_sessions_alone(repository: PostgresSessionRepository, connection: Connection) -> None:
    fill(repository, 1)
    fill(repository, 1, session_id="other")
    connection.execute("UPDATE strands_sessions SET updated_at = now() - interval '1 hour'")
    before = repository.read_session("other")
    repository.update_message("s", "a", new_message(0))
    assert repository.read_session("other") == before


# Tables, on ours.


def rows(connection: Connection, schema: str = "public", prefix: str = "strands_") -> dict[str, int]:
    """Count the rows of each table."""
    counted = {}
    for table in ("sessions", "agents", "messages", "multi_agents"):
        name = sql.Identifier(schema, prefix + table)
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(name)).fetchone()
        assert row is not None
        counted[table] = row[0]
    return counted


def test_delete_leaves_no_row(repository: PostgresSessionRepository, connection: Connection) -> None:
    fill(repository, 3, agent_id="a")
    fill(repository, 2, agent_id="b")
    repository.create_multi_agent("s", Team("t", {}))
    assert rows(connection) == {"sessions": 1, "agents": 2, "messages": 5, "multi_agents": 1}
    repository.delete_session("s")
    assert rows(connection) == {"sessions": 0, "agents": 0, "messages": 0, "multi_agents": 0}


@pytest.mark.parametrize(
    "place",
    [{"schema": "quux"}, {"table_prefix": "quux_"}, {"schema": "quux", "table_prefix": "corge_"}],
    ids=str,
)
def test_other_schemas_and_prefixes_are_not_seen(
    repository: PostgresSessionRepository, dsn: str, connection: Connection, place: dict[str, Any]
) -> None:
    with PostgresSessionRepository(dsn, **place) as elsewhere:
        elsewhere.ensure_schema()
        fill(repository, 2)
        repository.create_multi_agent("s", Team("t", {"a": 1}))
        assert elsewhere.read_session("s") is None
        assert elsewhere.read_multi_agent("s", "t") is None
        fill(elsewhere, 1)
        elsewhere.update_agent("s", new_agent(state="elsewhere"))
        elsewhere.delete_session("s")
    at = (place.get("schema", "public"), place.get("table_prefix", "strands_"))
    assert rows(connection, *at) == {"sessions": 0, "agents": 0, "messages": 0, "multi_agents": 0}
    assert rows(connection) == {"sessions": 1, "agents": 1, "messages": 2, "multi_agents": 1}
    stored = repository.read_agent("s", "a")
    assert stored is not None
    assert stored.state == new_agent().state


def test_every_schema_and_prefix_is_named_in_its_statements(
    repository: PostgresSessionRepository, dsn: str, connection: Connection
) -> None:
    """Without the default tables, none of the statements may work by finding those."""
    with PostgresSessionRepository(dsn, schema="quux", table_prefix="corge_") as elsewhere:
        elsewhere.ensure_schema()
        for table in ("messages", "multi_agents", "agents", "sessions", "migrations"):
            connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.Identifier(f"strands_{table}")))
        elsewhere.create_session(new_session())
        elsewhere.create_agent("s", new_agent())
        elsewhere.create_message("s", "a", new_message(0))
        elsewhere.create_multi_agent("s", Team("t", {}))
        for call in (*WRITERS.values(), *READERS.values()):
            call(elsewhere)
        elsewhere.delete_session("s")
        elsewhere.ensure_schema()


@pytest.mark.parametrize("secret", ["secret", "secret\0"], ids=["in jsonb", "in the exact text"])
def test_redaction_leaves_nothing_of_the_raw_text(
    repository: PostgresSessionRepository, connection: Connection, secret: str
) -> None:
    fill(repository)
    repository.create_message("s", "a", SessionMessage.from_message(saying(secret), 0))
    everything = "SELECT string_agg(m::text, '') FROM strands_messages AS m"
    before = connection.execute(everything).fetchone()
    assert before is not None
    assert "secret" in before[0]
    # As a session manager updates it if the messages have been copied since: the raw message, and what replaces it.
    repository.update_message("s", "a", SessionMessage(saying(secret), 0, redact_message=saying("redacted")))
    after = connection.execute(everything).fetchone()
    assert after is not None
    assert "secret" not in after[0]
    assert [message.to_message() for message in repository.list_messages("s", "a")] == [saying("redacted")]
