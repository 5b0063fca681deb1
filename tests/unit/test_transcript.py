"""What a person sees of a message, for every block of content that Strands knows, and for those that it does not."""

from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strands.types.content import ContentBlock

from strands_psycopg.cli import transcript

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
def test_block_reads(kind: str, value: Any, expected: list[str]) -> None:
    assert list(transcript.lines({"role": "user", "content": [{kind: value}]})) == expected


def test_every_kind_of_block_of_this_strands_is_shown_as_what_it_is() -> None:
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
def test_message_of_another_shape_reads(message: Any, expected: list[str] | None) -> None:
    expected = expected if expected is not None else ["{}", "[]", "1", "text", "a", "tool call b (null)", "  null"]
    assert list(transcript.lines(message)) == expected


@pytest.mark.parametrize(
    ("message", "who", "counts"),
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
        ({"metadata": {"usage": 1}}, "nobody", []),
        ({"metadata": []}, "nobody", []),
        ("text", "nobody", []),
    ],
)
def test_head_tells_who_and_how_many_tokens(message: Any, who: str, counts: list[str]) -> None:
    assert transcript.role(message) == who
    assert transcript.tokens(message) == counts


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


@given(_ANYTHING)
def test_no_message_is_beyond_reading(message: Any) -> None:
    assert all("\n" not in line for line in transcript.lines(message))
    assert "\n" not in " ".join([transcript.role(message), *transcript.tokens(message)])
