"""The plots with a horizontal bar for each tool or session."""

from collections.abc import Iterable

from strands_psycopg.report import formatting
from strands_psycopg.report.drawing import Json, Plot, draw, tooltip_layer
from strands_psycopg.report.formatting import display_name
from strands_psycopg.report.statistics import Statistics

# The tables list all of them.
_MAX_ROWS = 10

# Name and figures of a row are above its bar, so that the bar can use the whole width.
_HEIGHT = {"step": 34}
_Y = {"field": "row", "type": "ordinal", "axis": None}
_TEXT_OFFSET, _BAR_OFFSET = -9, 6

_TEXT = {"type": "text", "aria": False, "fontSize": 12, "yOffset": _TEXT_OFFSET, "baseline": "middle"}

_LABELS: list[Json] = [
    {
        "mark": {**_TEXT, "align": "left", "color": "var(--ink)", "limit": {"expr": "width - 135"}},
        "encoding": {"x": {"value": 0}, "y": _Y, "text": {"field": "name"}},
    },
    {
        "mark": {**_TEXT, "align": "right", "color": "var(--muted)"},
        "encoding": {"x": {"value": "width"}, "y": _Y, "text": {"field": "label"}},
    },
    tooltip_layer({"x": {"value": 0}, "x2": {"value": "width"}, "y": _Y}),
]

# The time axis is logarithmic and has no zero.
_SHORTEST = 0.001
_TICKS = (0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 86400)
_TICK_LABEL = """
    datum.value < 1 ? format(datum.value * 1000, '~r') + ' ms'
    : datum.value < 60 ? datum.value + ' s'
    : datum.value < 3600 ? datum.value / 60 + ' min'
    : datum.value / 3600 + ' h'
"""


def plots(statistics: Statistics) -> Iterable[Plot]:
    """Yield the plots."""
    yield _tool_use(statistics)
    yield _latency(statistics)
    yield _longest(statistics)


def _tool_use(statistics: Statistics) -> Plot:
    values = [
        {
            "name": display_name(tool.name),
            "calls": tool.calls,
            "failed": tool.failures,
            "failed_or_without_result": tool.failures + tool.without_result,
            "label": f"{formatting.compact(tool.calls)}, {formatting.percentage(tool.failures, tool.calls)} failed",
            "tooltip": f"{display_name(tool.name)}: {formatting.integer(tool.calls)} calls, "
            f"{formatting.integer(tool.failures)} failed ({formatting.percentage(tool.failures, tool.calls)}), "
            f"{formatting.integer(tool.without_result)} without a result",
        }
        for tool in statistics.tools[:_MAX_ROWS]
    ]
    bars = [_bar("calls", "var(--blue)"), _bar("failed_or_without_result", "var(--grey)"), _bar("failed", "var(--red)")]
    legend = (("succeeded", "var(--blue)"), ("without result", "var(--grey)"), ("failed", "var(--red)"))
    return _plot("Most called tools", "No tool was called", legend, values, bars)


def _longest(statistics: Statistics) -> Plot:
    values = [
        {
            "name": display_name(session.session_id),
            "messages": session.messages,
            "turns": session.turns,
            "label": formatting.integer(session.messages),
            "tooltip": f"{display_name(session.session_id)}: {formatting.integer(session.messages)} messages, "
            f"{formatting.integer(session.turns)} starting a turn, "
            f"within {formatting.duration((session.last_active_at - session.first_active_at).total_seconds())}",
        }
        for session in statistics.longest[:_MAX_ROWS]
        if session.messages
    ]
    bars = [_bar("messages", "var(--pale)"), _bar("turns", "var(--blue)")]
    legend = (("messages", "var(--pale)"), ("starting a turn", "var(--blue)"))
    return _plot("Longest sessions, by messages", "No session has messages", legend, values, bars)


def _latency(statistics: Statistics) -> Plot:
    named = [
        ("model, first byte", statistics.first_byte),
        ("model, full response", statistics.model_latency),
        *((display_name(tool.name), tool.latency) for tool in statistics.tools[: _MAX_ROWS - 2]),
    ]
    values = [
        {
            "name": name,
            "median": max(latency.median, _SHORTEST),
            "p95": max(latency.p95, _SHORTEST),
            "label": f"{formatting.duration(latency.median)}, {formatting.duration(latency.p95)}",
            "tooltip": f"{name}: median {formatting.duration(latency.median)}, 95th percentile "
            f"{formatting.duration(latency.p95)}, longest {formatting.duration(latency.longest)}",
        }
        for name, latency in named
        if latency is not None
    ]
    low = min((latency.median for _, latency in named if latency is not None), default=_SHORTEST)
    high = max((latency.p95 for _, latency in named if latency is not None), default=_SHORTEST)
    # The axis starts at a tick and is never empty.
    low = max((tick for tick in _TICKS if tick <= low), default=_SHORTEST)
    high = max(high, low * 10)
    x = {
        "type": "quantitative",
        "scale": {"type": "log", "domain": [low, high], "nice": False},
        "axis": {
            "values": [tick for tick in _TICKS if low <= tick <= high],
            "labelExpr": " ".join(_TICK_LABEL.split()),
            "labelFlush": True,
            # The first grid line would cross the names.
            "gridOpacity": {"condition": {"test": "datum.index === 0", "value": 0}, "value": 1},
        },
    }
    rule = {"type": "rule", "aria": False, "strokeWidth": 6, "strokeCap": "round", "yOffset": _BAR_OFFSET}
    point = {"type": "point", "aria": False, "filled": True, "size": 70, "opacity": 1, "yOffset": _BAR_OFFSET}
    marks: list[Json] = [
        {
            "mark": {**rule, "color": "var(--pale)"},
            "encoding": {"x": {**x, "field": "median"}, "x2": {"field": "p95"}, "y": _Y},
        },
        {"mark": {**point, "color": "var(--violet)"}, "encoding": {"x": {**x, "field": "p95"}, "y": _Y}},
        {"mark": {**point, "color": "var(--blue)"}, "encoding": {"x": {**x, "field": "median"}, "y": _Y}},
    ]
    legend = (("median", "var(--blue)"), ("95th percentile", "var(--violet)"))
    return _plot("Latency", "No latency was measured", legend, values, marks)


def _plot(
    title: str, summary_if_empty: str, legend: tuple[tuple[str, str], ...], values: list[Json], marks: list[Json]
) -> Plot:
    summary = "; ".join(value["tooltip"] for value in values) or summary_if_empty
    values = [{**value, "row": row} for row, value in enumerate(values)]
    return Plot(title, f"{summary}.", legend, draw(("narrow",), _HEIGHT, values, lambda _: [*marks, *_LABELS]))


def _bar(field: str, colour: str) -> Json:
    return {
        "mark": {"type": "bar", "aria": False, "color": colour, "height": 10, "yOffset": _BAR_OFFSET},
        "encoding": {"x": {"field": field, "type": "quantitative", "scale": {"nice": False}, "axis": None}, "y": _Y},
    }
