"""Workers in a process of their own, for the tests of crashes: `python crashing.py URL LEASE [cron]`.

Its handlers write their effect in their own transaction. With `cron` it registers the same twenty jobs as all the
others, over and over, while it runs them.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from queue_kit import CronJob, Handlers, QueueWorker, register_cron_jobs, sqlite_engine
from tests.support import ADD_EFFECT

url, lease, *rest = sys.argv[1:]
sqlite = url.startswith("sqlite")
CRON_NAMES = [f"cron-{number}" for number in range(20)]

jobs = Handlers()


@jobs.handler("write", retry_delay=0.05)
async def write(event, session, job):
    """Read, think, write, think again: killed anywhere, nothing of it may stay."""
    await session.execute(text("SELECT 1"))
    await asyncio.sleep(random.uniform(0, 0.02))
    await session.execute(ADD_EFFECT, {"job_id": job.id})
    await asyncio.sleep(random.uniform(0, 0.02))


@jobs.handler("freeze", timeout=60)
async def freeze(event, session, job):
    """Runs until a file is there. On SQLite it writes only then, since it would hold the one lock meanwhile."""
    if not sqlite:
        await session.execute(ADD_EFFECT, {"job_id": job.id})
    print("running", flush=True)
    try:
        while not Path(job.data["until"]).exists():
            await asyncio.sleep(0.02)
    finally:
        print("woke", type(event.signal.reason).__name__, flush=True)
    if sqlite:
        await session.execute(ADD_EFFECT, {"job_id": job.id})


@jobs.handler("poison", max_retry_count=2)
async def poison(event, session, job):
    """Ends its process, whatever else runs in it, after a round trip."""
    await session.execute(ADD_EFFECT, {"job_id": job.id})
    os._exit(3)


@jobs.handler("neighbour", max_retry_count=2)
async def neighbour(event, session, job):
    """Runs beside the poison until that has done its work."""
    await asyncio.sleep(0.1)
    await session.execute(ADD_EFFECT, {"job_id": job.id})


for name in CRON_NAMES:

    @jobs.handler(name)
    async def tick(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})


class Hook:
    def on_settled(self, record):
        print(record.outcome.verdict, flush=True)


async def register(engine):
    wanted = [CronJob(name, "* * * * * *") for name in CRON_NAMES]
    while True:
        await register_cron_jobs(engine, wanted)
        await asyncio.sleep(random.uniform(0, 0.3))


async def main():
    # Eight that register in a loop keep the one lock busy.
    engine = sqlite_engine(make_url(url).database, busy_timeout=60) if sqlite else create_async_engine(url)
    options = {"parallel_count": 3, "lease": float(lease), "poll_interval": 0.1, "hooks": [Hook()]}
    async with asyncio.TaskGroup() as group:
        if rest == ["cron"]:
            group.create_task(register(engine))
        await QueueWorker(engine, jobs, **options).start()
        await asyncio.Event().wait()


asyncio.run(main())
