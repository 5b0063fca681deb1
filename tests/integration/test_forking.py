"""Forks: exact copies of sessions, whole, cut short or as of a checkpoint, from which agents go on."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from strands import Agent
from strands.agent.conversation_manager import (
    ConversationManager,
    NullConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.types._snapshot import ALL_SNAPSHOT_FIELDS
from strands.types.content import Message
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import (
    LeaseLostError,
    PostgresSessionRepository,
    SessionExistsError,
    SessionForkError,
    SessionNotFoundError,
    SessionSummary,
)
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import (
    LOOK_UP,
    Approval,
    GuardedModel,
    OverflowingModel,
    StatefulModel,
    build,
    dump,
    look_up,
    manager_of,
    restore_checkpoint,
    save_checkpoint,
)
from support.multi_agents import Team
from support.pausing import pause_before
from support.tables import blocked, one, texts
from support.waiting import wait_until
from support.writes import store_with_message

Connection = psycopg.Connection[Any]

# What JSONB cannot hold, for every column that has an exact one beside it.
ODD: dict[str, Any] = {"z": "\0", "a": [-0.0, 1e16, float("inf")], "é": {"b": 1, "a": 2}}


def rows(connection: Connection, table: str, session_id: str, *ignored: str) -> list[dict[str, Any]]:
    query = sql.SQL("SELECT to_jsonb(t) - %s::text[] FROM {} AS t WHERE session_id = %s ORDER BY 1")
    left_out = ["session_id", "write_id", *ignored]
    return [row for (row,) in connection.execute(query.format(sql.Identifier(table)), [left_out, session_id])]


def fill(repository: PostgresSessionRepository, agent_ids: tuple[str, ...] = ("a", "b")) -> None:
    """Store a session ``s`` whose agents have four odd messages each, the second of them redacted, and a team ``m``."""
    repository.create_session(Session("s", SessionType.AGENT))
    for agent_id in agent_ids:
        repository.create_agent("s", SessionAgent(agent_id, {"mine": ODD}, dict(ODD), {"model_state": {}, "odd": ODD}))
        for index in range(4):
            content: Any = {"role": "user", "content": [{"text": f"{agent_id} {index}"}, {"json": ODD}]}
            repository.create_message("s", agent_id, SessionMessage(content, index))
        redaction: Any = {"role": "user", "content": [{"text": "\0[removed]"}]}
        repository.update_message("s", agent_id, SessionMessage({"role": "user", "content": []}, 1, redaction))
    repository.create_multi_agent("s", Team("m", ODD))


def talk(repository: PostgresSessionRepository, turns: int, session_id: str = "s", **options: Any) -> Agent:
    agent = build(repository, session_id, [[f"answer {number}"] for number in range(turns)], **options)
    for number in range(turns):
        agent(f"prompt {number}")
    return agent


def conversation(messages: list[Message]) -> list[str]:
    return [next(iter(message["content"][0].values())) for message in messages]  # type: ignore[misc]


def test_fork_is_an_exact_copy(repository: PostgresSessionRepository, connection: Connection) -> None:
    fill(repository)
    before = {table: rows(connection, table, "s") for table in ("strands_agents", "strands_messages")}

    summary = repository.fork_session("s", "fork")

    session = repository.read_session("fork")
    assert session is not None
    stored_times = datetime.fromisoformat(session.created_at), datetime.fromisoformat(session.updated_at)
    assert summary == SessionSummary("fork", "AGENT", *stored_times, 2, 8, 1)
    assert rows(connection, "strands_messages", "fork") == rows(connection, "strands_messages", "s")
    for table in ("strands_agents", "strands_multi_agents"):
        times = ("created_at", "updated_at")
        assert rows(connection, table, "fork", *times) == rows(connection, table, "s", *times) != []
    assert {table: rows(connection, table, "s") for table in before} == before
    assert repository.read_multi_agent("fork", "m") is not None


def test_fork_was_created_when_it_was_made_and_its_messages_when_they_were(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository)
    for table in ("sessions", "agents", "messages", "multi_agents"):
        connection.execute(f"UPDATE strands_{table} SET created_at = '2020-01-01', updated_at = '2020-01-02'".encode())

    repository.fork_session("s", "fork")

    for table in ("sessions", "agents", "multi_agents"):
        query = (
            "SELECT min(created_at) = max(updated_at) AND min(created_at) > now() - interval '1 minute' "
            f"FROM strands_{table} WHERE session_id = 'fork'"
        )
        assert one(connection, query), table
    assert one(connection, "SELECT bool_and(created_at = '2020-01-01') FROM strands_messages WHERE session_id = 'fork'")


def test_fork_of_one_agent_leaves_the_others_out(repository: PostgresSessionRepository) -> None:
    fill(repository)
    summary = repository.fork_session("s", "fork", agent_id="b")
    assert (summary.agents, summary.messages, summary.multi_agents) == (1, 4, 0)
    assert [agent.agent_id for agent in repository.list_agents("fork")] == ["b"]


@pytest.mark.parametrize(("until", "left"), [(0, 0), (1, 1), (3, 3), (4, 4), (5, 4), (2**80, 4)])
def test_until_is_the_index_of_the_first_message_that_is_left_out(
    repository: PostgresSessionRepository, connection: Connection, until: int, left: int
) -> None:
    fill(repository)
    assert repository.fork_session("s", "fork", agent_id="a", until=until).messages == left
    assert rows(connection, "strands_messages", "fork") == [
        row for row in rows(connection, "strands_messages", "s") if row["agent_id"] == "a" and row["message_id"] < until
    ]


def test_until_without_an_agent_means_the_only_one(repository: PostgresSessionRepository) -> None:
    fill(repository, agent_ids=("a",))
    summary = repository.fork_session("s", "fork", until=2)
    assert (summary.agents, summary.messages, summary.multi_agents) == (1, 2, 1)


def test_until_without_an_agent_is_refused_where_there_are_several(repository: PostgresSessionRepository) -> None:
    fill(repository)
    with pytest.raises(SessionForkError, match="has 2 agents; name the one") as refused:
        repository.fork_session("s", "fork", until=2)
    assert (refused.value.session_id, refused.value.agent_id) == ("s", None)
    assert repository.read_session("fork") is None


def test_session_without_agents_can_be_forked(repository: PostgresSessionRepository) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    summary = repository.fork_session("s", "fork", until=3)
    assert (summary.agents, summary.messages) == (0, 0)


def test_fork_of_nothing_is_an_error(repository: PostgresSessionRepository) -> None:
    with pytest.raises(SessionNotFoundError, match="session 's' does not exist"):
        repository.fork_session("s", "fork")
    repository.create_session(Session("s", SessionType.AGENT))
    with pytest.raises(SessionNotFoundError, match="the session has no agent 'x'"):
        repository.fork_session("s", "fork", agent_id="x")
    assert repository.read_session("fork") is None


@pytest.mark.parametrize("taken", ["fork", "s"])
def test_fork_never_touches_a_session_that_exists(
    repository: PostgresSessionRepository, connection: Connection, taken: str
) -> None:
    fill(repository)
    repository.create_session(Session("fork", SessionType.AGENT))
    before = rows(connection, "strands_agents", taken)
    with pytest.raises(SessionExistsError, match=f"session '{taken}' already exists; choose another id"):
        repository.fork_session("s", taken)
    assert rows(connection, "strands_agents", taken) == before


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"new_session_id": ""}, "new_session_id"),
        ({"session_id": "\0"}, "session_id"),
        ({"agent_id": ""}, "agent_id"),
        ({"until": -1}, "until"),
        ({"until": True}, "until"),
        ({"until": 1.0}, "until"),
    ],
)
def test_wrong_argument_is_refused_by_name(
    repository: PostgresSessionRepository, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValueError, match=f"^{field} must"):
        repository.fork_session(**{"session_id": "s", "new_session_id": "fork", **arguments})


def test_fork_does_not_wait_for_a_writer_and_sees_nothing_of_its_half(
    repository: PostgresSessionRepository, connection: Connection, watcher: Connection
) -> None:
    fill(repository)
    with connection.transaction():
        connection.execute("SELECT FROM strands_agents FOR UPDATE")
        connection.execute("UPDATE strands_sessions SET updated_at = now()")
        connection.execute("DELETE FROM strands_messages WHERE message_id = 3")
        assert repository.fork_session("s", "fork").messages == 8
    assert one(watcher, "SELECT count(*) FROM strands_messages WHERE session_id = 's'") == 6


def test_fork_is_of_one_moment_though_its_session_goes_on(
    repository: PostgresSessionRepository, dsn: str, pool_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(repository, agent_ids=("a",))
    reached, go = pause_before(monkeypatch, repository._tables.forker._agents_copy._tables[1]._copy)
    with ThreadPoolExecutor() as threads, PostgresSessionRepository(dsn, **pool_options) as other:
        fork = threads.submit(repository.fork_session, "s", "fork")
        assert reached.wait(30)
        store_with_message(
            other, "s", SessionAgent("a", {"later": True}, {}), SessionMessage({"role": "user", "content": []}, 4)
        )
        other.delete_agent("s", "a")
        go.set()
        assert fork.result(30).messages == 4
    agent = repository.read_agent("fork", "a")
    assert agent is not None
    assert agent.state.keys() == {"mine"}


def test_of_two_forks_with_one_name_one_is_refused(
    repository: PostgresSessionRepository, connection: Connection, watcher: Connection
) -> None:
    fill(repository)
    outcomes: list[object] = []

    def fork() -> None:
        try:
            outcomes.append(repository.fork_session("s", "fork").messages)
        except SessionExistsError as error:
            outcomes.append(type(error))

    with connection.transaction():
        connection.execute(
            "INSERT INTO strands_sessions (session_id, session_type, write_id, created_at, updated_at) "
            "VALUES ('fork', 'AGENT', gen_random_uuid(), now(), now())"
        )
        thread = threading.Thread(target=fork)
        thread.start()
        wait_until(lambda: blocked(watcher))
    thread.join(30)
    assert outcomes == [SessionExistsError]


def test_repeat_after_a_lost_answer_changes_nothing_in_the_fork(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository, agent_ids=("a",))
    write_id = uuid4()
    forker = repository._tables.forker
    forker.fork("s", "fork", write_id=write_id)
    repository.create_message("s", "a", SessionMessage({"role": "user", "content": []}, 4))
    repository.create_message("fork", "a", SessionMessage({"role": "user", "content": [{"text": "mine"}]}, 4))
    before = rows(connection, "strands_messages", "fork")
    assert forker.fork("s", "fork", write_id=write_id).messages == 5
    assert rows(connection, "strands_messages", "fork") == before


def test_fork_under_a_lost_lease_is_refused(repository: PostgresSessionRepository, connection: Connection) -> None:
    fill(repository)
    with repository.lease("fork"):
        repository.fork_session("s", "fork")
    repository.delete_session("fork")
    with repository.lease("fork"):
        connection.execute("UPDATE strands_leases SET term = gen_random_uuid()")
        with pytest.raises(LeaseLostError):
            repository.fork_session("s", "fork")
    assert repository.read_session("fork") is None


def test_leased_session_can_be_forked(
    repository: PostgresSessionRepository, dsn: str, pool_options: dict[str, Any]
) -> None:
    fill(repository)
    with PostgresSessionRepository(dsn, **pool_options) as other, other.lease("s"):
        assert repository.fork_session("s", "fork").agents == 2


# Agents that go on from a fork.


def test_fork_goes_on_and_the_original_too(repository: PostgresSessionRepository, connection: Connection) -> None:
    original = talk(repository, 2, state={"mood": "good"})
    repository.fork_session("s", "fork")

    fork = build(repository, "fork", [["other"]])
    assert dump(fork) == dump(original)
    fork("else")
    original("more")

    assert texts(connection, "fork")[4:] == ["else", "other"]
    assert texts(connection)[4:] == ["more", "answer 1"]
    assert dump(build(repository, "fork")) == dump(fork)
    assert dump(build(repository)) == dump(original)


def test_edit_and_resend(repository: PostgresSessionRepository, connection: Connection) -> None:
    talk(repository, 3, state={"mood": "good"})
    repository.fork_session("s", "fork", until=2)
    fork = build(repository, "fork", [["other"]])
    fork("edited")
    assert conversation(fork.messages) == ["prompt 0", "answer 0", "edited", "other"]
    assert fork.state.get("mood") == "good"
    assert texts(connection, "fork") == conversation(fork.messages)


def test_try_again_from_a_prompt(repository: PostgresSessionRepository, connection: Connection) -> None:
    talk(repository, 3)
    repository.fork_session("s", "fork", until=3)
    fork = build(repository, "fork", [["other"]])
    fork()
    assert texts(connection, "fork") == ["prompt 0", "answer 0", "prompt 1", "other"]


def test_cut_before_a_tools_result_has_the_tool_called_again(repository: PostgresSessionRepository) -> None:
    agent = build(repository, replies=LOOK_UP, tools=[look_up])
    agent("How is the weather in Köln?")
    repository.fork_session("s", "fork", until=2)
    fork = build(repository, "fork", [["Warm."]], tools=[look_up])
    fork()
    assert fork.state.get("asked") == ["Köln", "Köln"]
    assert [list(message["content"][0]) for message in fork.messages] == [
        ["text"],
        ["toolUse"],
        ["toolResult"],
        ["text"],
    ]


def test_redaction_goes_along(repository: PostgresSessionRepository) -> None:
    agent = build(repository, model=GuardedModel([["No."]], "[removed]"))
    agent("secret")
    repository.fork_session("s", "fork")
    assert dump(build(repository, "fork")) == dump(agent)
    assert "secret" not in dump(build(repository, "fork"))


def sliding(window_size: int = 4) -> dict[str, Any]:
    return {"conversation_manager": SlidingWindowConversationManager(window_size=window_size)}


@pytest.mark.parametrize(
    ("until", "restored"),
    [
        (20, ["prompt 8", "answer 8", "prompt 9", "answer 9"]),
        (19, ["prompt 7", "answer 7", "prompt 8", "answer 8", "prompt 9"]),
        (10, ["prompt 3", "answer 3", "prompt 4", "answer 4"]),
        (9, ["prompt 2", "answer 2", "prompt 3", "answer 3", "prompt 4"]),
        (4, ["prompt 0", "answer 0", "prompt 1", "answer 1"]),
        (3, ["prompt 0", "answer 0", "prompt 1"]),
        (0, []),
    ],
)
def test_window_is_moved_back_before_the_cut(
    repository: PostgresSessionRepository, connection: Connection, until: int, restored: list[str]
) -> None:
    talk(repository, 10, **sliding())
    assert len(build(repository, **sliding()).messages) == 4

    repository.fork_session("s", "fork", until=until)

    fork = build(repository, "fork", [["other"]], **sliding())
    assert conversation(fork.messages) == restored
    fork("else") if until % 2 == 0 else fork()
    assert conversation(fork.messages)[-1] == "other"
    assert len(fork.messages) <= 4
    assert texts(connection, "fork")[:until] == texts(connection)[:until]
    assert texts(connection, "fork")[-1] == "other"
    assert dump(build(repository, "fork", **sliding())) == dump(fork)


def test_window_does_not_begin_with_a_tools_result(repository: PostgresSessionRepository) -> None:
    replies = [*LOOK_UP[:1], *LOOK_UP[1:]] * 3 + [["done"]]
    agent = build(repository, replies=replies, tools=[look_up], **sliding(6))
    for number in range(4):
        agent(f"prompt {number}")
    # Turns of four messages, the last of two: the window holds the last six.
    assert len(agent.messages) == 6

    repository.fork_session("s", "fork", until=8)

    fork = build(repository, "fork", tools=[look_up], **sliding(6))
    assert conversation(fork.messages)[0] == "prompt 0"
    assert len(fork.messages) == 8


def test_manager_that_keeps_nothing_has_nothing_before_the_cut(repository: PostgresSessionRepository) -> None:
    talk(repository, 3, **sliding(0))
    repository.fork_session("s", "fork", until=4)
    assert build(repository, "fork", **sliding(0)).messages == []


def summarized(repository: PostgresSessionRepository) -> Agent:
    """Return an agent whose first three messages of eight are in a summary."""
    manager = SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)
    replies = [["one"], ["two"], ["three"], ["four"]]
    agent = build(repository, conversation_manager=manager, model=OverflowingModel(replies, overflows={3}))
    for number in range(1, 5):
        agent(str(number))
    assert agent.conversation_manager.removed_message_count == 3
    return agent


def summarizing() -> dict[str, Any]:
    return {"conversation_manager": SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)}


def test_summary_stays_where_it_ends_before_the_cut(repository: PostgresSessionRepository) -> None:
    agent = summarized(repository)
    repository.fork_session("s", "whole")
    assert dump(build(repository, "whole", **summarizing())) == dump(agent)
    for until in (3, 5):
        repository.fork_session("s", f"until {until}", until=until)
        fork = build(repository, f"until {until}", [["other"]], **summarizing())
        assert fork.messages == agent.messages[: 1 + until - 3]
        fork("else")
        assert dump(build(repository, f"until {until}", **summarizing())) == dump(fork)


def test_summary_that_reaches_past_the_cut_is_left_out(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    summarized(repository)
    repository.fork_session("s", "fork", until=2)

    fork = build(repository, "fork", [["other"]], **summarizing())
    assert conversation(fork.messages) == ["1", "one"]
    assert fork.conversation_manager.get_state()["summary_message"] is None
    fork("else")
    assert texts(connection, "fork") == ["1", "one", "else", "other"]
    assert dump(build(repository, "fork", **summarizing())) == dump(fork)
    # What the summary told of later messages is nowhere in the fork.
    assert 'summary_message": null' in one(
        connection, "SELECT conversation_manager_state::text FROM strands_agents WHERE session_id = 'fork'"
    )


def test_fork_whose_summary_was_left_out_holds_all_that_remains(repository: PostgresSessionRepository) -> None:
    manager = SummarizingConversationManager(summary_ratio=0.8, preserve_recent_messages=2)
    agent = build(repository, conversation_manager=manager, model=OverflowingModel([["ok"]], overflows={7}))
    for number in range(8):
        agent(str(number))
    assert len(agent.messages) == 5
    repository.fork_session("s", "fork", until=10)
    assert len(build(repository, "fork", **summarizing()).messages) == 10


def test_fork_whose_summary_was_left_out_summarizes_again(repository: PostgresSessionRepository) -> None:
    agent = summarized(repository)
    for number in range(5, 10):
        agent(str(number))
    repository.fork_session("s", "fork", until=2)
    fork = build(repository, "fork", model=OverflowingModel([["again"]], overflows={2}), **summarizing())
    for number in range(3):
        fork(f"new {number}")
    assert fork.conversation_manager.get_state()["summary_message"] is not None
    assert dump(build(repository, "fork", **summarizing())) == dump(fork)


def test_manager_that_keeps_everything_needs_no_change(repository: PostgresSessionRepository) -> None:
    talk(repository, 3, conversation_manager=NullConversationManager())
    repository.fork_session("s", "fork", until=3)
    fork = build(repository, "fork", conversation_manager=NullConversationManager())
    assert conversation(fork.messages) == ["prompt 0", "answer 0", "prompt 1"]


class Archive(SlidingWindowConversationManager):
    """Drops messages as a sliding window, and keeps more about them."""

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "archived_until": self.removed_message_count}


def test_manager_of_an_unknown_kind_is_cut_only_behind_what_it_put_aside(repository: PostgresSessionRepository) -> None:
    agent = talk(repository, 4, conversation_manager=Archive(window_size=4))
    assert agent.conversation_manager.removed_message_count == 4
    with pytest.raises(SessionForkError, match=r"removed 4 messages from memory, .* truncate at 4 or later") as refused:
        repository.fork_session("s", "fork", until=3)
    assert (refused.value.session_id, refused.value.agent_id) == ("s", "default")
    assert repository.read_session("fork") is None

    repository.fork_session("s", "fork", until=6)
    fork = build(repository, "fork", conversation_manager=Archive(window_size=4))
    assert conversation(fork.messages) == ["prompt 2", "answer 2"]


def interrupted(repository: PostgresSessionRepository) -> tuple[Agent, str]:
    agent = build(repository, replies=LOOK_UP, tools=[look_up], hooks=[Approval()])
    result = agent("How is the weather in Köln?")
    assert result.stop_reason == "interrupt"
    assert result.interrupts is not None
    return agent, result.interrupts[0].id


def test_pending_interrupt_is_answered_in_the_fork_too(repository: PostgresSessionRepository) -> None:
    agent, interrupt_id = interrupted(repository)
    repository.fork_session("s", "fork")
    fork = build(repository, "fork", [["It is warm."]], tools=[look_up], hooks=[Approval()])
    assert dump(fork) == dump(agent)
    answer: Any = [{"interruptResponse": {"interruptId": interrupt_id, "response": "yes"}}]
    assert fork(answer).stop_reason == "end_turn"
    assert fork.state.get("asked") == ["Köln"]


def test_pending_interrupt_after_the_cut_is_dropped(repository: PostgresSessionRepository) -> None:
    interrupted(repository)
    repository.fork_session("s", "fork", until=1)
    fork = build(repository, "fork", [["I do not know."]], tools=[look_up], hooks=[Approval()])
    assert fork().stop_reason == "end_turn"
    assert fork.state.get("asked") is None
    assert conversation(fork.messages) == ["How is the weather in Köln?", "I do not know."]


def test_conversation_on_the_providers_side_is_forked_whole_or_not_at_all(
    repository: PostgresSessionRepository,
) -> None:
    def agent(session_id: str) -> Agent:
        return build(repository, session_id, model=StatefulModel([["ok"]]))

    agent("s")("hello")
    with pytest.raises(SessionForkError, match="its model's provider stores the conversation"):
        repository.fork_session("s", "fork", until=1)

    repository.fork_session("s", "whole")
    assert agent("whole")._model_state == {"response_id": "response-1"}
    repository.fork_session("s", "empty", until=0)
    assert agent("empty")._model_state == {}


def test_fork_can_be_forked(repository: PostgresSessionRepository, connection: Connection) -> None:
    talk(repository, 10, **sliding())
    for number, until in enumerate([15, 10, 5]):
        repository.fork_session(["s", "0", "1"][number], str(number), until=until)
        build(repository, str(number), model=ScriptedModel([["other"]]), **sliding())()
    assert texts(connection, "2") == [*texts(connection)[:5], "other"]


# What an agent holds in memory, where that is not the end of its log, and checkpoints.


PINS = hasattr(SlidingWindowConversationManager(), "pin_first")

MANAGERS: dict[str, Callable[[], ConversationManager]] = {
    "null": NullConversationManager,
    "sliding": lambda: SlidingWindowConversationManager(window_size=4),
    "summarizing": lambda: SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2),
}
if PINS:
    MANAGERS |= {
        "sliding with pins": lambda: SlidingWindowConversationManager(window_size=4, pin_first=1),
        "summarizing with pins": lambda: SummarizingConversationManager(
            summary_ratio=0.5, preserve_recent_messages=2, pin_first=1
        ),
    }

needs_pins = pytest.mark.skipif(not PINS, reason="this version of Strands pins no messages")


class Moment(NamedTuple):
    """A checkpoint, what the agent was then, and how many messages had been said."""

    snapshot_id: str
    agent: str
    said: int


def checkpoints(agent: Agent) -> list[str]:
    return asyncio.run(manager_of(agent).list_snapshot_ids(agent))


def unannounced(text: str) -> Message:
    return {"role": "user", "content": [{"text": text}]}


def edit(agent: Agent, text: str) -> None:
    """Edit the last message in memory."""
    agent.messages[-1]["content"] = [{"text": text}]


def lived(repository: PostgresSessionRepository, kind: str) -> tuple[Agent, list[Moment]]:
    """Return an agent whose messages were reduced and edited, and its checkpoints: of a plain window and of others."""
    overflows = set() if kind == "null" else {4, 10}
    model = OverflowingModel([[f"answer {number}"] for number in range(20)], overflows)
    agent = build(repository, model=model, conversation_manager=MANAGERS[kind]())
    moments: list[Moment] = []

    def turns(*numbers: int) -> None:
        for number in numbers:
            agent(f"prompt {number}")
            agent.state.set("turn", number)

    def moment() -> None:
        moments.append(Moment(save_checkpoint(agent), dump(agent), said))

    turns(0, 1)
    said = 4
    moment()
    turns(2, 3, 4)
    said = 10
    edit(agent, "edited")
    moment()
    agent.messages.insert(1, unannounced("inserted"))
    turns(5)
    said = 12
    moment()
    turns(6, 7, 8)
    edit(agent, "edited again")
    manager_of(agent).sync_agent(agent)
    return agent, moments


@pytest.mark.parametrize("kind", MANAGERS)
def test_fork_holds_what_its_agent_holds(
    repository: PostgresSessionRepository, connection: Connection, kind: str
) -> None:
    agent, moments = lived(repository, kind)

    repository.fork_session("s", "fork")

    for table in ("strands_messages", "strands_message_variants", "strands_checkpoints"):
        assert rows(connection, table, "fork") == rows(connection, table, "s") != []
    fork = build(repository, "fork", conversation_manager=MANAGERS[kind]())
    assert dump(fork) == dump(agent)
    for snapshot_id, then, _ in moments:
        restore_checkpoint(fork, snapshot_id)
        assert dump(fork) == then
    fork("else")
    assert dump(build(repository, "fork", conversation_manager=MANAGERS[kind]())) == dump(fork)
    assert dump(build(repository, conversation_manager=MANAGERS[kind]())) == dump(agent)


@pytest.mark.parametrize("kind", MANAGERS)
def test_fork_of_a_checkpoint_is_the_agent_of_that_moment(
    repository: PostgresSessionRepository, connection: Connection, kind: str
) -> None:
    agent, moments = lived(repository, kind)
    for number, (snapshot_id, then, said) in enumerate(moments):
        name = f"fork {number}"
        summary = repository.fork_session("s", name, snapshot_id=snapshot_id)

        assert (summary.agents, summary.messages) == (1, said)
        assert rows(connection, "strands_messages", name) == [
            row for row in rows(connection, "strands_messages", "s") if row["message_id"] < said
        ]
        window = one(connection, "SELECT memory_window FROM strands_agents WHERE session_id = %s", name)
        assert (window is None) is (number == 0)
        fork = build(repository, name, conversation_manager=MANAGERS[kind]())
        assert dump(fork) == then
        assert checkpoints(fork) == [each.snapshot_id for each in moments[: number + 1]]
        for earlier in moments[: number + 1]:
            restore_checkpoint(fork, earlier.snapshot_id)
            assert dump(fork) == earlier.agent
        for _ in range(3):
            fork("else")
            assert dump(build(repository, name, conversation_manager=MANAGERS[kind]())) == dump(fork)
    assert dump(build(repository, conversation_manager=MANAGERS[kind]())) == dump(agent)


@pytest.mark.parametrize("kind", MANAGERS)
def test_fork_of_a_checkpoint_has_nothing_of_later(
    repository: PostgresSessionRepository, connection: Connection, kind: str
) -> None:
    agent, (_, moment, _) = lived(repository, kind)
    agent.state.set("later", "later")
    agent("later")
    edit(agent, "edited later")
    save_checkpoint(agent)

    repository.fork_session("s", "fork", snapshot_id=moment.snapshot_id)

    for table in ("strands_agents", "strands_messages", "strands_message_variants", "strands_checkpoints"):
        assert "later" in str(rows(connection, table, "s"))
        assert "later" not in str(rows(connection, table, "fork"))


def test_later_checkpoint_of_the_same_messages_is_left_out(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = talk(repository, 1)
    then = save_checkpoint(agent)
    edit(agent, "edited")
    save_checkpoint(agent)
    repository.fork_session("s", "fork", snapshot_id=then)
    assert checkpoints(build(repository, "fork")) == [then]
    assert rows(connection, "strands_message_variants", "fork") == []


@pytest.mark.parametrize("kind", MANAGERS)
def test_checkpoints_before_the_cut_go_along(
    repository: PostgresSessionRepository, connection: Connection, kind: str
) -> None:
    _, moments = lived(repository, kind)
    for until, count in [(3, 0), (4, 1), (9, 1), (10, 2), (13, 3)]:
        name = f"fork {until}"
        repository.fork_session("s", name, until=until)

        fork = build(repository, name, conversation_manager=MANAGERS[kind]())
        assert checkpoints(fork) == [each.snapshot_id for each in moments[:count]]
        unused = """
            SELECT count(*) FROM strands_message_variants AS v WHERE v.session_id = %s AND NOT EXISTS (
                SELECT FROM strands_checkpoints AS c
                WHERE c.session_id = v.session_id AND v.variant_id = ANY(c.variant_ids)
            )
        """
        assert one(connection, unused, name) == 0
        for each in moments[:count]:
            restore_checkpoint(fork, each.snapshot_id)
            assert dump(fork) == each.agent


@pytest.mark.parametrize("kind", MANAGERS)
def test_cut_conversation_is_the_end_of_what_was_said(
    repository: PostgresSessionRepository, connection: Connection, kind: str
) -> None:
    lived(repository, kind)
    for until in (1, 2, 5, 8, 9, 12, 15, 16, 17):
        repository.fork_session("s", f"fork {until}", until=until)
        assert (
            one(connection, "SELECT memory_window FROM strands_agents WHERE session_id = %s", f"fork {until}") is None
        )
        fork = build(repository, f"fork {until}", conversation_manager=MANAGERS[kind]())
        held = conversation(fork.messages)
        summary = fork.conversation_manager.get_state().get("summary_message")
        said = held[1:] if summary else held
        assert held != []
        assert said == texts(connection)[until - len(said) : until]
        fork("else") if until % 2 == 0 else fork()
        assert dump(build(repository, f"fork {until}", conversation_manager=MANAGERS[kind]())) == dump(fork)


def test_as_many_messages_are_held_before_the_cut_as_were_held(repository: PostgresSessionRepository) -> None:
    agent = talk(repository, 5, conversation_manager=NullConversationManager())
    agent.messages.clear()
    agent.messages.append(unannounced("start"))
    agent("prompt 5")
    assert len(agent.messages) == 3

    repository.fork_session("s", "fork", until=9)
    fork = build(repository, "fork", conversation_manager=NullConversationManager())
    assert conversation(fork.messages) == ["prompt 3", "answer 3", "prompt 4"]


def test_edits_in_memory_are_left_out_before_a_cut(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = talk(repository, 3)
    agent.messages[0]["content"] = [{"text": "edited"}]
    manager_of(agent).sync_agent(agent)
    repository.fork_session("s", "fork", until=4)
    assert conversation(build(repository, "fork").messages) == ["prompt 0", "answer 0", "prompt 1", "answer 1"]
    assert rows(connection, "strands_message_variants", "fork") == []


@needs_pins
def test_pinned_head_is_pinned_again_where_the_fork_begins_with_it(repository: PostgresSessionRepository) -> None:
    def pinning() -> ConversationManager:
        return SlidingWindowConversationManager(window_size=4, pin_first=1)

    talk(repository, 10, conversation_manager=pinning())

    for until, pinned in [(4, ["prompt 0"]), (10, [])]:
        repository.fork_session("s", f"fork {until}", until=until)
        fork = build(repository, f"fork {until}", conversation_manager=pinning())
        for _ in range(3):
            fork("else")
        assert conversation(fork.messages) == [*pinned, "else", "ok", "else", "ok"]


@needs_pins
def test_no_other_messages_are_pinned_than_were_at_the_checkpoint(repository: PostgresSessionRepository) -> None:
    def pinning() -> ConversationManager:
        return SlidingWindowConversationManager(window_size=4, pin_first=1)

    agent = talk(repository, 4, conversation_manager=pinning())
    del agent.messages[0]
    repository.fork_session("s", "fork", snapshot_id=save_checkpoint(agent))

    fork = build(repository, "fork", [["answer"]], conversation_manager=pinning())
    for number in range(3):
        fork(f"else {number}")
    assert conversation(fork.messages) == ["else 1", "answer", "else 2", "answer"]


def test_agent_without_a_conversation_manager_holds_the_end_too(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository)
    connection.execute("""UPDATE strands_agents SET memory_window = '{"items": [], "next": 2}'""")
    repository.fork_session("s", "fork", agent_id="a", until=3)
    window = one(connection, "SELECT memory_window FROM strands_agents WHERE session_id = 'fork'")
    assert window == {"items": [], "next": 1}


@needs_pins
def test_summary_behind_pinned_messages_ends_where_memory_goes_on(repository: PostgresSessionRepository) -> None:
    manager = SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2, pin_first=2)
    model = OverflowingModel([["ok"]], overflows={4})
    agent = build(repository, model=model, conversation_manager=manager)
    for number in range(6):
        agent(f"prompt {number}")
    # Of the first four messages two are pinned, and two summarized.
    assert manager.removed_message_count == 2
    assert conversation(agent.messages)[3:5] == ["prompt 2", "ok"]

    repository.fork_session("s", "fork", until=6)
    fork = build(repository, "fork", **summarizing())
    assert fork.messages == agent.messages[2:5]

    repository.fork_session("s", "short", until=3)
    assert conversation(build(repository, "short", **summarizing()).messages) == ["prompt 0", "ok", "prompt 1"]


def test_summary_that_memory_has_no_more_is_left_out(repository: PostgresSessionRepository) -> None:
    agent = summarized(repository)
    agent.messages[:3] = [unannounced("instead")]
    manager_of(agent).sync_agent(agent)
    repository.fork_session("s", "fork", until=7)
    fork = build(repository, "fork", **summarizing())
    assert conversation(fork.messages) == ["2", "two", "3", "three", "4"]
    assert fork.conversation_manager.get_state()["summary_message"] is None


def test_summary_that_memory_did_not_have_at_a_checkpoint_stays_out(repository: PostgresSessionRepository) -> None:
    agent = summarized(repository)
    del agent.messages[0]
    then = save_checkpoint(agent)
    repository.fork_session("s", "fork", snapshot_id=then)
    assert dump(build(repository, "fork", **summarizing())) == dump(agent)


def test_manager_of_an_unknown_kind_is_cut_only_behind_what_memory_has_no_more(
    repository: PostgresSessionRepository,
) -> None:
    agent = talk(repository, 4, conversation_manager=Archive(window_size=4))
    agent.messages[0]["content"] = [{"text": "edited"}]
    del agent.messages[1]
    manager_of(agent).sync_agent(agent)

    with pytest.raises(SessionForkError, match="truncate at 6 or later"):
        repository.fork_session("s", "fork", until=5)
    repository.fork_session("s", "fork", until=7)
    fork = build(repository, "fork", conversation_manager=Archive(window_size=4))
    assert conversation(fork.messages) == ["prompt 3"]


def test_state_in_a_fork_of_a_checkpoint_is_that_of_the_checkpoint(repository: PostgresSessionRepository) -> None:
    agent = talk(repository, 1, state={"mood": "good", "odd": ODD["a"]})
    then = save_checkpoint(agent)
    agent.state.set("mood", "bad")
    agent("more")
    repository.fork_session("s", "fork", snapshot_id=then)
    assert build(repository, "fork").state.get() == {"mood": "good", "odd": ODD["a"]}


def test_interrupt_that_was_pending_at_a_checkpoint_is_answered_in_its_fork(
    repository: PostgresSessionRepository,
) -> None:
    agent, interrupt_id = interrupted(repository)
    then = save_checkpoint(agent)
    answer: Any = [{"interruptResponse": {"interruptId": interrupt_id, "response": "no"}}]
    agent(answer)

    repository.fork_session("s", "fork", snapshot_id=then)

    fork = build(repository, "fork", [["It is warm."]], tools=[look_up], hooks=[Approval()])
    answer[0]["interruptResponse"]["response"] = "yes"
    assert fork(answer).stop_reason == "end_turn"
    assert fork.state.get("asked") == ["Köln"]


@pytest.mark.skipif("model_state" not in ALL_SNAPSHOT_FIELDS, reason="this version of Strands snapshots no model state")
def test_conversation_on_the_providers_side_goes_on_from_the_checkpoint(repository: PostgresSessionRepository) -> None:
    agent = build(repository, model=StatefulModel([["ok"]]))
    agent("hello")
    then = save_checkpoint(agent)
    agent("more")
    repository.fork_session("s", "fork", snapshot_id=then)
    assert build(repository, "fork", model=StatefulModel([["ok"]]))._model_state == {"response_id": "response-1"}


def test_what_was_redacted_after_a_checkpoint_is_redacted_in_its_fork(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = talk(repository, 1)
    agent.messages.append(unannounced("unannounced"))
    then = save_checkpoint(agent)
    agent.messages[0] = cast(Message, {**agent.messages[0], "content": [{"text": "[removed]"}]})
    manager_of(agent).redact_latest_message(agent.messages[0], agent)

    repository.fork_session("s", "fork", snapshot_id=then)

    fork = build(repository, "fork")
    assert conversation(fork.messages) == ["[removed]", "answer 0", "unannounced"]
    for table in ("strands_agents", "strands_messages", "strands_message_variants", "strands_checkpoints"):
        assert "prompt 0" not in str(rows(connection, table, "fork"))


def test_fork_of_a_checkpoint_has_only_its_agent(repository: PostgresSessionRepository) -> None:
    fill(repository)
    agent = build(repository, agent_id="c")
    agent("hello")
    then = save_checkpoint(agent)
    summary = repository.fork_session("s", "fork", snapshot_id=then)
    assert (summary.agents, summary.messages, summary.multi_agents) == (1, 2, 0)
    repository.fork_session("s", "named", agent_id="c", snapshot_id=then)
    assert (
        dump(build(repository, "fork", agent_id="c")) == dump(build(repository, "named", agent_id="c")) == dump(agent)
    )


def test_fork_of_a_checkpoint_that_does_not_exist_is_an_error(repository: PostgresSessionRepository) -> None:
    fill(repository)
    agent = build(repository, agent_id="c")
    then = save_checkpoint(agent)
    other = str(UUID(int=UUID(then).int + 1))
    with pytest.raises(SessionNotFoundError, match=f"the session has no checkpoint {other}"):
        repository.fork_session("s", "fork", snapshot_id=other)
    with pytest.raises(SessionNotFoundError, match=f"agent 'a' has no checkpoint {then}"):
        repository.fork_session("s", "fork", agent_id="a", snapshot_id=then)
    assert repository.read_session("fork") is None


@pytest.mark.parametrize(
    "wrong", ["", "latest", "58dbae1f-a824-4af6-943b-e1e427442108", "01890A5D-AC96-774B-BCCE-B302099A8057", 7]
)
def test_what_is_no_id_of_a_checkpoint_is_refused(repository: PostgresSessionRepository, wrong: Any) -> None:
    with pytest.raises(ValueError, match="is not a snapshot id"):
        repository.fork_session("s", "fork", snapshot_id=wrong)


def test_checkpoint_and_index_exclude_each_other(repository: PostgresSessionRepository) -> None:
    with pytest.raises(ValueError, match="until and snapshot_id are mutually exclusive"):
        repository.fork_session("s", "fork", until=1, snapshot_id="01890a5d-ac96-774b-bcce-b302099a8057")


def test_fork_of_a_checkpoint_is_made_once(repository: PostgresSessionRepository, connection: Connection) -> None:
    agent = talk(repository, 1)
    then = UUID(save_checkpoint(agent))
    write_id = uuid4()
    forker = repository._tables.forker
    forker.fork("s", "fork", snapshot_id=then, write_id=write_id)
    before = {table: rows(connection, table, "fork") for table in ("strands_agents", "strands_checkpoints")}
    assert forker.fork("s", "fork", snapshot_id=then, write_id=write_id).messages == 2
    assert {table: rows(connection, table, "fork") for table in before} == before
