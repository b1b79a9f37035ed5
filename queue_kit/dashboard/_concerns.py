"""What an operator should look at first, in words."""

from collections.abc import Iterator
from dataclasses import dataclass

from queue_kit.cron_jobs import CronStanding
from queue_kit.dashboard._render import query
from queue_kit.dashboard._wording import number, span
from queue_kit.failures import NEWEST
from queue_kit.operate import Insights

LONG = 300.0
"""Seconds for which a job may be due before it is worth a word."""

NAMED = 3
"""Names that a sentence lists."""


@dataclass(frozen=True, slots=True)
class Concern:
    """A sentence, which `names` and `rest` may end, and a link with a `label` to the page (below the dashboard's root)
    that says more. A grave one needs somebody now."""

    text: str
    label: str
    page: str
    is_grave: bool = False
    names: tuple[str, ...] = ()
    rest: str = ""


def concerns(insights: Insights, cron: CronStanding, worker_count: int, failed: int) -> list[Concern]:
    """What is not as it should be, the gravest first; `failed` are the failed jobs of the last hour."""
    return sorted(_found(insights, cron, worker_count, failed), key=lambda concern: not concern.is_grave)


def _found(insights: Insights, cron: CronStanding, worker_count: int, failed: int) -> Iterator[Concern]:
    if not worker_count:
        due = f"No worker is alive, and {_jobs(insights.pending)} due."
        idle = "No worker is alive. Nothing is due yet."
        yield Concern(due if insights.pending else idle, "Workers", "workers", is_grave=insights.pending > 0)
    elif insights.unhandled_names:
        names = insights.unhandled_names
        more = f" and {number(len(names) - NAMED)} more" if len(names) > NAMED else ""
        yield Concern("Jobs wait that no worker runs:", "Names", "names", names=names[:NAMED], rest=f"{more}.")
    if insights.oldest_due_seconds is not None and insights.oldest_due_seconds >= LONG:
        waits = f"A job has been due for {span(insights.oldest_due_seconds)}."
        yield Concern(waits, "Jobs that wait", "jobs" + query({"state": "ready"}))
    if cron.overdue_seconds >= LONG:
        yield Concern(f"A cron entry has been due for {span(cron.overdue_seconds)}.", "Cron", "cron")
    if cron.paused:
        entries = f"{number(cron.paused)} cron entries are" if cron.paused > 1 else "A cron entry is"
        yield Concern(f"{entries} paused.", "Cron", "cron")
    if failed:
        jobs = f"{number(failed)} job{'s' if failed > 1 else ''}{' or more' if failed >= NEWEST else ''}"
        yield Concern(
            f"{jobs} failed for good in the last hour.",
            "What went wrong",
            "#failures",
        )


def _jobs(count: int) -> str:
    return f"{number(count)} jobs are" if count > 1 else "a job is"
