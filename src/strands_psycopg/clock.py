"""What time it is on the server, as far as its answers have told."""

import time


class ServerClock:
    """Keeps how far the server's clock is from this process's ``time.monotonic``, within bounds.

    A time in an answer was read between the moments when the statement was sent and when its answer was there. Times
    are seconds since 1970.
    """

    def __init__(self) -> None:
        self._bounds: tuple[float, float] | None = None

    @property
    def known(self) -> bool:
        """Whether any answer has told the time."""
        return self._bounds is not None

    def learn(self, told: float, sent_at: float) -> None:
        """Take in the time that an answer tells, which has just arrived."""
        least, most = told - time.monotonic(), told - sent_at
        if self._bounds is not None:
            known_least, known_most = self._bounds
            # Otherwise the clock was set, or is another server's.
            if least <= known_most and known_least <= most:
                least, most = max(least, known_least), min(most, known_most)
        self._bounds = least, most

    def at(self, moment: float) -> float:
        """Give the earliest time that it may be at a moment of ``time.monotonic``; infinity if nothing is known."""
        return float("inf") if self._bounds is None else moment + self._bounds[0]
