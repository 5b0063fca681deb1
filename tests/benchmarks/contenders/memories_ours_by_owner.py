"""This library's memory store, with a hundred owners; one of them searches."""

from benchmarks.contenders import memories_ours


class Contender(memories_ours.Contender):
    """Keeps the memories of many owners."""

    owners = 100
