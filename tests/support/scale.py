"""How much a test does: a little by default, all of it if ``STRANDS_TORTURE`` is set."""

import os

TORTURE = bool(os.environ.get("STRANDS_TORTURE"))


def scale(small: int, full: int) -> int:
    """Return the count for this run."""
    return full if TORTURE else small
