"""An estimate of the server's clock, from the times in its results."""

import time


class ServerClock:
    """Estimates the offset of the server's clock from this process's ``time.monotonic``, within bounds.

    The server read a time in a result after the statement was sent and before the result arrived. Server times are
    seconds since 1970.
    """

    def __init__(self) -> None:
        self._bounds: tuple[float, float] | None = None

    @property
    def known(self) -> bool:
        """Whether a server time has been observed."""
        return self._bounds is not None

    def observe(self, server_time: float, *, sent_at: float) -> None:
        """Narrow the bounds with a server time that has just arrived.

        Args:
            server_time: The time in the result.
            sent_at: When the statement was sent, on the clock of ``time.monotonic``.
        """
        least, most = server_time - time.monotonic(), server_time - sent_at
        if self._bounds is not None:
            known_least, known_most = self._bounds
            # Otherwise the clock was set, or is another server's.
            if least <= known_most and known_least <= most:
                least, most = max(least, known_least), min(most, known_most)
        self._bounds = least, most

    def earliest_at(self, moment: float) -> float:
        """Return the earliest possible server time at a moment of ``time.monotonic``; infinity if none is known."""
        return float("inf") if self._bounds is None else moment + self._bounds[0]
