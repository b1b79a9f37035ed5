"""One, two, four and eight worker processes on one database: each job once, a share for everybody, no deadlock."""

import asyncio
from collections import Counter

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import JobRow, NewJob, add_jobs
from tests.crowd import SHARING, crowd
from tests.database.running import alone
from tests.support import all_complete, count_jobs, effects, make_effects

JOBS_EACH = 40


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
async def test_workers_share_the_jobs_and_each_job_runs_once(pg_engine, postgres_url, workers):
    await make_effects(pg_engine)
    async with crowd(SHARING, postgres_url) as processes:
        for _ in range(workers):
            await processes.start(parallel_count=2, poll_interval=0.2)
        for process in processes.all:
            await process.says("started")
        names = ["write", "idle"] * (JOBS_EACH * workers // 2)
        ids = await add_jobs(pg_engine, [NewJob(name) for name in names])
        await all_complete(pg_engine)
        assert await asyncio.gather(*(process.stop() for process in processes.all)) == [0] * workers
    assert Counter(line for process in processes.all for line in process.lines if line.startswith("completed")) == {
        f"completed {job_id}": 1 for job_id in ids
    }
    assert await effects(pg_engine) == ids[::2]
    assert await count_jobs(pg_engine, (JobRow.claim_no != 1) | (JobRow.lost != 0) | (JobRow.retry_count != 0)) == 0
    assert min(process.count("completed") for process in processes.all) > 0
    assert [line for process in processes.all for line in process.log] == []
    assert await deadlocks(pg_engine) == 0


async def deadlocks(engine: AsyncEngine) -> int:
    """How many deadlocks the database has seen. A connection reports its own when it ends, so wait for all others."""
    await alone(engine)
    async with engine.connect() as connection:
        query = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return (await connection.execute(query)).scalar_one()
