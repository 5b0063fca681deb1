"""Detection of edits of JSON-like values in memory, at any depth, for about a microsecond per message.

Two values with the same fingerprint have the same types, the same floats to the bit and the same order of keys, so they
dump to the same JSON.
"""

import copy
import marshal
from collections.abc import Iterable
from typing import Any, TypeAlias

# Later formats also depend on what else refers to the parts of a value.
_MARSHAL_VERSION = 2

# In bytes. A value with a longer dump mostly consists of large strings, which a copy shares.
_MAX_DUMP_SIZE = 16_384


class _Copy:
    """A copy of a value's containers; immutable parts are shared, so comparing them costs nothing."""

    def __init__(self, value: Any) -> None:
        self._copy = _copied(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Copy) and _is_same(other._copy, self._copy)

    def __hash__(self) -> int:
        return _hash(self._copy)

    def matches(self, value: Any) -> bool:
        try:
            return _is_same(value, self._copy)
        except RecursionError:
            return False


Fingerprint: TypeAlias = bytes | _Copy


def fingerprint(value: Any) -> Fingerprint:
    """Return a fingerprint that shows whether the value has changed since.

    Raises:
        ValueError: It is nested too deeply to be stored.
    """
    dump = _dump(value)
    if dump is not None and len(dump) <= _MAX_DUMP_SIZE:
        return dump
    try:
        return _Copy(value)
    except RecursionError:
        raise ValueError("the document is nested too deeply to be stored; flatten it") from None


def is_unchanged(value: Any, known: Fingerprint) -> bool:
    """Return whether a value still has a fingerprint."""
    return _dump(value) == known if type(known) is bytes else known.matches(value)  # type: ignore[union-attr]


def are_unchanged(values: Iterable[Any], known: Iterable[Fingerprint]) -> bool:
    """Return whether all values still have their fingerprints."""
    try:
        # Does not call ``is_unchanged``, since this runs for each message in memory at every event.
        return all(
            marshal.dumps(value, _MARSHAL_VERSION) == each if type(each) is bytes else each.matches(value)  # type: ignore[union-attr]
            for value, each in zip(values, known, strict=False)
        )
    except ValueError:
        return False


def _dump(value: Any) -> bytes | None:
    try:
        return marshal.dumps(value, _MARSHAL_VERSION)
    except ValueError:  # it holds something other than JSON's types, or is nested too deeply
        return None


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(each) for each in value]
    return copy.deepcopy(value)  # the same object, if it is immutable


def _hash(value: Any) -> int:
    if isinstance(value, dict):
        return hash(tuple((key, _hash(each)) for key, each in value.items()))
    if isinstance(value, list):
        return hash(tuple(map(_hash, value)))
    # Floats that are the same need not be equal, and what else may be there need not be hashable.
    return hash(value) if isinstance(value, (str, bytes, int)) else 0


def _is_same(value: Any, known: Any) -> bool:
    if value is known:
        return True
    if isinstance(value, dict) and isinstance(known, dict):
        return len(value) == len(known) and all(
            _is_same(key, known_key) and _is_same(value[key], known[known_key])
            for key, known_key in zip(value, known, strict=True)
        )
    if isinstance(value, (list, tuple)) and isinstance(known, list):
        return len(value) == len(known) and all(map(_is_same, value, known))
    if type(value) is not type(known):
        return False
    if isinstance(value, float):
        return repr(value) == repr(known)  # -0.0 is not 0.0, NaN is NaN
    return bool(value == known)
