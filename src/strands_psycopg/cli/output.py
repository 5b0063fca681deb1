"""What the commands print: tables, progress bars and text from messages.

With the extra ``cli`` and on a terminal, rich draws; otherwise it is plain text, without escape codes.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

try:
    import rich.console
    import rich.progress
    import rich.table
    import rich.text
except ImportError:  # without the extra ``cli``
    rich = None  # type: ignore[assignment]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print a table.

    Args:
        header: The columns' names.
        rows: A text for each column; what comes from users should be ``printable``.
        right: The columns that are aligned at their right end, such as numbers.
    """
    if rich is not None and sys.stdout.isatty():
        table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
        for name in header:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in rows:
            # Plain texts, or brackets in them would be taken for styles.
            table.add_row(*(rich.text.Text(cell) for cell in row))
        rich.console.Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )
        print("  ".join(cells).rstrip())


def print_heading(text: str) -> None:
    """Print a line that stands out from those below it."""
    if rich is not None and sys.stdout.isatty():
        rich.console.Console().print(rich.text.Text(text, style="bold cyan"), soft_wrap=True)
    else:
        print(text)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show on a terminal's stderr how far a long command is; give the function to call with each further count.

    Args:
        label: What is being done.
        total: The count at the end, if it is known.
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


def size(count: float) -> str:
    """Give a number of bytes in a unit that suits it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.1f} TB"


def counted(number: int, noun: str) -> str:
    """Give a number with what it counts."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def second(time: str) -> str:
    """Give a time in ISO 8601 as it is read easily, to the second."""
    return time[:19].replace("T", " ")


def minute(time: str) -> str:
    """Give a time in ISO 8601 as it is read easily, to the minute."""
    return second(time)[:16]
