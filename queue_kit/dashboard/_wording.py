"""Numbers, spans and instants as people say them."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def number(value: float) -> str:
    """A count: `950`, `12,345`, `1.2 M`."""
    if value < 100_000:
        return f"{value:,.0f}"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value / 1e3:.0f} k"


def span(seconds: float | timedelta | None) -> str:
    """A length of time: `12 ms`, `3.4 s`, `5 min 20 s`, `2 d 3 h`."""
    if seconds is None:
        return "none"
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if seconds == float("inf"):
        return "no limit"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    sizes = pairwise((*_UNITS, (1, "s")))
    (size, unit), (smaller_size, smaller_unit) = next(each for each in sizes if whole >= each[0][0])
    rest = whole % size // smaller_size
    more = f" {rest} {smaller_unit}" if rest and whole < 10 * size else ""
    return f"{whole // size:,} {unit}{more}"


def ago(instant: datetime, now: datetime) -> str:
    """An instant, seen from now: `just now`, `5 min ago`, `in 2 h`."""
    try:
        seconds = (now - instant).total_seconds()
    except OverflowError:
        return "beyond reckoning"
    if abs(seconds) < 1.5:
        return "just now"
    length = _coarse(abs(seconds))
    return f"{length} ago" if seconds > 0 else f"in {length}"


def _coarse(seconds: float) -> str:
    if seconds > 365 * 86_400:
        return f"{seconds / (365.25 * 86_400):,.0f} y"
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def absolute(instant: datetime) -> str:
    """An instant in UTC, to the second."""
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(count: int) -> str:
    """Bytes: `812 B`, `3.4 kB`."""
    for unit_size, unit in ((1e6, "MB"), (1e3, "kB")):
        if count >= unit_size:
            return f"{count / unit_size:.1f} {unit}"
    return f"{count} B"


def clock(instant: datetime) -> str:
    """The time of day in UTC."""
    return instant.astimezone(UTC).strftime("%H:%M UTC")
