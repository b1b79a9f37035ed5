"""Faults of concurrency (C1 to C3 of the fault matrix) that no other test shows: many pullers on many jobs, and changes
of one job that meet.
"""

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import (
    JobConflict,
    JobRow,
    JobState,
    NewJob,
    QueueWorker,
    add_job,
    add_jobs,
    cancel_job,
    retry_job,
)
from tests.database.clock import rows
from tests.database.running import Gate, job_in, lapse, nothing, raw
from tests.faults.broken import processes
from tests.support import ADD_EFFECT, Recorder, all_complete, count_jobs, effects, make_effects, row_of, until

# --- C1: many pullers -------------------------------------------------------------------------------------------------


async def test_c1_thirty_two_pullers_in_four_processes_claim_each_job_once(engine, database_url):
    """10,000 jobs on PostgreSQL, 2,000 on SQLite, where writers take turns; and more for as long as some process, which
    polls, came too late for all of them."""
    count = 10_000 if engine.name == "postgresql" else 2_000
    async with processes(database_url) as workers:
        for _ in range(4):
            await workers.start(parallel_count=8)
        for process in workers.all:
            await process.says("started")
        ids = []
        for _ in range(count // 1_000):
            ids += await add_jobs(engine, [NewJob("nothing")] * 1_000)

        async def each_has_some() -> bool:
            await all_complete(engine, seconds=40)
            if min(process.count("completed") for process in workers.all) > 0:
                return True
            ids.extend(await add_jobs(engine, [NewJob("nothing")] * 500))
            return False

        await until(each_has_some, seconds=60)
        assert await asyncio.gather(*(process.stop() for process in workers.all)) == [0] * 4
        said = Counter(line for process in workers.all for line in process.lines if line.startswith("completed"))
    assert said == {f"completed {job_id}": 1 for job_id in ids}
    once = (JobRow.claim_no == 1, JobRow.lost == 0, JobRow.retry_count == 0)
    assert await count_jobs(engine, JobRow.state == JobState.completed.value, *once) == len(ids)


# --- C2: cancel and complete meet -------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True], ids=["unused session", "used session"])
@pytest.mark.parametrize("commits", [True, False], ids=["cancel commits", "cancel is rolled back"])
async def test_c2_a_completion_that_meets_an_open_cancel_waits_for_it_and_there_is_one_end(pg_engine, used, commits):
    await make_effects(pg_engine)
    gate, hook = Gate(), Recorder()

    async def wait(event: Any, session: Any, job: Any) -> None:
        await gate(event, session, job)
        if used:
            await session.execute(ADD_EFFECT, {"job_id": job.id})

    job_id = await add_job(pg_engine, "wait", max_retry_count=1)
    options = {"parallel_count": 2, "poll_interval": 0.05, "lease": 600, "hooks": [hook]}
    async with QueueWorker(pg_engine, {"wait": wait, "other": nothing}, listen=False, **options):
        await until(lambda: gate.running)
        async with AsyncSession(pg_engine) as session:
            assert await cancel_job(session, job_id) is JobState.running
            gate.open.set()
            await until(lambda: not gate.running)
            other = await add_job(pg_engine, "other")
            await until(lambda: [record.job.id for record in hook.settled] == [other])
            assert (await row_of(pg_engine, job_id)).state is JobState.running
            await (session.commit() if commits else session.rollback())
        await until(lambda: len(hook.settled) == 2)
    assert hook.verdicts == ["completed", "completed"]
    assert (await row_of(pg_engine, job_id)).state is JobState.completed
    assert await effects(pg_engine) == [job_id] * used
    assert await cancel_job(pg_engine, job_id) is JobState.completed


WAIT_IN_THE_COMMIT = (
    """CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'""",
    """CREATE CONSTRAINT TRIGGER held AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION held()""",
)


async def test_c2_a_cancel_that_meets_a_completion_in_its_commit_waits_for_it_and_finds_the_job_completed(pg_engine):
    await make_effects(pg_engine)
    for statement in WAIT_IN_THE_COMMIT:
        await raw(pg_engine, statement)
    hook = Recorder()

    async def write(event: Any, session: Any, job: Any) -> None:
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    async with pg_engine.connect() as holder:
        await holder.execute(text("SELECT pg_advisory_lock(1)"))
        async with QueueWorker(pg_engine, {"write": write}, lease=600, hooks=[hook]):
            job_id = await add_job(pg_engine, "write")
            await until(lambda: waiting(pg_engine, "advisory"))
            cancelling = asyncio.create_task(cancel_job(pg_engine, job_id))
            await until(lambda: waiting(pg_engine, "transactionid"))
            await holder.execute(text("SELECT pg_advisory_unlock(1)"))
            assert await cancelling is JobState.completed
            await until(lambda: hook.settled)
    assert hook.verdicts == ["completed"]
    assert await effects(pg_engine) == [job_id]
    row = await row_of(pg_engine, job_id)
    assert (row.state, row.cancel_requested) == (JobState.completed, False)


async def waiting(engine: AsyncEngine, event: str) -> bool:
    """Whether somebody in this database waits for a lock of this kind."""
    query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = :event"
    return bool(await raw(engine, query, event=event))


async def test_c2_cancels_in_a_crowd_of_completions_leave_one_end_each(engine):
    """The answer to a cancel that found the job waiting or complete is how it ended. The first job is complete before
    any is cancelled, the last one cancelled before any other runs: in between, whoever comes first."""
    await make_effects(engine)
    hook, answers, crowd = Recorder(), {}, asyncio.Event()

    async def write(event: Any, session: Any, job: Any) -> None:
        if job.id != ids[0]:
            await crowd.wait()
        if job.id % 2:
            await session.execute(ADD_EFFECT, {"job_id": job.id})

    ids = await add_jobs(engine, [NewJob("write")] * 120)
    async with QueueWorker(engine, {"write": write}, parallel_count=4, hooks=[hook]):
        await until(lambda: hook.settled)
        for job_id in reversed(ids):
            answers[job_id] = await cancel_job(engine, job_id)
            crowd.set()
        await all_complete(engine)
    ended = {row.id: row.state for row in await rows(engine)}
    assert {JobState.cancelled, JobState.completed} <= set(ended.values())
    assert {
        job_id: answers[job_id] for job_id in ids if answers[job_id] is not JobState.running
    }.items() <= ended.items()
    completed = [job_id for job_id in ids if ended[job_id] is JobState.completed]
    assert await effects(engine) == [job_id for job_id in completed if job_id % 2]
    told = Counter(record.job.id for record in hook.settled)
    assert set(completed) <= set(told)
    assert set(told.values()) == {1}


# --- C3: retry and reclaim meet ---------------------------------------------------------------------------------------


async def test_c3_retries_by_hand_in_a_crowd_of_claims_start_each_job_once_more(engine):
    ran: Counter[int] = Counter()

    async def note(event: Any, session: Any, job: Any) -> None:
        ran[job.id] += 1

    states = ["failed"] * 15 + ["cancelled"] * 15 + ["lapsed"] * 15
    ids = [await job_in(engine, state) for state in states]
    accepted: Counter[int] = Counter()

    async def insist() -> None:
        for job_id in ids:
            with contextlib.suppress(JobConflict):
                await retry_job(engine, job_id)
                accepted[job_id] += 1

    options = {"poll_interval": 0.05, "parallel_count": 3}
    async with QueueWorker(engine, {"a": note}, **options), QueueWorker(engine, {"a": note}, **options):
        await asyncio.gather(*(insist() for _ in range(3)))
        await all_complete(engine)
    assert ran == dict.fromkeys(ids, 1)
    assert accepted == dict.fromkeys(ids[:30], 1)
    assert {row.state for row in await rows(engine)} == {JobState.completed}


async def test_c3_a_retry_by_hand_that_meets_the_last_reclaim_finds_the_job_failed_or_still_running(pg_engine):
    """While a claim that gives the job up is not committed, the job is not over; then a retry holds it until it is."""
    hook = Recorder()
    job_id = await add_job(pg_engine, "a", max_retry_count=1)
    await lapse(pg_engine, job_id, times=3)
    async with pg_engine.connect() as reclaiming:
        await reclaiming.execute(text("UPDATE queue_kit_job SET status = 3 WHERE id = :id"), {"id": job_id})
        with pytest.raises(JobConflict):
            await retry_job(pg_engine, job_id)
    assert (await QueueWorker(pg_engine, {"a": nothing}).drain())["failed"] == 1
    async with AsyncSession(pg_engine) as session:
        await retry_job(session, job_id)
        async with QueueWorker(pg_engine, {"a": nothing, "other": nothing}, poll_interval=0.05, hooks=[hook]):
            other = await add_job(pg_engine, "other")
            await until(lambda: [record.job.id for record in hook.settled] == [other])
            assert (await row_of(pg_engine, job_id)).state is JobState.failed
            await session.commit()
            await until(lambda: len(hook.settled) == 2)
    assert hook.verdicts == ["completed", "completed"]
    assert (await row_of(pg_engine, job_id)).state is JobState.completed
