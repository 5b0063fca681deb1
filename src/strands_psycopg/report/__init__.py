"""Usage statistics of all sessions: as objects for programs, and as an HTML page.

Both read the views of ``sql/NNNN_analytics.sql``, so the server does the counting.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from typing import TextIO

from strands_psycopg.errors import MissingExtraError, ReportError
from strands_psycopg.report.statistics import (
    QUERY_COUNT,
    DayFigures,
    Figures,
    Latency,
    SessionFigures,
    Statistics,
    ToolFigures,
    read_statistics,
)
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.system_errors import explain

__all__ = [
    "QUERY_COUNT",
    "DayFigures",
    "Figures",
    "Latency",
    "SessionFigures",
    "Statistics",
    "ToolFigures",
    "read_statistics",
    "write_report",
]

# How many rows browsers search and sort without a delay.
_LONGEST = 5_000


def write_report(
    repository: PostgresSessionRepository,
    destination: str | os.PathLike[str] | TextIO,
    *,
    since: date | None = None,
    days: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Statistics:
    """Write an HTML page with plots and tables, and return the statistics that it shows.

    Its table of sessions has up to 5,000 of them, those with the most messages, and says so if there are more.

    The page needs no other file and no network. A file is replaced atomically; a pipe or device is written to directly.

    Args:
        repository: Where the sessions are stored.
        destination: A path, or a text stream, which is not closed.
        since: As in ``read_statistics``.
        days: As in ``read_statistics``.
        progress: As in ``read_statistics``; it is called once more for the page.

    Raises:
        MissingExtraError: The extra ``report`` is not installed.
        ReportError: The file cannot be written.
        StrandsPsycopgError: As in ``read_statistics``.
        ValueError: As in ``read_statistics``.
    """
    try:
        from strands_psycopg.report.page import open_replacement, render
    except ImportError as error:
        if error.name not in ("jinja2", "vl_convert"):
            raise
        raise MissingExtraError(
            f"the report requires {error.name}, which is not installed; run: pip install 'strands-psycopg[report]'",
            extra="report",
        ) from error
    opened: AbstractContextManager[TextIO]
    if isinstance(destination, (str, os.PathLike)):
        name, opened = f" to {os.fspath(destination)!r}", open_replacement(destination)
    else:
        name, opened = "", nullcontext(destination)
    try:
        # The file is opened first, since reading the statistics may take long.
        with opened as file:
            statistics = read_statistics(repository, since=since, days=days, longest=_LONGEST, progress=progress)
            file.write(render(statistics))
    except OSError as error:
        raise ReportError(f"the report cannot be written{name}: {explain(error)}") from error
    progress(1)
    return statistics
