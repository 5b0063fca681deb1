"""The commands that list, show, copy and delete sessions, as a user calls them."""

import asyncio
import json
import re
import signal
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from typing import Any, cast

import pytest
from strands import Agent
from strands.multiagent import GraphBuilder
from strands.types.content import Message
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType, decode_bytes_values

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from strands_psycopg.cli import main, show
from strands_psycopg.cli.options import parse_duration, parse_time
from strands_psycopg.scripted_model import ScriptedModel
from support import processes
from support.agents import LOOK_UP, GuardedModel, build, look_up, manager_of, save_checkpoint
from support.multi_agents import Team
from support.storage import needs_storage
from support.tables import Connection, blocked, one, texts
from support.waiting import wait_until

Run = Callable[..., tuple[int, str, str]]

MAIN = "import sys; from strands_psycopg.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], dsn: str) -> Run:
    """Return a function that runs a command on the test's database and returns its exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--dsn", dsn])
        return code, *capsys.readouterr()

    return run


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that argparse refuses, and return the error."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def as_json(summary: Any) -> dict[str, Any]:
    """Return what is printed of a summary."""
    return {
        name: value.isoformat(timespec="microseconds") if isinstance(value, datetime) else value
        for name, value in vars(summary).items()
    }


def age(connection: Connection, session_id: str, span: str) -> None:
    connection.execute(
        "UPDATE strands_sessions SET updated_at = now() - %s::interval WHERE session_id = %s", [span, session_id]
    )


def fill(repository: PostgresSessionRepository, connection: Connection) -> None:
    """Store three sessions: two agents of one message each, a team, and nothing; from old to new."""
    for session_id in ("chat", "team", "empty"):
        repository.create_session(Session(session_id, SessionType.AGENT))
    for agent_id in ("a", "b"):
        repository.create_agent("chat", SessionAgent(agent_id, {}, {}))
        repository.create_message("chat", agent_id, SessionMessage({"role": "user", "content": [{"text": "hi"}]}, 0))
    repository.create_multi_agent("team", Team("m", {}))
    for session_id, time in [("chat", "2030-05-01 10:20:30"), ("team", "2030-05-01 11:00"), ("empty", "2030-05-02")]:
        connection.execute(
            "UPDATE strands_sessions SET updated_at = %s::timestamp AT TIME ZONE 'UTC' WHERE session_id = %s",
            [time, session_id],
        )


class BrokenModel(ScriptedModel):
    """Cannot be reached."""

    async def stream(self, *arguments: Any, **kwargs: Any) -> Any:
        raise ConnectionError("the model is away")
        yield


# sessions


def test_sessions_are_a_table(run: Run, repository: PostgresSessionRepository, connection: Connection) -> None:
    fill(repository, connection)
    assert run("sessions") == (
        0,
        "session  agents  messages  multi-agents  last activity\n"
        "empty         0         0             0  2030-05-02 00:00\n"
        "team          0         0             1  2030-05-01 11:00\n"
        "chat          2         2             0  2030-05-01 10:20\n",
        "",
    )


def test_no_sessions_are_an_empty_table(run: Run) -> None:
    assert run("sessions") == (0, "session  agents  messages  multi-agents  last activity\n", "")
    code, printed, _ = run("sessions", "--json")
    assert (code, json.loads(printed)) == (0, {"sessions": [], "next": None})


def test_page_prints_the_cursor_of_the_next_one(
    run: Run, repository: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository, connection)
    code, printed, hint = run("sessions", "--limit", "2")
    assert (code, [line.split()[0] for line in printed.splitlines()[1:]]) == (0, ["empty", "team"])
    assert hint.startswith("next page: --before ")
    code, printed, hint = run("sessions", "--limit", "2", *hint.split()[-2:])
    assert (code, [line.split()[0] for line in printed.splitlines()[1:]], hint) == (0, ["chat"], "")


def test_sessions_for_programs(run: Run, repository: PostgresSessionRepository, connection: Connection) -> None:
    fill(repository, connection)
    code, printed, errors = run("sessions", "--json", "--limit", "1", "--prefix", "ch")
    page = repository.list_sessions(prefix="ch")
    assert (code, errors) == (0, "")
    assert json.loads(printed) == {"sessions": [as_json(page.sessions[0])], "next": None}
    code, printed, _ = run("sessions", "--json", "--limit", "1")
    assert json.loads(printed)["next"] == repository.list_sessions(limit=1).next is not None


@pytest.mark.parametrize(
    ("since", "found"),
    [
        ("2030-05-01", ["empty", "team", "chat"]),
        ("2030-05-01T11:00", ["empty", "team"]),
        ("2030-05-01T11:00:01Z", ["empty"]),
        ("2030-05-01T12:20:30+02:00", ["empty", "team", "chat"]),
        ("2031-01-01", []),
        ("1h", ["empty", "team", "chat"]),
    ],
)
def test_only_sessions_that_were_active_since(
    run: Run, repository: PostgresSessionRepository, connection: Connection, since: str, found: list[str]
) -> None:
    fill(repository, connection)
    _, printed, errors = run("sessions", "--json", "--active-since", since)
    assert [session["session_id"] for session in json.loads(printed)["sessions"]] == found
    assert ("is in the future; times are in UTC" in errors) == (since == "2031-01-01")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--before", "x"], "before must be the cursor that an earlier page ended with"),
        (["--prefix", "x" * 256], "prefix must have 1 to 255 characters, not 256"),
    ],
)
def test_wrong_option_is_wrong_usage(run: Run, options: list[str], message: str) -> None:
    assert run("sessions", *options) == (2, "", f"strands-psycopg: error: {message}\n")


@pytest.mark.parametrize("text", ["yesterday", "", "30", "d", "1.d", "-1d", "1e3s", "2030-13-01", "99999999w"])
def test_wrong_time_is_wrong_usage(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert "argument --active-since: " in refuse(capsys, "sessions", f"--active-since={text}")


def test_time_that_is_too_long_ago_is_told_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--active-since: is too long ago" in refuse(capsys, "sessions", "--active-since", "900000d")
    assert "--active-since: is too long" in refuse(capsys, "sessions", "--active-since", "9999999999d")
    assert "--idle-for: is too long" in refuse(capsys, "purge", "--idle-for", "9" * 400 + "d")


def test_times_are_read() -> None:
    assert [parse_duration(text) for text in ("45s", "90m", "12h", "30d", "2w", "1.5h")] == [
        timedelta(seconds=45),
        timedelta(minutes=90),
        timedelta(hours=12),
        timedelta(days=30),
        timedelta(days=14),
        timedelta(minutes=90),
    ]
    assert parse_time("2030-05-01") == datetime(2030, 5, 1, tzinfo=timezone.utc)
    assert parse_time("2030-05-01T12:00+02:00") == datetime(2030, 5, 1, 10, tzinfo=timezone.utc)
    before = datetime.now(timezone.utc)
    assert before <= parse_time("7d") + timedelta(days=7) <= datetime.now(timezone.utc)


def test_ids_are_shown_escaped(run: Run, repository: PostgresSessionRepository) -> None:
    repository.create_session(Session("\x1b[31m\nred[bold]", SessionType.AGENT))
    assert "\n\\x1b[31m\\nred[bold]  " in run("sessions")[1]
    assert "session \\x1b[31m\\nred[bold]\n" in run("show", "\x1b[31m\nred[bold]")[1]


# show


def test_conversation_reads_well(run: Run, repository: PostgresSessionRepository, connection: Connection) -> None:
    agent = build(repository, replies=LOOK_UP, tools=[look_up])
    agent("How is the weather\nin Köln?\x1b[0m")
    connection.execute("UPDATE strands_messages SET created_at = timestamptz '2030-05-01 10:20:30.4+00'")
    connection.execute(
        "UPDATE strands_sessions SET created_at = '2030-05-01 10:00+00', updated_at = '2030-05-01 11:00+00'"
    )
    assert run("show", "s") == (
        0,
        """\
session s
created 2030-05-01 10:00:00 UTC, last active 2030-05-01 11:00:00 UTC; 1 agent, 4 messages, 0 multi-agents

agent default, 4 messages

0 user, 2030-05-01 10:20:30
  How is the weather
  in Köln?\\x1b[0m

1 assistant, 2030-05-01 10:20:30, 10 tokens in, 5 tokens out
  tool call look_up (tooluse_0)
    {"city": "Köln"}

2 user, 2030-05-01 10:20:30
  tool result, success (tooluse_0)
    Köln: 21 °C
    {"wind": -0.0, "a": 1e+16, "é": [1, 1.0, "\\ud83d"], "": null}

3 assistant, 2030-05-01 10:20:30, 10 tokens in, 5 tokens out
  It is warm.
""",
        "",
    )


def pruned(repository: PostgresSessionRepository) -> Agent:
    """Return an agent whose memory has a message that was not said, an edited one and one as it was said, of four."""
    agent = build(repository, replies=[["one"], ["two"]])
    agent("1")
    agent("2")
    agent.messages[:2] = [{"role": "user", "content": [{"text": "instead"}]}]
    agent.messages[1]["content"] = [{"text": "edited\x1b[0m"}]
    manager_of(agent).sync_agent(agent)
    return agent


def test_messages_in_memory_are_shown_with_what_the_log_lacks(run: Run, repository: PostgresSessionRepository) -> None:
    agent = pruned(repository)
    code, printed, errors = run("show", "s", "--window")
    assert (code, printed.splitlines()[3:], errors) == (
        0,
        """\
agent default, 4 messages

user, not in the log
  instead

2 user, differs from the log
  edited\\x1b[0m

3 assistant, 10 tokens in, 5 tokens out
  two
""".splitlines(),
        "",
    )
    shown = json.loads(run("show", "s", "--window", "--json")[1])
    summary = repository._tables.listing.read("s")
    assert summary is not None
    assert shown["session"] == as_json(summary) | {"updated_at": shown["session"]["updated_at"]}
    assert shown["agents"] == [
        {
            **as_json(repository.list_agents("s")[0]),
            "window": [
                {"message_id": None, "in_log": False, "message": agent.messages[0]},
                {"message_id": 2, "in_log": False, "message": agent.messages[1]},
                {"message_id": 3, "in_log": True, "message": agent.messages[2]},
            ],
        }
    ]
    assert "edited" not in run("show", "s")[1]


@pytest.mark.parametrize(("last", "held"), [(0, []), (1, [3]), (2, [2, 3]), (9, [None, 2, 3])])
def test_only_the_last_messages_in_memory(
    run: Run, repository: PostgresSessionRepository, last: int, held: list[int | None]
) -> None:
    pruned(repository)
    shown = json.loads(run("show", "s", "--window", "--json", "--last", str(last))[1])
    assert [message["message_id"] for message in shown["agents"][0]["window"]] == held


def test_summary_that_is_restored_with_the_end_of_the_log_is_in_memory(
    run: Run, repository: PostgresSessionRepository
) -> None:
    summary = {"role": "user", "content": [{"text": "Of earlier messages."}]}
    state = {"__name__": "SummarizingConversationManager", "removed_message_count": 1, "summary_message": summary}
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_agent("s", SessionAgent("a", {}, state))
    for index in range(2):
        repository.create_message("s", "a", SessionMessage({"role": "user", "content": [{"text": "hi"}]}, index))
    shown = json.loads(run("show", "s", "--window", "--json")[1])["agents"][0]["window"]
    assert [(each["message_id"], each["in_log"]) for each in shown] == [(None, False), (1, True)]
    assert shown[0]["message"] == summary


def test_redacted_message_in_memory_is_shown_redacted(run: Run, repository: PostgresSessionRepository) -> None:
    build(repository, model=GuardedModel([["No."]], "[removed]"))("secret")
    printed = run("show", "s", "--window")[1]
    assert "\n0 user\n  [removed]\n" in printed
    assert "secret" not in printed


def test_checkpoints_are_listed(run: Run, repository: PostgresSessionRepository, connection: Connection) -> None:
    agent = build(repository)
    snapshot_ids = []
    for number in range(2):
        agent(str(number))
        snapshot_ids.append(save_checkpoint(agent))
    build(repository, agent_id="other")
    connection.execute("UPDATE strands_checkpoints SET created_at = timestamptz '2030-05-01 10:20:30.4+00'")
    width = len(snapshot_ids[0])
    code, printed, errors = run("show", "s", "--checkpoints")
    assert (code, printed.splitlines()[3:], errors) == (
        0,
        [
            "agent default, 4 messages",
            "",
            f"{'checkpoint'.ljust(width)}  time                 messages",
            f"{snapshot_ids[0]}  2030-05-01 10:20:30         2",
            f"{snapshot_ids[1]}  2030-05-01 10:20:30         4",
            "",
            "agent other, 0 messages",
            "",
            "checkpoint  time  messages",
        ],
        "",
    )
    shown = json.loads(run("show", "s", "--checkpoints", "--json", "--agent", "default", "--last", "1")[1])
    assert shown["agents"] == [
        {
            **as_json(repository.list_agents("s")[0]),
            "checkpoints": [
                {"snapshot_id": snapshot_ids[1], "created_at": "2030-05-01T10:20:30.400000+00:00", "messages": 4}
            ],
        }
    ]


@pytest.mark.parametrize(
    "arguments", [["show", "s", "--window", "--checkpoints"], ["fork", "s", "t", "--until", "1", "--snapshot", "x"]]
)
def test_options_that_exclude_each_other_are_wrong_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert "not allowed with argument" in refuse(capsys, *arguments)


def test_redacted_message_is_shown_redacted(run: Run, repository: PostgresSessionRepository) -> None:
    build(repository, model=GuardedModel([["No."]], "[removed]"))("secret")
    repository.update_message(
        "s",
        "default",
        SessionMessage(
            {"role": "user", "content": [{"text": "secret"}]}, 0, {"role": "user", "content": [{"text": "[gone]"}]}
        ),
    )
    _, printed, _ = run("show", "s")
    assert ", redacted\n  [gone]\n" in printed
    _, as_json, _ = run("show", "s", "--json")
    messages = json.loads(as_json)["agents"][0]["messages"]
    assert [message["redacted"] for message in messages] == [True, False]
    assert "secret" not in printed + as_json


@needs_storage
def test_values_of_the_storage_are_shown_with_their_sizes(
    run: Run, repository: PostgresSessionRepository, connection: Connection
) -> None:
    build(repository)
    storage = repository.storage("s", expires_in=3600)
    asyncio.run(storage.write("expired", b"1"))
    connection.execute("UPDATE strands_session_storage SET expires_at = now()")
    asyncio.run(storage.write("context/a\x1b[31m", b"x" * 2000))
    asyncio.run(repository.storage("s").write("k", b""))

    code, printed, errors = run("show", "s")
    assert (code, errors) == (0, "")
    heading, empty, head, first, second = printed.splitlines()[-5:]
    assert (heading, empty, head.split()) == ("storage, 2 values", "", ["key", "size", "written", "expires"])
    assert re.fullmatch(r"context/a\\x1b\[31m  1.953 kB  (20[\d-]{8} [\d:]{8})  (20[\d-]{8} [\d:]{8})", first)
    assert re.fullmatch(r"k +0 bytes  20[\d-]{8} [\d:]{8}", second)

    values = json.loads(run("show", "s", "--json")[1])["values"]
    assert [(value["key"], value["size"], value["expires_at"] is None) for value in values] == [
        ("context/a\x1b[31m", 2000, False),
        ("k", 0, True),
    ]
    assert "storage" not in run("show", "s", "--agent", "default")[1]
    assert "values" not in json.loads(run("show", "s", "--json", "--agent", "default")[1])


def test_graphs_and_swarms_are_shown_with_their_nodes(
    run: Run, repository: PostgresSessionRepository, connection: Connection
) -> None:
    builder = GraphBuilder()
    for name, model in [("plan", ScriptedModel([["Two steps.\x1b[0m"]])), ("write", BrokenModel([]))]:
        builder.add_node(Agent(name=name, model=model, callback_handler=None), name)
    builder.add_edge("plan", "write")
    builder.set_graph_id("book")
    builder.set_max_node_executions(9)
    builder.set_session_manager(PostgresSessionManager("s", repository))
    with pytest.raises(Exception, match="the model is away"):
        builder.build()("a book")
    repository.create_multi_agent("s", Team("odd", {"node_results": {"n": 1}, "next_nodes_to_execute": [2]}))
    connection.execute("UPDATE strands_multi_agents SET updated_at = '2030-05-01 10:20:30.4+00'")

    code, printed, errors = run("show", "s")
    assert (code, errors) == (0, "")
    shown = re.sub(r"\d+ ms", "1 ms", printed).splitlines()
    assert "last active 2030-05-01 10:20:30 UTC" in shown[1]
    assert shown[3:] == [
        "graph book, failed, 2030-05-01 10:20:30",
        "  task",
        "    a book",
        "  node plan, completed, 1 ms, 10 tokens in, 5 tokens out",
        "    Two steps.\\x1b[0m",
        "  node write, failed, 1 ms, 0 tokens in, 0 tokens out",
        "    the model is away",
        "  next write",
        "",
        "multi-agent odd, no status, 2030-05-01 10:20:30",
        "  node n, no status",
        "  next 2",
    ]
    documents = json.loads(run("show", "s", "--json")[1])["multi_agents"]
    assert [document["multi_agent_id"] for document in documents] == ["book", "odd"]
    assert documents[0]["state"] == repository.read_multi_agent("s", "book")
    assert '\n  state {"node_results": {"n": 1}, "next_nodes_to_execute": [2]}\n' in run("show", "s", "--state")[1]


def test_states_are_shown_on_request(run: Run, repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    agent.state.set("city", "Rome")
    agent("hi")
    assert "Rome" not in run("show", "s")[1]
    printed = run("show", "s", "--state", "--window")[1]
    assert '\n  state {"city": "Rome"}\n  conversation manager state {' in printed
    stored = repository.read_agent("s", "default")
    assert stored is not None
    [shown] = json.loads(run("show", "s", "--state", "--json", "--agent", "default")[1])["agents"]
    assert shown["state"] == {"city": "Rome"}
    assert shown["conversation_manager_state"] == stored.conversation_manager_state
    assert shown["internal_state"] == stored._internal_state


def test_agents_are_shown_one_after_another_or_one_alone(
    run: Run, repository: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository, connection)

    def shown(*options: str) -> list[str]:
        return [line for line in run("show", "chat", *options)[1].splitlines() if line.startswith("agent")]

    assert shown() == ["agent a, 1 message", "agent b, 1 message"]
    assert shown("--agent", "b") == ["agent b, 1 message"]


@pytest.mark.parametrize("last", [0, 1, 3, 5, 100])
def test_only_the_last_messages(run: Run, repository: PostgresSessionRepository, last: int) -> None:
    agent = build(repository)
    for number in range(2):
        agent(str(number))
    _, printed, _ = run("show", "s", "--json", "--last", str(last))
    (shown,) = json.loads(printed)["agents"]
    assert [message["message_id"] for message in shown["messages"]] == list(range(4))[max(4 - last, 0) :]
    assert shown["messages"] != [] or last == 0


def test_show_reads_page_by_page(
    run: Run, repository: PostgresSessionRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = build(repository)
    for number in range(5):
        agent(str(number))
    asked: list[tuple[int | None, int]] = []
    list_messages = PostgresSessionRepository.list_messages

    def watched(self: Any, session_id: str, agent_id: str, limit: int | None = None, offset: int = 0) -> Any:
        asked.append((limit, offset))
        return list_messages(self, session_id, agent_id, limit, offset)

    monkeypatch.setattr(PostgresSessionRepository, "list_messages", watched)
    monkeypatch.setattr(show, "_PAGE_SIZE", 4)
    _, printed, _ = run("show", "s", "--json")
    assert [message["message_id"] for message in json.loads(printed)["agents"][0]["messages"]] == list(range(10))
    assert asked == [(4, 0), (4, 4), (4, 8), (4, 10)]


def test_conversation_for_programs_is_one_exact_document(run: Run, repository: PostgresSessionRepository) -> None:
    content: dict[str, Any] = {
        "role": "user",
        "content": [{"text": "\0\ud800é"}, {"image": {"format": "png", "source": {"bytes": b"\xff\0"}}}],
    }
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_multi_agent("s", Team("m", {}))
    for agent_id in ("a", "b", "none"):
        repository.create_agent("s", SessionAgent(agent_id, {}, {}))
    repository.create_message("s", "a", SessionMessage(cast(Message, content), 0))
    measured = {**content, "metadata": {"custom": {"x": float("nan")}}}
    repository.create_message("s", "b", SessionMessage(cast(Message, measured), 0))
    code, printed, errors = run("show", "s", "--json")
    document = json.loads(printed, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (code, errors) == (0, "")
    summary = repository._tables.listing.read("s")
    assert summary is not None
    assert document["session"] == as_json(summary) | {"updated_at": document["session"]["updated_at"]}
    agents = document["agents"]
    assert [(agent["agent_id"], len(agent["messages"])) for agent in agents] == [("a", 1), ("b", 1), ("none", 0)]
    assert decode_bytes_values(agents[0]["messages"][0]["message"]) == content
    assert agents[1]["messages"][0]["message"]["metadata"] == {"custom": {"x": None}}
    assert agents[0]["messages"][0].keys() == {"message_id", "created_at", "updated_at", "redacted", "message"}


def test_deep_message_is_shown(run: Run, repository: PostgresSessionRepository) -> None:
    deep: Any = 1
    for _ in range(600):
        deep = [deep]
    message: Any = {"role": "user", "content": [{"toolUse": {"name": "dig", "toolUseId": "t", "input": deep}}]}
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_agent("s", SessionAgent("a", {}, {}))
    repository.create_message("s", "a", SessionMessage(message, 0))
    assert f"    {'[' * 600}1{']' * 600}\n" in run("show", "s")[1]
    assert json.loads(run("show", "s", "--json")[1])["agents"][0]["messages"][0]["message"] == message


def test_session_of_nothing_is_shown(run: Run, repository: PostgresSessionRepository) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    code, printed, errors = run("show", "s")
    assert (code, len(printed.splitlines()), errors) == (0, 2, "")
    assert json.loads(run("show", "s", "--json")[1])["agents"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "x"], "showing session 'x': it does not exist"),
        (["show", "chat", "--agent", "x"], "showing session 'chat': it has no agent 'x'; its agents are 'a', 'b'"),
        (["show", "chats"], "showing session 'chats': it does not exist; did you mean 'chat'?"),
        (["show", "team", "--agent", "x"], "showing session 'team': it has no agent 'x'; it has no agents"),
        (["fork", "x", "y"], "forking session 'x' to 'y': session 'x' does not exist"),
        (
            ["fork", "chat", "team"],
            "forking session 'chat' to 'team': session 'team' already exists; choose another id",
        ),
        (
            ["fork", "chat", "y", "--snapshot", "01890a5d-ac96-774b-bcce-b302099a8057"],
            "forking session 'chat' to 'y': the session has no checkpoint 01890a5d-ac96-774b-bcce-b302099a8057",
        ),
        (["fork", "chat", "y", "--agent", "x"], "forking session 'chat' to 'y': the session has no agent 'x'"),
        (
            ["fork", "chat", "y", "--until", "1"],
            "session 'chat' has 2 agents; name the one whose conversation is to be truncated at 1 (agent_id)",
        ),
    ],
)
def test_what_does_not_exist_fails(
    run: Run, repository: PostgresSessionRepository, connection: Connection, arguments: list[str], message: str
) -> None:
    fill(repository, connection)
    assert run(*arguments) == (1, "", f"strands-psycopg: error: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", ""], "session_id must have 1 to 255 characters, not 0"),
        (["show", "s", "--last", "-1"], "--last must be 0 or more, not -1"),
        (["fork", "s", "t", "--until", "-1"], "until must be 0 or more, not -1"),
        (
            ["fork", "s", "t", "--snapshot", "x"],
            "'x' is not a snapshot id; list_snapshot_ids() or 'strands-psycopg show --checkpoints' lists them",
        ),
        (
            ["purge", "--idle-for", "0s"],
            "idle_for must be more than 0 seconds and at most 36,500 days, not 0:00:00",
        ),
        (["purge", "--idle-for", "1s", "--batch-size", "0"], "batch_size must be an integer from 1 to 10000, not 0"),
    ],
)
def test_wrong_value_is_wrong_usage(run: Run, arguments: list[str], message: str) -> None:
    assert run(*arguments) == (2, "", f"strands-psycopg: error: {message}\n")


def test_option_that_does_not_exist_and_number_that_is_none_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert refuse(capsys, "show", "s", "--windows").endswith(
        "unrecognized arguments: --windows; --help after the command lists its options"
    )
    assert refuse(capsys, "show", "s", "--last", "x").endswith("argument --last: must be a whole number, not 'x'")


@pytest.mark.parametrize("command", ["show", "fork", "purge"])
def test_missing_argument_is_wrong_usage(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert "required" in refuse(capsys, command)


# fork


def test_fork(run: Run, repository: PostgresSessionRepository, connection: Connection) -> None:
    fill(repository, connection)
    assert run("fork", "chat", "copy") == (0, "forked chat to copy: 2 agents, 2 messages\n", "")
    assert run("fork", "team", "team 2") == (0, "forked team to team 2: 0 agents, 0 messages, 1 multi-agent\n", "")
    assert run("fork", "chat", "a", "--agent", "a", "--until", "0") == (
        0,
        "forked chat to a: 1 agent, 0 messages\n",
        "",
    )
    assert run("fork", "chat", "all", "--agent", "b", "--until", "999") == (
        0,
        "forked chat to all: 1 agent, 1 message\n",
        "there are no more messages before 999, so all were copied\n",
    )
    code, printed, _ = run("fork", "chat", "b", "--agent", "b", "--json")
    summary = repository._tables.listing.read("b")
    assert summary is not None
    assert (code, json.loads(printed)) == (0, as_json(summary))
    assert texts(connection, "b", "b") == ["hi"]


def test_fork_of_a_checkpoint(run: Run, repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    agent("hi")
    snapshot_id = save_checkpoint(agent)
    agent("more")
    assert run("fork", "s", "then", "--snapshot", snapshot_id) == (0, "forked s to then: 1 agent, 2 messages\n", "")
    assert len(build(repository, "then").messages) == 2


# purge


def test_purge(run: Run, repository: PostgresSessionRepository, connection: Connection) -> None:
    fill(repository, connection)
    for session_id in ("chat", "team"):
        age(connection, session_id, "31 days")
    counts = "2 sessions with 2 agents, 2 messages and 1 multi-agent\n"
    assert run("purge", "--idle-for", "30d", "--dry-run") == (0, f"would delete {counts}", "")
    assert json.loads(run("purge", "--idle-for", "30d", "--dry-run", "--json")[1]) == {
        "sessions": 2,
        "agents": 2,
        "messages": 2,
        "multi_agents": 1,
        "dry_run": True,
    }
    assert run("purge", "--idle-for", "30d", "--batch-size", "1") == (0, f"deleted {counts}", "")
    code, printed, _ = run("purge", "--idle-for", "30d", "--json")
    assert (code, json.loads(printed)["sessions"], json.loads(printed)["dry_run"]) == (0, 0, False)
    assert one(connection, "SELECT string_agg(session_id, ',') FROM strands_sessions") == "empty"


def test_ctrl_c_in_a_purge_leaves_whole_sessions(
    dsn: str, repository: PostgresSessionRepository, connection: Connection, watcher: Connection
) -> None:
    fill(repository, connection)
    for session_id, span in (("chat", "32 days"), ("team", "31 days")):
        age(connection, session_id, span)
    with connection.transaction():
        # The purge waits for this lock, and deletes one session per batch.
        waiting = "SELECT pg_advisory_xact_lock(%s)"
        connection.execute(waiting, [repository._tables.retention._lock_key])
        process = processes.start(MAIN, "purge", "--idle-for", "30d", "--batch-size", "1", "--dsn", dsn)
        wait_until(lambda: blocked(watcher))
        process.signal(signal.SIGINT)
        assert process.finish()[:2] == (130, "")
    assert one(connection, "SELECT count(*) FROM strands_sessions") == 3
    assert texts(connection, "chat", "a") == ["hi"]


# On a terminal.


# Prints what a child prints to the terminal that is its own.
ON_A_TERMINAL = """
import os, pty, sys
from strands_psycopg.cli import main

child, terminal = pty.fork()
if child == 0:
    sys.exit(main(sys.argv[1:]))
try:
    while printed := os.read(terminal, 65536):
        os.write(1, printed)
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def on_a_terminal(*arguments: str) -> str:
    """Return what a command prints to a terminal, to stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "100")
        return processes.run(ON_A_TERMINAL, *arguments)


@pytest.mark.skipif(find_spec("rich") is None, reason="without the extra cli nothing is coloured")
def test_terminal_shows_colours_and_progress_but_no_codes_of_messages(
    dsn: str, repository: PostgresSessionRepository, connection: Connection
) -> None:
    build(repository)("\x1b]0;owned\x07[bold]")
    printed = on_a_terminal("show", "s", "--dsn", dsn)
    assert "\x1b[1;36msession s" in printed
    assert "  \\x1b]0;owned\\x07[bold]" in printed
    age(connection, "s", "2 days")
    assert "\x1b[1m" in on_a_terminal("sessions", "--dsn", dsn)
    printed = on_a_terminal("purge", "--idle-for", "1d", "--dsn", dsn)
    assert "purging" in printed
    assert "deleted 1 session with" in printed
