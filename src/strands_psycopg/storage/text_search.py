"""The text by which a search finds a value."""

import re

from strands_psycopg.words import MAX_TEXT_SIZE, separate_words

_EXTENSION = re.compile(r"(?<=[^/])\.[^./]*$")


def searchable_text(key: str, data: bytes) -> str | None:
    """Return the words by which a search finds a value, or None if the value is not text or is too long.

    These are the words of the last part of its key, without the extension, and of the text itself.
    """
    if len(data) > MAX_TEXT_SIZE or b"\0" in data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return separate_words(f"{_EXTENSION.sub('', key.rpartition('/')[2])} {text}")
