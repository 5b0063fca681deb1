"""The plots with a bar for each day."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from strands_psycopg.report import formatting
from strands_psycopg.report.drawing import Json, Plot, draw, told_over
from strands_psycopg.report.statistics import DayFigures, Statistics

_HEIGHT = 190

# However few days there are, bars do not become slabs.
_FEWEST_BARS = 14

# Where there are more days, a bar stands for some weeks.
_MOST_BARS = 366

Count = Callable[[DayFigures], int]


def plots(statistics: Statistics) -> Iterable[Plot]:
    """Draw them, the widest first."""
    total = statistics.total
    yield _plot(
        "Messages per day",
        f"{formatting.count(total.messages)} messages, of which {formatting.count(total.turns)} begin a turn.",
        statistics,
        [
            ("messages", "var(--pale)", lambda day: day.messages),
            ("beginning a turn", "var(--blue)", lambda day: day.turns),
        ],
        widths=("narrow", "wide", "full"),
    )
    yield _plot(
        "Active sessions per day",
        f"{formatting.count(statistics.sessions)} sessions in all.",
        statistics,
        [("sessions", "var(--blue)", lambda day: day.sessions)],
    )
    yield _plot(
        "Tokens per day",
        f"{formatting.short(total.input_tokens)} tokens in, {formatting.short(total.output_tokens)} out.",
        statistics,
        [
            ("in and out", "var(--pale)", lambda day: day.input_tokens + day.output_tokens),
            ("out", "var(--violet)", lambda day: day.output_tokens),
        ],
    )
    yield _plot(
        "Tool calls per day",
        f"{formatting.count(total.tool_calls)} calls, {formatting.count(total.tool_failures)} failures.",
        statistics,
        [
            ("calls", "var(--pale)", lambda day: day.tool_calls),
            ("failures", "var(--red)", lambda day: day.tool_failures),
        ],
    )


def _plot(
    title: str,
    summary: str,
    statistics: Statistics,
    series: Sequence[tuple[str, str, Count]],
    *,
    widths: tuple[str, ...] = ("narrow",),
) -> Plot:
    """Draw the series over one another: each is a part of the one before it."""
    values = _values(statistics, [(name, count) for name, _, count in series]) if statistics.days else []
    date_format = "%-d %b" if not values or _span(statistics)[2] == 1 else "%b %Y"

    def layers(width: int) -> list[Json]:
        axis = {
            "format": date_format,
            "tickCount": max(width // 100, 3),
            "labelFlush": True,
            "labelOverlap": "greedy",
        }
        x = {"field": "from", "type": "temporal", "scale": {"type": "utc"}, "axis": axis}
        # Where bars are thin, gaps between them would flicker.
        end = "until" if len(values) * 5 < width else "to"
        bars = [
            {
                "mark": {"type": "bar", "orient": "vertical", "aria": False, "color": colour},
                "encoding": {"x": x, "x2": {"field": end}, "y": _height(f"count{number}")},
            }
            for number, (_, colour, _) in enumerate(series)
        ]
        return [*bars, told_over({"x": x, "x2": {"field": "to"}})]

    legend = tuple((name, colour) for name, colour, _ in series) if len(series) > 1 else ()
    return Plot(title, summary, legend, draw(widths, _HEIGHT, values, layers))


def _height(field: str) -> Json:
    axis = {"tickCount": 4, "tickMinStep": 1, "labelExpr": "format(datum.value, '~s')"}
    return {"field": field, "type": "quantitative", "axis": axis}


def _values(statistics: Statistics, counts: Sequence[tuple[str, Count]]) -> list[Json]:
    """Give a value for each bar; one of several days is their mean, since sessions of days cannot be added up."""
    by_day = {each.day.toordinal(): each for each in statistics.days}
    first, until, step = _span(statistics)
    start = statistics.until - timedelta(days=statistics.until.toordinal() - first)
    values = []
    for number in range(first, until + 1, step):
        days = [by_day[day] for day in range(number, number + step) if day in by_day]
        means = [sum(map(count, days)) / step for _, count in counts]
        begin = start + timedelta(days=number - first)
        parts = ", ".join(
            f"{formatting.count(round(mean))} {name}" for mean, (name, _) in zip(means, counts, strict=True)
        )
        when = formatting.day(begin)
        if step > 1:
            when = f"{when} to {formatting.day(begin + timedelta(days=step - 1))}, per day"
        values.append(
            {
                "from": begin.isoformat(),
                "until": f"{begin + timedelta(days=step - 1)}T20:00Z",
                "to": (begin + timedelta(days=step)).isoformat(),
                "told": f"{when}: {parts}",
                **{f"count{index}": mean for index, mean in enumerate(means)},
            }
        )
    return values


def _span(statistics: Statistics) -> tuple[int, int, int]:
    """Give the ordinals of the first and the last day, and the days per bar; there must be a day."""
    until = max(statistics.until, statistics.days[-1].day).toordinal()
    first = statistics.days[0].day.toordinal()
    if statistics.since is not None and until - statistics.since.toordinal() < _MOST_BARS:
        first = statistics.since.toordinal()
    first = max(min(first, until - _FEWEST_BARS + 1), 1)
    days = until - first + 1
    return first, until, 1 if days <= _MOST_BARS else 7 * -(-days // (7 * _MOST_BARS // 2))
