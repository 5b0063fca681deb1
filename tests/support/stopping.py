"""Processes that stand still, as those of an overloaded or suspended machine do."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.waiting import wait_until


@contextmanager
def stopped(*processes: int) -> Iterator[None]:
    """Stop processes, by their ids, for the time of the block."""
    try:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        wait_until(lambda: all(map(_stands, processes)))
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def _stands(process: int) -> bool:
    # The state follows the name, which is in parentheses and may hold some.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
