"""`queue-kit insights`: what waits, runs and fails, once or as a live view."""

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import click
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit.cli.database import ANSWER, database_option, engine_for, masked, on_database, reach, words
from queue_kit.cli.output import MAX_CELL, amount, cut, duration, json_option, plain, print_json, shown, table
from queue_kit.cron_jobs import CronStanding, cron_standing
from queue_kit.fleet import alive
from queue_kit.history import ThroughputPoint, throughput_by_name
from queue_kit.operate import Insights, NameInsights, foremost, queue_insights

MINUTES = 5
"""Over which rates are taken."""

ENDS = ("completed", "retried", "failed")
"""Ends of runs that are shown: well, in a failure that another try follows, and in the last one of a failed job."""

_RATES = (
    "a minute: {completed:,.1f} completed, {retried:,.1f} failed tries to be retried, {failed:,.1f} failed for good"
)

OVERDUE = 60.0
"""Seconds for which a cron entry may be due before it is worth a line."""

MOST_NAMES = 50
"""Names that people see."""

MOST_UNHANDLED = 10
"""Names that a sentence lists."""

SHORTEST = 8
"""Characters of a name that are shown at least."""


@dataclass(frozen=True, slots=True)
class _Overview:
    insights: Insights
    cron: CronStanding
    workers: int
    recent: dict[str, ThroughputPoint]

    def rates(self, name: str | None = None) -> dict[str, float]:
        """How many runs a minute ended in each way, of a name or of all."""
        points = self.recent.values() if name is None else [self.recent[name]] if name in self.recent else []
        return {end: sum(getattr(point, end) for point in points) / MINUTES for end in ENDS}

    @property
    def names(self) -> list[str]:
        """Every name that has jobs or had runs."""
        return sorted({*self.insights.by_name, *self.recent})


@click.command()
@database_option()
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C, with the screen kept up to date.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between looks.")
@json_option
def insights(url: URL, watch: bool, interval: float, as_json: bool) -> None:
    """Show what waits, runs and has failed, in total and by name; rates are those of the last five minutes, and
    lag by up to 70 s.

    A job counts as failed when no other try follows; a failed try that is followed by another counts as retried.

    \b
    Example:
      queue-kit insights --watch

    With --json: {"pending", "scheduled", "running", "failed", "oldest_due_seconds", "completed_per_minute",
    "retried_per_minute", "failed_per_minute", "cron_paused", "cron_overdue_seconds", "workers", "unhandled_names",
    "by_name": {name: the same counts and rates}}; with --watch as well, one such object a line.
    """
    if not watch:
        overview = on_database(url, _look, within=ANSWER)
        if as_json:
            print_json(_as_dict(overview))
        else:
            for line in _lines(overview):
                click.echo(line)
        return
    with suppress(KeyboardInterrupt), _screen(as_json=as_json) as show:
        asyncio.run(_watch(url, interval, show))


async def _look(engine: AsyncEngine) -> _Overview:
    return _Overview(
        await queue_insights(engine),
        await cron_standing(engine),
        len(await alive(engine)),
        await throughput_by_name(engine, last=MINUTES * 60),
    )


async def _watch(url: URL, interval: float, show: Callable[[_Overview | str], None]) -> None:
    engine = engine_for(url)
    try:
        while True:
            began = time.monotonic()
            try:
                show(await reach(engine, _look, within=ANSWER))
            except Exception as error:  # noqa: BLE001 - it may pass, and whoever watches waits for that
                show(f"no answer: {shown(masked(words(error), url))}")
            await asyncio.sleep(max(interval - (time.monotonic() - began), 0.05))
    finally:
        await engine.dispose()


@contextmanager
def _screen(*, as_json: bool) -> Iterator[Callable[[_Overview | str], None]]:
    """Where a live view goes: a terminal that rich keeps up to date, or one look after the other."""

    def in_lines(seen: _Overview | str) -> None:
        if as_json:
            click.echo(json.dumps(plain({"error": seen} if isinstance(seen, str) else _as_dict(seen))))
        else:
            if sys.stdout.isatty():
                click.clear()
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            click.echo("\n".join(_lines(seen, width)) + "\n")

    try:
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        yield in_lines
        return
    if as_json or not sys.stdout.isatty():
        yield in_lines
        return
    with Live(auto_refresh=False, screen=True) as live:

        def on_screen(seen: _Overview | str) -> None:
            lines = map(click.unstyle, _lines(seen, live.console.width))
            live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)

        yield on_screen


def _lines(overview: _Overview | str, width: int | None = None) -> list[str]:
    """What there is to see; on a terminal of some width, names are cut for the figures beside them."""
    if isinstance(overview, str):
        return [overview]
    total, rates = overview.insights, overview.rates()
    lines = [
        f"{total.pending:,} due, {total.scheduled:,} scheduled, {total.running:,} running, {total.failed:,} failed",
        "nothing waits"
        if total.oldest_due_seconds is None
        else f"the first due one waits for {duration(total.oldest_due_seconds)}",
        _RATES.format(**rates),
        f"{amount(overview.workers, 'worker')} alive",
    ]
    if total.unhandled_names:
        lines.append(f"no live worker runs: {_some(total.unhandled_names)}")
    if overview.cron.paused:
        lines.append(f"cron entries that are paused: {overview.cron.paused:,}")
    if overview.cron.overdue_seconds >= OVERDUE:
        lines.append(f"a cron entry has been due for {duration(overview.cron.overdue_seconds)}")
    headings = ("NAME", "DUE", "LATER", "RUNS", "FAILED", "OLDEST", "DONE/MIN", "RETRY/MIN", "FAIL/MIN", "MEAN")
    chosen = foremost(overview.names, total.by_name, MOST_NAMES)
    names = [shown(name) for name in chosen]
    figures = [_figures(overview, name) for name in chosen]
    found = table(headings, [(name, *beside) for name, beside in zip(names, figures, strict=True)])
    if width is not None:
        widest = max(len(click.unstyle(line)) for line in found)
        longest = max([*(min(len(name), MAX_CELL) for name in names), SHORTEST])
        most = max(longest - max(widest - width, 0), SHORTEST)
        found = table(headings, [(cut(name, most), *beside) for name, beside in zip(names, figures, strict=True)])
    more = len(overview.names) - len(chosen)
    rest = f"and {amount(more, 'name')} more; these have failed jobs, wait longest or have most jobs; --json has all"
    return [*lines, "", *found, *([rest] if more else [])]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_UNHANDLED:,} more" if len(names) > MOST_UNHANDLED else ""
    return shown(", ".join(names[:MOST_UNHANDLED])) + more


def _figures(overview: _Overview, name: str) -> tuple[object, ...]:
    counts = overview.insights.by_name.get(name, NameInsights())
    point = overview.recent.get(name)
    return (
        counts.pending,
        counts.scheduled,
        counts.running,
        counts.failed,
        duration(counts.oldest_due_seconds),
        *(f"{rate:.1f}" for rate in overview.rates(name).values()),
        duration(None if point is None else point.mean_run),
    )


def _as_dict(overview: _Overview) -> dict[str, Any]:
    insights = overview.insights

    def counted(counts: NameInsights, rates: dict[str, float]) -> dict[str, Any]:
        return {
            "pending": counts.pending,
            "scheduled": counts.scheduled,
            "running": counts.running,
            "failed": counts.failed,
            "oldest_due_seconds": counts.oldest_due_seconds,
        } | {f"{end}_per_minute": rate for end, rate in rates.items()}

    return counted(insights, overview.rates()) | {
        "cron_paused": overview.cron.paused,
        "cron_overdue_seconds": overview.cron.overdue_seconds,
        "workers": overview.workers,
        "unhandled_names": insights.unhandled_names,
        "by_name": {
            name: counted(insights.by_name.get(name, NameInsights()), overview.rates(name)) for name in overview.names
        },
    }
