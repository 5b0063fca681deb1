"""Text from messages, ids and other places that users fill, so that it can be shown."""


def printable(text: str, *, keep: str = "") -> str:
    """Give a text with its control, format and unassigned characters escaped, as Python's ``repr`` escapes them.

    Among them are those that steer a terminal, and those that change the direction of text.

    Args:
        text: The text.
        keep: Characters that stay as they are, such as line ends.
    """
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )
