import logging
from types import SimpleNamespace

import pytest

from strands_psycopg import outage
from strands_psycopg.outage import OutageLog


def test_failures_are_a_line_at_first_and_then_every_ten_seconds_until_the_first_success(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "strands_psycopg.outage")
    times = iter([100.0, 100.0, 103.0, 109.9, 110.0, 125.5, 130.0, 131.0])
    monkeypatch.setattr(outage, "time", SimpleNamespace(monotonic=lambda: next(times)))
    log = OutageLog()
    log.succeeded("reading", 1, 0.1, "db:5432")
    for _ in range(5):
        log.failed("reading", "refused")
    log.succeeded("reading", 6, 30.0, "db:5432")
    log.succeeded("reading", 1, 0.1, "db:5432")

    line = "failures=<{}>, error=<refused> | reading failed, retrying; more failures are logged every 10 s"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        *(("WARNING", line.format(count)) for count in (1, 3, 1)),
        (
            "INFO",
            "attempts=<6>, seconds=<30.0>, outage=<30.0>, server=<db:5432> | reading succeeded, the database is "
            "available again",
        ),
    ]
