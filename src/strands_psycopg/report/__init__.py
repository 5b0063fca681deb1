"""What the sessions amount to: figures for a program, and a page for people.

Both read the views of ``sql/NNNN_analytics.sql``, so the server does the counting.
"""

import os
from collections.abc import Callable
from datetime import date
from typing import TextIO

from strands_psycopg.errors import MissingExtraError, ReportError
from strands_psycopg.report.statistics import (
    QUERIES,
    DayFigures,
    Figures,
    Latency,
    SessionFigures,
    Statistics,
    ToolFigures,
    read_statistics,
)
from strands_psycopg.repository import PostgresSessionRepository

__all__ = [
    "QUERIES",
    "DayFigures",
    "Figures",
    "Latency",
    "SessionFigures",
    "Statistics",
    "ToolFigures",
    "read_statistics",
    "write_report",
]

_LONGEST = 500


def write_report(
    repository: PostgresSessionRepository,
    destination: str | os.PathLike[str] | TextIO,
    *,
    since: date | None = None,
    days: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Statistics:
    """Write a page of HTML with plots and tables, which needs no other file and no network; give what it shows.

    A file is replaced as a whole, or left as it was; a pipe or device is written to.

    Args:
        repository: Where the sessions are.
        destination: A file's path, or a text stream, which stays open.
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
        from strands_psycopg.report.page import render, replace
    except ImportError as error:
        if error.name not in ("jinja2", "vl_convert"):
            raise
        raise MissingExtraError(
            f"the report is drawn by {error.name}, which is not installed; run: pip install 'strands-psycopg[report]'",
            extra="report",
        ) from error
    statistics = read_statistics(repository, since=since, days=days, longest=_LONGEST, progress=progress)
    page = render(statistics)
    if isinstance(destination, (str, os.PathLike)):
        try:
            replace(destination, page)
        except OSError as error:
            raise ReportError(
                f"the report cannot be written to {os.fspath(destination)!r}: {error.strerror}; name a file in a "
                "folder that exists and may be written to"
            ) from error
    else:
        destination.write(page)
    progress(1)
    return statistics
