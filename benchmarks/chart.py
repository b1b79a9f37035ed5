"""Charts as SVG, written by hand: they follow the reader's light or dark scheme, and say in words what they show."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 800, 200, 120, 64, 48
ROW, BAR = 30, 18
PLOT = WIDTH - LEFT - RIGHT
HEIGHT = 260

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px }
.quiet { fill: #59636e; font-size: 12px }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.ours { fill: #0969da } .theirs { fill: #8c959f }
.half { fill-opacity: .55 } .faint { fill-opacity: .28 }
.line { stroke: #0969da; stroke-width: 2; fill: none }
.spread { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .quiet { fill: #9198a1 } .grid { stroke: #3d444d }
  .ours { fill: #4493f8 } .theirs { fill: #7d8590 } .line { stroke: #4493f8 } .spread { stroke: #f0f6fc }
}
"""


class Bar(NamedTuple):
    """A row of a bar chart: bars within one another, the longest last, and the extremes of the first."""

    label: str
    values: tuple[float, ...]
    ours: bool
    low: float | None = None
    high: float | None = None


class Point(NamedTuple):
    """A point of a line chart."""

    x: float
    y: float


def bars(title: str, axis: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from zero; `axis` names what their length means, with its unit."""
    height = TOP + ROW * len(rows) + BOTTOM
    ticks = _ticks(max(max(*row.values, row.high or 0) for row in rows))
    scale = PLOT / ticks[-1]
    parts = _grid(ticks, [LEFT + tick * scale for tick in ticks], height)
    for index, row in enumerate(rows):
        y = TOP + ROW * index
        kind = "ours" if row.ours else "theirs"
        parts.append(_text(LEFT - 10, y + 14, row.label, anchor="end"))
        shades = ("", " half", " faint")
        for value, shade in reversed(list(zip(row.values, shades, strict=False))):
            parts.append(f'<rect class="{kind}{shade}" x="{LEFT}" y="{y}" width="{value * scale:.1f}" height="{BAR}"/>')
        end = max(*row.values, row.high or 0) * scale
        if row.low is not None and row.high is not None and row.high > row.low:
            x1, x2 = LEFT + row.low * scale, LEFT + row.high * scale
            parts.append(f'<path class="spread" d="M{x1:.1f} {y + BAR / 2}H{x2:.1f}"/>')
        words = " / ".join(map(_short, row.values))
        parts.append(_text(LEFT + end + 6, y + 14, words, kind="quiet"))
    parts.append(_text(LEFT + PLOT / 2, height - 10, axis, anchor="middle", kind="quiet"))
    said = "; ".join(f"{row.label} {' / '.join(map(_short, row.values))}" for row in rows)
    return _svg(title, f"{axis}: {said}", parts, height)


def line(title: str, across: str, up: str, points: Sequence[Point]) -> str:
    """A line over a logarithmic axis, from zero upwards."""
    height = TOP + HEIGHT + BOTTOM
    first = math.floor(math.log10(min(point.x for point in points)))
    last = max(math.ceil(math.log10(max(point.x for point in points))), first + 1)
    ticks = _ticks(max(point.y for point in points))

    def place(point: Point) -> tuple[float, float]:
        along = (math.log10(point.x) - first) / (last - first)
        return LEFT / 2 + along * (WIDTH - LEFT), TOP + HEIGHT * (1 - point.y / ticks[-1])

    parts = []
    for tick in ticks:
        y = TOP + HEIGHT * (1 - tick / ticks[-1])
        parts.append(f'<path class="grid" d="M{LEFT / 2} {y:.1f}H{WIDTH - LEFT / 2}"/>')
        parts.append(_text(LEFT / 2 - 8, y + 4, _short(tick), anchor="end", kind="quiet"))
    for power in range(first, last + 1):
        x, _ = place(Point(10**power, 0))
        parts.append(_text(x, TOP + HEIGHT + 18, f"{10**power:,}", anchor="middle", kind="quiet"))
    places = [place(point) for point in points]
    parts.append(f'<path class="line" d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
    for point, (x, y) in zip(points, places, strict=True):
        parts.append(f'<circle class="ours" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(_text(x + 8, y - 6, _short(point.y), kind="quiet"))
    parts.append(_text(WIDTH / 2, height - 10, across, anchor="middle", kind="quiet"))
    parts.append(_text(LEFT / 2 - 40, TOP - 14, up, kind="quiet"))
    said = "; ".join(f"{point.x:,.0f}: {_short(point.y)}" for point in points)
    return _svg(title, f"{up}, by {across}: {said}", parts, height)


def _ticks(highest: float) -> list[float]:
    """Round numbers from zero to the first that is not below the highest value."""
    rough = max(highest, 1e-9) / 4
    step = 10 ** math.floor(math.log10(rough))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step >= rough * 0.999)
    return [step * number for number in range(max(1, math.ceil(highest / step * 0.999)) + 1)]


def _grid(ticks: Iterable[float], places: Iterable[float], height: float) -> list[str]:
    parts = []
    for tick, x in zip(ticks, places, strict=True):
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP - 10}V{height - BOTTOM}"/>')
        parts.append(_text(x, height - BOTTOM + 18, _short(tick), anchor="middle", kind="quiet"))
    return parts


def _text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _svg(title: str, description: str, parts: Iterable[str], height: float) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f"<style>{STYLE}</style>",
            _text(16, 26, title, kind="title"),
            *parts,
            "</svg>\n",
        ]
    )
