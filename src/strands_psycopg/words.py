"""Words of texts and queries, for full-text search.

A word is a run of letters and digits in lower case, much as in Strands' keyword search. The server's own parser keeps
an address or a version number together, so that a search would not find its parts.

Whether the parser sees a word in a numeral such as ``½`` or ``²`` depends on the locale of the database, so these are
spelled as the number of their code point, in texts and in queries alike.
"""

import re

_NO_STOP_WORDS: frozenset[str] = frozenset()

try:
    from strands.storage.search.keyword import STOP_WORDS
except ImportError:  # before strands-agents 1.62
    STOP_WORDS = _NO_STOP_WORDS

# PostgreSQL refuses a text whose words take more than a megabyte. In characters or bytes.
MAX_TEXT_SIZE = 65_536

# A whole prompt may be the query.
_MAX_QUERY_WORDS = 64

_SEPARATORS = re.compile(r"[\W_]+")


class _Spelling(dict[int, int | str]):
    """Maps code points to their replacements: a numeral that is neither digit nor letter is spelled, others stay."""

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        is_numeral = character.isnumeric() and not character.isdecimal() and not character.isalpha()
        self[code] = f"u{code:x}" if is_numeral else code
        return self[code]


_SPELLING = _Spelling()


def separate_words(text: str) -> str:
    """Return the words of a text, in lower case and separated by single spaces."""
    return _SEPARATORS.sub(" ", text.lower().translate(_SPELLING))


def stop_words(text_search_config: str) -> frozenset[str]:
    """Return the words that queries ignore: Strands' own for ``simple``; other configurations have some themselves."""
    return STOP_WORDS if text_search_config == "simple" else _NO_STOP_WORDS


def tsquery(query: str, stop_words: frozenset[str]) -> str:
    """Return the ``tsquery`` that matches any word of a query except stop words; empty if there are no others."""
    words = dict.fromkeys(word for word in separate_words(query).split() if word not in stop_words)
    return " | ".join(list(words)[:_MAX_QUERY_WORDS])


def check_text_search_config(name: object) -> str:
    """Return the name of a text search configuration, if it can be one.

    Raises:
        ValueError: It cannot be one.
    """
    # PostgreSQL would accept NULL too, and find nothing.
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(
            f"text_search_config must be the name of a text search configuration, such as 'simple', not {name!r}"
        )
    return name
