"""Charts as plain geometry: a template draws them as SVG, so that they need neither a script nor an inline style.

A chart is 100 units high and one unit wide for each point; the page stretches it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from queue_kit.dashboard import _wording
from queue_kit.history import ThroughputPoint

_ENDS = {
    "completed": "completed",
    "retried": "failed, tried again",
    "failed": "failed for good",
    "lost": "lost by their worker",
}
_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 18_000, 43_200, 86_400)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar, from the top down."""

    kind: str
    top: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """A point of time: what to say of it, and the parts of its bar."""

    title: str
    left: float
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: `scale` are its labels from the top down, `lines` the paths of its lines."""

    width: int
    scale: tuple[str, str, str]
    columns: tuple[Column, ...]
    summary: str
    lines: tuple[tuple[str, str], ...] = ()
    is_empty: bool = False


def runs_chart(points: Sequence[ThroughputPoint]) -> Chart:
    """How many runs ended, and how."""
    top = _round_count(max((_ended(point) for point in points), default=0))
    columns = tuple(Column(_said(point), at, tuple(_bar(point, top))) for at, point in enumerate(points))
    ended = {end: sum(getattr(point, end) for point in points) for end in _ENDS}
    summary = "; ".join(f"{_wording.number(count)} {_ENDS[end]}" for end, count in ended.items() if count)
    scale = (_wording.number(top), _wording.number(top / 2), "0")
    return Chart(len(points), scale, columns, summary or "nothing ran", is_empty=not any(ended.values()))


def _bar(point: ThroughputPoint, top: float) -> Iterator[Part]:
    level = 100.0
    for kind, count in (
        ("good", point.completed),
        ("again", point.retried + point.lost),  # another worker has those that were lost
        ("bad", point.failed),
    ):
        # What is there is seen, however little it is beside the rest.
        height = max(count / top * 100, 1.5) if count else 0.0
        if height:
            level = max(level - height, 0.0)
            yield Part(kind, round(level, 2), round(height, 2))


def _ended(point: ThroughputPoint) -> int:
    return sum(getattr(point, end) for end in _ENDS)


def _said(point: ThroughputPoint) -> str:
    ended = [f"{_wording.number(getattr(point, end))} {words}" for end, words in _ENDS.items() if getattr(point, end)]
    return f"{_wording.clock(point.at)}: {'; '.join(ended) or 'nothing ran'}"


def times_chart(points: Sequence[ThroughputPoint]) -> Chart:
    """How long runs took, and how long jobs had waited for them."""
    means = [mean for point in points for mean in (point.mean_run, point.mean_wait) if mean is not None]
    top = _round_seconds(max(means, default=0.0))
    columns = tuple(Column(_timed(point), at) for at, point in enumerate(points))
    lines = (
        ("wait", _path([point.mean_wait for point in points], top)),
        ("run", _path([point.mean_run for point in points], top)),
    )
    longest = max((point.longest_run for point in points), default=0.0)
    summary = f"the longest run took {_wording.span(longest)}" if means else "nothing ran"
    scale = (_wording.span(top), _wording.span(top / 2), "0")
    return Chart(len(points), scale, columns, summary, lines, is_empty=not means)


def _timed(point: ThroughputPoint) -> str:
    if point.mean_run is None or point.mean_wait is None:
        return f"{_wording.clock(point.at)}: nothing ran"
    return (
        f"{_wording.clock(point.at)}: ran {_wording.span(point.mean_run)} "
        f"(longest {_wording.span(point.longest_run)}), waited {_wording.span(point.mean_wait)}"
    )


def _path(values: Sequence[float | None], top: float) -> str:
    """A line through the values. It has a gap where there is none; one that stands alone is as long as its minute."""
    steps: list[str] = []
    for at, value in enumerate(values):
        if value is not None:
            height = f"{100 - value / top * 100:.2f}"
            before, behind = values[at - 1] if at else None, values[at + 1] if at + 1 < len(values) else None
            alone = f"M{at} {height}h1" if behind is None else f"M{at + 0.5:g} {height}"
            steps.append(alone if before is None else f"L{at + 0.5:g} {height}")
    return "".join(steps)


def _round_count(most: float) -> float:
    if most <= 4:
        return 4.0
    size = 10.0 ** math.floor(math.log10(most))
    return next(size * step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if size * step >= most)


def _round_seconds(most: float) -> float:
    if most <= 0:
        return 1.0
    if most <= 1:
        size = 10.0 ** math.floor(math.log10(most))
        return next(size * step for step in (1, 2, 5, 10) if size * step >= most * 0.999)
    return next((float(step) for step in _SECONDS if step >= most), most)
