"""The words of a text, as the search compares them.

A word is a run of letters and digits, in lower case, much as in Strands' keyword search. The server's own parser would
keep an address or a version number together, so that its parts were not found.
"""

import re

# PostgreSQL refuses a text whose words take more than a megabyte.
_LONGEST_TEXT = 65_536

# A prompt may be the query.
_MOST_WORDS = 64

_SEPARATORS = re.compile(r"[\W_]+")
_EXTENSION = re.compile(r"(?<=[^/])\.[^./]*$")


def searchable_text(key: str, data: bytes) -> str | None:
    """Give the words by which a value is found; None if it is not found, being no text or a long one.

    They are those of the last part of its key, without extension, and those of the text itself.
    """
    if len(data) > _LONGEST_TEXT or b"\0" in data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return _separated(f"{_EXTENSION.sub('', key.rpartition('/')[2])} {text}")


def tsquery(question: str, stop_words: frozenset[str]) -> str:
    """Give the ``tsquery`` that finds what has any of a question's words, but for stop words."""
    words = dict.fromkeys(word for word in _separated(question).split() if word not in stop_words)
    return " | ".join(list(words)[:_MOST_WORDS])


def _separated(text: str) -> str:
    return _SEPARATORS.sub(" ", text.lower())
