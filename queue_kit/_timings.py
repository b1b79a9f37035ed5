"""How long a failed try ran, and the spans that its event timed, as the record of its error keeps them.

`_run` adds them to the record that a failure leaves anyway; the dashboard and the command line read them, from rows
that anybody may have written. A run that succeeds leaves none: its spans go to hooks, logs and traces.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from queue_kit._error_record import storable, text_of
from queue_kit.event import Span

MOST_SPANS = 40
"""Spans that are kept of a try, the last to begin and what they lie in: of ten thousand, those before the failure
matter. Some 3 kB, and 16 at the most."""

MAX_NAME = 80

_LONGEST = 1e9
"""Seconds; what is longer was not written by a worker."""

DID_NOT_RUN: Final = {"seconds": None}
"""In the record of a job that was refused before its handler ran. Records of older versions say nothing."""


@dataclass(frozen=True, slots=True)
class TimedSpan:
    """A timed part of a try: seconds from its start, how long (None: it had not ended), and when it was aborted."""

    name: str
    depth: int
    start: float
    seconds: float | None
    aborted: float | None


@dataclass(frozen=True, slots=True)
class Timings:
    """How long a try ran, when it was told to end, and its spans in the order of a tree: each behind what it lies in.

    `left_out` earlier spans, or more, were not kept. Without `is_known` an older version wrote the record; without
    `seconds` the handler did not run.
    """

    seconds: float | None = None
    aborted: float | None = None
    spans: tuple[TimedSpan, ...] = ()
    left_out: int = 0
    is_known: bool = False

    @property
    def whole(self) -> float:
        """Seconds that hold the try and every span of it."""
        return max([self.seconds or 0.0, *(each.start + (each.seconds or 0.0) for each in self.spans)])


UNKNOWN = Timings()


def timings_record(seconds: float, root: Span | None) -> dict[str, Any]:
    """What the record of a failed try says of its time."""
    record: dict[str, Any] = {"seconds": _rounded(seconds)}
    if root is None:
        return record
    if root.aborted is not None:
        record["aborted"] = _rounded(root.aborted)
    spans, left_out = _last_spans(root)
    if spans:
        record["spans"] = [_span_record(depth, span) for depth, span in spans]
    if left_out:
        record["spans_left_out"] = left_out
    return record


def _last_spans(root: Span) -> tuple[list[tuple[int, Span]], int]:
    """The last spans below a root with their depths, as a tree is read; and how many more are known to be there.

    Nothing is looked at that is not kept, or ten thousand spans would hold up the event loop.
    """
    found: list[tuple[tuple[int, ...], Span]] = []
    left_out = 0
    waiting: list[tuple[tuple[int, ...], Span]] = [((), root)]
    while waiting and len(found) <= MOST_SPANS:
        place, span = waiting.pop()
        found.append((place, span))
        children = span.children[-MOST_SPANS:]
        left_out += len(span.children) - len(children)
        waiting += [((*place, at), child) for at, child in enumerate(children)]
    below = sorted(found[1:], key=itemgetter(0))
    return [(len(place) - 1, span) for place, span in below], left_out + len(waiting)


def _span_record(depth: int, span: Span) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": storable(text_of(span.name)[:MAX_NAME], MAX_NAME),
        "depth": depth,
        "start": _rounded(span.started),
        "seconds": None if span.duration is None else _rounded(span.duration),
    }
    return record if span.aborted is None else record | {"aborted": _rounded(span.aborted)}


def _rounded(seconds: float) -> float:
    return round(seconds, 6)


def timings_of(record: Mapping[str, Any]) -> Timings:
    """The timings of a record; anything in it that is none is left out."""
    left_out = record.get("spans_left_out")
    return Timings(
        _seconds(record.get("seconds")),
        _seconds(record.get("aborted")),
        tuple(_spans_of(record.get("spans"))),
        left_out if isinstance(left_out, int) and 0 < left_out < _LONGEST else 0,
        "seconds" in record,
    )


def _spans_of(records: Any) -> Iterator[TimedSpan]:
    for each in records[:MOST_SPANS] if isinstance(records, list) else ():
        if isinstance(each, dict) and isinstance(each.get("name"), str):
            depth, start = each.get("depth"), _seconds(each.get("start"))
            yield TimedSpan(
                each["name"][:MAX_NAME],
                min(max(depth, 0), MOST_SPANS) if isinstance(depth, int) else 0,
                0.0 if start is None else start,
                _seconds(each.get("seconds")),
                _seconds(each.get("aborted")),
            )


def _seconds(value: Any) -> float | None:
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LONGEST
    return float(value) if is_one else None
