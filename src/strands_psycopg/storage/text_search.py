"""Words of values and queries, for full-text search.

A word is a run of letters and digits in lower case, much as in Strands' keyword search. The server's own parser keeps
an address or a version number together, so that a search would not find its parts.
"""

import re

# PostgreSQL refuses a text whose words take more than a megabyte.
_MAX_TEXT_SIZE = 65_536

# A whole prompt may be the query.
_MAX_QUERY_WORDS = 64

_SEPARATORS = re.compile(r"[\W_]+")
_EXTENSION = re.compile(r"(?<=[^/])\.[^./]*$")


def searchable_text(key: str, data: bytes) -> str | None:
    """Return the words by which a search finds a value, or None if the value is not text or is too long.

    These are the words of the last part of its key, without the extension, and of the text itself.
    """
    if len(data) > _MAX_TEXT_SIZE or b"\0" in data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return _separate_words(f"{_EXTENSION.sub('', key.rpartition('/')[2])} {text}")


def tsquery(query: str, stop_words: frozenset[str]) -> str:
    """Return the ``tsquery`` that matches any word of a query except stop words; empty if there are no others."""
    words = dict.fromkeys(word for word in _separate_words(query).split() if word not in stop_words)
    return " | ".join(list(words)[:_MAX_QUERY_WORDS])


def _separate_words(text: str) -> str:
    return _SEPARATORS.sub(" ", text.lower())
