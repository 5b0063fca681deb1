"""Encode documents for JSONB columns, and decode them exactly.

A document is stored as JSONB, so that it can be read and queried. Where JSONB alone would not return exactly the same
document, a text column beside it (``<name>_exact``) holds what is missing:

- NULL: JSONB returns the document.
- ``order [[...], ...]``: JSONB holds every value, and only the order of keys differs. Each list is one set of keys in
  the order of the document. A number stands for one of the orders in which Strands itself writes keys, since nearly
  every message has some of these: ``order [0]``.
- otherwise the document's JSON text, verbatim, while JSONB holds a readable substitute: U+FFFD for NUL and lone
  surrogates, null for NaN, infinities and integers beyond ``numeric``, and a single null for a document that is too
  deep or too large for JSONB.
- ``bytes "<key>" {...}``: the same, for a document with dicts of the very form in which bytes are encoded; in this text
  only ``{"<key>": "<base64>"}`` represents bytes.

Bytes are stored as Strands stores them: ``{"__bytes_encoded__": true, "data": "<base64>"}``.
"""

import base64
import dataclasses
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, count
from typing import Any

_BYTES_KEY = "__bytes_encoded__"

# Represents bytes while a text is analysed, since their base64 needs no analysis and may be megabytes. In JSON only
# such an object has this text: inside a string its quotes would be escaped.
_EMPTY_BYTES = {_BYTES_KEY: True, "data": ""}
_EMPTY_BYTES_TEXT = json.dumps(_EMPTY_BYTES)

_ORDER_PREFIX = "order "

# By number. What is stored refers to them, so that further ones can only be added at the end.
_STRANDS_ORDERS = (
    ("inputTokens", "outputTokens", "totalTokens"),
    ("inputTokens", "outputTokens", "totalTokens", "cacheReadInputTokens", "cacheWriteInputTokens"),
    ("toolUseId", "name", "input"),
    ("toolUseId", "status", "content"),
)
_STRANDS_ORDER_NUMBERS = {keys: number for number, keys in enumerate(_STRANDS_ORDERS)}
_BYTES_PREFIX = "bytes "

# How many digits PostgreSQL's numeric holds before the point. Python writes more than 4,300 only if configured to.
_MAX_DIGITS = 131_072

# A server with the default max_stack_depth of 2 MB parses 13,000 levels of JSONB (measured on 15 and 18). Python
# writes about 1,000 up to 3.11, and 10,000 and more since 3.12.
_MAX_DEPTH = 4_000

# A JSONB array holds up to 2**24 elements, which are at least 48 MiB of text.
_MAX_JSONB_LENGTH = 32 * 2**20

# The protocol limits a message to 1 GiB, and an agent has three documents and their JSONB in one. The server writes out
# every digit of a number, such as 5e-324.
_MAX_TEXT_LENGTH = 256 * 2**20
_MAX_FLOAT_LENGTH = 330

# Matched from left to right, so that an escaped backslash or a surrogate pair is consumed as a whole and what follows
# is not misread. Only the group matches what JSONB refuses.
_ESCAPES = re.compile(r"\\\\|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(\\u0000|\\ud[89a-f][0-9a-f]{2})")

# Caches are for the small sets of keys that recur. A large one would only take memory.
_MAX_CACHED_KEYS = 32
_MAX_CACHED_LENGTH = 2048


def encode(document: object) -> tuple[str, str | None]:
    """Encode a document as the texts of its two columns.

    Args:
        document: What ``json.dumps`` accepts, with bytes and dataclass instances allowed anywhere. As in JSON,
            tuples become lists and keys become strings.

    Returns:
        The text for the JSONB column and the text for the exact column or None. Both are ASCII.

    Raises:
        ValueError: Two keys of one object are the same in JSON, or the document contains itself, or it is nested
            too deeply for ``json.dumps``, or its text is longer than 256 MiB.
        TypeError: The document holds something that JSON cannot.
    """
    base64_texts: list[str] = []

    def collect(data: str) -> dict[str, Any]:
        base64_texts.append(data)
        return _EMPTY_BYTES

    try:
        text = _dumps(document, collect)
        length = len(text) + sum(map(len, base64_texts))
        if length > _MAX_TEXT_LENGTH:
            raise ValueError(
                f"the document is {length:,} characters of JSON, more than {_MAX_TEXT_LENGTH:,}; store large content "
                "elsewhere and refer to it"
            )
        analysis = _Analysis(text, length)
        if analysis.bytes_count != len(base64_texts):
            analysis = _Analysis(_dumps(document, lambda data: {**_EMPTY_BYTES, "data": data}), length)
            key = analysis.unused_key()
            exact = _dumps(document, lambda data: {key: data})
            return analysis.substitute(), f"{_BYTES_PREFIX}{json.dumps(key)} {exact}"
    except RecursionError as error:
        raise ValueError("the document is nested too deeply to be stored; flatten it") from error
    if analysis.is_lossy:
        return _insert_base64(analysis.substitute(), base64_texts), _insert_base64(text, base64_texts)
    return _insert_base64(text, base64_texts), analysis.order


def decode(jsonb_text: str, exact_text: str | None) -> Any:
    """Return the document that was encoded.

    Args:
        jsonb_text: The JSONB column as the server casts it to text.
        exact_text: The exact column.

    Returns:
        A document for which ``json.dumps`` returns the same text as for the encoded one; bytes are bytes again.

    Raises:
        ValueError: It was stored by a newer version of this library, or by a newer Python, and is nested too deeply for
            this one.
    """
    try:
        return _decode(jsonb_text, exact_text)
    except RecursionError:
        # The calls around this one may have left too little of the stack. That of a new thread is empty.
        with ThreadPoolExecutor(1) as thread:
            try:
                return thread.submit(_decode, jsonb_text, exact_text).result()
            except RecursionError as error:
                raise ValueError(
                    "the document is nested too deeply for this version of Python; use a newer one"
                ) from error


def _decode(jsonb_text: str, exact_text: str | None) -> Any:
    if exact_text is None:
        return _parse(jsonb_text)
    if exact_text.startswith(_ORDER_PREFIX):
        decoder = _ordering_decoder if len(exact_text) <= _MAX_CACHED_LENGTH else _ordering_decoder.__wrapped__
        return decoder(exact_text).raw_decode(jsonb_text)[0]
    if exact_text.startswith(_BYTES_PREFIX):
        key, end = _PLAIN_DECODER.raw_decode(exact_text, len(_BYTES_PREFIX))
        return json.JSONDecoder(object_hook=_bytes_under_key(key)).raw_decode(exact_text, end + 1)[0]
    return _parse(exact_text)


def _dumps(document: object, encode_bytes: Callable[[str], dict[str, Any]]) -> str:
    """Return the JSON text of a document; ``encode_bytes`` makes an object from the base64 of each bytes value."""

    def default(value: object) -> Any:
        if isinstance(value, bytes):
            return encode_bytes(base64.b64encode(value).decode())
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        raise TypeError(f"an object of type {type(value).__name__} cannot be stored; convert it to JSON types first")

    return json.dumps(document, default=default)


def _insert_base64(text: str, base64_texts: list[str]) -> str:
    """Insert base64 into the empty bytes objects of a JSON text, in order."""
    if not base64_texts:
        return text
    # NUL does not occur in JSON. A substitute may be a single null, without any such object.
    parts = text.replace(_EMPTY_BYTES_TEXT, f'{_EMPTY_BYTES_TEXT[:-2]}\0"}}').split("\0")
    return "".join(chain.from_iterable(zip(parts, [*base64_texts[: len(parts) - 1], ""], strict=True)))


def _parse(text: str) -> Any:
    return (_BYTES_DECODER if _BYTES_KEY in text else _PLAIN_DECODER).raw_decode(text)[0]


class _Analysis:
    """What JSONB would change in a JSON text, determined in one pass of the C decoder.

    Args:
        text: The text.
        length: The length of the text including the base64 that is not in it.

    Attributes:
        bytes_count: How many objects have the form of encoded bytes.
        order: The text of the exact column for the order of keys; None if it is JSONB's.
        is_lossy: Whether JSONB would change more than the order of keys, or cannot hold the text at all.
    """

    def __init__(self, text: str, length: int) -> None:
        self.bytes_count = 0
        self.is_lossy = False
        self._text = text
        self._has_nulls = False
        key_tuples: dict[tuple[str, ...], None] = {}
        objects: list[list[tuple[str, Any]]] = []

        def note(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
            keys = tuple([key for key, _ in pairs])
            if len(keys) == 2 and _BYTES_KEY in keys and _is_encoded_bytes(dict(pairs)):
                self.bytes_count += 1
            else:
                key_tuples[keys] = None
            return dict(pairs) if is_large else None

        # For a small text the decoder calls no Python, and leaves None in the place of each object. Keeping the objects
        # of a large text would take longer.
        is_large = text.count("[") + text.count("{") > _MAX_DEPTH
        parsed = self._parse(note if is_large else objects.append)
        for pairs in objects:
            note(pairs)
        self._key_tuples = tuple(key_tuples)
        self.order, is_ambiguous = _order(self._key_tuples)
        self._fits = not _is_too_large(text, length) and not (is_large and _is_too_deep(parsed))
        if is_ambiguous or not self._fits or _has_refused_escape(text):
            self.is_lossy = True

    def substitute(self) -> str:
        """Return a text that JSONB can hold, as close to the analysed one as possible."""
        if not self._fits:
            return "null"
        text = json.dumps(self._parse(dict)) if self._has_nulls else self._text
        return _ESCAPES.sub(lambda match: r"\ufffd" if match[1] else match[0], text)

    def unused_key(self) -> str:
        """Return a key that no object in the document has."""
        used = set(chain.from_iterable(self._key_tuples))
        return next(key for key in map("bytes{}".format, count()) if key not in used)

    def _parse(self, hook: Callable[[list[tuple[str, Any]]], Any]) -> Any:
        text = self._text
        decoder = json.JSONDecoder(
            object_pairs_hook=hook,
            parse_float=self._float if "e+" in text or "-0.0" in text else None,
            parse_int=self._integer if _may_hold_huge_integer(text) else None,
            parse_constant=self._null,
        )
        return decoder.raw_decode(text)[0]

    def _float(self, literal: str) -> float:
        if literal == "-0.0" or "e+" in literal:
            self.is_lossy = True
        return float(literal)

    def _integer(self, literal: str) -> int | None:
        if len(literal.lstrip("-")) > _MAX_DIGITS:
            self._null(literal)
            return None
        return int(literal)

    def _null(self, _literal: str) -> None:
        self.is_lossy = self._has_nulls = True


def _is_too_deep(parsed: Any) -> bool:
    level = [parsed]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _order(key_tuples: tuple[tuple[str, ...], ...]) -> tuple[str | None, bool]:
    """Return the text of the exact column for the order of keys, and whether one set of keys has two orders.

    Raises:
        ValueError: Two keys of one object are the same.
    """
    is_small = _is_small(tuple(chain.from_iterable(key_tuples)))
    return (_cached_order if is_small else _cached_order.__wrapped__)(key_tuples)


@lru_cache(maxsize=1024)
def _cached_order(key_tuples: tuple[tuple[str, ...], ...]) -> tuple[str | None, bool]:
    by_order = {_jsonb_order(_check_unique(keys)): keys for keys in key_tuples}
    orders = [_STRANDS_ORDER_NUMBERS.get(keys, keys) for jsonb_keys, keys in by_order.items() if keys != jsonb_keys]
    return _ORDER_PREFIX + json.dumps(orders) if orders else None, len(by_order) < len(key_tuples)


def _check_unique(keys: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(keys)) < len(keys):
        raise ValueError(
            "two keys of one object are the same in JSON, such as 1 and '1'; only one of them could be stored, so use "
            "keys that differ as strings"
        )
    return keys


def _is_small(keys: tuple[str, ...]) -> bool:
    return len(keys) <= _MAX_CACHED_KEYS and sum(map(len, keys)) <= _MAX_CACHED_LENGTH


def _is_encoded_bytes(document: dict[str, Any]) -> bool:
    return len(document) == 2 and document.get(_BYTES_KEY) is True and isinstance(document.get("data"), str)


def _has_refused_escape(text: str) -> bool:
    """Return whether a JSON text has an escaped NUL or a lone surrogate, which JSONB refuses."""
    if "\\u0000" not in text and "\\ud" not in text:
        return False
    # Python's unicode_escape decodes what json.dumps writes, and UTF-16 joins surrogate pairs: several times faster
    # than a regular expression on a text full of emoji.
    unescaped = text.encode().decode("unicode_escape")
    try:
        unescaped.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return True
    return "\0" in unescaped


def _may_hold_huge_integer(text: str) -> bool:
    """Return whether some aligned block of the text is all digits, as one within a number with too many digits is."""
    if len(text) <= _MAX_DIGITS:
        return False
    block = _MAX_DIGITS // 2
    return any(text[start : start + block].isdigit() for start in range(0, len(text), block))


def _is_too_large(text: str, length: int) -> bool:
    if length <= _MAX_TEXT_LENGTH // _MAX_FLOAT_LENGTH:
        return False
    exponents = text.count("e-") + text.count("e+")
    return length > _MAX_JSONB_LENGTH or length + exponents * _MAX_FLOAT_LENGTH > _MAX_TEXT_LENGTH


def _jsonb_order(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return keys in the order in which JSONB stores them: by length in UTF-8, then by bytes."""
    return (_cached_jsonb_order if _is_small(keys) else _cached_jsonb_order.__wrapped__)(keys)


@lru_cache(maxsize=1024)
def _cached_jsonb_order(keys: tuple[str, ...]) -> tuple[str, ...]:
    encoded = sorted((key.encode("utf-8", "surrogatepass") for key in keys), key=lambda key: (len(key), key))
    return tuple(key.decode("utf-8", "surrogatepass") for key in encoded)


def _bytes_hook(document: dict[str, Any]) -> Any:
    return base64.b64decode(document["data"]) if _is_encoded_bytes(document) else document


def _bytes_under_key(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda document: base64.b64decode(document[key]) if key in document else document


@lru_cache(maxsize=1024)
def _ordering_decoder(exact_text: str) -> json.JSONDecoder:
    """Return a decoder that restores the order of keys listed in an exact column."""
    orders = {_jsonb_order(keys): keys for keys in map(_listed_keys, json.loads(exact_text[len(_ORDER_PREFIX) :]))}

    def restore_order(document: dict[str, Any]) -> Any:
        # Checked first, since another object with the same two keys may be listed.
        if _BYTES_KEY in document and _is_encoded_bytes(document):
            return base64.b64decode(document["data"])
        keys = orders.get(tuple(document))
        return document if keys is None else {key: document[key] for key in keys}

    return json.JSONDecoder(object_hook=restore_order)


def _listed_keys(order: list[str] | int) -> tuple[str, ...]:
    if isinstance(order, list):
        return tuple(order)
    try:
        return _STRANDS_ORDERS[order]
    except IndexError:
        raise ValueError("the document was stored by a newer version of strands-psycopg; install that one") from None


_PLAIN_DECODER = json.JSONDecoder()
_BYTES_DECODER = json.JSONDecoder(object_hook=_bytes_hook)
