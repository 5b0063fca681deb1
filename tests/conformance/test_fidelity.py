"""Whatever is stored comes back the very same, from a real server."""

import base64
import bisect
import dataclasses
import json
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strands.session import FileSessionManager
from strands.types.session import SessionAgent, SessionMessage

from strands_psycopg.codec import decode, encode
from support.databases import Databases
from support.scale import scale

Connection = psycopg.Connection[tuple[Any, ...]]
Strategy = st.SearchStrategy[Any]

hunt = settings(
    max_examples=scale(25, 400),
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclasses.dataclass
class Node:
    value: object
    data: bytes = b""


TEXTS = [
    *("\0", "\x1f", "\x7f", "é", "한", "\u2028", "\uffff", "😀", "\ud83d\ude00", "\ud83d", "\ude00", "\udbff\udfff"),
    *("\\", "\\\\", r"\u0000", r"\\u0000", r"\ud800", "u0000", "ud83d", '"', "'", "/", "[", "{", "]}", ", "),
    *("__bytes_encoded__", "data", "bytes", "bytes0", "order", "order [", "NaN", "-0.0", "e+", "e-", "9" * 70),
]
FLOATS = [
    *(0.0, -0.0, 1.0, -1.0, 0.1, 1e-4, 1e-5, 1e15, 9999999999999998.0, 1e16, -1e16, 1e22, 1.5e300),
    *(5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, float("inf"), float("-inf"), float("nan")),
]
# Sets of keys that recur in one document, in any order.
KEY_SETS = [
    ("a", "b"),
    ("b", "aa", "é"),
    ("😀", "\uffffa", "zzzz"),
    ("role", "content", "metadata"),
    ("order", "bytes"),
]


@st.composite
def texts(draw: st.DrawFn) -> str:
    return "".join(draw(st.lists(st.sampled_from(TEXTS) | st.characters(), max_size=6)))


@st.composite
def numbers(draw: st.DrawFn) -> float:
    powers = st.builds(pow, st.sampled_from([-10, 7]), st.integers(0, 400))
    return draw(st.integers() | powers | st.sampled_from(FLOATS) | st.floats())


@st.composite
def other_keys(draw: st.DrawFn) -> object:
    return draw(numbers() | st.booleans() | st.none())


def is_utf8(text: str) -> bool:
    return text.encode("utf-8", "replace").decode() == text


def json_key(key: object) -> object:
    return json.loads(json.dumps({key: 0})).popitem()[0]


def without_collisions(items: list[tuple[object, object]]) -> dict[object, object]:
    return dict({json_key(key): (key, value) for key, value in items}.values())


def dicts(keys: Strategy, children: Strategy) -> Strategy:
    return st.lists(st.tuples(keys, children), max_size=5).map(without_collisions)


def recurring_dicts(children: Strategy) -> Strategy:
    in_any_order = st.sampled_from(KEY_SETS).flatmap(st.permutations)
    return in_any_order.flatmap(lambda keys: st.tuples(*[st.tuples(st.just(key), children) for key in keys]).map(dict))


def lookalikes(children: Strategy) -> Strategy:
    flags = st.just(True) | st.sampled_from([False, None, 1, 1.0, "true"])
    contents = st.sampled_from(["aGk=", "", "aGk", "no base64!", "é", "\0", "\ud800"]) | texts() | children
    items = st.tuples(
        st.tuples(st.just("__bytes_encoded__"), flags),
        st.tuples(st.just("data"), contents),
        st.tuples(st.sampled_from(["data", "bytes0"]), contents),
    )
    return items.flatmap(st.permutations).map(dict)


def nested(document: object, levels: int) -> object:
    for level in range(levels):
        document = {"a": document} if level % 3 else [document]
    return document


documents = st.recursive(
    st.none() | st.booleans() | numbers() | texts() | st.binary(),
    lambda children: st.one_of(
        st.lists(children, max_size=5),
        st.lists(children, max_size=3).map(tuple),
        dicts(texts() | other_keys(), children),
        recurring_dicts(children),
        lookalikes(children),
        st.builds(Node, children, st.binary()),
        st.builds(nested, children, st.integers(0, 40)),
    ),
    max_leaves=25,
)
# Strands' files hold neither lone surrogates nor bytes in tuples, and give bytes for any dict that says it is bytes.
file_documents = st.recursive(
    st.none() | st.booleans() | numbers() | texts().filter(is_utf8) | st.binary(),
    lambda children: st.one_of(
        st.lists(children, max_size=5),
        dicts(texts().filter(lambda key: is_utf8(key) and key != "__bytes_encoded__") | other_keys(), children),
        recurring_dicts(children),
        st.builds(Node, children, st.binary()),
        st.builds(nested, children, st.integers(0, 40)),
    ),
    max_leaves=25,
)

# More levels than a server parses: 16,000 lists or fewer, as measured.
DEEP = 20_000

# No document has it, so that bytes differ from every dict.
BYTES_KEY = secrets.token_hex(8)


def tagged(value: bytes) -> object:
    return {BYTES_KEY: value.hex()}


def as_strands_writes(value: bytes) -> object:
    return {"__bytes_encoded__": True, "data": base64.b64encode(value).decode()}


def dumps(document: object, bytes_form: Callable[[bytes], object] = tagged) -> str:
    def default(value: Any) -> object:
        return bytes_form(value) if isinstance(value, bytes) else dataclasses.asdict(value)

    return json.dumps(document, default=default)


def dicts_in(document: object) -> Iterator[dict[str, object]]:
    if isinstance(document, dict):
        yield document
    if isinstance(document, (dict, list)):
        for child in document.values() if isinstance(document, dict) else document:
            yield from dicts_in(child)


def has_lookalikes(document: object) -> bool:
    return any(
        found.keys() == {"__bytes_encoded__", "data"}
        and found["__bytes_encoded__"] is True
        and isinstance(found["data"], str)
        for found in dicts_in(json.loads(dumps(document)))
    )


def readable(value: object) -> object:
    if isinstance(value, str):
        return re.sub("[\0\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [readable(child) for child in value]
    if isinstance(value, dict):
        return {readable(key): readable(child) for key, child in value.items()}
    return value


@pytest.fixture(scope="module")
def connection(databases: Databases) -> Iterator[Connection]:
    with databases.create("documents_under_test") as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TEMPORARY TABLE documents (document jsonb NOT NULL, document_exact text)")
        yield connection


@pytest.fixture
def files(tmp_path: Path) -> FileSessionManager:
    files = FileSessionManager("session", storage_dir=str(tmp_path))
    files.create_agent("session", SessionAgent("agent", {}, {}))
    return files


@pytest.fixture
def unlimited_integers() -> Iterator[None]:
    """Allow Python to write integers of any length, as it always did before 3.10.7."""
    if not hasattr(sys, "set_int_max_str_digits"):
        yield
        return
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(limit)


@pytest.fixture
def deep_thread() -> Iterator[Executor]:
    """Run in a thread that nests as deeply as this Python can, beyond what the server parses."""
    limit, size = sys.getrecursionlimit(), threading.stack_size(128 * 2**20)
    sys.setrecursionlimit(DEEP)
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor
    sys.setrecursionlimit(limit)
    threading.stack_size(size)


def store(connection: Connection, document: object) -> tuple[str, str | None]:
    """Store a document; return the texts of its two columns as the server has them."""
    row = connection.execute(
        "INSERT INTO documents (document, document_exact) VALUES (%s::jsonb, %s) "
        "RETURNING document::text, document_exact",
        encode(document),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@hunt
@given(document=documents)
def test_document_comes_back_to_the_byte(connection: Connection, document: object) -> None:
    assert dumps(decode(*store(connection, document))) == dumps(document)


@hunt
@given(document=file_documents)
def test_message_equals_what_strands_files_give_back(
    connection: Connection, files: FileSessionManager, document: Any
) -> None:
    files.create_message("session", "agent", SessionMessage(document, 0))
    from_files = files.read_message("session", "agent", 0)
    assert from_files is not None
    # The repr tells types, order and NaN apart, as == does not.
    assert repr(decode(*store(connection, document))) == repr(from_files.message)


@pytest.mark.skipif(
    SessionAgent("a", {"bytes": b""}, {}).to_dict()["state"] == {"bytes": b""},
    reason="in this version of Strands, files hold no bytes in an agent's state",
)
@hunt
@given(document=file_documents)
def test_agent_state_equals_what_strands_files_give_back(
    connection: Connection, files: FileSessionManager, document: object
) -> None:
    state = {"state": document}
    files.update_agent("session", SessionAgent("agent", state, {}))
    from_files = files.read_agent("session", "agent")
    assert from_files is not None
    assert repr(decode(*store(connection, state))) == repr(from_files.state)


@hunt
@given(document=documents)
def test_exact_text_is_stored_only_where_jsonb_alone_would_alter_the_document(
    connection: Connection, document: object
) -> None:
    assume(not has_lookalikes(document))
    jsonb, exact = store(connection, document)
    assert (exact is None) == (dumps(decode(jsonb, None)) == dumps(document))


@hunt
@given(document=documents)
def test_exact_text_lists_the_orders_of_keys_where_nothing_else_differs(
    connection: Connection, document: object
) -> None:
    assume(not has_lookalikes(document))
    jsonb, exact = store(connection, document)
    stored, original = json.loads(dumps(decode(jsonb, None))), json.loads(dumps(document))
    stored_orders, orders = ({tuple(found) for found in dicts_in(tree)} for tree in (stored, original))
    same_values = json.dumps(stored, sort_keys=True) == json.dumps(original, sort_keys=True)
    if same_values and len(stored_orders) == len(orders):
        listed = json.loads((exact or "order []").removeprefix("order "))
        assert sorted(map(tuple, listed)) == sorted(orders - stored_orders)
    else:
        assert exact == dumps(document, as_strands_writes)


@hunt
@given(document=documents)
def test_jsonb_is_as_near_to_the_document_as_it_can_be(connection: Connection, document: object) -> None:
    jsonb, _ = store(connection, document)
    original = json.loads(dumps(document, as_strands_writes), parse_int=float, parse_constant=lambda _: None)
    assert json.loads(jsonb, parse_int=float) == readable(original)


# Of keys and lists.
MANY = scale(10_000, 50_000)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param('😀 \\ "\0' * 80_000, id="text"),
        pytest.param([bytes(range(256)) * 3_000, {"b": 1, "a": 2}], id="bytes"),
        pytest.param({str(number): number for number in range(2 * MANY, 0, -1)}, id="keys"),
        pytest.param({"b" * 1_000_000: 1, "é" * 600_000: 2, "a" * 1_000_000: 3, "": 4}, id="long keys"),
        pytest.param([{f"b{number}": 1, "a": 2} for number in range(MANY)], id="sets of keys"),
        pytest.param([{"b": number, "a": [{}]} for number in range(MANY)], id="recurring keys"),
        pytest.param([number * 5e-324 for number in range(20_000)], id="subnormals"),
        pytest.param([1.7976931348623157e308, float("nan")] * 20_000, id="largest numbers"),
        pytest.param("[" * 1_000_000, id="brackets"),
        pytest.param([[[]], {}] * 2 * MANY, id="lists"),
    ],
)
def test_large_document_comes_back_to_the_byte(connection: Connection, document: object) -> None:
    assert dumps(decode(*store(connection, document))) == dumps(document)


@pytest.mark.usefixtures("unlimited_integers")
def test_huge_integers_come_back(connection: Connection) -> None:
    document = [10**4_300, -(10**131_071), {"a": -(10**131_072)}]
    assert decode(*store(connection, document)) == document


def nested_text(kind: str, levels: int) -> str:
    return "[" * levels + "]" * levels if kind == "list" else '{"a": ' * levels + "1" + "}" * levels


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_document_nested_as_deeply_as_jsonb_gets_it_is_accepted(
    connection: Connection, deep_thread: Executor, kind: str
) -> None:
    text = nested_text(kind, 4_000)
    try:
        stored = deep_thread.submit(lambda: store(connection, json.loads(text))).result()
    except RecursionError:
        pytest.skip("this Python reads fewer levels")
    assert stored == (text, None)


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_document_nested_as_deeply_as_python_can_comes_back(
    connection: Connection, deep_thread: Executor, kind: str
) -> None:
    def is_refused(levels: int) -> bool:
        try:
            encode(json.loads(nested_text(kind, levels)))
        except (RecursionError, ValueError):
            return True
        return False

    deepest = deep_thread.submit(bisect.bisect_left, range(DEEP), True, key=is_refused).result() - 1
    # Storing takes some frames of its own.
    text = nested_text(kind, deepest - 20)
    stored = deep_thread.submit(lambda: dumps(decode(*store(connection, json.loads(text))))).result()
    assert stored == text
