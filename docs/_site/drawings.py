"""The drawings of the documentation: `python docs/_site/drawings.py` writes them to docs/images.

Each follows the reader's light or dark scheme, and says in words what it shows. The layers are read from
pyproject.toml, where they are linted; a test asks that what is committed is what this script would write.
"""

import tomllib
from collections.abc import Sequence
from html import escape
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
IMAGES = CHECKOUT / "docs" / "images"

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.strong { font-weight: 600 } .quiet { fill: #59636e; font-size: 12px } .on { fill: #ffffff }
.line { stroke: #8c959f; stroke-width: 1.5; fill: none } .dashed { stroke-dasharray: 4 4 }
.run { fill: #0969da } .held { fill: #0969da; fill-opacity: .18 } .done { fill: #1a7f37 }
.lost { fill: #8c959f; fill-opacity: .3 } .cross { stroke: #cf222e; stroke-width: 3 } .bad { fill: #cf222e }
.box { fill: #0969da; fill-opacity: .08; stroke: #8c959f; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .quiet { fill: #9198a1 } .on { fill: #ffffff }
  .run { fill: #1f6feb } .held { fill: #4493f8; fill-opacity: .25 } .done { fill: #238636 }
  .cross { stroke: #f85149 } .bad { fill: #f85149 } .box { fill: #4493f8; fill-opacity: .12 }
}
"""


def crash() -> str:
    """The timeline of a worker that is killed in the middle of a handler."""
    lanes = [(70, "worker A"), (150, "the job's row"), (230, "your tables"), (310, "worker B")]
    parts = [text(20, y + 18, name, "strong") for y, name in lanes]
    parts += [f'<path class="line" d="M120 {y + 42}H860"/>' for y, _ in lanes]
    parts += [
        bar(130, 70, 210, "run", "handler runs, has written"),
        '<path class="cross" d="M346 74l20 20m0 -20l-20 20"/>',
        text(376, 88, "killed: no COMMIT was sent", "bad"),
        bar(130, 150, 430, "held", "leased by A, claim 1"),
        text(345, 168, "the lease is not renewed, lapses", "quiet"),
        bar(570, 150, 180, "held", "leased by B, claim 2"),
        bar(757, 150, 103, "done", "completed"),
        bar(180, 230, 160, "lost", "A's writes, open"),
        text(352, 248, "rolled back by the database", "quiet"),
        bar(620, 230, 130, "lost", "B's writes, open"),
        bar(757, 230, 103, "done", "there"),
        bar(570, 310, 180, "run", "handler runs again"),
        '<path class="line dashed" d="M753 60V352"/>',
        text(860, 372, "one COMMIT: B's writes and the completion", "strong", "end"),
        '<path class="line dashed" d="M565 60V352"/>',
        text(565, 52, "a lease (30 s) and a poll later", "quiet", "middle"),
        text(
            130,
            410,
            "Had A been frozen instead of killed: when it wakes up, its COMMIT asks for claim 1, finds claim 2,",
            "quiet",
        ),
        text(130, 428, "and is refused. Its writes are rolled back then. That check is the fence.", "quiet"),
    ]
    return picture(
        880,
        445,
        "A worker is killed in the middle of a job",
        "Worker A claims the job, writes, and is killed before COMMIT: the database rolls its writes back. The lease "
        "lapses. Worker B claims the job, writes, and commits its writes and the completion at once.",
        parts,
    )


def life() -> str:
    """The states of a job, and what leads from one to the next."""
    parts = [
        *box(20, 90, 130, "scheduled", "due later"),
        *box(250, 90, 130, "ready", "due, waits"),
        *box(490, 90, 130, "running", "leased"),
        *box(730, 30, 130, "completed", ""),
        *box(730, 90, 130, "failed", "out of tries"),
        *box(730, 150, 130, "cancelled", ""),
        *arrow("M150 110H246", 198, 102, "due"),
        *arrow("M380 110H486", 432, 102, "claim"),
        *arrow("M620 100L726 52", 660, 62, "settle"),
        *arrow("M620 110H726", 0, 0, ""),
        *arrow("M620 120L726 168", 0, 0, ""),
        *arrow("M555 134V190H85V138", 320, 184, "failed try, snooze: again later, no more than max_retry_count tries"),
        *arrow("M530 88V40H315V86", 420, 32, "the lease lapsed, or the worker stopped"),
    ]
    return picture(
        880,
        215,
        "The states of a job",
        "A scheduled job becomes ready when it is due, running when it is claimed, and completed, failed or cancelled "
        "when it is settled. A failed try or a snooze makes it scheduled again, a lapsed lease or a stop ready again.",
        parts,
    )


def layers() -> str:
    """The layers of the package as they are linted."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    rows: Sequence[str] = project["tool"]["importlinter"]["contracts"][0]["layers"]
    parts = []
    y = 10
    for row in rows:
        lines = wrapped(row.replace(" | ", "   "))
        parts.append(f'<rect class="box" x="10" y="{y}" width="860" height="{12 + 18 * len(lines)}" rx="4"/>')
        parts += [text(440, y + 19 + 18 * index, line, "", "middle") for index, line in enumerate(lines)]
        y += 18 + 18 * len(lines)
    return picture(880, y + 4, "The layers of queue_kit", "From the top: " + "; ".join(rows) + ".", parts)


def wrapped(row: str, width: int = 110) -> list[str]:
    """A layer's modules in lines."""
    lines = [""]
    for name in row.split("   "):
        if len(lines[-1]) + len(name) > width:
            lines.append("")
        lines[-1] += f"{'   ' if lines[-1] else ''}{name}"
    return lines


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words at a place."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}" xml:space="preserve">{escape(words)}</text>'


def bar(x: float, y: float, width: float, kind: str, words: str) -> str:
    """A stretch of time in a lane."""
    on = "on" if kind in ("run", "done") else ""
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="28" rx="3"/>' + text(x + 8, y + 19, words, on)


def box(x: float, y: float, width: float, words: str, beneath: str) -> list[str]:
    """A state."""
    middle = x + width / 2
    return [
        f'<rect class="box" x="{x}" y="{y}" width="{width}" height="42" rx="6"/>',
        text(middle, y + (18 if beneath else 26), words, "strong", "middle"),
        text(middle, y + 35, beneath, "quiet", "middle"),
    ]


def arrow(path: str, x: float, y: float, words: str) -> list[str]:
    """A way from a state to another."""
    drawn = f'<path class="line" d="{path}" marker-end="url(#head)"/>'
    return [drawn, text(x, y, words, "quiet", "middle")] if words else [drawn]


def picture(width: int, height: int, title: str, words: str, parts: Sequence[str]) -> str:
    """An SVG file."""
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8Z" fill="#8c959f"/></marker></defs>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(words)}</desc>",
            f"<style>{STYLE}</style>",
            head,
            *parts,
            "</svg>\n",
        ]
    )


DRAWINGS = {"crash.svg": crash, "life.svg": life, "layers.svg": layers}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (IMAGES / name).write_text(draw())
