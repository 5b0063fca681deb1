"""Escaping of text that users provide, such as messages and ids, before it is displayed."""


def printable(text: str, *, keep: str = "") -> str:
    """Return a text with its control, format and unassigned characters escaped as in Python's ``repr``.

    These include the characters that control a terminal and those that change the direction of text.

    Args:
        text: The text.
        keep: Characters that are not escaped, such as line ends.
    """
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )
