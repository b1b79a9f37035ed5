"""The spans of a failed try as plain geometry, as `_charts` has it for the overview: each a bar on the try's time.

A bar is drawn on a line of 1,000 units, which is the whole try.
"""

from dataclasses import dataclass

from queue_kit._timings import TimedSpan, Timings

WHOLE = 1_000

_THINNEST = 6.0
"""What took no time to speak of is seen nevertheless."""

_DEEPEST = 8
"""Levels that are set in; deeper ones stand under each other."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A span: where its bar begins and how long it is, and how far its name is set in."""

    span: TimedSpan
    left: float
    width: float
    indent: int


def bars_of(timings: Timings) -> tuple[Bar, ...]:
    """The bars of a try's spans. One that had not ended reaches to the end of the try."""
    return tuple(_bar(each, timings.whole) for each in timings.spans)


def _bar(span: TimedSpan, whole: float) -> Bar:
    if whole <= 0:
        return Bar(span, 0.0, _THINNEST, min(span.depth, _DEEPEST))
    seconds = whole - span.start if span.seconds is None else span.seconds
    width = max(seconds / whole * WHOLE, _THINNEST)
    left = min(span.start / whole * WHOLE, WHOLE - width)
    return Bar(span, round(max(left, 0.0), 1), round(width, 1), min(span.depth, _DEEPEST))
