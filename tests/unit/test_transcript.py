"""The format of messages, for every content block that Strands knows, and for others."""

from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strands.types.content import ContentBlock

from strands_psycopg.cli import transcript
from support.scale import scale

BLOCKS: list[tuple[str, Any, list[str]]] = [
    ("text", "one\ntwo\n", ["one", "two", ""]),
    ("text", 7, ["7"]),
    (
        "toolUse",
        {"name": "look_up", "toolUseId": "t-1", "input": {"city": "Köln", "n": [1, None]}},
        ["tool call look_up (t-1)", '  {"city": "Köln", "n": [1, null]}'],
    ),
    ("toolUse", {"input": "a\nb"}, ["tool call null (null)", "  a", "  b"]),
    (
        "toolResult",
        {
            "toolUseId": "t-1",
            "status": "error",
            "content": [
                {"text": "no\nway"},
                {"json": {"a": -0.0}},
                {"image": {"format": "png", "source": {"bytes": b"x" * 2048}}},
            ],
        },
        ["tool result, error (t-1)", "  no", "  way", '  {"a": -0.0}', "  image png, 2 kB"],
    ),
    ("toolResult", {"content": "plain"}, ["tool result, no status (null)", "  plain"]),
    ("toolResult", {}, ["tool result, no status (null)"]),
    (
        "reasoningContent",
        {"reasoningText": {"text": "hm\nhm", "signature": "secret"}},
        ["reasoning", "  hm", "  hm"],
    ),
    ("reasoningContent", {"redactedContent": b"12345"}, ["reasoning, hidden by the provider, 5 bytes"]),
    ("reasoningContent", {}, ["reasoning", "  null"]),
    ("image", {"format": "png", "source": {"bytes": b"1234"}}, ["image png, 4 bytes"]),
    (
        "document",
        {"format": "pdf", "name": "a report", "source": {"location": {"type": "s3", "uri": "s3://bucket/key"}}},
        ["document pdf a report, at s3://bucket/key"],
    ),
    ("document", {"format": "txt", "source": {"text": "hello"}}, ['document txt, {"text": "hello"}']),
    ("video", {"format": "mp4"}, ["video mp4, null"]),
    ("audio", {"format": "wav", "source": {"bytes": b""}}, ["audio wav, 0 bytes"]),
    ("image", {"source": "nowhere"}, ['image, "nowhere"']),
    ("image", "nothing", ["image:", "  nothing"]),
    ("cachePoint", {"type": "default"}, ["cache point default"]),
    ("guardContent", {"text": {"text": "is it?\nno", "qualifiers": ["query"]}}, ["guarded text", "  is it?", "  no"]),
    ("guardContent", {"image": 1}, ["guarded text", '  {"image": 1}']),
    (
        "citationsContent",
        {
            "content": [{"text": "It is so."}],
            "citations": [{"title": "Book", "location": {"web": {"url": "u"}}, "sourceContent": []}, "odd"],
        },
        ["It is so.", 'cites Book, {"web": {"url": "u"}}', 'cites "odd"'],
    ),
    ("citationsContent", {}, []),
    ("newContent", {"a": b"123"}, ["newContent:", '  {"a": "3 bytes"}']),
    ("new\nContent", "one\ntwo", ["new\\nContent:", "  one", "  two"]),
]


@pytest.mark.parametrize(("kind", "value", "expected"), BLOCKS)
def test_block_is_formatted(kind: str, value: Any, expected: list[str]) -> None:
    assert list(transcript.format_lines({"role": "user", "content": [{kind: value}]})) == expected


def test_every_kind_of_block_of_this_strands_has_a_format() -> None:
    assert get_type_hints(ContentBlock).keys() <= transcript._KINDS.keys() | {"text"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "plain"}, ["plain"]),
        ({"content": None}, ["null"]),
        ({"content": []}, []),
        ({}, []),
        ({"content": [{}, [], 1, "text", {"text": "a", "toolUse": {"name": "b"}}]}, None),
        ("nothing at all", ["nothing at all"]),
        (None, ["null"]),
        ([{"text": "bare"}], ["bare"]),
    ],
    ids=str,
)
def test_message_of_another_shape_is_formatted(message: Any, expected: list[str] | None) -> None:
    expected = expected if expected is not None else ["{}", "[]", "1", "text", "a", "tool call b (null)", "  null"]
    assert list(transcript.format_lines(message)) == expected


@pytest.mark.parametrize(
    ("message", "role", "counts"),
    [
        (
            {"role": "assistant", "metadata": {"usage": {"inputTokens": 1234, "outputTokens": 5, "totalTokens": 1239}}},
            "assistant",
            ["1,234 tokens in", "5 tokens out"],
        ),
        (
            {"role": "a", "metadata": {"usage": {"inputTokens": 9, "cacheReadInputTokens": 8, "outputTokens": 0}}},
            "a",
            ["9 tokens in", "8 tokens from the cache", "0 tokens out"],
        ),
        ({"role": None, "metadata": {"usage": {"inputTokens": "many"}}}, "null", []),
        ({"metadata": {"usage": 1}}, "no role", []),
        ({"metadata": []}, "no role", []),
        ("text", "no role", []),
    ],
)
def test_heading_has_role_and_tokens(message: Any, role: str, counts: list[str]) -> None:
    assert transcript.format_role(message) == role
    assert transcript.format_tokens(message) == counts


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "role", "metadata", "usage", "inputTokens", "text", *transcript._KINDS])
            | st.sampled_from(["source", "bytes", "location", "uri", "name", "input", "citations", "reasoningText"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=scale(30, 300))
@given(_ANYTHING)
def test_any_message_is_formatted(message: Any) -> None:
    assert all("\n" not in line for line in transcript.format_lines(message))
    assert "\n" not in " ".join([transcript.format_role(message), *transcript.format_tokens(message)])
