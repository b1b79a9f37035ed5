"""Cron where two meet: sweeps, registrations, and a registration beside a run."""

import asyncio

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import create_async_engine

from queue_kit import (
    CronJob,
    Handlers,
    JobRow,
    QueueWorker,
    cron,
    register_cron_jobs,
)
from queue_kit._statements.recurring import cron_missing
from queue_kit.cron import _store_next as store
from tests.database.clock import definition, far, make_due, occurrence, rows
from tests.database.running import Gate
from tests.support import Recorder, until


async def test_a_sweep_that_comes_second_leaves_the_tick_of_the_occurrence_that_is_there(pg_engine):
    await register_cron_jobs(pg_engine, [CronJob("a", far()), CronJob("b", far())])
    async with pg_engine.begin() as connection:
        await connection.execute(delete(JobRow))
    async with pg_engine.begin() as connection:
        stale = (await connection.execute(cron_missing())).all()  # what a sweep sees just before another one commits
    async with pg_engine.begin() as connection:
        await connection.run_sync(lambda sync: cron.mend(sync.execute))
    ticks = {name: (await occurrence(pg_engine, name)).scheduled_at for name in "ab"}
    async with pg_engine.begin() as connection:
        await connection.run_sync(lambda sync: [store(sync.execute, row, completed=False) for row in stale])
    assert len(stale) == 2
    assert {name: (await definition(pg_engine, name)).next_at for name in "ab"} == ticks


async def test_registrations_take_turns_whatever_the_engines_isolation(pg_engine):
    engine = create_async_engine(pg_engine.url, isolation_level="REPEATABLE READ", pool_size=6)
    entries = [CronJob(f"n{at}", far()) for at in range(5)]
    await asyncio.gather(*(register_cron_jobs(engine, entries) for _ in range(6)))
    await engine.dispose()
    assert sorted(row.cron_name for row in await rows(pg_engine)) == [entry.name for entry in entries]


async def test_an_occurrence_that_ran_when_its_entry_went_is_removed_while_it_waits_for_its_retry(engine):
    gate, jobs = Gate(), Handlers()

    @jobs.handler("a", retry_delay=600)
    async def fails(event, session, job):
        await gate(event, session, job)
        raise ValueError

    await register_cron_jobs(engine, [CronJob("a", far())])
    await make_due(engine, "a")
    hook = Recorder()
    async with QueueWorker(engine, jobs, hooks=[hook]):
        await until(lambda: gate.running)
        await register_cron_jobs(engine, [])
        gate.open.set()
        await until(lambda: hook.settled)
    assert hook.verdicts == ["retried"]
    await register_cron_jobs(engine, [])
    assert await rows(engine) == []
