"""How long a failed try ran, for people: a few words, and its spans as a tree with bars."""

from collections.abc import Iterator

from queue_kit._timings import TimedSpan, Timings
from queue_kit.cli.output import cut, duration, shown

WIDEST = 44
"""Columns of a name with its place in the tree."""

BAR = 24
"""Columns that stand for the whole try."""


def took(timings: Timings) -> str:
    """How long it ran."""
    if timings.seconds is None:
        return "its handler did not run" if timings.is_known else "without a time: an older version wrote it"
    told = "" if timings.aborted is None else f", told to end after {_precise(timings.aborted)}"
    return f"ran {_precise(timings.seconds)}{told}"


def span_lines(timings: Timings) -> Iterator[str]:
    """A line for each span: its name, how long it took, and when in the try that was."""
    if timings.left_out:
        yield f"{timings.left_out:,} earlier spans, or more, were not kept"
    names = [cut("  " * each.depth + shown(each.name), WIDEST) for each in timings.spans]
    width = max(map(len, names), default=0)
    for name, each in zip(names, timings.spans, strict=True):
        seconds = "did not end" if each.seconds is None else _precise(each.seconds)
        told = "" if each.aborted is None else "  told to end"
        yield f"{name:<{width}}  {seconds:>11}  |{_bar(each, timings.whole)}|{told}"


def _bar(each: TimedSpan, whole: float) -> str:
    if whole <= 0:
        return " " * BAR
    end = whole if each.seconds is None else each.start + each.seconds
    first = min(int(each.start / whole * BAR), BAR - 1)
    last = max(round(end / whole * BAR), first + 1)
    return (" " * first + "#" * (last - first)).ljust(BAR)


def _precise(seconds: float) -> str:
    return f"{seconds:.2f} s" if 0.1 <= seconds < 60 else duration(seconds)
