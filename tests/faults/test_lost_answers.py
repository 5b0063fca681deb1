"""Connections that are lost with a statement, or with its answer: the client cannot know which, and repeats it."""

from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from strands import tool
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import PostgresSessionRepository, PurgeResult, SessionNotFoundError
from support.agents import build, dump
from support.positions import each_position
from support.proxy import Proxy
from support.retries import Retries
from support.tables import TABLES, texts
from support.writes import WRITES, Write, agent, message, rows

Connection = psycopg.Connection[Any]

lost = pytest.mark.parametrize("lost", ["request", "answer"])

REPLIES = ([{"name": "double", "input": {"number": 2}, "toolUseId": "use"}], ["It is 4."])


@tool
def double(number: int) -> str:
    """Double a number."""
    return str(2 * number)


def lose(proxy: Proxy, lost: str, *, after: int = 0) -> None:
    if lost == "request":
        proxy.lose_requests(after=after)
    else:
        proxy.lose_answers(after=after)


@lost
@pytest.mark.parametrize("write", WRITES, ids=str)
def test_write_is_stored_once(write: Write, lost: str, own_dsn: str, look: Connection, retries: Retries) -> None:
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        for session_id in ("calm", "faulty"):
            write.prepare(repository, session_id)
        write.act(repository, "calm")
        assert retries() == []
        lose(proxy, lost)

        write.act(repository, "faulty")

        assert len(retries()) == 1
        assert rows(look, "faulty") == rows(look, "calm")
        write.follow(repository, "faulty")
        write.follow(repository, "calm")
        assert rows(look, "faulty") == rows(look, "calm")


@lost
def test_write_whose_repeat_is_lost_too_is_stored_once(
    lost: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        repository.create_session(Session("s", SessionType.AGENT))
        repository.create_agent("s", agent("new"))
        repository.create_message("s", "a", message(0, "first"))
        if lost == "request":
            proxy.lose_requests(3)
        else:
            proxy.lose_answers(3)

        repository.create_message("s", "a", message(1, "now"))

    assert [retry.attempt for retry in retries()] == [1, 2, 3]
    assert texts(look, agent_id="a") == ["first", "now"]


@lost
def test_agent_and_its_first_messages_are_stored_once_whichever_answer_is_lost(
    lost: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    def create(session_id: str) -> None:
        repository.create_session(Session(session_id, SessionType.AGENT))
        after = positions[session_id]
        if after is not None:
            lose(proxy, lost, after=after)
        messages = [message(index, f"text {index}") for index in range(3)]
        repository._tables.agents.create(session_id, agent("new"), messages, write_id=uuid4())

    # The agent's statement, that of its messages, and the transaction's beginning and end.
    positions = {"calm": None, **{f"faulty {number}": number for number in range(4)}}
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        for number, session_id in enumerate(positions):
            create(session_id)
            assert len(retries()) == number
            assert rows(look, session_id) == rows(look, "calm")
    assert len(rows(look, "calm")["strands_messages"]) == 3


@lost
def test_turn_comes_out_the_same_whichever_answer_is_lost(
    lost: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        calm = build(repository, "calm", REPLIES, tools=[double])
        calm("What is 2 times 2?")
        for position in each_position(retries):
            session_id = f"faulty {position}"
            lose(proxy, lost, after=position)
            faulty = build(repository, session_id, REPLIES, tools=[double])
            faulty("What is 2 times 2?")
            assert rows(look, session_id) == rows(look, "calm")
            assert dump(build(repository, session_id)) == dump(faulty)
    # To build the agent takes four statements, to store its four messages and three states another five.
    assert position >= 8


@lost
def test_fork_is_made_once_whichever_answer_is_lost(
    lost: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    options: dict[str, Any] = {"kwargs": {"prepare_threshold": None}}
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn, **options) as repository:
        build(repository, "s", REPLIES, tools=[double])("What is 2 times 2?")
        calm = repository.fork_session("s", "calm", until=3)
        for position in each_position(retries):
            session_id = f"faulty {position}"
            lose(proxy, lost, after=position)
            summary = repository.fork_session("s", session_id, until=3)
            assert (summary.agents, summary.messages) == (calm.agents, calm.messages) == (1, 3)
            assert rows(look, session_id) == rows(look, "calm")
    # Those of the transaction, which reads what there is, writes a copy, and reads that.
    assert position > 10


@lost
def test_purge_leaves_nothing_half_done_whichever_answer_is_lost(
    lost: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    options: dict[str, Any] = {"kwargs": {"prepare_threshold": None}}
    counted: dict[int, PurgeResult] = {}
    last = 0
    with (
        PostgresSessionRepository(own_dsn) as undisturbed,
        Proxy(own_dsn) as proxy,
        PostgresSessionRepository(proxy.dsn, **options) as repository,
    ):
        for position in each_position(retries):
            build(undisturbed, "s", REPLIES, tools=[double])("What is 2 times 2?")
            look.execute("UPDATE strands_sessions SET updated_at = '2020-01-01'")
            lose(proxy, lost, after=position)
            before = len(retries())
            counted[position] = repository.purge_sessions(idle_for=1)
            if len(retries()) > before:
                last = max(last, position)
            assert all(row == [] for row in rows(look, "s").values())
    assert last >= 10
    # That of the commit was waited for before that of the leases of the dead.
    commit = counted.pop(last - 1)
    whole = PurgeResult(1, 1, 4, 0)
    assert commit == (PurgeResult() if lost == "answer" else whole)
    assert set(counted.values()) == {whole}


@pytest.mark.parametrize("table", ["strands_sessions", "strands_agents", "strands_messages"])
def test_times_are_those_of_the_row_that_the_lost_answer_told_of(
    table: str, own_dsn: str, look: Connection, retries: Retries
) -> None:
    session, new, first = Session("s", SessionType.AGENT), agent("new"), message(0, "first")
    given: dict[str, Session | SessionAgent | SessionMessage] = dict(zip(TABLES, (session, new, first), strict=False))
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        # Each of them is one statement.
        proxy.lose_answers(after=list(given).index(table))
        repository.create_session(session)
        repository.create_agent("s", new)
        repository.create_message("s", "a", first)

    assert len(retries()) == 1
    times = look.execute(sql.SQL("SELECT created_at, updated_at FROM {}").format(sql.Identifier(table))).fetchall()
    assert [[time.isoformat() for time in row] for row in times] == [[given[table].created_at, given[table].updated_at]]


def test_delete_that_finds_nothing_at_first_is_refused_and_at_a_repeat_is_not(own_dsn: str, retries: Retries) -> None:
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        with pytest.raises(SessionNotFoundError):
            repository.delete_session("s")
        proxy.lose_requests()
        repository.delete_session("s")
    assert len(retries()) == 1
