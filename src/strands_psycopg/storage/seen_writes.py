"""Which write of each key a storage has seen, so that it can refuse to replace a value that it has not."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from strands_psycopg.errors import StorageConflictError
from strands_psycopg.process_forks import after_fork_in_child

# In place of a write id, for a key without a value.
MISSING = UUID(int=0)


class SeenWrites:
    """The write ids of the values that a storage has read or written, by key.

    It is thread-safe and never forgets a key: it holds one id per key, and one more for each failed write of the key
    until one succeeds or the key is read. A forked child has seen what its parent had.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[UUID, ...]] = {}
        self._reset()
        after_fork_in_child(self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._being_replaced: set[str] = set()

    def last(self, key: str) -> tuple[UUID, ...] | None:
        """Return the write ids that the value may have as far as is known; None if the key was never seen."""
        return self._seen.get(key)

    def refresh(self, key: str, write_id: UUID, *, last: tuple[UUID, ...] | None) -> None:
        """Remember the write id of a value that was read, or ``MISSING``.

        Args:
            key: The key.
            write_id: What was read.
            last: What ``last`` returned before. If the key was seen in another way since then, it is unknown which of
                the two is newer, and nothing changes.
        """
        with self._changed:
            if self._seen.get(key) is last:
                self._seen[key] = (write_id,)

    @contextmanager
    def replacing(self, key: str, write_id: UUID) -> Iterator[list[UUID] | None]:
        """Yield the write ids of the values that a call may replace, in a block that makes the call.

        Calls for one key wait for one another, since otherwise each would find the other's value.

        Args:
            key: The key.
            write_id: The write id of the new value, which a repeated call finds; ``MISSING`` to delete the value.

        Yields:
            The write ids, among them ``write_id``; None if the key was never seen, so that any value may be replaced.
        """
        with self._changed:
            self._changed.wait_for(lambda: key not in self._being_replaced)
            self._being_replaced.add(key)
            last = self._seen.get(key)
        try:
            yield None if last is None else [*last, write_id]
        except StorageConflictError:
            raise
        except BaseException:
            # The value may have been replaced all the same.
            with self._changed:
                if key in self._seen:
                    self._seen[key] += (write_id,)
            raise
        else:
            with self._changed:
                self._seen[key] = (write_id,)
        finally:
            with self._changed:
                self._being_replaced.discard(key)
                self._changed.notify_all()
