"""Formatting of names, numbers and times for the page and the command line."""

from datetime import date, datetime

from strands_psycopg.printable import printable


def display_name(name: str | None) -> str:
    """Return the name of a tool or session as it is displayed."""
    return printable(name) if name else "(no name)"


def integer(number: int) -> str:
    """Return a number with thousands separators."""
    return f"{number:,}"


def compact(number: int) -> str:
    """Return a number with three or four digits: 1,982, 12.3k, 4.56M; plots label their axes in the same way."""
    if number < 10_000:
        return integer(number)
    value = number / 1000
    for unit in ("k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:,.3g}T" if value < 999.5 else f"{value:,.0f}T"


def percentage(part: int, whole: int) -> str:
    """Return a part of a whole as a percentage."""
    if not whole:
        return "0%"
    percent = 100 * part / whole
    return f"{percent:.0f}%" if percent >= 10 or part == 0 else f"{percent:.1f}%" if percent >= 0.1 else "< 0.1%"


def duration(seconds: float) -> str:
    """Return a duration in one or two suitable units."""
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h"


def day(value: date) -> str:
    """Return a day as 3 Nov 2025, whatever the locale is."""
    return f"{value.day} {_MONTHS[value.month - 1]} {value.year}"


def day_and_time(value: datetime) -> str:
    """Return a time with its day, to the minute."""
    return f"{day(value)}, {value:%H:%M}"


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
