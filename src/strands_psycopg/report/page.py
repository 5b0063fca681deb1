"""Rendering of the page with Jinja, which escapes all texts from messages and ids."""

import base64
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TextIO

import jinja2
from markupsafe import Markup

from strands_psycopg.printable import printable
from strands_psycopg.report import daily_plots, formatting, horizontal_plots
from strands_psycopg.report.statistics import Statistics


def render(statistics: Statistics) -> str:
    """Return the page as HTML."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        integer=formatting.integer,
        compact=formatting.compact,
        duration=formatting.duration,
        day=formatting.day,
        day_and_time=formatting.day_and_time,
        display_name=formatting.display_name,
        printable=printable,
    )
    environment.globals["percentage"] = formatting.percentage
    style, script = _read_resource("page.css"), _read_resource("page.js")
    return environment.from_string(_read_resource("page.html")).render(
        figures=statistics,
        plots=[*daily_plots.plots(statistics), *horizontal_plots.plots(statistics)],
        style=Markup(style),
        script=Markup(script),
        # The policy allows this script only, whatever texts the page contains.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


@contextmanager
def open_replacement(destination: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Yield a file that replaces another one atomically when the block ends without an error.

    A pipe or device is written to directly.

    Raises:
        OSError: It cannot be written. An existing file is unchanged.
    """
    if Path(destination).exists() and not Path(destination).is_file():
        with Path(destination).open("w", encoding="utf-8") as file:
            yield file
        return
    # Unlike Path.resolve, it accepts links that form a loop.
    target = Path(os.path.realpath(destination))
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with new.open("w", encoding="utf-8") as file:
            yield file
        new.replace(target)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def _read_resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
