"""The retries of this process, read from the log."""

import logging
from typing import NamedTuple

import pytest


class Retry(NamedTuple):
    """What a log line says of a retry."""

    attempt: int
    pause: float
    error: str
    operation: str


class Retries:
    """Returns the retries of a test up to now, in order."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __call__(self) -> list[Retry]:
        return [
            Retry(*record.args)  # type: ignore[misc]
            for record in self._caplog.records
            if record.levelno == logging.DEBUG
            and record.name == "strands_psycopg.database"
            and record.getMessage().endswith("retrying")
        ]
