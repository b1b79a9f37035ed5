"""Leases: kept by renewal for as long as a handler runs, lost with everything the handler wrote, taken over after a
lapse, and never in the way of others while somebody has a row locked."""

import asyncio
import contextlib

import pytest
from sqlalchemy import delete, text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import (
    Cancelled,
    Discard,
    Handlers,
    JobRow,
    JobState,
    LeaseLost,
    NewJob,
    QueueWorker,
    Snooze,
    add_job,
    add_jobs,
    cancel_job,
)
from tests.database.clock import database_now, lease
from tests.database.running import Gate, claims, locked, raw, statements, worker_rows
from tests.support import ADD_EFFECT, Recorder, count_jobs, effects, make_effects, move, row_of, until

SHORT = 2.0


def renewals(sent: list[str]) -> list[str]:
    """Every statement that writes a lease, but claims."""
    return [each for each in sent if "SET lease_until" in each and each not in claims(sent)]


# --- renewal ----------------------------------------------------------------------------------------------------------


async def test_a_handler_may_run_for_many_leases_on_a_single_claim(engine):
    gate, hook = Gate(), Recorder()
    ids = await add_jobs(engine, [NewJob("long")] * 3)
    first = (await database_now(engine)).timestamp()
    worker = QueueWorker(engine, {"long": gate}, parallel_count=3, lease=SHORT, hooks=[hook])
    other = QueueWorker(engine, {"long": gate}, parallel_count=3, poll_interval=0.05)
    async with worker, other:
        await until(lambda: len(gate.running) == 3)

        async def several_leases_are_over() -> bool:
            return (await database_now(engine)).timestamp() > first + 2.5 * SHORT

        await until(several_leases_are_over)
        gate.open.set()
        await until(lambda: len(gate.ran) >= 3 and not gate.running)

        async def all_done() -> bool:
            return await count_jobs(engine, JobRow.is_complete) == 3

        await until(all_done)
    assert sorted(gate.ran) == ids
    rows = [await row_of(engine, job_id) for job_id in ids]
    assert [(row.claim_no, row.lost, row.retry_count) for row in rows] == [(1, 0, 0)] * 3


async def test_one_statement_renews_all_jobs_of_a_worker(engine):
    gate = Gate()
    ids = await add_jobs(engine, [NewJob("long")] * 5)
    async with QueueWorker(engine, {"long": gate}, parallel_count=5, lease=SHORT):
        await until(lambda: len(gate.running) == 5)
        before = {job_id: (await row_of(engine, job_id)).lease_until for job_id in ids}

        async def all_renewed() -> bool:
            return all([(await row_of(engine, job_id)).lease_until > before[job_id] for job_id in ids])

        with statements() as sent:
            await until(all_renewed)
            await until(lambda: renewals(sent))
        leases = {(await row_of(engine, job_id)).lease_until for job_id in ids}
        gate.open.set()
    assert len(renewals(sent)) <= 2  # a round may have passed between the look at the rows and the count
    assert min(leases) > max(before.values())


async def test_an_idle_worker_renews_nothing(engine):
    with statements() as sent:
        async with QueueWorker(engine, {"long": Gate()}, lease=0.1):
            (before,) = await worker_rows(engine)

            async def seen_again() -> bool:
                (row,) = await worker_rows(engine)
                return row.seen_at > before.seen_at

            await until(seen_again)
    assert renewals(sent) == []


async def test_cancelling_is_read_back_by_the_renewal_when_nobody_listens(engine):
    reasons = []

    async def wait(event, session, job):
        reasons.append(await event.signal.wait())

    job_id = await add_job(engine, "wait")
    hook = Recorder()
    async with QueueWorker(engine, {"wait": wait}, lease=SHORT, listen=False, poll_interval=3600, hooks=[hook]):
        await until(lambda: hook.started)
        assert await cancel_job(engine, job_id) is JobState.running
        await until(lambda: hook.settled)
    assert hook.verdicts == ["cancelled"]
    assert isinstance(reasons[0], Cancelled)
    assert (await row_of(engine, job_id)).state is JobState.cancelled


# --- lost leases ------------------------------------------------------------------------------------------------------


async def test_a_lost_lease_aborts_the_handler_and_rolls_its_writes_back(engine):
    await make_effects(engine)
    wrote, seen = asyncio.Event(), []
    write = asyncio.Event()

    async def work(event, session, job):
        if engine.name != "sqlite":  # there a handler that has written holds the only lock: nobody can take its job
            await session.execute(ADD_EFFECT, {"job_id": job.id})
        wrote.set()
        try:
            await write.wait()
        finally:
            seen.append((type(event.signal.reason), event.signal.aborted))

    job_id = await add_job(engine, "work")
    hook = Recorder()
    async with QueueWorker(engine, {"work": work}, lease=SHORT, hooks=[hook]):
        await wrote.wait()
        await lease(engine, job_id)  # another worker has claimed it, as after a lapse
        held = await row_of(engine, job_id)
        await until(lambda: hook.settled)
    assert seen == [(LeaseLost, True)]
    assert hook.verdicts == ["lost"]
    assert await effects(engine) == []
    row = await row_of(engine, job_id)
    assert (row.worker_id, row.claim_no, row.lease_until) == (held.worker_id, held.claim_no, held.lease_until)
    assert (row.state, row.retry_count, row.errors) == (JobState.running, 0, None)


async def test_a_row_deleted_under_its_run_is_a_lost_lease_and_harms_nobody(engine):
    gate, hook = Gate(), Recorder()
    gone, stays = await add_jobs(engine, [NewJob("long")] * 2)
    async with QueueWorker(engine, {"long": gate}, parallel_count=2, lease=SHORT, hooks=[hook]):
        await until(lambda: len(gate.running) == 2)
        async with engine.begin() as connection:
            await connection.execute(delete(JobRow).where(JobRow.id == gone))
        await until(lambda: hook.verdicts == ["lost"])
        assert gate.running == {stays}
        gate.open.set()
        await until(lambda: len(hook.settled) == 2)
    assert hook.verdicts == ["lost", "completed"]


async def runs_another(engine: AsyncEngine, others: list[int]) -> None:
    """An idle puller claims a job that comes after the one in question, if that could be claimed."""
    job_id = await add_job(engine, "other", priority=9)
    await until(lambda: job_id in others)


async def test_a_worker_never_claims_a_job_that_it_still_runs_though_its_row_has_lapsed(engine):
    gate, others = Gate(), []

    async def other(event, session, job):
        others.append(job.id)

    job_id = await add_job(engine, "long")
    hook = Recorder()
    handlers = {"long": gate, "other": other}
    options = {"parallel_count": 2, "poll_interval": 0.05, "listen": False}
    async with QueueWorker(engine, handlers, hooks=[hook], **options):
        await until(lambda: gate.running)
        await move(engine, job_id, lease_until=-600)  # a database's clock may step ahead
        for _ in range(3):
            await runs_another(engine, others)
        assert gate.ran == [job_id]
        gate.open.set()
        await until(lambda: len(hook.settled) == 4)
    row = await row_of(engine, job_id)
    assert (row.state, row.claim_no, row.lost) == (JobState.completed, 1, 0)


async def test_a_worker_never_starts_a_job_whose_handler_refuses_to_end(engine, refusing):
    begun, others = [], []

    async def stubborn_once(event, session, job):
        begun.append(job.id)
        if len(begun) == 1:
            await refusing(event, session, job)

    async def other(event, session, job):
        others.append(job.id)

    handlers = {"stubborn": stubborn_once, "other": other}
    options = {"parallel_count": 2, "lease": SHORT, "cancel_grace": 0.05, "poll_interval": 0.05}
    job_id = await add_job(engine, "stubborn")
    hook = Recorder()
    async with QueueWorker(engine, handlers, hooks=[hook], **options):
        await until(lambda: begun)
        await lease(engine, job_id)  # another worker has claimed it, as after a lapse
        await until(lambda: hook.verdicts == ["lost"])
        await move(engine, job_id, lease_until=-1200)  # whoever had it is gone as well: the job is due again
        for _ in range(3):
            await runs_another(engine, others)
        assert begun == [job_id]
        refusing.let_go.set()
        await until(lambda: len(hook.settled) == 5)
    assert begun == [job_id, job_id]
    assert (await row_of(engine, job_id)).state is JobState.completed


# --- another worker ---------------------------------------------------------------------------------------------------


async def test_a_lapsed_job_is_taken_by_another_worker_and_the_first_writes_nothing(engine):
    await make_effects(engine)
    started, go = asyncio.Event(), asyncio.Event()
    hooks = Recorder(), Recorder()

    async def slow(event, session, job):
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await go.wait()
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    async def quick(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    job_id = await add_job(engine, "work")
    first = QueueWorker(engine, {"work": slow}, poll_interval=3600, listen=False, hooks=[hooks[0]])
    second = QueueWorker(engine, {"work": quick}, poll_interval=0.05, hooks=[hooks[1]])
    async with first:
        await started.wait()
        async with second:
            await move(engine, job_id, lease_until=-600)
            await until(lambda: hooks[1].settled)
        go.set()
        await until(lambda: hooks[0].settled)
    assert [hook.verdicts for hook in hooks] == [["lost"], ["completed"]]
    assert await effects(engine) == [job_id]
    row = await row_of(engine, job_id)
    assert (row.state, row.lost, row.claim_no, row.retry_count) == (JobState.completed, 1, 2, 0)


async def test_deleting_every_row_of_the_workers_table_harms_nothing_and_they_come_back(engine):
    gate, hook = Gate(), Recorder()
    job_id = await add_job(engine, "long")
    async with QueueWorker(engine, {"long": gate}, lease=SHORT, hooks=[hook]):
        await until(lambda: gate.running)
        (before,) = await worker_rows(engine)
        await raw(engine, "DELETE FROM queue_kit_worker")
        (after,) = await until(lambda: worker_rows(engine))
        assert (after.id, after.pid, after.names, after.label) == (before.id, before.pid, before.names, before.label)
        gate.open.set()
        await until(lambda: hook.settled)
        later = await add_job(engine, "long")
        await until(lambda: len(hook.settled) == 2)
    assert hook.verdicts == ["completed", "completed"]
    for each in (job_id, later):
        assert ((await row_of(engine, each)).claim_no, (await row_of(engine, each)).lost) == (1, 0)
    assert await worker_rows(engine) == []


# --- rows that somebody has locked (PostgreSQL: on SQLite a lock is on the whole file) --------------------------------


async def test_d7_a_job_whose_row_is_locked_keeps_its_lease_and_so_do_its_neighbours(pg_engine):
    gate, hook = Gate(), Recorder()
    first, second = await add_jobs(pg_engine, [NewJob("long")] * 2)
    async with QueueWorker(pg_engine, {"long": gate}, parallel_count=2, lease=SHORT, hooks=[hook]):
        await until(lambda: len(gate.running) == 2)
        async with locked(pg_engine, first):

            async def its_lease_has_lapsed_in_the_row() -> bool:
                lapsed = (await row_of(pg_engine, first)).lease_until < await database_now(pg_engine)
                return lapsed and (await row_of(pg_engine, second)).lease_until > await database_now(pg_engine)

            await until(its_lease_has_lapsed_in_the_row)
        gate.open.set()
        await until(lambda: len(hook.settled) == 2)
    assert hook.verdicts == ["completed", "completed"]
    assert sorted(gate.ran) == [first, second]


@pytest.mark.parametrize("way", ["completed", "failed", "retried", "snoozed"])
async def test_d7_an_ending_whose_row_is_locked_waits_and_the_others_do_not(pg_engine, way):
    ends = {"failed": Discard("no"), "snoozed": Snooze(600), "retried": ValueError("again")}
    jobs, gate, hook = Handlers(), asyncio.Event(), Recorder()

    @jobs.handler("ends", retry_delay=600)
    async def ending(event, session, job):
        await gate.wait()
        if way in ends:
            raise ends[way]

    ids = await add_jobs(pg_engine, [NewJob("ends")] * 4)
    async with QueueWorker(pg_engine, jobs, parallel_count=4, hooks=[hook]):
        await until(lambda: len(hook.started) == 4)
        async with locked(pg_engine, ids[1]):
            gate.set()
            await until(lambda: len(hook.settled) == 3)
            assert {record.job.id for record in hook.settled} == {ids[0], ids[2], ids[3]}
            assert (await row_of(pg_engine, ids[1])).status == 1
        await until(lambda: len(hook.settled) == 4)
    assert hook.verdicts == [way] * 4
    assert {(await row_of(pg_engine, job_id)).claim_no for job_id in ids} == {1}
    assert len({(await row_of(pg_engine, job_id)).state for job_id in ids}) == 1


async def test_a_lock_on_the_workers_row_ends_no_run(pg_engine):
    gate, hook = Gate(), Recorder()
    job_id = await add_job(pg_engine, "long")
    async with QueueWorker(pg_engine, {"long": gate}, lease=SHORT, hooks=[hook]) as worker:
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
        await until(lambda: worker_rows(pg_engine))
    assert hook.verdicts == ["completed"]
    assert "database_down" not in hook.states
