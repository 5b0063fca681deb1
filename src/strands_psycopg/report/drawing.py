"""Plots are Vega-Lite specifications, which vl-convert draws as SVG.

SVG takes its colours from the page's style sheet, so that one drawing serves dark and light; needs no script; and
weighs some kilobytes, where a plotting library in JavaScript weighs megabytes. What is to fill a wide screen is drawn
for a phone too, since scaled down its letters could not be read there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import vl_convert

# A phone's width, or a third of a desktop's; a tablet's; a desktop's.
_WIDTHS = {"narrow": 326, "wide": 720, "full": 1120}

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
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A plot with all that is said about it.

    Attributes:
        title: What it shows.
        summary: The same in a sentence, for who does not see it.
        legend: Name and colour of each series, if there is more than one.
        drawings: SVG by the width that it is for: ``narrow``, and perhaps ``wide`` and ``full``; none if there is
            nothing to draw.
    """

    title: str
    summary: str
    legend: tuple[tuple[str, str], ...]
    drawings: dict[str, str]


def draw(
    widths: tuple[str, ...], height: object, values: list[Json], layers: Callable[[int], list[Json]]
) -> dict[str, str]:
    """Draw a plot in some widths.

    Args:
        widths: Their names.
        height: Vega-Lite's ``height``.
        values: The data; what comes from messages is in them only, never in a specification.
        layers: Gives Vega-Lite's ``layer`` for a width in pixels.
    """
    drawings = {}
    for name in widths if values else ():
        specification = {
            "width": _WIDTHS[name],
            "height": height,
            "autosize": {"type": "fit-x", "contains": "padding"},
            "padding": {"left": 0, "right": 0, "top": 6, "bottom": 0},
            "config": _CONFIG,
            "data": {"values": values},
            "layer": layers(_WIDTHS[name]),
        }
        drawings[name] = vl_convert.vegalite_to_svg(specification)
    return drawings


def told_over(place: Json) -> Json:
    """Give a layer that is not seen and whose marks say the value's ``told``: the page shows it to who points there."""
    return {"mark": {"type": "rect", "opacity": 0}, "encoding": {**place, "description": {"field": "told"}}}
