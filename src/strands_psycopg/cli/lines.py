"""Files of lines that commands read."""

import sys
from collections.abc import Iterator

from strands_psycopg.errors import TransferError
from strands_psycopg.system_errors import explain

STDIO = "-"


def read_lines(name: str) -> Iterator[str]:
    """Yield the lines of a file that export wrote, or of standard input if ``name`` is ``STDIO``.

    Raises:
        TransferError: It cannot be read.
    """
    if name == STDIO and sys.stdin is None:
        raise TransferError("standard input is closed; redirect it")
    try:
        # UTF-8 whatever the locale is: export writes ASCII, and other programs that edit the lines write UTF-8.
        with open(sys.stdin.fileno() if name == STDIO else name, encoding="utf-8", closefd=name != STDIO) as file:
            yield from file
    except UnicodeDecodeError:
        raise TransferError(f"{name} is not UTF-8; only the output of export can be imported") from None
    except OSError as error:
        raise TransferError(f"{name} cannot be read: {explain(error)}") from error
