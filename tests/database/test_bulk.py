"""Retrying and cancelling many jobs at once: as one by one, but counted, bounded, and past those in conflict."""

import pytest

from queue_kit import (
    BulkChange,
    CronJob,
    JobState,
    QueueWorker,
    add_job,
    cancel_jobs,
    failure_groups,
    register_cron_jobs,
    retry_jobs,
)
from tests.database.clock import WAYS, far, occurrence, reach, rows
from tests.database.running import Gate, fast_asleep, in_every_state, job_in
from tests.support import Recorder, row_of, until


async def states(engine):
    return [row.state.value for row in await rows(engine)]


def error(kind="ValueError", message="order 7 is gone"):
    return [{"class": kind, "message": message}]


# --- retry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_failed_and_cancelled_jobs_are_retried_by_id_and_the_rest_is_skipped(engine, way):
    ids = await in_every_state(engine)
    async with reach(engine, way) as db:
        change = await retry_jobs(db, [*ids.values(), 999, 0, 2**70, ids["failed"]])
    assert change == BulkChange(changed=2, skipped=6)
    assert await states(engine) == ["scheduled", "ready", "ready", "running", "completed", "ready", "ready"]
    assert (await row_of(engine, ids["failed"])).retry_count == 0


async def test_a_group_of_failures_is_retried_and_no_other(engine):
    for number in range(3):
        await job_in(engine, "failed", name="mail", errors=error(message=f"order {number} is gone"))
    others = [
        await job_in(engine, "failed", name="pdf", errors=error()),
        await job_in(engine, "failed", name="mail", errors=error("KeyError")),
        await job_in(engine, "failed", name="mail", errors=error(message="the printer is on fire")),
    ]
    group = (await failure_groups(engine))[0]
    words = {"name": group.name, "error_class": group.error_class, "message": group.message}
    assert await retry_jobs(engine, **words, dry_run=True) == BulkChange(changed=3)
    assert (await states(engine)).count("failed") == 6
    assert await retry_jobs(engine, **words) == BulkChange(changed=3)
    assert [row.id for row in await rows(engine) if row.state is JobState.failed] == others
    assert await retry_jobs(engine, error_class="KeyError") == BulkChange(changed=1)
    assert await retry_jobs(engine, name="pdf") == BulkChange(changed=1)
    assert await retry_jobs(engine, state=JobState.failed) == BulkChange(changed=1)


async def test_cancelled_jobs_are_retried_when_asked_for(engine):
    for name in "aab":
        await job_in(engine, "cancelled", name=name)
    await job_in(engine, "failed", name="a")
    assert await retry_jobs(engine, state=JobState.cancelled, name="a") == BulkChange(changed=2)
    assert await states(engine) == ["ready", "ready", "cancelled", "failed"]


async def test_at_most_the_limit_is_changed_and_more_is_told(engine):
    for _ in range(5):
        await job_in(engine, "failed")
    assert await retry_jobs(engine, name="a", limit=2) == BulkChange(changed=2, more=True)
    assert await retry_jobs(engine, name="a", limit=3) == BulkChange(changed=3)
    for _ in range(3):
        await job_in(engine, "cancelled")
    assert await retry_jobs(engine, state=JobState.cancelled, limit=2) == BulkChange(changed=2, more=True)


async def test_jobs_that_share_a_unique_key_are_retried_but_for_one_and_one_that_a_live_job_holds_stays(engine):
    shared = [await job_in(engine, "failed", unique_key="k") for _ in range(3)]
    taken = await job_in(engine, "failed", unique_key="taken")
    await add_job(engine, "a", unique_key="taken")
    free = await job_in(engine, "failed", unique_key="free")
    assert await retry_jobs(engine, [*shared, taken, free]) == BulkChange(changed=2, skipped=3)
    assert [row.id for row in await rows(engine) if row.state is JobState.failed] == [*shared[1:], taken]


async def test_of_two_failed_occurrences_one_belongs_to_the_entry_again(engine):
    ids = [await job_in(engine, "failed", cron_name="tick") for _ in range(2)]
    assert await retry_jobs(engine, ids) == BulkChange(changed=2)
    assert [row.cron_name for row in await rows(engine)] == ["tick", None]


async def test_retried_jobs_wake_a_worker_that_sleeps(pg_engine):
    ids = [await job_in(pg_engine, "failed") for _ in range(3)]
    hook = Recorder()
    async with QueueWorker(pg_engine, {"a": Gate()}, poll_interval=60, grace=0, cancel_grace=1, hooks=[hook]):
        await fast_asleep(pg_engine)
        await retry_jobs(pg_engine, ids)
        await until(lambda: hook.started, seconds=10)


async def test_what_the_caller_rolls_back_did_not_happen(engine):
    job_id = await job_in(engine, "failed")
    async with engine.connect() as connection:
        assert (await retry_jobs(connection, [job_id])).changed == 1
        assert (await cancel_jobs(connection, [job_id])).changed == 1
        await connection.rollback()
    assert await states(engine) == ["failed"]


# --- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_waiting_jobs_are_cancelled_running_ones_asked_and_the_rest_is_skipped(engine, way):
    ids = await in_every_state(engine)
    async with reach(engine, way) as db:
        change = await cancel_jobs(db, [*ids.values(), 999])
    assert change == BulkChange(changed=4, asked=1, skipped=4)
    assert (await states(engine))[:4] == ["cancelled", "cancelled", "cancelled", "running"]
    assert (await row_of(engine, ids["running"])).cancel_requested


@pytest.mark.parametrize(
    ("state", "left"),
    [
        (None, ["running", "ready"]),
        (JobState.scheduled, ["ready", "ready", "running", "ready"]),
        (JobState.ready, ["scheduled", "running", "ready"]),
        (JobState.running, ["scheduled", "ready", "ready", "running", "ready"]),
    ],
)
async def test_jobs_are_cancelled_by_state_and_name(engine, state, left):
    await in_every_state(engine)
    await add_job(engine, "b")
    counted = await cancel_jobs(engine, state=state, name="a", dry_run=True)
    done = await cancel_jobs(engine, state=state, name="a")
    assert (counted.changed, counted.asked) == (done.changed, 0)
    assert done.asked == (state in (None, JobState.running))
    found = await states(engine)
    assert [each for each in found if each in ("scheduled", "ready", "running")] == left


async def test_cancelling_is_bounded_too(engine):
    for _ in range(5):
        await add_job(engine, "a")
    assert await cancel_jobs(engine, name="a", limit=2) == BulkChange(changed=2, more=True)
    assert await cancel_jobs(engine, state=JobState.ready, limit=3) == BulkChange(changed=3)


async def test_a_cancelled_occurrence_is_not_the_end_of_its_entry(engine):
    await register_cron_jobs(engine, [CronJob("tick", far())])
    job_id = (await occurrence(engine, "tick")).id
    assert await cancel_jobs(engine, name="tick") == BulkChange(changed=1)
    await QueueWorker(engine, {"tick": Gate()}).drain()
    assert (await occurrence(engine, "tick")).id != job_id


# --- refused ----------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_meant_is_refused_before_anything_is_changed(engine):
    job_id = await job_in(engine, "failed")
    for change_jobs in (retry_jobs, cancel_jobs):
        with pytest.raises(ValueError, match="all jobs are never meant"):
            await change_jobs(engine)
        with pytest.raises(ValueError, match=r"ids or a filter \(name\), not both"):
            await change_jobs(engine, [job_id], name="a")
        with pytest.raises(ValueError, match="limit is from 1 to 1000"):
            await change_jobs(engine, name="a", limit=0)
        with pytest.raises(ValueError, match="1001 ids are too many"):
            await change_jobs(engine, range(1_001))
        with pytest.raises(TypeError, match="name must be text"):
            await change_jobs(engine, name=b"a")
        for ids in ("12", 12, [None], ["1"], [1.0], [True]):
            with pytest.raises(TypeError, match="ids"):
                await change_jobs(engine, ids)
        with pytest.raises(TypeError, match="AsyncSession"):
            await change_jobs(None, [1])
    with pytest.raises(ValueError, match="only failed and cancelled jobs can be retried, not running"):
        await retry_jobs(engine, state=JobState.running)
    with pytest.raises(ValueError, match="among failed jobs"):
        await retry_jobs(engine, state=JobState.cancelled, error_class="X")
    with pytest.raises(ValueError, match="only scheduled, ready and running jobs can be cancelled"):
        await cancel_jobs(engine, state=JobState.failed)
    with pytest.raises(ValueError, match="nonsense"):
        await cancel_jobs(engine, state="nonsense")
    assert await states(engine) == ["failed"]
    assert (await retry_jobs(engine, [])) == BulkChange()
