"""The estimate of a server's clock from the times in its results."""

import time

import pytest

from strands_psycopg.clock import ServerClock


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """This process's clock, whose only element is the time."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_nothing_is_known_before_the_first_result(here: list[float]) -> None:
    assert ServerClock().earliest_at(100.0) == float("inf")


def test_server_time_is_assumed_to_have_been_read_as_late_as_possible(here: list[float]) -> None:
    clock = ServerClock()
    here[0] = 103.0
    clock.observe(1000.0, sent_at=100.0)
    assert (clock.earliest_at(103.0), clock.earliest_at(110.0)) == (1000.0, 1007.0)


def test_quick_result_narrows_the_bounds_more_than_slow_ones(here: list[float]) -> None:
    clock = ServerClock()
    for took in (3.0, 1.0, 2.0):
        sent_at = here[0]
        here[0] += took
        clock.observe(1000.0 + sent_at, sent_at=sent_at)
    assert clock.earliest_at(0.0) == 999.0


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_clock_that_was_set_is_accepted(seconds: float, here: list[float]) -> None:
    clock = ServerClock()
    clock.observe(1000.0, sent_at=99.0)
    clock.observe(1000.0 + seconds, sent_at=99.0)
    assert clock.earliest_at(100.0) == 1000.0 + seconds
