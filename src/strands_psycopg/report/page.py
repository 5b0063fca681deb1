"""The page: what Jinja makes of the template, with everything that comes from messages and ids escaped."""

import base64
import hashlib
import os
import secrets
from contextlib import suppress
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from strands_psycopg.printable import printable
from strands_psycopg.report import days, formatting, rows
from strands_psycopg.report.statistics import Statistics


def render(statistics: Statistics) -> str:
    """Give the page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=formatting.count,
        short=formatting.short,
        duration=formatting.duration,
        day=formatting.day,
        moment=formatting.moment,
        printable=printable,
    )
    environment.globals["share"] = formatting.share
    style, script = _part("page.css"), _part("page.js")
    return environment.from_string(_part("page.html")).render(
        figures=statistics,
        plots=[*days.plots(statistics), *rows.plots(statistics)],
        style=Markup(style),
        script=Markup(script),
        # Nothing else may run, or be loaded, whatever an id is made of.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def replace(destination: str | os.PathLike[str], page: str) -> None:
    """Write a file beside the destination, and put it in its place; a pipe or device is written to.

    Raises:
        OSError: It could not be written; a file is as it was.
    """
    if Path(destination).exists() and not Path(destination).is_file():
        Path(destination).write_text(page, encoding="utf-8")
        return
    target = Path(destination).resolve()
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        new.write_text(page, encoding="utf-8")
        new.replace(target)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
