"""Log lines about failures that are retried: few during an outage, and one when it is over."""

import logging
import threading
import time

logger = logging.getLogger(__name__)

# The minimum number of seconds between two warnings about one database.
_INTERVAL = 10.0


class OutageLog:
    """Logs the retried failures of one database.

    The first failure is a WARNING, and so is one every ten seconds while there are more. The first success after a
    warning is an INFO.

    Attributes:
        is_open: Whether there has been a warning, and no success since.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._lock = threading.Lock()
        self._failures = 0
        self._warned_at = float("-inf")
        self._opened_at = 0.0

    def failed(self, operation: str, reason: str) -> None:
        """Count a failure, and log it unless another one was logged a short time ago."""
        now = time.monotonic()
        with self._lock:
            self._failures += 1
            if now - self._warned_at < _INTERVAL:
                return
            self._warned_at = now
            failures, self._failures = self._failures, 0
            if not self.is_open:
                self.is_open, self._opened_at = True, now
        logger.warning(
            "failures=<%d>, error=<%s> | %s failed, retrying; more failures are logged every %d s",
            failures,
            reason,
            operation,
            _INTERVAL,
        )

    def succeeded(self, operation: str, attempts: int, seconds: float, address: str) -> None:
        """Log that a failing database works again, if there has been a warning.

        Args:
            operation: What has succeeded.
            attempts: How many attempts it took.
            seconds: How long it took with all of them.
            address: Which server it has reached.
        """
        with self._lock:
            was_open, self.is_open = self.is_open, False
            outage = time.monotonic() - self._opened_at
        if was_open:
            logger.info(
                "attempts=<%d>, seconds=<%.1f>, outage=<%.1f>, server=<%s> | %s succeeded, the database is available "
                "again",
                attempts,
                seconds,
                outage,
                address,
                operation,
            )
