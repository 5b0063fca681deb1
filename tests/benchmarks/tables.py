"""The results as tables of ``README.md`` here and at the top: ``python -m benchmarks.tables FILE`` prints them."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.goals import Goal, goals
from benchmarks.jobs import COUNTED, COUNTS, SESSIONS, STORAGES
from benchmarks.plot import NAMES
from benchmarks.results import Results

_STORED = [contender for contender in SESSIONS if contender != "none"]

# What the rows of the first table say, which work that is, and beyond whose time it counts.
_SESSIONS = [
    ("a turn", "turn", "none"),
    ("with a tool call", "turn, tool call", "none"),
    ("with a full window", "turn, window full", "none"),
    ("by `agent()`, with a loop of its own", "turn by agent()", "none"),
    ("with 1 ms of network", "turn, 1 ms away", "none"),
    ("a request: 40 messages restored, a turn", "request", "none"),
    *(
        (f"restore of {messages} messages", f"restore of {messages}", None)
        for messages in ("10", "100", "1,000", "10,000")
    ),
    *((f"restore of the last 40 of {messages}", f"last 40 of {messages}", None) for messages in ("40", "100,000")),
    *((f"append at {messages} messages", f"append at {messages}", None) for messages in ("10", "1,000", "100,000")),
    ("append at 1,000,000 messages in the table", "append at 1,000,000", None),
]
# Those of them that the README at the top has too.
_IN_SHORT = {
    "a turn",
    "with a tool call",
    "with 1 ms of network",
    "a request: 40 messages restored, a turn",
    "restore of 1,000 messages",
}
_VALUES = [
    *(
        (f"{verb} of {size}", f"value of {size}: {verb}", None)
        for size in ("1 KB", "100 KB", "1 MB")
        for verb in ("write", "read")
    ),
    ("save of a 1 MB snapshot with one more message", "snapshot of 1 MB", None),
    ("list of 100,000 keys", "list of 100,000", None),
    ("search among 1,000 values", "search of 1,000", None),
    ("search among 100,000 values", "search of 100,000", None),
]
_DOCUMENTS = [
    (f"{verb} {name}", f"{kind}: {verb}", None)
    for kind, name in (
        ("chat", "a chat message"),
        ("tool result", "a tool result of 50 KB"),
        ("image", "an image of 5 MB"),
    )
    for verb in ("encode", "decode")
]
_CROWD = [
    ("turns per second", "rate", 1),
    ("slowest turn in 100, ms", "slowest in 100", 1000),
    ("longest hold of the loop, ms", "held", 1000),
    ("CPU of a turn in this process, ms", "CPU", 1000),
]


# The contenders of the memory stores.
_MEMORIES = {
    "ours": "this library",
    "ours_by_owner": "an owner of 1 in 100 of its memories",
    "peer": "strands-postgres-store",
    "files": "FileMemoryStore on `PostgresStorage`",
}
_OF_MEMORIES = [
    ("add among {}, ms", "add", 1000),
    ("search among {}, ms", "search", 1000),
    ("recall@10 among {}", "recall", 1),
]


def summary(results: Results) -> str:
    """Return the table of the README at the top, as Markdown."""
    return _milliseconds(results, [row for row in _SESSIONS if row[0] in _IN_SHORT], _STORED)


def tables(results: Results) -> Iterator[str]:
    """Yield the tables of the README of the benchmarks, as Markdown."""
    yield _milliseconds(results, _SESSIONS, _STORED)
    yield _counts(results)
    yield _crowd(results)
    yield _milliseconds(results, _VALUES, STORAGES)
    yield _milliseconds(results, _DOCUMENTS, ("ours", "limit"))
    yield _table(
        ["goal", "at most", "measured"],
        [[goal.text, f"{goal.bound:g} {goal.unit}", _told(goal)] for goal in goals(results)],
    )


def memories(results: Results) -> str:
    """Return the table of the memory stores, as Markdown."""
    sizes = dict.fromkeys(work.partition(":")[0].rpartition(" ")[2] for work in results.works)
    lines = []
    for size in sizes:
        for text, measure, factor in _OF_MEMORIES:
            figures = [results.figure(f"memories of {size}: {measure}", each) for each in _MEMORIES]
            cells = ("" if figure is None else _number(figure.median * factor) for figure in figures)
            lines.append([text.format(size), *cells])
    return _table(["", *_MEMORIES.values()], lines)


def _told(goal: Goal) -> str:
    lower, median, upper = map(_number, goal.measured)
    told = f"{median} {goal.unit}".rstrip()
    spread = "" if lower == upper else f" ({lower} to {upper})"
    return (told if goal.met else f"**{told}**") + spread


def _milliseconds(results: Results, rows: Sequence[tuple[str, str, str | None]], contenders: Sequence[str]) -> str:
    lines = []
    for text, work, beyond in rows:
        figures = [results.figure(work, contender, beyond=beyond) for contender in contenders]
        if any(figures):
            lines.append([text, *("" if figure is None else _number(figure.median * 1000) for figure in figures)])
    return _table(["ms", *map(NAMES.__getitem__, contenders)], lines)


def _counts(results: Results) -> str:
    contenders = [contender for contender in SESSIONS if contender in results.contenders("turn: statements")]
    lines = []
    for work, _, _ in COUNTED:
        cells = []
        for contender in contenders:
            figures = [results.figure(f"{work}: {count}", contender) for count in COUNTS]
            cells.append(", ".join(_number(figure.median) for figure in figures if figure is not None))
        lines.append([work, *cells])
    return _table([", ".join(COUNTS), *map(NAMES.__getitem__, contenders)], lines)


def _crowd(results: Results) -> str:
    works = [work for work in results.works if " agents, " in work and ":" not in work]
    contenders = results.contenders(works[0]) if works else []
    lines = []
    for work in works:
        for text, measure, factor in _CROWD:
            figures = [results.figure(f"{work}: {measure}", each) for each in contenders]
            cells = ("" if figure is None else _number(figure.median * factor) for figure in figures)
            lines.append([f"{work}: {text}", *cells])
    return _table(["delay of each answer", *map(NAMES.__getitem__, contenders)], lines)


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["--:" for _ in heads[1:]]], *rows]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)


if __name__ == "__main__":
    results = Results.read(Path(sys.argv[1]))
    print("\n\n".join([summary(results), *tables(results)]))
