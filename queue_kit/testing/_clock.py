"""Letting time pass in a test. The database's clock cannot be set; so what the queue has noted is moved back instead,
which is the same to everything that compares the two.
"""

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit._dialect.columns import LONG_AGO
from queue_kit.errors import ConfigurationError
from queue_kit.job import Seconds
from queue_kit.models import CronRow, JobRow
from queue_kit.testing._transaction import Transaction, joined

_TIMES = {
    JobRow: ("scheduled_at", "lease_until", "created_at", "updated_at", "cron_tick"),
    CronRow: ("next_at", "last_completed_at"),
}


async def move_clock(db: Transaction, by: Seconds) -> None:
    """Let `by` seconds (or a timedelta) pass for the queue: scheduled jobs, retries, cron occurrences and leases become
    due as they would. The times of all jobs and cron definitions are moved back, in the caller's transaction.

    A cron job's tick moves, too: `job.scheduled_at` is as long ago as it would be, at another hour than the expression
    says. The clocks of the database and of Python stay; so do times inside of payloads and errors. Raises
    `ConfigurationError` for a time that is not positive, `TypeError` for an engine.

    >>> async def test_reminder(session):
    ...     await add_job(session, "reminder", delay=3600)
    ...     await move_clock(session, 3600)
    ...     assert (await drain(session, jobs))["completed"] == 1
    """
    try:
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
    except (TypeError, ValueError, OverflowError):
        step = timedelta(0)
    if step <= timedelta(0):
        raise ConfigurationError(f"by is a positive number of seconds, or a timedelta, not {by!r}")
    connection = await joined(db, "move_clock")
    async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
        for table, columns in _TIMES.items():
            for row in await session.scalars(select(table)):
                for column in columns:
                    time = getattr(row, column)
                    if time is not None and time > LONG_AGO:
                        setattr(row, column, time - step)
        await session.commit()
