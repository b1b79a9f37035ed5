"""The built-in jobs: factories of ordinary handlers, each documented with the name and the cron line to use.

jobs.add("queue_kit.queue.cleanup", job_queue_cleanup())      0 1 * * *
jobs.add("queue_kit.queue.insights", job_queue_insights())    0 * * * *
"""

import math
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit._handler import HandlerFunction
from queue_kit._statements import changing, looking, recurring, workers
from queue_kit.errors import ConfigurationError
from queue_kit.event import Event
from queue_kit.job import Job, printable
from queue_kit.operate import Insights, queue_insights

PAGE = 10_000
"""Ids walked in one transaction, so that no cleanup holds locks for long, however large the table."""


def job_queue_cleanup(
    queue_history_in_days: float = 5, *, failed_history_in_days: float | None = None
) -> HandlerFunction[dict[str, Any]]:
    """A handler that deletes complete jobs older than `queue_history_in_days`, in batches, each committed by itself.

    `failed_history_in_days` keeps failed jobs longer (or shorter). Rows of workers that were not seen for a day go as
    well. Register it as `queue_kit.queue.cleanup`, with the cron line `0 1 * * *`. Raises `ConfigurationError` for a
    negative number of days.

    >>> cleanup = job_queue_cleanup(queue_history_in_days=14)
    """
    days = _days(queue_history_in_days, "queue_history_in_days")
    failed_days = days if failed_history_in_days is None else _days(failed_history_in_days, "failed_history_in_days")

    async def cleanup(event: Event, session: AsyncSession, _job: Job[dict[str, Any]]) -> None:
        deleted, after = 0, 0
        while True:
            event.signal.raise_if_aborted()
            first, last = (await session.execute(looking.id_range(), {"after": after})).one()
            if first is None:
                break
            after = first + PAGE - 1
            page = {"first": first, "last": after, "days": days, "failed_days": failed_days}
            deleted += _rowcount(await session.execute(changing.prune(), page))
            await session.commit()
            if after >= last:
                break
        await session.execute(workers.forget_dead_workers())
        event.log.info("deleted %d jobs", deleted)

    return cleanup


def job_queue_insights() -> HandlerFunction[dict[str, Any]]:
    """A handler that logs the queue's counts, in total and by name; names that no live worker runs as a warning, and as
    an error when a cron job is among them.

    Register it as `queue_kit.queue.insights`, with the cron line `0 * * * *`.

    >>> insights = job_queue_insights()
    """

    async def insights(event: Event, session: AsyncSession, _job: Job[dict[str, Any]]) -> Insights:
        found = await queue_insights(session)
        event.log.info(
            "pending %d, scheduled %d, running %d, failed %d, oldest due for %.0f s",
            found.pending,
            found.scheduled,
            found.running,
            found.failed,
            found.oldest_due_seconds or 0.0,
            extra={"insights": found},
        )
        if found.unhandled_names:
            cron = set(await session.scalars(recurring.cron_names()))
            forgotten = [name for name in found.unhandled_names if name in cron]
            if forgotten:
                event.log.error("no live worker runs these cron jobs: %s", printable(", ".join(forgotten)))
            event.log.warning("no live worker runs: %s", printable(", ".join(found.unhandled_names)))
        return found

    return insights


def _rowcount(result: Any) -> int:
    return int(result.rowcount)


def _days(value: float, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigurationError(f"{field} is a number of days, at least 0, not {value!r}")
    return float(value)
