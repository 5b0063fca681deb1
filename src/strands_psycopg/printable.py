"""Escaping of text that users provide, such as messages and ids, before it is displayed."""

import re

# Control characters (Unicode's category Cc), line and paragraph separators, the characters that override or isolate the
# direction of text (Unicode Standard Annex 9), and surrogates, which no terminal can show.
_ESCAPED = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def printable(text: str, *, keep: str = "") -> str:
    """Return a text in which characters that control a terminal or the direction of text are escaped, as by ``repr``.

    All others are shown as they are, invisible ones too: joiners are part of Persian words and of emoji.

    Args:
        text: The text.
        keep: Characters that are not escaped, such as line ends.
    """
    return _ESCAPED.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()
