"""Checks of arguments: ids and other texts, message indexes, counts and durations."""

from datetime import timedelta
from uuid import UUID

_MAX_LENGTH = 255
_MAX_INDEX = 2**63 - 1
_MAX_SECONDS = timedelta(days=36_500).total_seconds()


def check_id(field: str, value: object) -> str:
    """Return an id if it is valid.

    Raises:
        ValueError: It is not a string of 1 to 255 characters without NUL or lone surrogates; the text names ``field``.
    """
    return check_text(field, value, 1, _MAX_LENGTH)


def check_text(field: str, value: object, min_length: int, max_length: int) -> str:
    """Return a text if a column can hold it.

    Raises:
        ValueError: It is not a string of that many characters without NUL or lone surrogates; the text names ``field``.
    """
    if not isinstance(value, str):
        raise ValueError(f"{field} must be a string, not {type(value).__name__}")
    if not min_length <= len(value) <= max_length:
        raise ValueError(f"{field} must have {min_length} to {max_length:,} characters, not {len(value):,}")
    if not is_storable(value):
        raise ValueError(f"{field} must not contain NUL or a lone surrogate")
    return str.__str__(value)  # of a member of a ``str`` enumeration, what is formatted or stored would be its name


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can store a text."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text))


def check_index(field: str, value: object) -> int:
    """Return a message index, or a number of messages, limited to what fits a ``bigint``.

    Raises:
        ValueError: It is not an integer from 0 up; the text names ``field``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field} must be an integer, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{field} must be 0 or more, not {value}")
    return min(value, _MAX_INDEX)


def check_count(field: str, value: object, maximum: int) -> int:
    """Return a number of items.

    Raises:
        ValueError: It is not an integer from 1 to ``maximum``; the text names ``field``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise ValueError(f"{field} must be an integer from 1 to {maximum}, not {value!r}")
    return value


def check_duration(field: str, duration: timedelta | float) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: It is not positive, or longer than 36,500 days; the text names ``field``.
    """
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if not 0 < seconds <= _MAX_SECONDS:
        raise ValueError(f"{field} must be more than 0 seconds and at most 36,500 days, not {duration}")
    return seconds


def parse_snapshot_id(text: object) -> UUID:
    """Read the id of a checkpoint.

    Raises:
        ValueError: It is not a UUID of version 7.
    """
    try:
        snapshot_id = UUID(text)  # type: ignore[arg-type]
        if snapshot_id.version == 7 and str(snapshot_id) == text:
            return snapshot_id
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(
        f"{text!r} is not a snapshot id; list_snapshot_ids() or 'strands-psycopg show --checkpoints' lists them"
    )
