"""Output of the commands: tables, headings and progress bars.

On a terminal and with the extra ``cli``, rich formats them; otherwise they are plain text without escape codes.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, Protocol

from strands.types.session import encode_bytes_values

from strands_psycopg.printable import printable

try:
    import rich.console
    import rich.progress
    import rich.table
    import rich.text
except ImportError:  # without the extra ``cli``
    rich = None  # type: ignore[assignment]

# In characters.
_ANNOTATION_WIDTHS = {"owner": 16, "title": 24}

# Between two columns, in characters.
_GAP = 2


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> None:
    """Print a table.

    On a terminal that is too narrow, columns are dropped; the others are never cut or folded.

    Args:
        header: The column names.
        rows: The rows, with a text for each column. Pass texts from users through ``printable``.
        right: The names of right-aligned columns, such as those of numbers.
        drop: The names of columns that can be left out, the first one first.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    if rich is not None and sys.stdout.isatty():
        console = rich.console.Console()
        fitted = _fit(dict(zip(header, widths, strict=True)), console.width, drop)
        table = rich.table.Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0))
        for name, width in fitted.items():
            justify: Literal["left", "right"] = "right" if name in right else "left"
            table.add_column(name, justify=justify, width=width, overflow="ellipsis", no_wrap=True)
        for row in rows:
            # In plain strings rich would interpret brackets as markup.
            table.add_row(*[rich.text.Text(cell) for name, cell in zip(header, row, strict=True) if name in fitted])
        console.width = max(console.width, sum(fitted.values()) + _GAP * len(fitted))
        console.print(table)
        return
    for row in (header, *rows):
        cells = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )
        print("  ".join(cells).rstrip())


def _fit(widths: dict[str, int], available: int, drop: Sequence[str]) -> dict[str, int]:
    """Return the widths of the columns that are shown on a terminal of some width."""
    shown = dict(widths)
    for name in drop:
        if sum(shown.values()) + _GAP * len(shown) > available:
            del shown[name]
    return shown


def print_heading(text: str) -> None:
    """Print a highlighted line."""
    if rich is not None and sys.stdout.isatty():
        rich.console.Console().print(rich.text.Text(text, style="bold cyan"), soft_wrap=True)
    else:
        print(text)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr if it is a terminal; yield the function that advances it.

    Args:
        label: The bar's label.
        total: The final count, if it is known.
    """
    if rich is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


class HasAnnotations(Protocol):
    """An object with an owner and a title, each of which may be None."""

    @property
    def owner(self) -> str | None:
        """Whose it is."""

    @property
    def title(self) -> str | None:
        """Its title."""


def annotation_columns(sessions: Sequence[HasAnnotations]) -> tuple[list[str], list[list[str]]]:
    """Return the columns of a table of sessions for owners and titles: their names, and the cells of each session.

    Columns that would be empty are left out, and cells are shortened, so that the table remains readable.
    """
    names = [name for name in _ANNOTATION_WIDTHS if any(getattr(each, name) is not None for each in sessions)]
    return names, [
        [_shorten(getattr(each, name) or "", _ANNOTATION_WIDTHS[name]) for name in names] for each in sessions
    ]


def _shorten(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def dump_json(document: Any, *, indent: int | None = None) -> str:
    """Return a document as JSON: bytes in Strands' form, times as ISO 8601, and null for NaN and infinities."""
    try:
        return json.dumps(document, indent=indent, default=_encode, allow_nan=False)
    except ValueError:
        text = json.dumps(document, default=_encode)
        return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=indent)


def _encode(value: object) -> object:
    return value.isoformat(timespec="microseconds") if isinstance(value, datetime) else encode_bytes_values(value)


def format_size(count: float) -> str:
    """Return a number of bytes in a suitable unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.1f} TB"


def pluralize(number: int, noun: str) -> str:
    """Return a number with a noun in singular or plural."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_time(time: datetime | str, *, timespec: Literal["minutes", "seconds"]) -> str:
    """Return a time, which may be in ISO 8601, without its offset, truncated to minutes or seconds."""
    if isinstance(time, datetime):
        time = time.isoformat()
    return time[: 16 if timespec == "minutes" else 19].replace("T", " ")
