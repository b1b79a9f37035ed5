"""Cron entries in an operator's hands: looked at, paused, resumed, run now. Whatever they do, one occurrence is live at
most, none overlaps another, and no tick is lost or comes twice."""

import asyncio
from datetime import timedelta

import pytest

from queue_kit import (
    CronJob,
    CronJobNotFound,
    JobConflict,
    JobNotFound,
    JobState,
    QueueWorker,
    add_job,
    cancel_job,
    list_cron_jobs,
    pause_cron_job,
    register_cron_jobs,
    resume_cron_job,
    run_cron_job,
    run_job_now,
)
from queue_kit.models import JobRow
from tests.database.clock import WAYS, database_now, definition, far, lease, make_due, occurrence, reach, rows
from tests.database.running import Gate, fast_asleep, job_in, nothing
from tests.support import Recorder, change, row_of, turns, until


async def live(engine):
    return await rows(engine, JobRow.cron_name == "tick", ~JobRow.is_complete)


async def work(engine, handler=nothing, name="tick"):
    return await QueueWorker(engine, {name: handler}).drain()


@pytest.fixture
async def tick(engine):
    """An entry whose tick lies months ahead: the tick."""
    await register_cron_jobs(engine, [CronJob("tick", far(), data={"a": 1}, handler_timeout=7)])
    return (await occurrence(engine, "tick")).scheduled_at


# --- list -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_entries_are_listed_with_their_next_and_their_last_run(engine, way):
    await register_cron_jobs(
        engine,
        [CronJob("b", far(), timezone="Europe/Amsterdam", data={"x": [1]}, handler_timeout=9), CronJob("a", far())],
    )
    for state, minutes in (("completed", 60), ("failed", 5)):
        job_id = await job_in(engine, state, name="b", cron_name="b")
        await change(engine, job_id, updated_at=await database_now(engine) - timedelta(minutes=minutes))
    async with reach(engine, way) as db:
        first, second = await list_cron_jobs(db)
    assert (first.name, first.last_job_id, first.last_state, first.last_ended_at) == ("a", None, None, None)
    assert (second.timezone, second.data, second.handler_timeout, second.priority) == (
        "Europe/Amsterdam",
        {"x": [1]},
        9,
        4,
    )
    waiting = await occurrence(engine, "b")
    assert (second.job_id, second.job_state, second.next_at) == (waiting.id, JobState.scheduled, waiting.scheduled_at)
    assert (second.last_job_id, second.last_state) == (job_id, JobState.failed)
    assert second.last_ended_at == (await row_of(engine, job_id)).updated_at
    assert not second.paused
    await lease(engine, waiting.id)
    assert (await list_cron_jobs(engine))[1].job_state is JobState.running


async def test_without_entries_there_is_nothing_to_list(engine):
    assert await list_cron_jobs(engine) == []


# --- pause and resume -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_paused_entry_starts_nothing_until_it_is_resumed(engine, way, tick):
    async with reach(engine, way) as db:
        await pause_cron_job(db, "tick")
        await pause_cron_job(db, "tick")
    assert await live(engine) == []
    (info,) = await list_cron_jobs(engine)
    assert (info.paused, info.next_at, info.job_id, info.last_state) == (True, None, None, JobState.cancelled)
    await work(engine)
    assert await live(engine) == []
    async with reach(engine, way) as db:
        await resume_cron_job(db, "tick")
        await resume_cron_job(db, "tick")
    (row,) = await live(engine)
    assert row.scheduled_at == row.cron_tick == tick == (await definition(engine, "tick")).next_at
    assert not (await list_cron_jobs(engine))[0].paused


async def test_the_log_says_that_an_entry_was_paused_and_goes_on(engine, tick, caplog):
    caplog.set_level("INFO", "queue_kit.cron")
    for change_entry in (pause_cron_job, pause_cron_job, resume_cron_job, resume_cron_job):
        await change_entry(engine, "tick")
    told = [(record.message, record.cron_name) for record in caplog.records if record.name == "queue_kit.cron"]
    assert told == [("cron job tick is paused", "tick"), ("cron job tick goes on", "tick")]


async def test_an_overdue_occurrence_is_not_made_up_for(engine, tick):
    overdue, _ = await make_due(engine, "tick")
    await pause_cron_job(engine, "tick")
    assert not any((await work(engine)).values())
    assert (await row_of(engine, overdue)).state is JobState.cancelled
    await resume_cron_job(engine, "tick")
    assert [row.scheduled_at for row in await live(engine)] == [tick]


async def test_a_run_goes_on_through_a_pause_and_has_no_successor(engine, tick):
    await make_due(engine, "tick")
    gate, hook = Gate(), Recorder()
    async with QueueWorker(engine, {"tick": gate}, listen=False, hooks=[hook]):
        await until(lambda: gate.running)
        await pause_cron_job(engine, "tick")
        gate.open.set()
        await until(lambda: hook.settled)
        assert hook.verdicts == ["completed"]
    assert await live(engine) == []
    assert (await definition(engine, "tick")).last_completed_at is not None
    await resume_cron_job(engine, "tick")
    assert [row.scheduled_at for row in await live(engine)] == [tick]


async def test_resuming_while_the_last_one_still_runs_stores_no_second_one(engine, tick):
    job_id, _ = await make_due(engine, "tick")
    await lease(engine, job_id)
    await pause_cron_job(engine, "tick")
    await resume_cron_job(engine, "tick")
    assert [row.id for row in await live(engine)] == [job_id]


async def test_registering_again_leaves_it_paused_and_removing_ends_it(engine, tick):
    await pause_cron_job(engine, "tick")
    await register_cron_jobs(engine, [CronJob("tick", far(3))])
    assert (await list_cron_jobs(engine))[0].paused
    assert await live(engine) == []
    await register_cron_jobs(engine, [])
    await register_cron_jobs(engine, [CronJob("tick", far(3))])
    assert not (await list_cron_jobs(engine))[0].paused
    assert len(await live(engine)) == 1


async def test_pausing_and_settling_at_once_leave_nothing_behind(engine):
    """Whichever comes first, a paused entry has no occurrence that waits."""
    begun = asyncio.Event()

    async def run(event, session, job):
        begun.set()

    async def pause(*, after: int):
        await begun.wait()
        await turns(after)
        await pause_cron_job(engine, "tick")

    for number in range(5):
        begun.clear()
        await register_cron_jobs(engine, [CronJob("tick", far())])
        await make_due(engine, "tick")
        await asyncio.gather(work(engine, run), pause(after=5 * number))
        assert await live(engine) == []
        await register_cron_jobs(engine, [])


# --- run now ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_an_entry_run_now_runs_once_and_its_tick_still_comes(engine, way, tick):
    before = await database_now(engine)
    (waiting,) = await live(engine)
    async with reach(engine, way) as db:
        job_id = await run_cron_job(db, "tick")
        assert await run_cron_job(db, "tick") == job_id == waiting.id
    (row,) = await live(engine)
    assert before - timedelta(seconds=1) < row.scheduled_at <= await database_now(engine)
    assert row.cron_tick == row.scheduled_at
    assert (row.data, row.handler_timeout, row.priority) == ({"a": 1}, 7, 4)
    ran = []

    async def run(event, session, job):
        ran.append(job.scheduled_at)

    assert (await work(engine, run))["completed"] == 1
    assert ran == [row.cron_tick]
    assert [(row.scheduled_at, row.cron_tick) for row in await live(engine)] == [(tick, tick)]


async def test_a_sleeping_worker_runs_it_at_once(pg_engine):
    await register_cron_jobs(pg_engine, [CronJob("tick", far())])
    hook = Recorder()
    async with QueueWorker(pg_engine, {"tick": nothing}, poll_interval=60, hooks=[hook]):
        await fast_asleep(pg_engine)
        await run_cron_job(pg_engine, "tick")
        await until(lambda: hook.settled, seconds=10)


async def test_an_overdue_one_keeps_its_tick(engine, tick):
    job_id, overdue = await make_due(engine, "tick")
    assert await run_cron_job(engine, "tick") == job_id
    assert [(row.scheduled_at, row.cron_tick) for row in await live(engine)] == [(overdue, overdue)]


async def test_one_that_waits_for_its_retry_is_retried_now_under_its_own_tick(engine, tick):
    job_id, overdue = await make_due(engine, "tick")
    await change(engine, job_id, scheduled_at=await database_now(engine) + timedelta(hours=1), retry_count=1)
    assert await run_cron_job(engine, "tick") == job_id
    (row,) = await live(engine)
    assert (row.cron_tick, row.retry_count) == (overdue, 1)
    assert row.scheduled_at <= await database_now(engine)
    assert row.state is JobState.ready


async def test_one_that_runs_is_what_is_returned(engine, tick):
    job_id, _ = await make_due(engine, "tick")
    await lease(engine, job_id)
    before = await row_of(engine, job_id)
    assert await run_cron_job(engine, "tick") == job_id
    after = await row_of(engine, job_id)
    assert (after.scheduled_at, after.lease_until) == (before.scheduled_at, before.lease_until)


async def test_a_paused_entry_is_run_by_hand_and_stays_paused(engine, tick):
    await pause_cron_job(engine, "tick")
    job_id = await run_cron_job(engine, "tick")
    assert [row.id for row in await live(engine)] == [job_id]
    assert (await work(engine))["completed"] == 1
    assert await live(engine) == []
    await resume_cron_job(engine, "tick")
    assert [row.scheduled_at for row in await live(engine)] == [tick]


async def test_an_entry_whose_occurrence_was_cancelled_is_run_now(engine, tick):
    await cancel_job(engine, (await occurrence(engine, "tick")).id)
    job_id = await run_cron_job(engine, "tick")
    assert [row.id for row in await live(engine)] == [job_id]
    assert (await work(engine))["completed"] == 1
    assert [row.scheduled_at for row in await live(engine)] == [tick]


async def test_many_who_run_it_at_once_run_it_once(engine, tick):
    ids = await asyncio.gather(*(run_cron_job(engine, "tick") for _ in range(5)))
    assert len(set(ids)) == 1
    assert (await work(engine))["completed"] == 1
    assert len(await live(engine)) == 1


async def test_an_entry_that_nobody_registered_is_named(engine):
    for change_entry in (pause_cron_job, resume_cron_job, run_cron_job):
        for nobody in ("nobody", "", "\x00", "\udc80"):
            with pytest.raises(CronJobNotFound, match="there is no cron job named '") as caught:
                await change_entry(engine, nobody)
            assert caught.value.name == nobody
        with pytest.raises(TypeError, match="name must be text"):
            await change_entry(engine, 7)


# --- run a job now ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_scheduled_job_is_run_now(engine, way):
    job_id = await add_job(engine, "a", delay=1_000, unique_key="k")
    async with reach(engine, way) as db:
        await run_job_now(db, job_id)
        await run_job_now(db, job_id)
    row = await row_of(engine, job_id)
    assert (row.state, row.unique_key) == (JobState.ready, "k")
    assert (await work(engine, name="a"))["completed"] == 1


async def test_a_job_that_is_due_keeps_its_place(engine):
    job_id = await add_job(engine, "a")
    before = (await row_of(engine, job_id)).scheduled_at
    await run_job_now(engine, job_id)
    assert (await row_of(engine, job_id)).scheduled_at == before


async def test_an_occurrence_run_now_keeps_its_entrys_tick(engine, tick):
    job_id = (await occurrence(engine, "tick")).id
    await run_job_now(engine, job_id)
    assert (await work(engine))["completed"] == 1
    assert [row.scheduled_at for row in await live(engine)] == [tick]


async def test_an_occurrence_whose_entry_is_gone_is_an_ordinary_job(engine):
    job_id = await add_job(engine, "a", delay=1_000)
    await change(engine, job_id, cron_name="gone")
    await run_job_now(engine, job_id)
    assert (await row_of(engine, job_id)).state is JobState.ready


async def test_a_job_that_runs_or_is_complete_cannot_be_run_now(engine, tick):
    for state in ("running", "completed", "failed", "cancelled"):
        with pytest.raises(JobConflict, match=f"is {state}; only a job that waits can be run now"):
            await run_job_now(engine, await job_in(engine, state))
    await lease(engine, (await occurrence(engine, "tick")).id)
    with pytest.raises(JobConflict, match="is running"):
        await run_job_now(engine, (await live(engine))[0].id)
    for unknown in (0, -1, 999, 2**70):
        with pytest.raises(JobNotFound):
            await run_job_now(engine, unknown)
    with pytest.raises(TypeError, match="job_id must be an integer"):
        await run_job_now(engine, "1")
