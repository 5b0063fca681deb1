"""Which of an operation's round trips are lost, one each time that it is repeated."""

from collections.abc import Iterator
from itertools import count

from support.retries import Retries
from support.scale import scale


def each_position(retries: Retries) -> Iterator[int]:
    """Yield the positions of the round trips, until there is none so late, as no retry shows.

    By default only every second one and the last two. To lose a request leaves the server as it is if the answer before
    is lost, so that both together still leave it as it is after each statement.
    """
    stride = scale(2, 1)
    for position in count(step=stride):
        before = len(retries())
        yield position
        if len(retries()) == before:
            if stride == 2:
                yield from (position - 3, position - 1)
            return
