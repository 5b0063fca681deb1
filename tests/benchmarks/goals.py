"""What is to be reached, and whether it was."""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.results import Figure, Results

_PEER = "session_manager"
PEER = "strands-postgresql-session-manager"


class Goal(NamedTuple):
    """A goal that was measured.

    Attributes:
        text: What was done, and what it is compared with.
        bound: How much it may be at most.
        measured: How much it is.
        unit: Of both; "" for a ratio.
    """

    text: str
    bound: float
    measured: Figure
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.measured.median <= self.bound


class _Ratio(NamedTuple):
    """One figure as a multiple of another; each by its work, its contender, and beyond which other one it counts."""

    text: str
    bound: float
    mine: tuple[str, str, str | None]
    theirs: tuple[str, str, str | None]


_SQL = "session_sql"
_SQL_PEER = "strands-session-sql"
_STORAGE = "postgres_storage"
_STORAGE_PEER = "strands-postgres-storage"

_TURN = "a further turn, beyond no session manager"
_AWAY = "turn, 1 ms away"
_BY_AGENT = "turn by agent()"
_RESTORE = "restore of 10,000"
_RATIOS = [
    _Ratio(f"{_TURN}, against {PEER}", 0.5, ("turn", "ours", "none"), ("turn", _PEER, "none")),
    _Ratio(f"{_TURN}, against the limit", 1.8, ("turn", "ours", "none"), ("turn", "limit", "none")),
    _Ratio(f"the same 1 ms away, against {PEER}", 0.45, (_AWAY, "ours", "none"), (_AWAY, _PEER, "none")),
    _Ratio("the same 1 ms away, against the limit", 1.35, (_AWAY, "ours", "none"), (_AWAY, "limit", "none")),
    _Ratio(f"the same by `agent()`, against {_SQL_PEER}", 0.9, (_BY_AGENT, "ours", "none"), (_BY_AGENT, _SQL, "none")),
    _Ratio(
        f"a request that builds the agent anew, beyond no session manager, against {PEER}",
        0.2,
        ("request", "ours", "none"),
        ("request", _PEER, "none"),
    ),
    *(
        _Ratio(
            f"seconds of each turn of 50 agents, {delay} ms away, against {PEER}",
            round(1 / times, 3),
            (f"50 agents, {delay} ms", "ours", None),
            (f"50 agents, {delay} ms", _PEER, None),
        )
        for delay, times in ((0, 3), (2, 8), (50, 30))
    ),
    _Ratio(
        f"CPU of a turn of 50 agents, against {PEER}",
        0.6,
        ("50 agents, 0 ms: CPU", "ours", None),
        ("50 agents, 0 ms: CPU", _PEER, None),
    ),
    *(
        _Ratio(
            f"{verb} of a value of {size}, against {_STORAGE_PEER}",
            1,
            (f"value of {size}: {verb}", "ours", None),
            (f"value of {size}: {verb}", _STORAGE, None),
        )
        for size in ("1 KB", "100 KB", "1 MB")
        for verb in ("write", "read")
    ),
    _Ratio(f"{_RESTORE}, against {PEER}", 0.1, (_RESTORE, "ours", None), (_RESTORE, _PEER, None)),
    _Ratio(f"{_RESTORE}, against the limit", 1.5, (_RESTORE, "ours", None), (_RESTORE, "limit", None)),
    _Ratio(
        "append at 100,000, against at 10", 1.1, ("append at 100,000", "ours", None), ("append at 10", "ours", None)
    ),
    _Ratio(
        "restore of the last 40 of 100,000, against of 40",
        1.3,
        ("last 40 of 100,000", "ours", None),
        ("last 40 of 40", "ours", None),
    ),
    _Ratio(
        f"peak memory of a {_RESTORE}, against the restored objects",
        2.5,
        ("memory of 10,000: peak", "ours", None),
        ("memory of 10,000: kept", "ours", None),
    ),
    _Ratio(
        "save of a 1 MB snapshot with one more message, against a plain row",
        1,
        ("snapshot of 1 MB", "ours", None),
        ("snapshot of 1 MB", "limit", None),
    ),
]

_BOUNDS = [
    *(
        (f"{count} {text}", 2, f"{work}: {count}", "", 1)
        for text, work in [
            ("of a further turn", "turn"),
            ("of a further turn, window full", "turn, window full"),
            ("to open an existing session", "opening of a session"),
        ]
        for count in ("statements", "round trips")
    ),
    ("event loop held, 50 agents, 50 ms of delay", 5, "50 agents, 50 ms: held", "ms", 1000),
]


def goals(results: Results) -> Iterator[Goal]:
    """Return the goals for which everything was measured."""
    for ratio in _RATIOS:
        measured = results.ratio(ratio.mine, ratio.theirs)
        if measured is not None:
            yield Goal(ratio.text, ratio.bound, measured)
    for text, bound, work, unit, factor in _BOUNDS:
        figure = results.figure(work, "ours")
        if figure is not None:
            yield Goal(text, bound, Figure(*(value * factor for value in figure)), unit)
