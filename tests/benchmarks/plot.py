"""The results as a plot that can be read on white and on black."""

from pathlib import Path
from typing import Any

import vl_convert

from benchmarks.goals import PEER
from benchmarks.results import Results

_COLOURS = {
    "this library": "#3b82f6",
    "the limit": "#9ca3af",
    "FileSessionManager": "#d97706",
    PEER: "#dc2626",
    "strands-session-sql": "#9333ea",
    "strands-postgres-storage": "#0d9488",
}

NAMES = dict(
    zip(
        ("ours", "limit", "files", "session_manager", "session_sql", "postgres_storage"),
        _COLOURS,
        strict=True,
    )
)

_TEXT = "#808080"

# In pixels, with seven for each contender.
_ROW_HEIGHT = 56


def draw(results: Results, works: list[str], path: Path) -> None:
    """Draw the milliseconds of works, a row for each and a mark for each contender, on a logarithmic scale."""
    values = []
    for work in works:
        for contender in results.contenders(work):
            beyond = "none" if "none" in results.contenders(work) else None
            figure = results.figure(work, contender, beyond=beyond)
            if contender in NAMES and figure is not None:
                values.append(
                    {
                        "work": work,
                        "who": NAMES[contender],
                        **{key: max(value * 1000, 0.01) for key, value in figure._asdict().items()},
                    }
                )
    encoding: dict[str, Any] = {
        "y": {"field": "work", "type": "nominal", "sort": works, "title": None, "scale": {"padding": 0.15}},
        "yOffset": {"field": "who", "type": "nominal", "sort": list(_COLOURS)},
        "color": {
            "field": "who",
            "type": "nominal",
            "scale": {"domain": list(_COLOURS), "range": list(_COLOURS.values())},
            "legend": {
                "title": None,
                "orient": "top",
                "columns": 3,
                "labelLimit": 300,
                "symbolType": "circle",
                "symbolOpacity": 1,
                "symbolStrokeWidth": 0,
            },
        },
    }
    axis = {"labelColor": _TEXT, "titleColor": _TEXT, "gridColor": _TEXT, "gridOpacity": 0.25, "domain": False}
    milliseconds: dict[str, Any] = {
        "field": "lower",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "axis": {
            "values": [10.0**exponent for exponent in range(-2, 5)],
            "title": "milliseconds, median and quartiles: lower is better",
            "orient": "top",
        },
    }
    specification = {
        "width": 560,
        "height": len(works) * _ROW_HEIGHT,
        "background": None,
        "config": {
            "view": {"stroke": None},
            "font": "sans-serif",
            "axis": {**axis, "labelLimit": 300, "ticks": False, "labelPadding": 6},
            "legend": {"labelColor": _TEXT},
        },
        "data": {"values": values},
        "layer": [
            # Every other row has a ground, so that each mark is seen to belong to its row.
            {
                "data": {"values": [{"work": work} for work in works[::2]]},
                "mark": {"type": "bar", "color": _TEXT, "opacity": 0.1, "height": {"band": 1.18}},
                "encoding": {"y": encoding["y"], "x": {"value": 0}, "x2": {"value": "width"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {**encoding, "x": milliseconds, "x2": {"field": "upper"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
                "encoding": {**encoding, "x": {**milliseconds, "field": "median"}},
            },
        ],
    }
    path.write_text(vl_convert.vegalite_to_svg(specification))
