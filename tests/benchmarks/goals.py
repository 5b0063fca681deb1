"""What is to be reached, and whether it was."""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.results import Results

PEER = "session_manager"


class Goal(NamedTuple):
    """A goal that was measured.

    Attributes:
        work: What was done.
        against: What it is compared with.
        bound: How much it may be at most.
        value: How much it is.
        unit: Of both; "" for a ratio.
    """

    work: str
    against: str
    bound: float
    value: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.value <= self.bound

    def __str__(self) -> str:
        return (
            f"{'met   ' if self.met else 'MISSED'} {self.work}, against {self.against}: "
            f"{self.value:.2f} {self.unit}".rstrip()
            + f" (at most {self.bound:g})"
        )


class _Ratio(NamedTuple):
    """One figure as a multiple of another; each by its work, its contender, and beyond which other one it counts."""

    text: str
    against: str
    bound: float
    mine: tuple[str, str, str | None]
    theirs: tuple[str, str, str | None]


_TURN = "a further turn, beyond no session manager"
_AWAY = "turn, 1 ms away"
_RATIOS = [
    _Ratio(_TURN, PEER, 0.2, ("turn", "ours", "none"), ("turn", PEER, "none")),
    _Ratio(_TURN, "the limit", 1.5, ("turn", "ours", "none"), ("turn", "limit", "none")),
    _Ratio(f"{_TURN}, 1 ms away", PEER, 0.2, (_AWAY, "ours", "none"), (_AWAY, PEER, "none")),
    _Ratio(f"{_TURN}, 1 ms away", "the limit", 1.5, (_AWAY, "ours", "none"), (_AWAY, "limit", "none")),
    _Ratio("a request that builds the agent anew", PEER, 0.25, ("request", "ours", "none"), ("request", PEER, "none")),
    _Ratio("restore of 10,000", PEER, 0.1, ("restore of 10,000", "ours", None), ("restore of 10,000", PEER, None)),
    _Ratio(
        "restore of 10,000", "the limit", 1.5, ("restore of 10,000", "ours", None), ("restore of 10,000", "limit", None)
    ),
    _Ratio("append at 100,000", "at 10", 1.1, ("append at 100,000", "ours", None), ("append at 10", "ours", None)),
    _Ratio(
        "restore of the last 40 of 100,000",
        "of 40",
        1.3,
        ("last 40 of 100,000", "ours", None),
        ("last 40 of 40", "ours", None),
    ),
    _Ratio(
        "peak memory of a restore of 10,000",
        "the restored objects",
        2.5,
        ("memory of 10,000: peak", "ours", None),
        ("memory of 10,000: kept", "ours", None),
    ),
    _Ratio(
        "a save of a 1 MB snapshot with one more message",
        "a plain row",
        1.0,
        ("snapshot of 1 MB", "ours", None),
        ("snapshot of 1 MB", "limit", None),
    ),
]

_BOUNDS = [
    *(
        (f"{count} {work}", "counted", 2, f"{counted}: {count}", "", 1)
        for work, counted in [
            ("of a further turn", "turn"),
            ("of a further turn, window full", "turn, window full"),
            ("to open an existing session", "opening of a session"),
        ]
        for count in ("statements", "round trips")
    ),
    ("event loop held, 50 agents, 50 ms of delay", "measured", 20, "50 agents, 50 ms: held", "ms", 1000),
]


def goals(results: Results) -> Iterator[Goal]:
    """Give the goals for which everything was measured."""
    for ratio in _RATIOS:
        mine = results.figure(ratio.mine[0], ratio.mine[1], beyond=ratio.mine[2])
        theirs = results.figure(ratio.theirs[0], ratio.theirs[1], beyond=ratio.theirs[2])
        if mine is not None and theirs is not None:
            yield Goal(ratio.text, ratio.against, ratio.bound, mine.median / theirs.median)
    for text, against, bound, work, unit, factor in _BOUNDS:
        figure = results.figure(work, "ours")
        if figure is not None:
            yield Goal(text, against, bound, figure.median * factor, unit)
