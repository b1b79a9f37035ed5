"""Looking at cron entries, and pausing, resuming and running them by hand. `cron.py` registers them."""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit import cron
from queue_kit._database import Database
from queue_kit._reach import check_words, is_name, notify, session_on
from queue_kit._statements import recurring
from queue_kit._wakeup import JOB_CHANNEL
from queue_kit.errors import CronJobNotFound
from queue_kit.job import JobState, printable

_logger = logging.getLogger("queue_kit.cron")


@dataclass(frozen=True, slots=True)
class CronJobInfo:
    """A cron entry. `job_id` and `job_state` are its live occurrence's, which is due at `next_at`: `None` when there is
    none, as for a paused entry. `last_*` are of the occurrence that ended last, as long as its row is kept."""

    name: str
    expression: str
    timezone: str
    priority: int
    data: Any
    handler_timeout: float | None
    paused: bool
    next_at: datetime | None
    job_id: int | None
    job_state: JobState | None
    last_job_id: int | None
    last_state: JobState | None
    last_ended_at: datetime | None
    last_completed_at: datetime | None


async def list_cron_jobs(db: Database) -> list[CronJobInfo]:
    """All cron entries, by name.

    >>> async def failing(engine):
    ...     return [each.name for each in await list_cron_jobs(engine) if each.last_state is JobState.failed]
    """
    async with session_on(db, reading=True) as session:
        rows = (await session.execute(recurring.cron_overview())).all()
    return [
        CronJobInfo(
            **{
                **row._mapping,  # noqa: SLF001 - SQLAlchemy's public name for it
                "job_state": None if row.job_state is None else JobState(row.job_state),
                "last_state": None if row.last_state is None else JobState(row.last_state),
            }
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class CronStanding:
    """How many cron entries are paused, and for how many seconds the most overdue of the others is due without running:
    0 when none is."""

    paused: int = 0
    overdue_seconds: float = 0.0


async def cron_standing(db: Database) -> CronStanding:
    """What of the cron entries does not go on."""
    async with session_on(db, reading=True) as session:
        row = (await session.execute(recurring.cron_standing())).one()
    return CronStanding(row.paused, max(row.overdue or 0.0, 0.0))


async def pause_cron_job(db: Database, name: str) -> None:
    """Let a cron entry start no more until it is resumed; harmless when it is paused already.

    An occurrence that waits is cancelled; one that runs goes on, its retries included, and has no successor. What it
    misses meanwhile is not made up. Registering the entry again leaves it paused. Raises `CronJobNotFound`.

    >>> async def before_the_move(engine):
    ...     await pause_cron_job(engine, "report.daily")
    """
    check_words(name, "name")
    async with session_on(db) as session:
        was_paused = (await _locked(session, name)).paused
        await session.execute(recurring.pause_cron(), {"entry": name})
        await session.execute(recurring.cancel_occurrence(), {"entry": name})
    if not was_paused:
        _logger.info("cron job %s is paused", printable(name), extra={"cron_name": name})


async def resume_cron_job(db: Database, name: str) -> None:
    """Let a paused cron entry go on, with its first tick after now; harmless when it is not paused.

    Raises `CronJobNotFound`, and `InvalidCron` for an entry that was written by hand and cannot be scheduled.

    >>> async def after_the_move(engine):
    ...     await resume_cron_job(engine, "report.daily")
    """
    check_words(name, "name")
    async with session_on(db) as session:
        if not (await _locked(session, name)).paused:
            return
        await session.execute(recurring.resume_cron(), {"entry": name})
        await session.run_sync(lambda sync: cron.go_on(sync.execute, name))
        await notify(session, JOB_CHANNEL)
    _logger.info("cron job %s goes on", printable(name), extra={"cron_name": name})


async def run_cron_job(db: Database, name: str) -> int:
    """Run a cron entry now, paused or not; returns the id of the occurrence.

    Occurrences never overlap, so the one that waits becomes due now, and one that runs already is what is returned. The
    tick that it waited for still comes, unless it passes while this one runs. Raises `CronJobNotFound`.

    >>> async def report_now(engine):
    ...     return await run_cron_job(engine, "report.daily")
    """
    check_words(name, "name")
    async with session_on(db) as session:
        await _locked(session, name)
        job_id = await session.run_sync(lambda sync: cron.hasten(sync.execute, name))
        await notify(session, JOB_CHANNEL)
    return job_id


async def _locked(session: AsyncSession, name: str) -> Any:
    """The entry, locked. What settles an occurrence meanwhile leaves the next one to the sweep."""
    entry = (await session.execute(recurring.lock_cron_entry(), {"entry": name})).first() if is_name(name) else None
    if entry is None:
        raise CronJobNotFound(name)
    return entry
