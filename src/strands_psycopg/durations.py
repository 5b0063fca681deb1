"""Durations that callers pass."""

from datetime import timedelta

_MAX_SECONDS = timedelta(days=36_500).total_seconds()


def check_duration(field: str, time: timedelta | float) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: It is not positive, or longer than 36,500 days; the text names ``field``.
    """
    seconds = time.total_seconds() if isinstance(time, timedelta) else float(time)
    if not 0 < seconds <= _MAX_SECONDS:
        raise ValueError(f"{field} must be more than 0 seconds and at most 36,500 days, not {time}")
    return seconds
