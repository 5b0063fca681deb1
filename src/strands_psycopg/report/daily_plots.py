"""The plots with a bar for each day."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, time, timedelta, timezone

from strands_psycopg.report import formatting
from strands_psycopg.report.drawing import Json, Plot, draw, tooltip_layer
from strands_psycopg.report.statistics import DayFigures, Statistics

_HEIGHT = 190

# With fewer days, the bars would be too wide.
_MIN_BARS = 14

# With more days, each bar shows the mean of several weeks.
_MAX_BARS = 366

# Like ``formatting.compact``; there are no half messages.
_COUNT_LABEL = "datum.value % 1 ? '' : format(datum.value, datum.value < 10000 ? ',' : '~s')"

Count = Callable[[DayFigures], int]


def plots(statistics: Statistics) -> Iterable[Plot]:
    """Yield the plots, the widest one first."""
    total = statistics.total
    yield _plot(
        "Messages per day",
        f"{formatting.integer(total.messages)} messages, {formatting.integer(total.turns)} of which start a turn.",
        statistics,
        [
            ("messages", "var(--pale)", lambda day: day.messages),
            ("starting a turn", "var(--blue)", lambda day: day.turns),
        ],
        widths=("narrow", "wide", "full"),
    )
    yield _plot(
        "Active sessions per day",
        f"{formatting.integer(statistics.sessions)} sessions in total.",
        statistics,
        [("sessions", "var(--blue)", lambda day: day.sessions)],
    )
    yield _plot(
        "Tokens per day",
        f"{formatting.compact(total.input_tokens)} tokens in, {formatting.compact(total.output_tokens)} out.",
        statistics,
        [
            ("in and out", "var(--pale)", lambda day: day.input_tokens + day.output_tokens),
            ("out", "var(--violet)", lambda day: day.output_tokens),
        ],
    )
    yield _plot(
        "Tool calls per day",
        f"{formatting.integer(total.tool_calls)} calls, {formatting.integer(total.tool_failures)} failures.",
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
    """Draw the series on top of each other; each must be a part of the previous one."""
    values = _values(statistics, [(name, count) for name, _, count in series]) if statistics.days else []
    date_format = "%-d %b" if not values or _span(statistics)[2] == 1 else "%b %Y"

    def layers(width: int) -> list[Json]:
        axis = {
            "format": date_format,
            "tickCount": max(width // 100, 3),
            "labelOverlap": "greedy",
        }
        x = {"field": "start", "type": "temporal", "scale": {"type": "utc"}, "axis": axis}
        # Gaps between thin bars would flicker.
        end = "end" if len(values) * 5 < width else "next"
        bars = [
            {
                "mark": {"type": "bar", "orient": "vertical", "aria": False, "color": colour},
                "encoding": {"x": x, "x2": {"field": end}, "y": _y_encoding(f"count{number}")},
            }
            for number, (_, colour, _) in enumerate(series)
        ]
        return [*bars, tooltip_layer({"x": x, "x2": {"field": "next"}})]

    legend = tuple((name, colour) for name, colour, _ in series) if len(series) > 1 else ()
    return Plot(title, summary, legend, draw(widths, _HEIGHT, values, layers))


def _y_encoding(field: str) -> Json:
    axis = {"tickCount": 4, "tickMinStep": 1, "labelExpr": _COUNT_LABEL}
    return {"field": field, "type": "quantitative", "axis": axis}


def _values(statistics: Statistics, counts: Sequence[tuple[str, Count]]) -> list[Json]:
    """Return a value for each bar. Bars of several days show the mean, as active sessions of days cannot be added."""
    by_day = {each.day.toordinal(): each for each in statistics.days}
    first, until, step = _span(statistics)
    start = statistics.until - timedelta(days=statistics.until.toordinal() - first)
    values = []
    for number in range(first, until + 1, step):
        days = [by_day[day] for day in range(number, number + step) if day in by_day]
        means = [sum(map(count, days)) / step for _, count in counts]
        begin = start + timedelta(days=number - first)
        parts = ", ".join(
            f"{formatting.integer(round(mean))} {name}" for mean, (name, _) in zip(means, counts, strict=True)
        )
        when = formatting.day(begin)
        if step > 1:
            when = f"{when} to {formatting.day(begin + timedelta(days=step - 1))}, per day"
        # A day's label stands at its midnight, so this is the middle of its bar.
        left = datetime.combine(begin, time(), timezone.utc) - (timedelta(hours=12) if step == 1 else timedelta())
        right = left + timedelta(days=step)
        values.append(
            {
                "start": left.isoformat(),
                "end": (right - timedelta(hours=4)).isoformat(),
                "next": right.isoformat(),
                "tooltip": f"{when}: {parts}",
                **{f"count{index}": mean for index, mean in enumerate(means)},
            }
        )
    return values


def _span(statistics: Statistics) -> tuple[int, int, int]:
    """Return the ordinals of the first and last day, and the days per bar; ``statistics.days`` must not be empty."""
    until = max(statistics.until, statistics.days[-1].day).toordinal()
    first = statistics.days[0].day.toordinal()
    if statistics.since is not None and until - statistics.since.toordinal() < _MAX_BARS:
        first = statistics.since.toordinal()
    first = max(min(first, until - _MIN_BARS + 1), 1)
    days = until - first + 1
    return first, until, 1 if days <= _MAX_BARS else 7 * -(-days // (7 * _MAX_BARS // 2))
