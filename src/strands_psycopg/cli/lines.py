"""Files of lines that commands read and write."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


class LinesFile:
    """A file, pipe or device to which lines of sessions are written, without a buffer.

    A buffer that a full disk has refused would be written again when the file is truncated or closed.

    Args:
        descriptor: Its descriptor.
        is_new: Whether no one else writes to it.
    """

    def __init__(self, descriptor: int, *, is_new: bool) -> None:
        self._descriptor = descriptor
        self._is_new = is_new
        self._written = 0

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Remove what the block has written to a file, if the block fails."""
        start, self._written = os.fstat(self._descriptor).st_size, 0
        try:
            yield
        except BaseException:
            # Others may have appended to a file that is standard output.
            grown = self._written and os.fstat(self._descriptor).st_size == start + self._written
            if self._is_new or grown:
                os.ftruncate(self._descriptor, start)
            raise

    def write(self, line: str) -> None:
        """Write a line of ASCII with its line end."""
        data = line.encode("ascii")
        while data:
            written = os.write(self._descriptor, data)
            self._written += written
            data = data[written:]


class _ReplacedOutput(LinesFile):
    """What a program that calls the command has assigned to ``sys.stdout``."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        yield

    def write(self, line: str) -> None:
        sys.stdout.write(line)


@contextmanager
def open_output(name: str) -> Iterator[LinesFile]:
    """Open a new file, or an existing device or pipe, for writing; or standard output if ``name`` is ``STDIO``.

    Raises:
        TransferError: It cannot be written.
    """
    if name == STDIO:
        sys.stdout.flush()
        try:
            descriptor = sys.stdout.fileno()
        except OSError:
            yield _ReplacedOutput()
        else:
            yield LinesFile(descriptor, is_new=False)
        return
    path = Path(name)
    try:
        is_new = path.is_file() or not path.exists()
        with path.open("xb" if is_new else "wb", buffering=0) as file:
            try:
                yield LinesFile(file.fileno(), is_new=is_new)
            except BaseException:
                # Otherwise the file would be in the way when the command is run again.
                if is_new and os.fstat(file.fileno()).st_size == 0:
                    path.unlink()
                raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TransferError(f"{name} cannot be written: {explain(error)}") from error
