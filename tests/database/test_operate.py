"""Changing the fate of jobs: in every state, through each thing that `db` may be, and only as far as the caller's
transaction goes.
"""

import asyncio
import contextlib
import itertools
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import (
    AmbiguousCommit,
    Cancelled,
    Handler,
    Insights,
    JobConflict,
    JobNotFound,
    JobRow,
    JobState,
    QueueWorker,
    Snooze,
    add_job,
    cancel_job,
    get_job,
    list_jobs,
    queue_insights,
    retry_job,
)
from tests.database.clock import WAYS, database_now, reach, rows
from tests.database.running import STATES, Gate, fast_asleep, in_every_state, job_in, nothing, waits_for_a_lock
from tests.support import Recorder, change, count_jobs, row_of, until

UNKNOWN = (0, -1, 999, 2**63 - 1, 2**63, -(2**63) - 1, 2**70)
CHANGES = (cancel_job, retry_job)


def values(row: JobRow) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in JobRow.__table__.columns}


async def everything(engine: AsyncEngine) -> list[dict[str, Any]]:
    """All that is stored of all jobs."""
    return [values(row) for row in await rows(engine)]


# --- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_waiting_job_is_cancelled_a_running_one_is_asked_and_a_complete_one_is_left_alone(engine, way):
    ids = await in_every_state(engine)
    before = {row.id: values(row) for row in await rows(engine)}
    async with reach(engine, way) as db:
        answers = {state: await cancel_job(db, job_id) for state, job_id in ids.items()}
    assert {state: type(answer) for state, answer in answers.items()} == dict.fromkeys(STATES, JobState)
    waiting = dict.fromkeys(("scheduled", "ready", "lapsed"), "cancelled")
    assert answers == {**dict(zip(STATES, STATES, strict=True)), **waiting}
    for state, job_id in ids.items():
        row = await row_of(engine, job_id)
        assert row.state == answers[state]
        if state == "running":
            assert values(row) == {**before[job_id], "cancel_requested": True}
        elif state in waiting:
            assert (row.retry_count, row.errors, row.claim_no) == (0, None, before[job_id]["claim_no"])
            assert row.updated_at >= before[job_id]["updated_at"]
        else:
            assert values(row) == before[job_id]


async def test_a_cancelled_job_never_runs(engine):
    gate = Gate()
    gate.open.set()
    ids = [await job_in(engine, state) for state in ("scheduled", "ready", "lapsed")]
    for job_id in ids:
        await cancel_job(engine, job_id)
        await change(engine, job_id, scheduled_at=await database_now(engine) - timedelta(hours=1))
    await QueueWorker(engine, {"a": gate}).drain()
    assert gate.ran == []


async def test_a_cancelled_run_is_told_why_and_is_neither_counted_nor_tried_again(engine):
    gate, reasons, hook = Gate(), [], Recorder()

    async def wait(event, session, job):
        try:
            await gate(event, session, job)
        finally:
            reasons.append(event.signal.reason)

    job_id = await add_job(engine, "wait")
    async with QueueWorker(engine, {"wait": wait}, lease=6, retry_delay=0, hooks=[hook]):
        await until(lambda: gate.running)
        assert await cancel_job(engine, job_id) is JobState.running
        await until(lambda: hook.settled)
    assert [type(reason) for reason in reasons] == [Cancelled]
    assert hook.verdicts == ["cancelled"]
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count, row.errors) == (JobState.cancelled, 0, None)


@pytest.mark.parametrize("used", [False, True], ids=["unused session", "used session"])
async def test_a_handler_that_completes_before_it_is_told_stays_completed(engine, used):
    gate, hook = Gate(), Recorder()

    async def wait(event, session, job):
        await gate(event, session, job)
        if used:
            await session.execute(text("SELECT 1"))

    job_id = await add_job(engine, "wait")
    async with QueueWorker(engine, {"wait": wait}, lease=600, listen=False, hooks=[hook]):
        await until(lambda: gate.running)
        assert await cancel_job(engine, job_id) is JobState.running
        gate.open.set()
        await until(lambda: hook.settled)
    assert hook.verdicts == ["completed"]
    assert await cancel_job(engine, job_id) is JobState.completed


@pytest.mark.parametrize("ending", [Snooze(0), ValueError("again")], ids=["snoozes", "fails"])
async def test_a_run_that_would_come_back_and_is_to_be_cancelled_does_not(engine, ending):
    asked = []

    async def end(event, session, job):
        asked.append((job.attempt, await cancel_job(engine, job.id)))
        raise ending

    job_id = await add_job(engine, "a", max_retry_count=9, unique_key="k")
    await QueueWorker(engine, {"a": end}, lease=600, listen=False, retry_delay=0).drain()
    assert asked == [(1, JobState.running)]
    assert (await row_of(engine, job_id)).state is JobState.cancelled
    assert await add_job(engine, "a", unique_key="k") is not None


# --- retry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "state"), [*zip(WAYS, ("failed", "cancelled", "failed"), strict=True)])
async def test_a_retried_job_begins_anew_but_keeps_its_errors_and_its_fence(engine, way, state):
    errors = [{"try": 1, "message": "old"}]
    used_up = {"retry_count": 3, "lost": 2, "cancel_requested": True, "claim_no": 7, "errors": errors}
    job_id = await job_in(engine, state, max_retry_count=3, unique_key="k", data={"x": 1}, priority=2, **used_up)
    before = await database_now(engine)
    async with reach(engine, way) as db:
        assert await retry_job(db, job_id) is None
    after = await database_now(engine)
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count, row.lost, row.cancel_requested) == (JobState.ready, 0, 0, False)
    assert (row.worker_id, row.errors, row.claim_no) == (None, errors, 7)
    assert (row.max_retry_count, row.unique_key, row.data, row.priority) == (3, "k", {"x": 1}, 2)
    assert before <= row.scheduled_at <= after
    assert before <= row.updated_at <= after


async def test_a_retried_job_runs_with_all_its_tries_again(engine):
    tries = []

    async def fail(event, session, job):
        tries.append(job.attempt)
        raise ValueError(f"run {len(tries)}")

    job_id = await add_job(engine, "fail")
    worker = QueueWorker(engine, {"fail": Handler(fail, retry_delay=0)})
    await worker.drain()
    await retry_job(engine, job_id)
    await worker.drain()
    assert tries == [1, 2, 1, 2]
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count, row.claim_no) == (JobState.failed, 2, 4)
    assert [error["message"] for error in row.errors] == ["run 1", "run 2", "run 3", "run 4"]


async def test_a_retried_job_is_run_at_once_by_an_idle_worker(engine):
    hook = Recorder()
    ids = [await job_in(engine, state) for state in ("failed", "cancelled")]
    async with QueueWorker(engine, {"a": nothing}, poll_interval=600, hooks=[hook]):
        if engine.name == "postgresql":
            await fast_asleep(engine)
        for count, job_id in enumerate(ids, 1):
            await retry_job(engine, job_id)
            await until(lambda count=count: len(hook.settled) == count)
    assert [(record.job.id, record.outcome.verdict) for record in hook.settled] == [(i, "completed") for i in ids]


@pytest.mark.parametrize("way", WAYS)
async def test_only_failed_and_cancelled_jobs_can_be_retried(engine, way):
    others = ("scheduled", "ready", "lapsed", "running", "completed")
    ids = {state: await job_in(engine, state) for state in others}
    before = await everything(engine)
    async with reach(engine, way) as db:
        for state, job_id in ids.items():
            with pytest.raises(JobConflict, match="ready" if state == "lapsed" else state) as refused:
                await retry_job(db, job_id)
            assert (refused.value.job_id, refused.value.holder_id) == (job_id, None)
    assert await everything(engine) == before


@pytest.mark.parametrize(("way", "state"), [*zip(WAYS, ("scheduled", "ready", "running"), strict=True)])
async def test_a_job_whose_key_is_taken_is_refused_with_its_holder(engine, way, state):
    first, second = [await job_in(engine, "failed", unique_key="k") for _ in range(2)]
    holder = await job_in(engine, state, unique_key="k")
    before = await everything(engine)
    async with reach(engine, way) as db:
        for job_id in (first, second):
            with pytest.raises(JobConflict, match=f"held by job {holder}") as refused:
                await retry_job(db, job_id)
            assert (refused.value.job_id, refused.value.holder_id) == (job_id, holder)
    assert await everything(engine) == before
    await change(engine, holder, status=2)
    async with reach(engine, way) as db:
        await retry_job(db, first)
        with pytest.raises(JobConflict) as refused:
            await retry_job(db, second)
    assert refused.value.holder_id == first


@pytest.mark.parametrize("way", WAYS)
async def test_a_key_that_is_taken_at_the_same_moment_is_a_conflict_too_on_postgresql(pg_engine, way):
    job_id = await job_in(pg_engine, "failed", unique_key="k")

    async def retry() -> None:
        async with reach(pg_engine, way) as db:
            with pytest.raises(JobConflict) as refused:
                await retry_job(db, job_id)
            await add_job(db, "after")
        assert refused.value.holder_id == holder

    async with AsyncSession(pg_engine) as other, other.begin():
        holder = await add_job(other, "a", unique_key="k")
        retrying = asyncio.create_task(retry())
        await until(lambda: waits_for_a_lock(pg_engine))
    await asyncio.wait_for(retrying, 20)
    assert await count_jobs(pg_engine, JobRow.name == "after") == 1


# --- the caller's transaction -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["session", "connection"])
async def test_a_rolled_back_change_never_took_place(engine, way):
    waiting, running, failed = [await job_in(engine, state) for state in ("ready", "running", "failed")]
    before = await everything(engine)
    with contextlib.suppress(ZeroDivisionError):
        async with reach(engine, way) as db:
            await cancel_job(db, waiting)
            await cancel_job(db, running)
            await retry_job(db, failed)
            raise ZeroDivisionError
    assert await everything(engine) == before


@pytest.mark.parametrize("begun", [True, False], ids=["in a transaction", "before any statement"])
@pytest.mark.parametrize("way", ["session", "connection"])
async def test_nothing_is_committed_for_the_caller(engine, way, begun):
    waiting, failed = await job_in(engine, "ready"), await job_in(engine, "failed")
    before = await everything(engine)
    for change_fate, job_id in ((cancel_job, waiting), (retry_job, failed)):
        async with AsyncSession(engine) if way == "session" else engine.connect() as db:
            if begun:
                await db.execute(text("SELECT 1"))
            await change_fate(db, job_id)
            await db.rollback()
    assert await everything(engine) == before


@pytest.mark.parametrize("way", WAYS)
async def test_a_refusal_leaves_the_callers_transaction_alive(engine, way):
    completed = await job_in(engine, "completed")
    async with reach(engine, way) as db:
        first = await add_job(db, "first")
        for refusal in (cancel_job(db, 999), retry_job(db, 999)):
            with pytest.raises(JobNotFound):
                await refusal
        with pytest.raises(JobConflict):
            await retry_job(db, completed)
        second = await add_job(db, "second")
    assert [row.id for row in await rows(engine)] == [completed, first, second]


@pytest.mark.parametrize("change_fate", CHANGES)
async def test_a_connection_that_breaks_at_the_commit_of_an_engine_is_ambiguous_on_postgresql(pg_engine, change_fate):
    job_id = await job_in(pg_engine, "failed" if change_fate is retry_job else "ready")

    def cut(connection: Connection) -> None:
        connection.connection.driver_connection.terminate()

    event.listen(pg_engine.sync_engine, "commit", cut)
    with pytest.raises(AmbiguousCommit):
        await change_fate(pg_engine, job_id)
    event.remove(pg_engine.sync_engine, "commit", cut)


@pytest.mark.parametrize("way", ["session", "connection"])
async def test_what_the_caller_has_not_committed_yet_is_seen(engine, way):
    with contextlib.suppress(ZeroDivisionError):
        async with reach(engine, way) as db:
            job_id = await add_job(db, "a")
            assert (await get_job(db, job_id)).state is JobState.ready
            assert (await queue_insights(db)).pending == 1
            assert await cancel_job(db, job_id) is JobState.cancelled
            assert [row.state for row in await list_jobs(db)] == [JobState.cancelled]
            await retry_job(db, job_id)
            assert (await get_job(db, job_id)).state is JobState.ready
            raise ZeroDivisionError
    assert await get_job(engine, job_id) is None
    assert await queue_insights(engine) == Insights()


async def test_a_session_is_flushed_first_and_what_it_had_loaded_is_read_again(engine):
    job_id = await add_job(engine, "a")
    async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
        loaded = await get_job(session, job_id)
        await session.execute(update(JobRow.__table__).values(priority=9))
        assert loaded.priority == 5
        assert await get_job(session, job_id) is loaded
        assert loaded.priority == 9
        loaded.priority = 1
        assert (await get_job(session, job_id)).priority == 1
        loaded.priority = 2
        assert [row.priority for row in await list_jobs(session)] == [2]
        session.add(JobRow(name="new"))
        assert [row.name for row in await list_jobs(session)] == ["new", "a"]
    assert (await row_of(engine, job_id)).priority == 2


# --- bad arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_an_unknown_id_is_not_found(engine, way):
    await in_every_state(engine)
    before = await everything(engine)
    for job_id in UNKNOWN:
        for change_fate in CHANGES:
            async with reach(engine, way) as db:
                with pytest.raises(JobNotFound) as missing:
                    await change_fate(db, job_id)
            assert missing.value.job_id == job_id
            assert isinstance(missing.value, LookupError)
        async with reach(engine, way) as db:
            assert await get_job(db, job_id) is None
    assert await everything(engine) == before


@pytest.mark.parametrize("job_id", ["1", b"1", 1.0, True, None], ids=repr)
async def test_what_is_no_id_is_refused(engine, job_id):
    await in_every_state(engine)  # the first of these has id 1
    before = await everything(engine)
    for way, operation in itertools.product(WAYS, (*CHANGES, get_job)):
        async with reach(engine, way) as db:
            with pytest.raises(TypeError, match="job_id"):
                await operation(db, job_id)
            assert (await get_job(db, 1)).state is JobState.scheduled
    assert await everything(engine) == before


async def test_anything_else_is_no_database(engine):
    for wrong in (engine.sync_engine, "postgresql://", None):
        for operation in (cancel_job(wrong, 1), retry_job(wrong, 1), get_job(wrong, 1), list_jobs(wrong)):
            with pytest.raises(TypeError, match="AsyncSession, AsyncConnection or AsyncEngine"):
                await operation
        with pytest.raises(TypeError, match="AsyncSession, AsyncConnection or AsyncEngine"):
            await queue_insights(wrong)
