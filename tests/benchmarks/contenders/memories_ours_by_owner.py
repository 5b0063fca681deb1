"""This library's memory store, in the tables of ``memories_ours``, with an owner who has one in a hundred memories."""

from collections.abc import Iterator
from itertools import islice

from benchmarks.contenders import memories_ours


class Contender(memories_ours.Contender):
    """Keeps the memories of an owner with few among many."""

    owner = "owner 1"

    def fill(self, texts: Iterator[str]) -> None:
        """Copy each hundredth of the texts."""
        self.copy(islice(texts, None, None, 100))
