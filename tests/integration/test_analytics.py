"""The views of sql/NNNN_analytics.sql, on transcripts whose figures are known and on messages of any shape."""

import json
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from strands_psycopg import PostgresSessionRepository
from support import agents
from support.scale import scale
from support.transcripts import assistant, call, result, store, store_json, usage, user

Connection = psycopg.Connection[Any]

VIEWS = (
    "strands_message_figures",
    "strands_content_blocks",
    "strands_tool_calls",
    "strands_session_figures",
    "strands_daily_figures",
)

TALK = [
    ("2025-11-03 23:50:00", user("What is 20 + 22, and who says so?")),
    (
        "2025-11-03 23:50:02",
        assistant(
            "Let me see.",
            call("t1", "add", {"a": 20, "b": 22}),
            call("t2", "search", "who"),
            usage=usage(100, 20, cacheReadInputTokens=7, cacheWriteInputTokens=3),
            metrics={"latencyMs": 1200, "timeToFirstByteMs": 300},
        ),
    ),
    (
        "2025-11-03 23:50:05.5",
        user(result("t1", {"json": 42}, {"text": "42"}), result("t2", {"text": "offline"}, status="error")),
    ),
    ("2025-11-03 23:50:07", assistant("42.", usage=usage(150, 30), metrics={"latencyMs": 800})),
    ("2025-11-04 00:10:00", user("And twice that?", {"image": {"format": "png"}})),
    ("2025-11-04 00:10:03", assistant(call("t1", "add", {"a": 42, "b": 42}), usage=usage(200, 10))),
]


def query(connection: Connection, columns: str, view: str, order: str = "1, 2, 3, 4") -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT {columns} FROM strands_{view} ORDER BY {order}".encode()).fetchall()


@pytest.fixture
def talk(repository: PostgresSessionRepository, connection: Connection) -> None:
    store(repository, connection, "s", TALK)


def test_messages_have_their_figures(talk: None, connection: Connection) -> None:
    columns = "message_id, role, begins_turn, tool_calls, tool_failures, input_tokens, output_tokens"
    assert query(connection, columns, "message_figures", "1") == [
        (0, "user", True, 0, 0, None, None),
        (1, "assistant", False, 2, 0, 100, 20),
        (2, "user", False, 0, 1, None, None),
        (3, "assistant", False, 0, 0, 150, 30),
        (4, "user", True, 0, 0, None, None),
        (5, "assistant", False, 1, 0, 200, 10),
    ]
    columns = "session_id, agent_id, message_id, cache_read_tokens, cache_write_tokens, latency_ms, first_byte_ms"
    assert query(connection, columns, "message_figures")[1] == ("s", "a", 1, 7, 3, 1200, 300)


def test_content_blocks_have_kind_text_and_tool(talk: None, connection: Connection) -> None:
    columns = "message_id, block_index, role, kind, text, tool_name, tool_use_id, tool_status"
    assert query(connection, columns, "content_blocks", "1, 2") == [
        (0, 0, "user", "text", "What is 20 + 22, and who says so?", None, None, None),
        (1, 0, "assistant", "text", "Let me see.", None, None, None),
        (1, 1, "assistant", "toolUse", None, "add", "t1", None),
        (1, 2, "assistant", "toolUse", None, "search", "t2", None),
        (2, 0, "user", "toolResult", "42", None, "t1", "success"),
        (2, 1, "user", "toolResult", "offline", None, "t2", "error"),
        (3, 0, "assistant", "text", "42.", None, None, None),
        (4, 0, "user", "text", "And twice that?", None, None, None),
        (4, 1, "user", "image", None, None, None, None),
        (5, 0, "assistant", "toolUse", None, "add", "t1", None),
    ]
    assert query(connection, "session_id, agent_id, block, redacted", "content_blocks", "1, message_id")[0] == (
        "s",
        "a",
        {"text": "What is 20 + 22, and who says so?"},
        False,
    )


def test_tool_calls_have_input_status_and_time(talk: None, connection: Connection) -> None:
    columns = "message_id, block_index, tool_use_id, tool_name, input, status, result, result_message_id, seconds"
    assert query(connection, columns, "tool_calls", "1, 2") == [
        (1, 1, "t1", "add", {"a": 20, "b": 22}, "success", [{"json": 42}, {"text": "42"}], 2, 3.5),
        (1, 2, "t2", "search", "who", "error", [{"text": "offline"}], 2, 3.5),
        (5, 0, "t1", "add", {"a": 42, "b": 42}, None, None, None, None),
    ]
    times = "to_char(called_at AT TIME ZONE 'UTC', 'DD HH24:MI:SS'), to_char(result_at AT TIME ZONE 'UTC', 'SS.MS')"
    assert query(connection, times, "tool_calls", "message_id, block_index")[0] == ("03 23:50:02", "05.500")


def test_sessions_have_their_sums(talk: None, repository: PostgresSessionRepository, connection: Connection) -> None:
    store(repository, connection, "empty", [])
    store(repository, connection, "short", [("2025-11-04 09:00", user("Hello"))])
    columns = (
        "session_id, turns, messages, tool_calls, tool_failures, input_tokens, output_tokens, cache_read_tokens, "
        "cache_write_tokens"
    )
    assert query(connection, columns, "session_figures", "1") == [
        ("empty", 0, 0, 0, 0, 0, 0, 0, 0),
        ("s", 2, 6, 3, 1, 450, 60, 7, 3),
        ("short", 1, 1, 0, 0, 0, 0, 0, 0),
    ]
    times = "first_active_at = '2025-11-03 23:50:00Z', last_active_at = '2025-11-04 00:10:03Z'"
    assert connection.execute(f"SELECT {times} FROM strands_session_figures WHERE session_id = 's'").fetchall() == [
        (True, True)
    ]


def test_days_are_those_of_utc(talk: None, repository: PostgresSessionRepository, connection: Connection) -> None:
    store(repository, connection, "short", [("2025-11-04 09:00", user("Hello"))])
    connection.execute("SET TimeZone = 'Asia/Tokyo'")
    columns = "day::text, sessions, turns, messages, tool_calls, tool_failures, input_tokens, output_tokens"
    assert query(connection, columns, "daily_figures", "1") == [
        ("2025-11-03", 1, 1, 4, 2, 1, 250, 50),
        ("2025-11-04", 2, 2, 3, 1, 0, 200, 10),
    ]


def test_what_a_guardrail_took_out_is_in_no_view(connection: Connection) -> None:
    raw = assistant("secret", call("secret", "secret"), usage=usage(10, 5))
    redaction = json.dumps({"role": "assistant", "content": [{"text": "[removed]"}]})
    store_json(connection, [json.dumps(user("hello")), json.dumps(raw)], [None, redaction])

    assert query(connection, "message_id, kind, text, redacted", "content_blocks") == [
        (0, "text", "hello", False),
        (1, "text", "[removed]", True),
    ]
    assert query(connection, "message_id, tool_calls, input_tokens, redacted", "message_figures") == [
        (0, 0, None, False),
        (1, 0, 10, True),
    ]
    assert query(connection, "1, 2, 3, 4", "tool_calls") == []
    for view in VIEWS:
        assert "secret" not in str(connection.execute(f"SELECT t::text FROM {view} AS t".encode()).fetchall())


def test_an_agents_own_session_is_counted(repository: PostgresSessionRepository, connection: Connection) -> None:
    agent = agents.build(repository, replies=[*agents.LOOK_UP, *agents.LOOK_UP], tools=[agents.look_up])
    agent("1")
    agent("2")

    columns = "turns, messages, tool_calls, tool_failures, input_tokens, output_tokens"
    assert query(connection, columns, "session_figures") == [(2, 8, 2, 0, 40, 20)]
    assert query(connection, "message_id, tool_name, input, status, seconds >= 0", "tool_calls") == [
        (1, "look_up", {"city": "Köln"}, "success", True),
        (5, "look_up", {"city": "Köln"}, "success", True),
    ]


@pytest.mark.parametrize(
    ("block", "kind", "text"),
    [
        ({"reasoningContent": {"reasoningText": {"text": "hm", "signature": "x"}}}, "reasoningContent", "hm"),
        ({"reasoningContent": {"redactedContent": {}}}, "reasoningContent", None),
        (
            {"citationsContent": {"citations": [], "content": [{"text": "so"}, {}]}},
            "citationsContent",
            "so",
        ),
        ({"guardContent": {"text": {"text": "check"}}}, "guardContent", "check"),
        ({"document": {"format": "pdf", "name": "a"}}, "document", None),
        ({"cachePoint": {"type": "default"}}, "cachePoint", None),
        ({"audio": {"format": "mp3"}}, "audio", None),
        ({"newIn2030": 1}, "newIn2030", None),
        ({"text": "a", "toolUse": {}}, "toolUse", "a"),
        ({"text": ""}, "text", ""),
        ({"text": None}, "text", None),
        ({"text": ["a"]}, "text", '["a"]'),
        ({}, "other", None),
        ("bare", "text", "bare"),
        ("toolUse", "text", "toolUse"),
        (["toolUse"], "other", None),
        (7, "other", None),
        (None, "other", None),
    ],
    ids=str,
)
def test_every_kind_of_block_is_a_row(connection: Connection, block: Any, kind: str, text: str | None) -> None:
    store_json(connection, [json.dumps({"role": "assistant", "content": [block]})])
    assert query(connection, "block_index, kind, text, block", "content_blocks") == [(0, kind, text, block)]


@pytest.mark.parametrize(
    ("content", "blocks"),
    [(None, []), ("hello", ["hello"]), ({"text": "hello"}, []), (7, []), ([], []), ([["a"]], [["a"]])],
    ids=str,
)
def test_content_that_is_no_list_has_no_blocks_unless_it_is_a_text(
    connection: Connection, content: Any, blocks: list[Any]
) -> None:
    store_json(connection, [json.dumps({"role": "user", "content": content})])
    assert query(connection, "block, 2, 3, 4", "content_blocks") == [(block, 2, 3, 4) for block in blocks]
    assert query(connection, "begins_turn, 2, 3, 4", "message_figures") == [(True, 2, 3, 4)]


@pytest.mark.parametrize(
    ("number", "tokens"),
    [
        *(("0", 0), ("12", 12), ("12.0", 12), ("1e3", 1000), ("1000000000000", 10**12), ("0.4", 0), ("1e-16000", 0)),
        *((each, None) for each in ("-1", "1000000000001", "1e131071", '"12"', "true", "null", "[12]", "{}")),
    ],
)
def test_tokens_are_numbers_within_reason(connection: Connection, number: str, tokens: int | None) -> None:
    names = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
    counts = ", ".join(f'"{name}": {number}' for name in names)
    metrics = f'{{"latencyMs": {number}, "timeToFirstByteMs": {number}}}'
    message = f'{{"role": "assistant", "content": [], "metadata": {{"usage": {{{counts}}}, "metrics": {metrics}}}}}'
    store_json(connection, [message] * 2)

    columns = "input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, latency_ms, first_byte_ms"
    assert query(connection, columns, "message_figures") == [(tokens,) * 6] * 2
    columns = "input_tokens, output_tokens, cache_read_tokens, cache_write_tokens"
    assert query(connection, columns, "session_figures") == [((tokens or 0) * 2,) * 4]
    assert query(connection, columns, "daily_figures") == [((tokens or 0) * 2,) * 4]


def test_a_call_has_the_first_result_that_follows_it(connection: Connection) -> None:
    messages = [
        user(result("early")),
        assistant(call("early"), call("twice"), call("again"), call("again")),
        user(result("twice", status="error"), result("twice"), result("again")),
        assistant(call("open"), {"toolUse": {"name": "no id"}}, {"toolUse": None}),
        user({"toolResult": {"status": "success"}}, {"toolResult": None}, result("other")),
        assistant(call("open")),
        user({"toolResult": {"toolUseId": "open"}}),
    ]
    store_json(connection, [json.dumps(message) for message in messages])

    columns = "message_id, block_index, tool_name, tool_use_id, status, result_message_id"
    assert query(connection, columns, "tool_calls", "1, 2") == [
        (1, 0, "add", "early", None, None),
        (1, 1, "add", "twice", "error", 2),
        (1, 2, "add", "again", None, None),
        (1, 3, "add", "again", "success", 2),
        (3, 0, "add", "open", None, None),
        (3, 1, "no id", None, None, None),
        (3, 2, None, None, None, None),
        (5, 0, "add", "open", None, 6),
    ]


def test_results_of_another_agent_or_session_are_not_taken(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    store(repository, connection, "s", [("2025-11-03 10:00", assistant(call("t")))])
    store(repository, connection, "other", [("2025-11-03 10:01", user(result("t")))], agent_id="a")
    assert query(connection, "session_id, 2, 3, result_at", "tool_calls") == [("s", 2, 3, None)]


_KEYS = st.sampled_from(
    [
        *("role", "content", "metadata", "usage", "metrics", "inputTokens", "outputTokens", "latencyMs", "text"),
        *(
            "toolUse",
            "toolResult",
            "toolUseId",
            "name",
            "input",
            "status",
            "reasoningContent",
            "reasoningText",
            "image",
        ),
        *("image", "citationsContent", "guardContent", "cacheReadInputTokens", "", "é"),
    ]
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["user", "assistant", "error", "success", "t1", "12", "toolUse", "content"])
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(_KEYS, children, max_size=4),
    max_leaves=12,
)
_CALLS = st.fixed_dictionaries(
    {}, optional={"toolUseId": _VALUES, "name": _VALUES, "input": _VALUES, "status": _VALUES}
)
_BLOCKS = (
    _VALUES
    | st.fixed_dictionaries({"toolUse": _CALLS | _VALUES})
    | st.fixed_dictionaries({"toolResult": _CALLS | _VALUES})
    | st.fixed_dictionaries({"text": _VALUES}, optional={"toolUse": _VALUES, "toolResult": _VALUES})
)
_USAGE = st.fixed_dictionaries({}, optional={"inputTokens": _VALUES, "outputTokens": _VALUES})
_METADATA = st.fixed_dictionaries({}, optional={"usage": _USAGE | _VALUES, "metrics": _VALUES})
_MESSAGES = _VALUES | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]) | _VALUES, "content": st.lists(_BLOCKS, max_size=5) | _VALUES},
    optional={
        "metadata": st.fixed_dictionaries({}, optional={"usage": _USAGE | _VALUES, "metrics": _VALUES}) | _VALUES
    },
)


@settings(max_examples=scale(30, 150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([({"role": "user", "content": [{"toolResult": {"toolUseId": "t", "status": "error"}}] * 2}, None)])
@example([({"role": "user", "content": [1, [{"toolUse": 1}], {"toolUse": 1}]}, {"content": {"toolUse": 1}})])
@example([([{"metadata": [{"usage": [{"inputTokens": [5]}]}], "content": "x"}], "text")])
@given(messages=st.lists(st.tuples(_MESSAGES, st.none() | _MESSAGES), max_size=6))
def test_no_message_of_any_shape_fails_a_view(connection: Connection, messages: list[tuple[Any, Any]]) -> None:
    with connection.transaction(force_rollback=True):
        store_json(
            connection,
            [json.dumps(message) for message, _ in messages],
            [None if redaction is None else json.dumps(redaction) for _, redaction in messages],
        )
        found = {view: connection.execute(f"SELECT * FROM {view}".encode()).fetchall() for view in VIEWS}
        counts = connection.execute(
            "SELECT coalesce(sum(tool_calls), 0), coalesce(sum(tool_failures), 0) FROM strands_message_figures"
        ).fetchall()

    shown = [message if redaction is None else redaction for message, redaction in messages]
    blocks = [block for message in shown for block in _blocks(message)]
    assert len(found["strands_message_figures"]) == len(messages)
    assert len(found["strands_content_blocks"]) == len(blocks)
    calls = [block for block in blocks if isinstance(block, dict) and "toolUse" in block]
    failures = [block for block in blocks if isinstance(block, dict) and _is_failure(block.get("toolResult"))]
    assert len(found["strands_tool_calls"]) == len(calls)
    assert counts == [(len(calls), len(failures))]
    assert len(found["strands_session_figures"]) == 1
    assert len(found["strands_daily_figures"]) == min(len(messages), 1)


def _blocks(message: Any) -> list[Any]:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, list) else [content] if isinstance(content, str) else []


def _is_failure(result: Any) -> bool:
    return isinstance(result, dict) and result.get("status") == "error"
