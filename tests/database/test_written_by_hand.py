"""Columns that only plain SQL can have written: each harms its own job or entry, and nothing stops."""

import asyncio

import pytest
from sqlalchemy import delete, text
from sqlalchemy.ext.asyncio import create_async_engine

from queue_kit import (
    CronJob,
    Handlers,
    JobRow,
    JobState,
    NewJob,
    QueueWorker,
    Snooze,
    add_job,
    add_jobs,
    cancel_job,
    cron,
    queue_insights,
    register_cron_jobs,
)
from queue_kit._statements import cron_missing
from queue_kit.cron import _store_next as store
from tests.database.clock import definition, far, make_due, occurrence, rows
from tests.database.running import Gate, lapse, raw, worker_rows
from tests.support import Recorder, row_of, until


async def nothing(event, session, job): ...


@pytest.fixture
def jobs() -> Handlers:
    handlers = Handlers()
    for name in ("a", "b"):
        handlers.add(name, nothing)
    return handlers


# --- cron -------------------------------------------------------------------------------------------------------------

UNUSABLE = {"priority": "-1", "data": "'null'", "next_at": "'9999-12-31 23:59:59'", "timezone": "'Nowhere'"}


@pytest.mark.parametrize("column", UNUSABLE)
async def test_a_definition_with_a_column_that_nobody_can_use_stops_no_worker(engine, jobs, caplog, column):
    await register_cron_jobs(engine, [CronJob("a", far()), CronJob("b", far())])
    job_id, _ = await make_due(engine, "a")
    await make_due(engine, "b")
    await raw(engine, f"UPDATE queue_kit_cron SET {column} = {UNUSABLE[column]} WHERE name = 'a'")
    hook = Recorder()
    async with QueueWorker(engine, jobs, poll_interval=0.05, hooks=[hook]) as worker:
        await until(lambda: len(hook.settled) == 2)
        await until(lambda: column == "data" or "cannot be scheduled" in caplog.text)
        later = await add_job(engine, "b")
        await until(lambda: len(hook.settled) == 3)
        assert worker.healthy
    assert hook.verdicts == ["completed"] * 3
    assert (await row_of(engine, job_id)).state is JobState.completed
    assert (await row_of(engine, later)).state is JobState.completed
    assert (await occurrence(engine, "b")).status == 0
    assert sum("cannot be scheduled" in record.getMessage() for record in caplog.records) == (column != "data")


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


# --- jobs -------------------------------------------------------------------------------------------------------------


async def test_a_job_parked_for_ever_stops_nothing(pg_engine, jobs):
    parked = await add_job(pg_engine, "a", delay=60)
    await raw(pg_engine, f"UPDATE queue_kit_job SET scheduled_at = 'infinity' WHERE id = {parked}")
    hook = Recorder()
    async with QueueWorker(pg_engine, jobs, hooks=[hook]) as worker:
        done = await add_job(pg_engine, "b")
        await until(lambda: hook.settled)
        assert worker.healthy
    assert hook.settled[0].job.id == done
    assert (await queue_insights(pg_engine)).scheduled == 1


@pytest.mark.parametrize("column", ["scheduled_at", "created_at"])
@pytest.mark.parametrize("time", ["0044-03-15 BC", "10000-01-01"])
async def test_a_time_that_python_cannot_hold_fails_its_own_job(pg_engine, jobs, column, time):
    bad, *good = await add_jobs(pg_engine, [NewJob("a", priority=0), NewJob("b"), NewJob("b")])
    if (column, time) == ("scheduled_at", "10000-01-01"):
        time = "4714-11-24 BC"
    await raw(pg_engine, f"UPDATE queue_kit_job SET {column} = '{time}' WHERE id = {bad}")
    counts = await QueueWorker(pg_engine, jobs, parallel_count=3).drain()
    assert (counts["failed"], counts["completed"]) == (1, 2)
    ((status, errors),) = await raw(pg_engine, f"SELECT status, errors::text FROM queue_kit_job WHERE id = {bad}")
    assert status == 3
    assert "the row cannot be read" in errors
    assert [(await row_of(pg_engine, job_id)).state for job_id in good] == [JobState.completed] * 2


async def test_suspects_that_are_due_together_are_all_drained_one_after_the_other(engine):
    running, most = set(), []

    async def note(event, session, job):
        running.add(job.id)
        await asyncio.sleep(0)
        most.append(len(running))
        running.discard(job.id)

    ids = await add_jobs(engine, [NewJob("suspect", max_retry_count=9)] * 3)
    for job_id in ids:
        await lapse(engine, job_id, times=2)
    counts = await QueueWorker(engine, {"suspect": note}, parallel_count=2).drain()
    assert (counts["completed"], most) == (3, [1, 1, 1])


@pytest.mark.parametrize("ending", [Snooze(600), ValueError("again")], ids=["snoozes", "fails"])
async def test_a_job_that_is_to_be_cancelled_does_not_come_back(engine, ending):
    gate, jobs = asyncio.Event(), Handlers()

    @jobs.handler("a", retry_delay=600, max_retry_count=5)
    async def ends(event, session, job):
        await gate.wait()
        raise ending

    job_id = await add_job(engine, "a", unique_key="k")
    hook = Recorder()
    async with QueueWorker(engine, jobs, listen=False, hooks=[hook]):
        await until(lambda: hook.started)
        assert await cancel_job(engine, job_id) is JobState.running
        gate.set()
        await until(lambda: hook.settled)
    assert (await row_of(engine, job_id)).state is JobState.cancelled
    assert await add_job(engine, "a", unique_key="k") is not None


# --- the worker's row -------------------------------------------------------------------------------------------------


async def test_a_lock_on_the_workers_row_ends_no_run(pg_engine):
    gate, hook = Gate(), Recorder()
    job_id = await add_job(pg_engine, "long")
    async with QueueWorker(pg_engine, {"long": gate.__call__}, lease=1, hooks=[hook]) as worker:
        await until(lambda: gate.running)
        async with pg_engine.connect() as other, other.begin():
            await other.execute(text("DELETE FROM queue_kit_worker"))
            before = (await row_of(pg_engine, job_id)).lease_until

            async def renewed() -> bool:
                return (await row_of(pg_engine, job_id)).lease_until > before

            for _ in range(4):
                await until(renewed)
                before = (await row_of(pg_engine, job_id)).lease_until
            assert worker.healthy
        gate.open.set()
        await until(lambda: hook.settled)

        async def row_is_back() -> bool:
            return bool(await worker_rows(pg_engine))

        await until(row_is_back)
    assert hook.verdicts == ["completed"]
    assert "database_down" not in hook.states
