"""What may be an id, and what an index of a message."""

_LONGEST = 255
_LARGEST_INDEX = 2**63 - 1


def check_id(field: str, value: object) -> str:
    """Give the id back if it can be stored.

    Raises:
        ValueError: It is not a string of 1 to 255 characters without NUL and lone surrogates; names the field.
    """
    if not isinstance(value, str):
        raise ValueError(f"{field} must be a string, not {type(value).__name__}")
    if not 1 <= len(value) <= _LONGEST:
        raise ValueError(f"{field} must have 1 to {_LONGEST} characters, not {len(value)}")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{field} must not contain NUL or a lone surrogate")
    return value


def check_index(field: str, value: object) -> int:
    """Give the index of a message, or a count of them, as a number that fits a bigint column.

    A larger one becomes the largest, where no message is either.

    Raises:
        ValueError: It is not an int from 0 up; names the field.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field} must be an integer, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{field} must be 0 or more, not {value}")
    return min(value, _LARGEST_INDEX)
