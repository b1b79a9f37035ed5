"""Cron: register recurring jobs, look at the plan, watch a few ticks.

    python examples/cron.py [TICKS] [--database-url postgresql+asyncpg://user@host/name]

Takes three ticks of a job that runs every second, then exits. Without a URL it uses an SQLite file that it throws away;
a database of yours should be one of its own, because registering replaces all the cron jobs that are there.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import (
    CronJob,
    CronPlan,
    Event,
    Handlers,
    Job,
    QueueWorker,
    engine_from_url,
    job_queue_cleanup,
    job_queue_insights,
    list_jobs,
    migrate,
    register_cron_jobs,
    sqlite_engine,
)

jobs = Handlers()
ticks: asyncio.Queue[str] = asyncio.Queue()

# The built-in jobs, under their documented names.
jobs.add("queue_kit.queue.cleanup", job_queue_cleanup(queue_history_in_days=5))
jobs.add("queue_kit.queue.insights", job_queue_insights())


@jobs.handler("example.tick")
async def tick(_event: Event, _session: AsyncSession, job: Job[dict[str, str]]) -> None:
    """Run at every second. `scheduled_at` is the tick, however late the job starts."""
    ticks.put_nowait(f"tick {job.scheduled_at:%H:%M:%S}  job {job.id}  {job.data['greeting']}")


@jobs.handler("example.report")
async def report(_event: Event, _session: AsyncSession, _job: Job[dict[str, str]]) -> None:
    """Run at six in the morning in Amsterdam, in summer and in winter."""


# The list is the truth: what is not in it is removed. Five fields, or six with leading seconds.
CRON = [
    CronJob("queue_kit.queue.cleanup", "0 1 * * *"),
    CronJob("queue_kit.queue.insights", "0 * * * *"),
    CronJob("example.tick", "* * * * * *", data={"greeting": "hello"}),
    CronJob("example.report", "0 6 * * *", timezone="Europe/Amsterdam"),
]


async def show(engine: AsyncEngine, count: int) -> None:
    """Register, print the plan and what is scheduled, then run until there were enough ticks."""
    await migrate.upgrade(engine)
    print_plan("registered", await register_cron_jobs(engine, CRON))
    print_plan("again", await register_cron_jobs(engine, CRON))
    print("scheduled")
    for job in await list_jobs(engine):
        print(f"  {job.scheduled_at:%Y-%m-%d %H:%M:%S} UTC  {job.name}")
    async with QueueWorker(engine, jobs):
        for _ in range(count):
            print(await ticks.get(), flush=True)
    print_plan("removed", await register_cron_jobs(engine, []))


def print_plan(title: str, plan: CronPlan) -> None:
    """Print what a registration did."""
    print(title)
    for what in ("added", "changed", "removed", "unchanged"):
        names: tuple[str, ...] = getattr(plan, what)
        if names:
            print(f"  {what}: {', '.join(names)}")


async def main(count: int, database_url: str | None) -> None:
    """Run on the given database, or on one for this moment."""
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_from_url(database_url) if database_url else sqlite_engine(Path(folder, "cron.db"))
        try:
            await show(engine, count)
        finally:
            await engine.dispose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Watch cron jobs run.")
    parser.add_argument("ticks", nargs="?", type=int, default=3, help="how many to wait for (default: %(default)s)")
    parser.add_argument("--database-url", help="postgresql+asyncpg://..., in place of a temporary SQLite file")
    options = parser.parse_args()
    asyncio.run(main(options.ticks, options.database_url))
