"""Lines that wait to be read: in memory, or in a temporary file if they are many."""

from collections.abc import Iterator
from contextlib import suppress
from tempfile import SpooledTemporaryFile

from strands_psycopg.errors import TransferError
from strands_psycopg.system_errors import explain

# More than this many bytes are kept in a temporary file.
_MAX_IN_MEMORY = 2**22


class TemporaryLines:
    """Lines that are all written before any is read.

    Attributes:
        size: The number of bytes written.
    """

    def __init__(self) -> None:
        self.size = 0
        self._file = SpooledTemporaryFile(_MAX_IN_MEMORY)  # noqa: SIM115

    def write(self, line: bytes) -> None:
        """Write a line with its line end.

        Raises:
            TransferError: The temporary file cannot be written.
        """
        try:
            self._file.write(line)
        except OSError as error:
            raise _failure("written", error) from error
        self.size += len(line)

    def lines(self, position: int = 0) -> Iterator[bytes]:
        """Yield the lines from a position on, each with its line end; several iterators may be read in turn.

        Raises:
            TransferError: The temporary file cannot be written, since its end was in a buffer, or cannot be read.
        """
        while position < self.size:
            try:
                self._file.seek(position)
                line = self._file.readline()
            except OSError as error:
                raise _failure("read", error) from error
            position += len(line)
            yield line

    def close(self) -> None:
        """Delete the lines."""
        # What a full disk has refused to take would be written once more.
        with suppress(OSError):
            self._file.close()


def _failure(done: str, error: OSError) -> TransferError:
    return TransferError(
        f"a temporary file cannot be {done}: {explain(error)}; the environment variable TMPDIR says where it is"
    )
