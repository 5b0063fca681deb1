"""What was measured: for each work and contender a list for each round."""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """The quartiles of the rounds' medians: a quarter of them is less than the first, a quarter more than the last."""

    lower: float
    median: float
    upper: float


class Results:
    """Figures by work and contender.

    Args:
        facts: What it was measured on.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self._rounds: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read what ``write`` wrote."""
        written = json.loads(path.read_text())
        results = cls(written["facts"])
        for work, each in written["medians of rounds"].items():
            for contender, medians in each.items():
                for median in medians:
                    results.add(work, contender, [median])
        return results

    def add(self, work: str, contender: str, values: list[float]) -> None:
        """Take in a round."""
        self._rounds[work][contender].append(values)

    @property
    def works(self) -> list[str]:
        """What was measured."""
        return list(self._rounds)

    def contenders(self, work: str) -> list[str]:
        """Who did a work."""
        return list(self._rounds[work])

    def figure(self, work: str, contender: str, *, beyond: str | None = None) -> Figure | None:
        """Return a figure, if it was measured; beyond another contender's in the same round, if so wished."""
        medians = self._medians(work, contender, beyond)
        return _quartiles(medians) if medians else None

    def ratio(self, mine: tuple[str, str, str | None], theirs: tuple[str, str, str | None]) -> Figure | None:
        """Return one figure as a multiple of another, round by round; each is what ``figure`` takes."""
        pairs = zip(self._medians(*mine), self._medians(*theirs), strict=False)
        ratios = [own / other for own, other in pairs]
        return _quartiles(ratios) if ratios else None

    def _medians(self, work: str, contender: str, beyond: str | None) -> list[float]:
        rounds = self._rounds.get(work, {})
        medians = [statistics.median(values) for values in rounds.get(contender, [])]
        if beyond is None:
            return medians
        others = [statistics.median(values) for values in rounds.get(beyond, [])]
        return [own - other for own, other in zip(medians, others, strict=False)]

    def write(self, path: Path) -> None:
        """Write everything as JSON: of each round the median."""
        works = {
            work: {contender: [statistics.median(values) for values in rounds] for contender, rounds in each.items()}
            for work, each in self._rounds.items()
        }
        path.write_text(json.dumps({"facts": self.facts, "medians of rounds": works}, indent=2) + "\n")


def _quartiles(values: list[float]) -> Figure:
    return Figure(*statistics.quantiles(values * 2 if len(values) == 1 else values, method="inclusive"))
