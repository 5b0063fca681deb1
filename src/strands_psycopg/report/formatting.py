"""Numbers, times and names as the page writes them."""

from datetime import date, datetime


def count(number: int) -> str:
    """Give a number with its thousands separated."""
    return f"{number:,}"


def short(number: int) -> str:
    """Give a number in three or four digits: 999, 12.3 K, 4.56 M."""
    value = float(number)
    for unit in ("", " K", " M", " G"):
        if value < 999.5:
            return f"{number}" if not unit else f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:,.3g} T" if value < 999.5 else f"{value:,.0f} T"


def share(part: int, whole: int) -> str:
    """Give a part as a percentage."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 10 or part == 0 else f"{percent:.1f} %" if percent >= 0.1 else "< 0.1 %"


def duration(seconds: float) -> str:
    """Give a time in the unit that suits it, or in two."""
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
    """Give a day as 3 Nov 2025, whatever the process's locale."""
    return f"{value.day} {_MONTHS[value.month - 1]} {value.year}"


def moment(value: datetime) -> str:
    """Give a time to the minute."""
    return f"{day(value)}, {value:%H:%M}"


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
