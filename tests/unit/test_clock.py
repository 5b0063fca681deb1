"""What is known of a server's clock from the times that its answers tell."""

import time

import pytest

from strands_psycopg.clock import ServerClock


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """This process's clock, whose only element is the time."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_nothing_is_known_before_the_first_answer(here: list[float]) -> None:
    assert ServerClock().at(100.0) == float("inf")


def test_clock_is_taken_to_have_been_read_as_late_as_it_can_have_been(here: list[float]) -> None:
    clock = ServerClock()
    here[0] = 103.0
    clock.learn(1000.0, sent_at=100.0)
    assert (clock.at(103.0), clock.at(110.0)) == (1000.0, 1007.0)


def test_quick_answer_tells_more_than_slow_ones(here: list[float]) -> None:
    clock = ServerClock()
    for took in (3.0, 1.0, 2.0):
        sent_at = here[0]
        here[0] += took
        clock.learn(1000.0 + sent_at, sent_at)
    assert clock.at(0.0) == 999.0


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_clock_that_was_set_is_believed(seconds: float, here: list[float]) -> None:
    clock = ServerClock()
    clock.learn(1000.0, sent_at=99.0)
    clock.learn(1000.0 + seconds, sent_at=99.0)
    assert clock.at(100.0) == 1000.0 + seconds
