"""The plots of the page: Vega-Lite specifications, drawn as SVG by vl-convert.

SVG takes its colours from the page's style sheet, so that one drawing serves dark and light; needs no script; and weighs
some kilobytes, where a plotting library in JavaScript weighs megabytes. Each plot is drawn for a phone too, since scaled
down its letters could not be read there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import vl_convert

from strands_psycopg.report import words
from strands_psycopg.report.statistics import DayFigures, Statistics, ToolFigures

_NARROW, _WIDE, _FULL = 326, 524, 1120

_DAY_HEIGHT = 190
_ROW_HEIGHT = 30

# Rows of the plots by name; the tables have all.
_MOST_ROWS = 10

# The plots with a bar for each day show at least this many.
_FEWEST_DAYS = 14

# What fits beside the bars.
_LONGEST_NAME = 255

_CONFIG = {
    "background": None,
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "labelColor": "var(--muted)",
        "labelPadding": 6,
        "domain": False,
        "ticks": False,
        "grid": False,
        "title": None,
        "aria": False,
    },
    "axisQuantitative": {"grid": True, "gridColor": "var(--line)"},
    "bar": {"cornerRadiusEnd": 2},
}


@dataclass(frozen=True)
class Plot:
    """A plot with all that is said about it.

    Attributes:
        title: What it shows.
        summary: The same in a sentence, for who does not see it.
        legend: Name and colour of each series, if there is more than one.
        drawings: SVG by the width that it is for: ``narrow``, ``wide`` and perhaps ``full``; none if there is nothing
            to draw.
    """

    title: str
    summary: str
    legend: tuple[tuple[str, str], ...]
    drawings: dict[str, str]


Series = Sequence[tuple[str, str, Callable[[DayFigures], int]]]


def draw(statistics: Statistics) -> list[Plot]:
    """Draw all plots."""
    total = statistics.total
    return [
        _by_day(
            "Messages per day",
            f"{words.count(total.messages)} messages, of which {words.count(total.turns)} begin a turn.",
            statistics,
            [
                ("all messages", "var(--pale)", lambda day: day.messages),
                ("beginning a turn", "var(--blue)", lambda day: day.turns),
            ],
            widest=_FULL,
        ),
        _by_day(
            "Active sessions per day",
            f"{words.count(statistics.sessions)} sessions in all.",
            statistics,
            [("sessions", "var(--blue)", lambda day: day.sessions)],
        ),
        _by_day(
            "Tokens per day",
            f"{words.short(total.input_tokens)} tokens in, {words.short(total.output_tokens)} out.",
            statistics,
            [
                ("in and out", "var(--pale)", lambda day: day.input_tokens + day.output_tokens),
                ("out", "var(--violet)", lambda day: day.output_tokens),
            ],
            told=(("in", lambda day: day.input_tokens), ("out", lambda day: day.output_tokens)),
        ),
        _by_day(
            "Tool calls per day",
            f"{words.count(total.tool_calls)} calls, {words.count(total.tool_failures)} failures.",
            statistics,
            [
                ("calls", "var(--pale)", lambda day: day.tool_calls),
                ("failures", "var(--red)", lambda day: day.tool_failures),
            ],
        ),
        _tool_use(statistics.tools),
        _latency(statistics),
        _longest(statistics),
    ]


def _by_day(
    title: str,
    summary: str,
    statistics: Statistics,
    series: Series,
    *,
    told: Sequence[tuple[str, Callable[[DayFigures], int]]] = (),
    widest: int | None = None,
) -> Plot:
    """Draw a bar for each day; a further series is a part of the first, and drawn over it."""
    by_day = {each.day: each for each in statistics.days}
    first = statistics.since or min(by_day, default=statistics.until)
    first = min(first, statistics.until - timedelta(days=_FEWEST_DAYS - 1))
    until = max(statistics.until, max(by_day, default=statistics.until))
    values: list[dict[str, object]] = []
    for number in range((until - first).days + 1):
        day = first + timedelta(days=number)
        figures = by_day.get(day)
        counts = [0 if figures is None else count(figures) for _, _, count in series]
        parts = [
            f"{words.count(0 if figures is None else count(figures))} {name}"
            for name, count in (told or [(name, count) for name, _, count in series])
        ]
        values.append(
            {
                "from": day.isoformat(),
                "to": (day + timedelta(days=1)).isoformat(),
                "told": f"{words.day(day)}: {', '.join(parts)}",
                **{f"count{index}": count for index, count in enumerate(counts)},
            }
        )
    x = {
        "field": "from",
        "type": "temporal",
        "scale": {"type": "utc"},
        "axis": {"format": "%-d %b" if len(values) < 300 else "%b %Y", "labelFlush": True, "labelOverlap": "greedy"},
    }
    span = {"x": x, "x2": {"field": "to"}}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "bar", "aria": False, "color": colour, "binSpacing": 1 if len(values) < 150 else 0},
            "encoding": {
                **span,
                "y": {
                    "field": f"count{index}",
                    "type": "quantitative",
                    "axis": {"format": "~s", "tickCount": 4, "tickMinStep": 1},
                },
            },
        }
        for index, (_, colour, _) in enumerate(series)
    ]
    layers.append({"mark": {"type": "rect", "opacity": 0}, "encoding": {**span, "description": {"field": "told"}}})

    def specification(width: int) -> dict[str, Any]:
        ticks = max(width // 90, 3)
        spec = _specification(width, _DAY_HEIGHT, values, layers)
        spec["encoding"] = {"x": {**x, "axis": {**x["axis"], "tickCount": ticks}}}  # type: ignore[dict-item]
        return spec

    legend = tuple((name, colour) for name, colour, _ in series) if len(series) > 1 else ()
    return Plot(title, summary, legend, _drawings(specification, widest) if statistics.days else {})


def _tool_use(tools: Sequence[ToolFigures]) -> Plot:
    values = [
        {
            "name": _name(tool.name),
            "row": row,
            "calls": tool.calls,
            "failed": tool.failures,
            "not_good": tool.failures + tool.unanswered,
            "label": f"{words.short(tool.calls)} · {words.share(tool.failures, tool.calls)}",
            "told": f"{_name(tool.name)}: {words.count(tool.calls)} calls, {words.count(tool.failures)} failed "
            f"({words.share(tool.failures, tool.calls)}), {words.count(tool.unanswered)} without a result",
        }
        for row, tool in enumerate(tools[:_MOST_ROWS])
    ]
    layers = [
        _bar("calls", "var(--blue)"),
        _bar("not_good", "var(--grey)"),
        _bar("failed", "var(--red)"),
        *_row_labels("calls"),
    ]
    summary = "; ".join(str(value["told"]) for value in values[:3]) or "No tool was called"
    legend = (("succeeded", "var(--blue)"), ("without result", "var(--grey)"), ("failed", "var(--red)"))
    return Plot("Most called tools, and how many calls failed", f"{summary}.", legend, _rows(values, layers, "calls"))


def _longest(statistics: Statistics) -> Plot:
    values = [
        {
            "name": _name(session.session_id),
            "row": row,
            "messages": session.messages,
            "turns": session.turns,
            "label": f"{words.count(session.messages)}",
            "told": f"{_name(session.session_id)}: {words.count(session.messages)} messages, "
            f"{words.count(session.turns)} beginning a turn, "
            f"over {words.duration((session.last_active_at - session.first_active_at).total_seconds())}",
        }
        for row, session in enumerate(statistics.longest[:_MOST_ROWS])
        if session.messages
    ]
    layers = [_bar("messages", "var(--pale)"), _bar("turns", "var(--blue)"), *_row_labels("messages")]
    summary = str(values[0]["told"]) if values else "No session has a message"
    legend = (("messages", "var(--pale)"), ("beginning a turn", "var(--blue)"))
    return Plot("Longest sessions, by messages", f"{summary}.", legend, _rows(values, layers, "messages"))


def _latency(statistics: Statistics) -> Plot:
    named = [
        ("model, first byte", statistics.first_byte),
        ("model, whole answer", statistics.model_latency),
        *((_name(tool.name), tool.latency) for tool in statistics.tools[: _MOST_ROWS - 2]),
    ]
    values = [
        {
            "name": name,
            "row": row,
            # A logarithm has no zero.
            "median": max(latency.median, 0.001),
            "p95": max(latency.p95, 0.001),
            "label": f"{words.duration(latency.median)} – {words.duration(latency.p95)}",
            "told": f"{name}: half within {words.duration(latency.median)}, 95 % within "
            f"{words.duration(latency.p95)}, the longest took {words.duration(latency.longest)}",
        }
        for row, (name, latency) in enumerate((name, latency) for name, latency in named if latency is not None)
    ]
    x = {
        "type": "quantitative",
        "scale": {"type": "log", "nice": True},
        "axis": {
            "tickCount": 4,
            "labelExpr": "datum.value < 1 ? format(datum.value * 1000, '~r') + ' ms' : "
            "datum.value < 60 ? format(datum.value, '~r') + ' s' : format(datum.value / 60, '.2~r') + ' min'",
            "labelOverlap": "greedy",
        },
    }
    layers = [
        {
            "mark": {"type": "rule", "aria": False, "color": "var(--pale)", "strokeWidth": 6, "strokeCap": "round"},
            "encoding": {"x": {**x, "field": "median"}, "x2": {"field": "p95"}},
        },
        {
            "mark": {"type": "point", "aria": False, "filled": True, "color": "var(--violet)", "size": 70, "opacity": 1},
            "encoding": {"x": {**x, "field": "p95"}},
        },
        {
            "mark": {"type": "point", "aria": False, "filled": True, "color": "var(--blue)", "size": 70, "opacity": 1},
            "encoding": {"x": {**x, "field": "median"}},
        },
        *_row_labels(None),
    ]
    summary = "; ".join(str(value["told"]) for value in values[:3]) or "Nothing was measured"
    legend = (("half are faster", "var(--blue)"), ("95 % are faster", "var(--violet)"))
    return Plot("Time until the answer", f"{summary}.", legend, _rows(values, layers, None))


def _name(name: str | None) -> str:
    return words.visible(name) if name else "(no name)"


def _bar(field: str, colour: str) -> dict[str, Any]:
    return {
        "mark": {"type": "bar", "aria": False, "color": colour, "height": 10, "yOffset": 6},
        "encoding": {"x": {"field": field, "type": "quantitative", "axis": None}},
    }


def _row_labels(_field: str | None) -> list[dict[str, Any]]:
    """Write each row's name above its bar and its figures at the right, which leaves the bars the whole width."""
    text = {"type": "text", "aria": False, "fontSize": 12, "yOffset": -9, "baseline": "middle"}
    return [
        {
            "mark": {**text, "align": "left", "color": "var(--ink)", "limit": {"expr": "width - 125"}},
            "encoding": {"x": {"value": 0}, "text": {"field": "name"}},
        },
        {
            "mark": {**text, "align": "right", "color": "var(--muted)"},
            "encoding": {"x": {"value": "width"}, "text": {"field": "label"}},
        },
        {
            "mark": {"type": "rect", "opacity": 0},
            "encoding": {"x": {"value": 0}, "x2": {"value": "width"}, "description": {"field": "told"}},
        },
    ]


def _rows(values: list[dict[str, Any]], layers: list[dict[str, Any]], _field: str | None) -> dict[str, str]:
    """Draw a row for each value."""

    def specification(width: int) -> dict[str, Any]:
        spec = _specification(width, {"step": _ROW_HEIGHT + 4}, values, layers)
        spec["encoding"] = {"y": {"field": "row", "type": "ordinal", "axis": None, "scale": {"paddingInner": 0.1}}}
        return spec

    return _drawings(specification, None) if values else {}


def _specification(
    width: int, height: object, values: list[dict[str, Any]], layers: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": width,
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": {"left": 0, "right": 0, "top": 6, "bottom": 0},
        "config": _CONFIG,
        "data": {"values": values},
        "layer": layers,
    }


def _drawings(specification: Callable[[int], dict[str, Any]], widest: int | None) -> dict[str, str]:
    widths = {"narrow": _NARROW, "wide": _WIDE}
    if widest is not None:
        widths["full"] = widest
    return {name: vl_convert.vegalite_to_svg(specification(width)) for name, width in widths.items()}
