"""Documents to and from JSONB without losing or altering a byte.

A document is stored as JSONB, readable and queryable, and, where JSONB alone would not give the very same
document back, with a text beside it (the column ``<name>_exact``) that says what is missing:

- NULL: JSONB gives the document back.
- ``order [[...], ...]``: JSONB holds every value and only the order of keys differs. Each list is one set of keys
  in the document's own order. Such texts are small and repeat from message to message.
- otherwise the document's JSON text, verbatim, while JSONB holds a readable stand-in: U+FFFD for NUL and lone
  surrogates, null for NaN, infinities and integers beyond ``numeric``, and a mere null for a document that is too
  deep or too large for JSONB.
- ``bytes "<marker>" {...}``: the same for a document with dicts of the very shape in which bytes are encoded;
  in it only ``{"<marker>": "<base64>"}`` stands for bytes.

Bytes are stored as Strands stores them: ``{"__bytes_encoded__": true, "data": "<base64>"}``.
"""

import base64
import dataclasses
import json
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import chain, count
from typing import Any

_BYTES = "__bytes_encoded__"

# What stands for bytes while a text is looked through, since base64 needs no looking through and may be megabytes. In
# JSON, its text is nothing but such an object.
_HOLLOW = {_BYTES: True, "data": ""}
_HOLLOW_TEXT = json.dumps(_HOLLOW)

_ORDER_PREFIX = "order "
_MARKER_PREFIX = "bytes "

# What PostgreSQL's numeric holds before the point. Python writes over 4,300 only if told to.
_MOST_DIGITS = 131_072

# A server with the default max_stack_depth of 2 MB parses 13,000 levels of JSONB (measured on 15 and 18). Python
# writes about 1,000 up to 3.11, and 10,000 and more since 3.12.
_MOST_LEVELS = 4_000

# JSONB takes 2**24 elements in an array, which are 48 MiB of text at the least.
_MOST_JSONB = 32 * 2**20

# The protocol ends at 1 GiB a message, and an agent has three documents and their JSONB in one. The server writes out
# every digit of a number, such as 5e-324.
_MOST_TEXT = 256 * 2**20
_LONGEST_FLOAT = 330

# From left to right, so that an escaped backslash and a surrogate pair are consumed whole and what follows them
# is not misread; only the group is what JSONB refuses.
_ESCAPES = re.compile(r"\\\\|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(\\u0000|\\ud[89a-f][0-9a-f]{2})")

# Caches serve the small key sets that recur; a large one would only hold memory.
_CACHED_KEYS = 32
_CACHED_TEXT = 2048


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
    bytes_texts: list[str] = []

    def put_aside(data: str) -> dict[str, Any]:
        bytes_texts.append(data)
        return _HOLLOW

    try:
        text = _dumps(document, put_aside)
        length = len(text) + sum(map(len, bytes_texts))
        if length > _MOST_TEXT:
            raise ValueError(
                f"the document is {length:,} characters of JSON, more than {_MOST_TEXT:,}; store what is large "
                "elsewhere and refer to it"
            )
        survey = _Survey(text, length)
        if survey.bytes_count != len(bytes_texts):
            survey = _Survey(_dumps(document, lambda data: {**_HOLLOW, "data": data}), length)
            marker = survey.unused_key()
            exact = _dumps(document, lambda data: {marker: data})
            return survey.standin(), f"{_MARKER_PREFIX}{json.dumps(marker)} {exact}"
    except RecursionError as error:
        raise ValueError("the document is nested too deeply to be stored; flatten it") from error
    if survey.altered:
        return _filled(survey.standin(), bytes_texts), _filled(text, bytes_texts)
    orders = [keys for stored, keys in survey.orders.items() if keys != stored]
    return _filled(text, bytes_texts), _ORDER_PREFIX + json.dumps(orders) if orders else None


def decode(jsonb_text: str, exact_text: str | None) -> Any:
    """Give back the document that was encoded.

    Args:
        jsonb_text: The JSONB column as the server casts it to text.
        exact_text: The exact column.

    Returns:
        A document of which ``json.dumps`` is equal to that of the encoded one, bytes being bytes again.
    """
    if exact_text is None:
        return _parse(jsonb_text)
    if exact_text.startswith(_ORDER_PREFIX):
        decoder = _ordering_decoder if len(exact_text) <= _CACHED_TEXT else _ordering_decoder.__wrapped__
        return decoder(exact_text).raw_decode(jsonb_text)[0]
    if exact_text.startswith(_MARKER_PREFIX):
        marker, end = _PLAIN.raw_decode(exact_text, len(_MARKER_PREFIX))
        return json.JSONDecoder(object_hook=_marked_bytes_hook(marker)).raw_decode(exact_text, end + 1)[0]
    return _parse(exact_text)


def _dumps(document: object, bytes_object: Callable[[str], dict[str, Any]]) -> str:
    """Give the JSON text of a document, in which its bytes are what ``bytes_object`` makes of their base64."""

    def default(value: object) -> Any:
        if isinstance(value, bytes):
            return bytes_object(base64.b64encode(value).decode())
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        raise TypeError(f"an object of type {type(value).__name__} cannot be stored; convert it to JSON types first")

    return json.dumps(document, default=default)


def _filled(text: str, bytes_texts: list[str]) -> str:
    """Put base64 into the hollow objects of a JSON text, in order."""
    if not bytes_texts:
        return text
    # JSON has no NUL, and a stand-in may have no hollow objects either.
    chunks = text.replace(_HOLLOW_TEXT, f'{_HOLLOW_TEXT[:-2]}\0"}}').split("\0")
    return "".join(chain.from_iterable(zip(chunks, [*bytes_texts[: len(chunks) - 1], ""], strict=True)))


def _parse(text: str) -> Any:
    return (_WITH_BYTES if _BYTES in text else _PLAIN).raw_decode(text)[0]


class _Survey:
    """What JSONB would change in a JSON text, found in one pass of the C decoder.

    Args:
        text: The text.
        length: How long it is with its bytes.

    Attributes:
        orders: For each set of keys, in JSONB's order, the order in the text.
        bytes_count: How many objects have the shape of encoded bytes.
        altered: JSONB would change more than the order of keys, or cannot hold the text at all.
    """

    def __init__(self, text: str, length: int) -> None:
        self.bytes_count = 0
        self.altered = False
        self._text = text
        self._nulled = False
        self._key_orders: dict[tuple[str, ...], None] = {}
        self._parsed = json.loads(
            text,
            object_pairs_hook=self._object,
            parse_float=self._float if "e+" in text or "-0.0" in text else None,
            parse_int=self._integer if _may_hold_huge_integer(text) else None,
            parse_constant=self._null,
        )
        self.orders = {_jsonb_order(keys): keys for keys in self._key_orders}
        self._fits = not _is_too_large(text, length) and not _is_too_deep(text, self._parsed)
        if len(self.orders) < len(self._key_orders) or not self._fits or _has_refused_escape(text):
            self.altered = True

    def standin(self) -> str:
        """Give a text that JSONB can hold, as near to the surveyed one as it can be."""
        if not self._fits:
            return "null"
        text = json.dumps(self._parsed) if self._nulled else self._text
        return _ESCAPES.sub(lambda match: r"\ufffd" if match[1] else match[0], text)

    def unused_key(self) -> str:
        """Give a key that no object in the document has."""
        used = set(chain.from_iterable(self._key_orders))
        return next(key for key in map("bytes{}".format, count()) if key not in used)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            raise ValueError(
                "two keys of one object are the same in JSON, such as 1 and '1'; only one of them could be "
                "stored, so use keys that differ as strings"
            )
        if _is_encoded_bytes(document):
            self.bytes_count += 1
        else:
            self._key_orders[tuple(document)] = None
        return document

    def _float(self, literal: str) -> float:
        if literal == "-0.0" or "e+" in literal:
            self.altered = True
        return float(literal)

    def _integer(self, literal: str) -> int | None:
        if len(literal.lstrip("-")) > _MOST_DIGITS:
            self._null(literal)
            return None
        return int(literal)

    def _null(self, _literal: str) -> None:
        self.altered = self._nulled = True


def _is_encoded_bytes(document: dict[str, Any]) -> bool:
    return len(document) == 2 and document.get(_BYTES) is True and isinstance(document.get("data"), str)


def _has_refused_escape(text: str) -> bool:
    """Tell whether a JSON text has an escaped NUL or a lone surrogate, which JSONB refuses."""
    if "\\u0000" not in text and "\\ud" not in text:
        return False
    # Python knows the escapes that json.dumps writes, and UTF-16 the surrogates that make a pair: several times
    # faster than a regular expression on a text full of emoji.
    unescaped = text.encode().decode("unicode_escape")
    try:
        unescaped.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return True
    return "\0" in unescaped


def _may_hold_huge_integer(text: str) -> bool:
    """Look for a block that is all digits; no longer run of digits goes between two of them."""
    if len(text) <= _MOST_DIGITS:
        return False
    block = _MOST_DIGITS // 2
    return any(text[start : start + block].isdigit() for start in range(0, len(text), block))


def _is_too_large(text: str, length: int) -> bool:
    if length <= _MOST_TEXT // _LONGEST_FLOAT:
        return False
    exponents = text.count("e-") + text.count("e+")
    return length > _MOST_JSONB or length + exponents * _LONGEST_FLOAT > _MOST_TEXT


def _is_too_deep(text: str, parsed: Any) -> bool:
    if text.count("[") + text.count("{") <= _MOST_LEVELS:
        return False
    level = [parsed]
    for _ in range(_MOST_LEVELS):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _jsonb_order(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Sort keys as JSONB stores them: by length in UTF-8, then by bytes."""
    small = len(keys) <= _CACHED_KEYS and sum(map(len, keys)) <= _CACHED_TEXT
    return _cached_jsonb_order(keys) if small else _cached_jsonb_order.__wrapped__(keys)


@lru_cache(maxsize=1024)
def _cached_jsonb_order(keys: tuple[str, ...]) -> tuple[str, ...]:
    encoded = sorted((key.encode("utf-8", "surrogatepass") for key in keys), key=lambda key: (len(key), key))
    return tuple(key.decode("utf-8", "surrogatepass") for key in encoded)


def _bytes_hook(document: dict[str, Any]) -> Any:
    return base64.b64decode(document["data"]) if _is_encoded_bytes(document) else document


def _marked_bytes_hook(marker: str) -> Callable[[dict[str, Any]], Any]:
    return lambda document: base64.b64decode(document[marker]) if marker in document else document


@lru_cache(maxsize=1024)
def _ordering_decoder(exact_text: str) -> json.JSONDecoder:
    """Build the decoder that puts keys back into the order that an exact column lists."""
    orders = {_jsonb_order(tuple(keys)): keys for keys in json.loads(exact_text[len(_ORDER_PREFIX) :])}

    def in_order(document: dict[str, Any]) -> Any:
        # First, since another object with the same two keys may be listed.
        if _BYTES in document and _is_encoded_bytes(document):
            return base64.b64decode(document["data"])
        keys = orders.get(tuple(document))
        return document if keys is None else {key: document[key] for key in keys}

    return json.JSONDecoder(object_hook=in_order)


_PLAIN = json.JSONDecoder()
_WITH_BYTES = json.JSONDecoder(object_hook=_bytes_hook)
