import json
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any, NamedTuple

import pytest

from strands_psycopg import codec
from strands_psycopg.codec import decode, encode

REPLACEMENT = "\ufffd"


class Colour(str, Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Attachment:
    name: str
    data: bytes
    parts: "list[Attachment]" = field(default_factory=list)


@dataclass
class Link:
    next: Any = None


@pytest.fixture
def unlimited_integers() -> Iterator[None]:
    """Lift the limit on the length of integers that Python converts, which it has since 3.10.7."""
    if not hasattr(sys, "set_int_max_str_digits"):
        yield
        return
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(limit)


def nested(levels: int) -> list[Any]:
    document: list[Any] = []
    for _ in range(levels - 1):
        document = [document]
    return document


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        (-5, "-5"),
        (2**200, str(2**200)),
        (1.0, "1.0"),
        (0.1, "0.1"),
        (-1.5e-7, "-1.5e-07"),
        (5e-324, "5e-324"),
        (2.2250738585072014e-308, "2.2250738585072014e-308"),
        (9999999999999998.0, "9999999999999998.0"),
        ("", '""'),
        ("-0.0 and 1e+16 are only text", '"-0.0 and 1e+16 are only text"'),
        ("NaN", '"NaN"'),
        ('\x01\x7f\n"/', '"\\u0001\\u007f\\n\\"/"'),
        ("\\u0000", '"\\\\u0000"'),
        ("\\\\ud800", '"\\\\\\\\ud800"'),
        ("é한\uffff\U0010ffff😀", '"\\u00e9\\ud55c\\uffff\\udbff\\udfff\\ud83d\\ude00"'),
        ([], "[]"),
        ({}, "{}"),
        ({"": ""}, '{"": ""}'),
        ([[], {}, [{}]], "[[], {}, [{}]]"),
        ({"a": 1, "b": 2, "aa": 3}, '{"a": 1, "b": 2, "aa": 3}'),
    ],
)
def test_document_that_jsonb_returns_needs_no_exact_text(document: object, text: str) -> None:
    assert encode(document) == (text, None)
    restored = decode(text, None)
    assert (type(restored), restored) == (type(document), document)


def test_tuples_become_lists() -> None:
    assert encode((1, (2,), Point(3, 4))) == ("[1, [2], [3, 4]]", None)


def test_keys_become_strings() -> None:
    assert encode({2: 0, 1.5: 0, None: 0, True: 0}) == ('{"2": 0, "1.5": 0, "null": 0, "true": 0}', None)


def test_subclasses_of_json_types_are_stored_as_those_types() -> None:
    document = OrderedDict(a=Colour.RED, b=True)
    assert encode(document) == ('{"a": "red", "b": true}', None)


def test_the_two_surrogates_of_a_pair_become_one_character() -> None:
    assert encode("\ud83d\ude00") == (r'"\ud83d\ude00"', None)
    assert decode('"😀"', None) == "😀"


def test_bytes_are_stored_as_strands_stores_them() -> None:
    text = '{"a": {"__bytes_encoded__": true, "data": "aGk="}}'
    assert encode({"a": b"hi"}) == (text, None)


def test_bytes_are_restored_in_any_order_of_their_keys() -> None:
    assert decode('[{"data": "aGk=", "__bytes_encoded__": true}]', None) == [b"hi"]


def test_bytes_may_be_the_whole_document() -> None:
    assert encode(b"") == ('{"__bytes_encoded__": true, "data": ""}', None)
    assert decode('{"data": "", "__bytes_encoded__": true}', None) == b""


def test_bytes_may_be_in_tuples() -> None:
    assert encode((b"hi",)) == ('[{"__bytes_encoded__": true, "data": "aGk="}]', None)


def test_each_of_several_bytes_values_keeps_its_place() -> None:
    document = {"b": [b"1", b"", b"1", b"22"], "a": Attachment("\0", b"333", [Attachment("", b"4")]), "c": float("nan")}
    substitute, exact = encode(document)
    text = (
        '{"b": [{"__bytes_encoded__": true, "data": "MQ=="}, {"__bytes_encoded__": true, "data": ""}, '
        '{"__bytes_encoded__": true, "data": "MQ=="}, {"__bytes_encoded__": true, "data": "MjI="}], '
        '"a": {"name": "\\u0000", "data": {"__bytes_encoded__": true, "data": "MzMz"}, "parts": '
        '[{"name": "", "data": {"__bytes_encoded__": true, "data": "NA=="}, "parts": []}]}, "c": NaN}'
    )
    assert exact == text
    assert substitute == text.replace(r"\u0000", r"\ufffd").replace("NaN", "null")


def test_encoding_bytes_takes_little_more_memory_than_twice_their_base64() -> None:
    document = {"source": {"bytes": bytes(3_000_000)}}
    tracemalloc.start()
    try:
        encode(document)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.1 * 4_000_000


def test_bytes_are_restored_from_an_ordered_document() -> None:
    text = '{"bb": {"__bytes_encoded__": true, "data": "aGk="}, "a": 1}'
    exact = 'order [["bb", "a"]]'
    assert encode({"bb": b"hi", "a": 1}) == (text, exact)
    restored = decode('{"a": 1, "bb": {"data": "aGk=", "__bytes_encoded__": true}}', exact)
    assert list(restored.items()) == [("bb", b"hi"), ("a", 1)]


def test_bytes_are_restored_from_a_verbatim_document() -> None:
    document = [b"hi", "\0"]
    exact = '[{"__bytes_encoded__": true, "data": "aGk="}, "\\u0000"]'
    assert encode(document) == ('[{"__bytes_encoded__": true, "data": "aGk="}, "\\ufffd"]', exact)
    assert decode("null", exact) == document


def test_bytes_are_not_confused_with_a_dict_whose_two_keys_are_listed() -> None:
    exact = 'order [["__bytes_encoded__", "data"]]'
    assert encode([b"hi", {"__bytes_encoded__": False, "data": 1}]) == (
        '[{"__bytes_encoded__": true, "data": "aGk="}, {"__bytes_encoded__": false, "data": 1}]',
        exact,
    )
    restored = decode(
        '[{"data": "aGk=", "__bytes_encoded__": true}, {"data": 1, "__bytes_encoded__": false}]',
        exact,
    )
    assert json.dumps(restored[1]) == '{"__bytes_encoded__": false, "data": 1}'
    assert restored[0] == b"hi"


def test_bytes_beside_a_dict_with_their_keys_in_the_other_order_need_no_exact_text() -> None:
    assert encode([b"hi", {"data": 1, "__bytes_encoded__": False}])[1] is None


@pytest.mark.parametrize("data", ["aGk=", "not base64!", "", "é", "\0", "\ud800"])
def test_dict_in_the_form_of_encoded_bytes_is_restored_as_a_dict(data: str) -> None:
    document = {"__bytes_encoded__": True, "data": data}
    text = json.dumps(document)
    substitute = json.dumps(document if data.isprintable() else {"__bytes_encoded__": True, "data": REPLACEMENT})
    assert encode(document) == (substitute, f'bytes "bytes0" {text}')
    assert json.dumps(decode(substitute, f'bytes "bytes0" {text}')) == text


def test_dict_in_the_form_of_encoded_bytes_is_distinguished_from_bytes_beside_it() -> None:
    document = [{"data": "aGk=", "__bytes_encoded__": True}, b"hi"]
    substitute, exact = encode(document)
    assert substitute == '[{"data": "aGk=", "__bytes_encoded__": true}, {"__bytes_encoded__": true, "data": "aGk="}]'
    assert exact == 'bytes "bytes0" [{"data": "aGk=", "__bytes_encoded__": true}, {"bytes0": "aGk="}]'
    restored = decode(substitute, exact)
    assert restored == document
    assert list(restored[0]) == ["data", "__bytes_encoded__"]


def test_key_that_represents_bytes_is_not_used_in_the_document() -> None:
    lookalike = {"__bytes_encoded__": True, "data": ""}
    document = [lookalike, {"bytes0": "aGk="}, {"a": {"bytes1": 1, "bytes": 2}}, b"hi"]
    substitute, exact = encode(document)
    assert exact == (
        'bytes "bytes2" [{"__bytes_encoded__": true, "data": ""}, {"bytes0": "aGk="}, '
        '{"a": {"bytes1": 1, "bytes": 2}}, {"bytes2": "aGk="}]'
    )
    assert decode(substitute, exact) == document


@pytest.mark.parametrize(
    "document",
    [
        {"data": "aGk=", "__bytes_encoded__": 1},
        {"data": "aGk=", "__bytes_encoded__": "true"},
        {"data": ["aGk="], "__bytes_encoded__": True},
        {"data": None, "__bytes_encoded__": True},
        {"__bytes_encoded__": True},
        {"data": "aGk=", "more": 1, "__bytes_encoded__": True},
    ],
)
def test_dict_that_only_resembles_encoded_bytes_is_unchanged(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    assert encode(document) == (text, None)
    assert json.dumps(decode(text, None)) == text


def test_dataclass_instances_are_stored_as_dicts() -> None:
    document = {"file": Attachment("a", b"hi", [Attachment("b", b"")])}
    text = (
        '{"file": {"name": "a", "data": {"__bytes_encoded__": true, "data": "aGk="}, "parts": '
        '[{"name": "b", "data": {"__bytes_encoded__": true, "data": ""}, "parts": []}]}}'
    )
    exact = 'order [["name", "data", "parts"]]'
    assert encode(document) == (text, exact)
    assert decode(text, exact) == {
        "file": {"name": "a", "data": b"hi", "parts": [{"name": "b", "data": b"", "parts": []}]}
    }


def test_dataclass_itself_is_refused() -> None:
    with pytest.raises(TypeError, match="an object of type type cannot be stored"):
        encode({"a": Attachment})


@pytest.mark.parametrize(
    ("document", "exact"),
    [
        ({"role": "user", "content": []}, None),
        ({"content": [], "role": "user"}, 'order [["content", "role"]]'),
        ({"b": 1, "a": 2}, 'order [["b", "a"]]'),
        ({"aa": 1, "b": 2}, 'order [["aa", "b"]]'),
        ({"a": 1, "": 2}, 'order [["a", ""]]'),
        ({"é": 1, "zz": 2}, 'order [["\\u00e9", "zz"]]'),
        ({"zz": 1, "é": 2}, None),
        ({"zzz": 1, "é": 2, "€": 3}, 'order [["zzz", "\\u00e9", "\\u20ac"]]'),
        ({"\uffff": 1, "zzzz": 2, "😀": 3}, None),
        ({"\uffffa": 1, "😀": 2}, None),
        ({"😀": 1, "\uffffa": 2}, 'order [["\\ud83d\\ude00", "\\uffffa"]]'),
        ({2: "b", 1: "a"}, 'order [["2", "1"]]'),
    ],
)
def test_order_of_keys_is_listed_if_jsonb_sorts_them_differently(
    document: dict[str, object], exact: str | None
) -> None:
    assert encode(document) == (json.dumps(document), exact)


def test_keys_are_restored_in_the_order_of_the_document() -> None:
    restored = decode('{"a": 1, "bb": {"x": [{"a": 2, "bb": 3}], "yy": 4}}', 'order [["bb", "a"], ["yy", "x"]]')
    assert json.dumps(restored) == '{"bb": {"yy": 4, "x": [{"bb": 3, "a": 2}]}, "a": 1}'


@pytest.mark.parametrize(
    ("document", "jsonb_text", "exact"),
    [
        (
            {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3},
            '{"inputTokens": 1, "totalTokens": 3, "outputTokens": 2}',
            "order [0]",
        ),
        (
            {
                "inputTokens": 1,
                "outputTokens": 2,
                "totalTokens": 3,
                "cacheReadInputTokens": 4,
                "cacheWriteInputTokens": 5,
            },
            '{"inputTokens": 1, "totalTokens": 3, "outputTokens": 2, "cacheReadInputTokens": 4, '
            '"cacheWriteInputTokens": 5}',
            "order [1]",
        ),
        (
            {"toolUseId": "a", "name": "b", "input": {"d": 0, "c": 0}},
            '{"name": "b", "input": {"c": 0, "d": 0}, "toolUseId": "a"}',
            'order [["d", "c"], 2]',
        ),
        (
            {"toolUseId": "a", "status": "success", "content": []},
            '{"status": "success", "content": [], "toolUseId": "a"}',
            "order [3]",
        ),
    ],
)
def test_order_in_which_strands_writes_keys_is_a_number(
    document: dict[str, object], jsonb_text: str, exact: str
) -> None:
    assert encode(document) == (json.dumps(document), exact)
    assert json.dumps(decode(jsonb_text, exact)) == json.dumps(document)


def test_number_that_a_newer_version_has_stored_is_refused() -> None:
    with pytest.raises(ValueError, match="stored by a newer version of strands-psycopg; install that one"):
        decode("{}", "order [99]")


def test_order_is_listed_once_for_each_set_of_keys() -> None:
    document = [{"b": 1, "a": 2}, {"b": 3, "a": 4}, {"a": 5, "b2": 6}, {"c": 7, "a": 8, "b": {}}]
    assert encode(document) == (json.dumps(document), 'order [["b", "a"], ["c", "a", "b"]]')


def test_document_with_one_set_of_keys_in_two_orders_is_kept_verbatim() -> None:
    document = [{"b": 1, "a": 2}, {"a": 3, "b": 4}]
    text = '[{"b": 1, "a": 2}, {"a": 3, "b": 4}]'
    assert encode(document) == (text, text)
    assert json.dumps(decode('[{"a": 2, "b": 1}, {"a": 3, "b": 4}]', text)) == text


def test_document_with_one_set_of_keys_in_two_orders_is_kept_verbatim_if_the_order_of_jsonb_comes_first() -> None:
    text = '[{"a": 3, "b": 4}, {"b": 1, "a": 2}]'
    assert encode(json.loads(text)) == (text, text)


@pytest.mark.parametrize("document", ["order [[]]", 'bytes "bytes0" {}', {"bytes": 1, "order": 2, "bytes0": 3}])
def test_document_may_contain_the_prefixes_of_the_exact_column(document: object) -> None:
    text = json.dumps(document)
    assert encode(document) == (text, None)
    assert decode(text, None) == document


def test_many_keys_keep_their_order() -> None:
    document = {str(number): number for number in range(20_000, 0, -1)}
    text, exact = encode(document)
    assert (text, exact) == (json.dumps(document), f"order {json.dumps([list(document)])}")
    in_jsonb = json.dumps({str(number): number for number in range(1, 20_001)})
    assert json.dumps(decode(in_jsonb, exact)) == text


@pytest.mark.parametrize(
    ("document", "substitute", "exact"),
    [
        ("a\0b", r'"a\ufffdb"', r'"a\u0000b"'),
        ("\\\0", r'"\\\ufffd"', r'"\\\u0000"'),
        ("\\u0000\0", r'"\\u0000\ufffd"', r'"\\u0000\u0000"'),
        ("\ud800", r'"\ufffd"', r'"\ud800"'),
        ("\udfff", r'"\ufffd"', r'"\udfff"'),
        ("\ude00\ud83d", r'"\ufffd\ufffd"', r'"\ude00\ud83d"'),
        ("\ud83d\ud83d\ude00\ude00", r'"\ufffd\ud83d\ude00\ufffd"', r'"\ud83d\ud83d\ude00\ude00"'),
        ("\\ud83d\ude00", r'"\\ud83d\ufffd"', r'"\\ud83d\ude00"'),
        ({"\0": {"\ud800": 1}}, r'{"\ufffd": {"\ufffd": 1}}', r'{"\u0000": {"\ud800": 1}}'),
        (float("nan"), "null", "NaN"),
        ([[float("inf")], {"a": float("-inf")}], '[[null], {"a": null}]', '[[Infinity], {"a": -Infinity}]'),
        ([float("nan"), "\0", "\\"], r'[null, "\ufffd", "\\"]', r'[NaN, "\u0000", "\\"]'),
        (-0.0, "-0.0", "-0.0"),
        ({"a": [1, -0.0]}, '{"a": [1, -0.0]}', '{"a": [1, -0.0]}'),
        (1e16, "1e+16", "1e+16"),
        (-1.7976931348623157e308, "-1.7976931348623157e+308", "-1.7976931348623157e+308"),
        ({"b": 1e22, "a": 0.5}, '{"b": 1e+22, "a": 0.5}', '{"b": 1e+22, "a": 0.5}'),
    ],
)
def test_document_that_jsonb_would_change_is_kept_verbatim(document: object, substitute: str, exact: str) -> None:
    assert encode(document) == (substitute, exact)
    assert json.dumps(decode("null", exact)) == exact


def test_keys_that_are_equal_only_in_the_substitute_stay_distinct() -> None:
    document = {"\0": 1, "\ud800": 2}
    assert encode(document) == (r'{"\ufffd": 1, "\ufffd": 2}', r'{"\u0000": 1, "\ud800": 2}')
    assert decode('{"\ufffd": 2}', r'{"\u0000": 1, "\ud800": 2}') == document


def test_negative_fraction_is_not_mistaken_for_negative_zero() -> None:
    assert encode([-0.05, "-0.0"]) == ('[-0.05, "-0.0"]', None)


@pytest.mark.usefixtures("unlimited_integers")
def test_integer_beyond_numeric_is_kept_verbatim() -> None:
    # Powers of ten, since to read an integer from so many digits takes long.
    largest, beyond = f"1{'0' * 131_071}", f"1{'0' * 131_072}"
    number = 10**131_072
    document = {"a": -(10**131_071), "b": [number, -number], "c": beyond}
    assert encode(document) == (
        f'{{"a": -{largest}, "b": [null, null], "c": "{beyond}"}}',
        f'{{"a": -{largest}, "b": [{beyond}, -{beyond}], "c": "{beyond}"}}',
    )


@pytest.mark.parametrize("shift", [0, 1, 65_535, 65_536, 65_537])
@pytest.mark.usefixtures("unlimited_integers")
def test_integer_beyond_numeric_is_found_at_any_position(shift: int) -> None:
    beyond = f"1{'0' * 131_072}"
    padding = "x" * shift
    assert encode([padding, 10**131_072]) == (f'["{padding}", null]', f'["{padding}", {beyond}]')


def test_document_too_deep_for_the_server_is_kept_verbatim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_MAX_DEPTH", 3)
    assert encode([nested(2), "[[[["]) == ('[[[]], "[[[["]', None)
    assert encode([nested(2), {"a": {"b": {}}}]) == ("null", '[[[]], {"a": {"b": {}}}]')
    assert encode(nested(4)) == ("null", "[[[[]]]]")
    assert decode("null", "[[[[]]]]") == nested(4)


def test_document_too_deep_for_the_server_keeps_dicts_in_the_form_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_MAX_DEPTH", 2)
    document = [[{"data": "", "__bytes_encoded__": True}], b"hi"]
    exact = 'bytes "bytes0" [[{"data": "", "__bytes_encoded__": true}], {"bytes0": "aGk="}]'
    assert encode(document) == ("null", exact)
    assert decode("null", exact) == document


def test_document_too_large_for_jsonb_is_kept_verbatim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_MAX_TEXT_LENGTH", 330)
    monkeypatch.setattr(codec, "_MAX_JSONB_LENGTH", 8)
    assert encode("abcdef") == ('"abcdef"', None)
    assert encode("abcdefg") == ("null", '"abcdefg"')
    assert encode(b"abc") == ("null", '{"__bytes_encoded__": true, "data": "YWJj"}')


def test_document_too_large_when_its_numbers_are_written_out_is_kept_verbatim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec, "_MAX_TEXT_LENGTH", 2 * 330)
    assert encode([5e-324, 1.5]) == ("[5e-324, 1.5]", None)
    assert encode([5e-324, 1e-7]) == ("null", "[5e-324, 1e-07]")
    assert encode([5e-324, 1e16]) == ("null", "[5e-324, 1e+16]")


@pytest.mark.parametrize(
    "document",
    [
        {1: "a", "1": "b"},
        {None: 1, "null": 2},
        {True: 1, "true": 2},
        {1.5: 1, "1.5": 2},
        {float("nan"): 1, "NaN": 2},
        {"\ud83d\ude00": 1, "😀": 2},
        [{"a": {1: "a", "1": "a"}}],
    ],
)
def test_keys_that_are_the_same_in_json_are_refused(document: object) -> None:
    with pytest.raises(ValueError, match=r"two keys of one object are the same in JSON.*use keys that differ"):
        encode(document)


def test_document_longer_than_the_server_accepts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_MAX_TEXT_LENGTH", 1_002)
    assert encode("a" * 1_000) == (f'"{"a" * 1_000}"', None)
    with pytest.raises(
        ValueError, match="the document is 1,003 characters of JSON, more than 1,002; store large content"
    ):
        encode("a" * 1_001)
    with pytest.raises(ValueError, match="the document is 1,039 characters"):
        encode(bytes(750))


def test_document_is_decoded_however_deeply_the_calls_around_it_are_nested() -> None:
    def called_deeply(calls: int) -> Any:
        return called_deeply(calls - 1) if calls else decode(*encoded)

    encoded = encode(nested(800))
    assert json.dumps(called_deeply(sys.getrecursionlimit() // 3)) == json.dumps(nested(800))


def test_document_nested_too_deeply_for_python_is_refused() -> None:
    with pytest.raises(ValueError, match="nested too deeply to be stored; flatten it"):
        encode(nested(1_000_000))


def test_document_that_contains_itself_is_refused() -> None:
    document: list[Any] = []
    document.append(document)
    with pytest.raises(ValueError, match="Circular reference"):
        encode(document)


def test_dataclass_that_contains_itself_is_refused() -> None:
    link = Link()
    link.next = [link]
    with pytest.raises(ValueError, match="Circular reference"):
        encode(link)


@pytest.mark.parametrize("value", [{1}, object(), 1j, bytearray(b"hi"), datetime(2026, 1, 1, tzinfo=timezone.utc)])
def test_value_that_json_cannot_represent_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=f"an object of type {type(value).__name__} cannot be stored; convert it"):
        encode({"a": [value]})


def test_key_that_json_cannot_represent_is_refused() -> None:
    with pytest.raises(TypeError, match="keys must be str"):
        encode({b"hi": 1})
