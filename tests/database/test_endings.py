"""Endings that the database will not take as they are: each costs its own job at most, never its neighbours'."""

import asyncio
import contextlib

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from queue_kit import JobState, NewJob, QueueWorker, add_job, add_jobs
from tests.database.running import lapse, locked, raw
from tests.support import ADD_EFFECT, Recorder, effects, make_effects, row_of, until

REFUSE = {
    "postgresql": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$",
        """
        CREATE TRIGGER refuse BEFORE UPDATE OF status ON queue_kit_job FOR EACH ROW WHEN (NEW.priority = 7)
        EXECUTE FUNCTION refuse()
        """,
    ),
    "sqlite": (
        """
        CREATE TRIGGER refuse BEFORE UPDATE OF status ON queue_kit_job WHEN NEW.priority = 7
        BEGIN SELECT RAISE(ABORT, 'not this one'); END
        """,
    ),
}


@pytest.mark.parametrize("place", [0, 3, 7])
async def test_an_ending_that_the_database_refuses_holds_up_no_other(engine, place, caplog):
    for statement in REFUSE[engine.name]:
        await raw(engine, statement)
    together, hook = asyncio.Barrier(8), Recorder()

    async def end_together(event, session, job):
        await together.wait()

    new = [NewJob("a", priority=7 if at == place else 5) for at in range(8)]
    ids = await add_jobs(engine, new)
    async with QueueWorker(engine, {"a": end_together}, parallel_count=8, lease=60, hooks=[hook]):
        await until(lambda: len(hook.settled) == 8)
    verdicts = {record.job.id: record.outcome.verdict.value for record in hook.settled}
    assert verdicts == {job_id: "lost" if job_id == ids[place] else "completed" for job_id in ids}
    assert (await row_of(engine, ids[place])).state is JobState.running  # until its lease lapses
    assert f"the ending of job {ids[place]} was refused" in caplog.text


def committing() -> bool:
    return "queue_kit: commit" in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_commit_that_waits_too_long_for_its_locked_row_is_a_failed_try(pg_engine):
    await make_effects(pg_engine)
    write_now, hook = asyncio.Event(), Recorder()

    async def write(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        await write_now.wait()

    job_id = await add_job(pg_engine, "write", max_retry_count=1)
    async with QueueWorker(pg_engine, {"write": write}, lease=6, hooks=[hook]):
        await until(lambda: hook.started)
        async with locked(pg_engine, job_id):
            write_now.set()
            await until(committing)
            await until(lambda: not committing())  # its budget is a third of the lease
        await until(lambda: hook.settled)
    row = await row_of(pg_engine, job_id)
    assert (row.state, row.errors[0]["class"]) == (JobState.failed, "TimeoutError")
    assert "is its row locked?" in row.errors[0]["message"]
    assert await effects(pg_engine) == []


async def test_a_commit_that_is_under_way_when_a_stop_is_over_keeps_no_connection_from_the_next_worker(pg_engine):
    await make_effects(pg_engine)
    engine = create_async_engine(pg_engine.url, pool_size=3, max_overflow=0)  # of which handlers have one
    write_now, hook = asyncio.Event(), Recorder()

    async def write(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        await write_now.wait()

    job_id = await add_job(engine, "write")
    first = QueueWorker(engine, {"write": write}, grace=0.1, cancel_grace=0.1, hooks=[hook])
    await first.start()
    await until(lambda: hook.started)
    async with locked(pg_engine, job_id):
        write_now.set()
        await until(committing)
        await first.stop()
        await until(lambda: not committing())
    next_id = await add_job(engine, "write")
    assert (await QueueWorker(engine, {"write": write}, handler_timeout=5).drain())["completed"] == 1
    assert await effects(engine) == [next_id]
    await engine.dispose()


async def test_a_busy_worker_lets_its_jobs_end_for_a_suspect_that_waits_longer_than_a_lease(engine):
    running, beside, hook = set(), [], Recorder()

    async def neighbour(event, session, job):
        await add_job(engine, "neighbour")
        running.add(job.id)
        try:
            with contextlib.suppress(TimeoutError):  # never idle while there is another one
                async with asyncio.timeout(1):
                    while len(running) < 2:
                        await asyncio.sleep(0.01)
        finally:  # a busy machine may cost it its lease
            running.discard(job.id)

    async def suspect(event, session, job):
        beside.append(set(running))

    poison = await add_job(engine, "suspect", max_retry_count=9, priority=0, delay=1000)
    await add_jobs(engine, [NewJob("neighbour")] * 2)
    handlers = {"neighbour": neighbour, "suspect": suspect}
    async with QueueWorker(engine, handlers, parallel_count=2, poll_interval=0.05, lease=0.5, hooks=[hook]):
        await until(lambda: len(hook.settled) > 3)
        await lapse(engine, poison, times=2)
        await until(lambda: beside)
        assert not any(beside)
    assert (await row_of(engine, poison)).state is JobState.completed
