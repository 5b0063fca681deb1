"""Drawing of plots: Vega-Lite specifications that vl-convert renders as SVG.

SVG takes its colours from the page's style sheet, so one drawing works in dark and light mode. It needs no script and
takes a few kilobytes, while a plotting library in JavaScript takes megabytes. Plots for wide screens are drawn for
phones too, because their letters would be illegible when scaled down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import vl_convert

# In pixels, for a phone or a third of a desktop; for a tablet; for a desktop.
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
    """A plot with its texts.

    Attributes:
        title: The heading.
        summary: The content in a sentence, for screen readers.
        legend: Name and colour of each series, if there is more than one.
        drawings: SVG by the name of its width: ``narrow``, and perhaps ``wide`` and ``full``; empty if there is no
            data.
    """

    title: str
    summary: str
    legend: tuple[tuple[str, str], ...]
    drawings: dict[str, str]


def draw(
    widths: tuple[str, ...], height: object, values: list[Json], layers: Callable[[int], list[Json]]
) -> dict[str, str]:
    """Draw a plot in one or more widths.

    Args:
        widths: The names of the widths.
        height: Vega-Lite's ``height``.
        values: The data. Texts from messages may only be here, never in a specification.
        layers: Returns Vega-Lite's ``layer`` for a width in pixels.
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


def tooltip_layer(position: Json) -> Json:
    """Return an invisible layer whose marks have each value's ``tooltip`` as description, which the page shows."""
    return {"mark": {"type": "rect", "opacity": 0}, "encoding": {**position, "description": {"field": "tooltip"}}}
