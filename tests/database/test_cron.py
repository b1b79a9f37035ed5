"""Recurring jobs: definitions in one transaction, one live occurrence each, and a chain that never breaks."""

import asyncio
import contextlib
import sys
from datetime import timedelta
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import delete, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import (
    CronJob,
    CronPlan,
    Discard,
    InvalidCron,
    JobRow,
    JobState,
    QueueWorker,
    Snooze,
    add_job,
    cancel_job,
    get_job,
    queue_insights,
    register_cron_jobs,
    retry_job,
)
from queue_kit.models import CronRow
from tests.database.clock import (
    WAYS,
    database_now,
    define,
    definition,
    far,
    lease,
    make_due,
    occurrence,
    reach,
    rows,
)
from tests.database.running import Gate, nothing
from tests.support import change, count_jobs, is_completed, row_of, until


async def definitions(engine: AsyncEngine) -> list[str]:
    async with AsyncSession(engine) as session:
        return list(await session.scalars(select(CronRow.name).order_by(CronRow.name)))


async def live(engine: AsyncEngine) -> list[str]:
    """The names of all live occurrences."""
    return sorted(row.cron_name for row in await rows(engine, JobRow.cron_name.is_not(None), ~JobRow.is_complete))


@contextlib.asynccontextmanager
async def running(engine: AsyncEngine, gate: Gate, name: str):
    """A worker that holds the due occurrence of `name`; at the end it is let go and the worker stopped."""
    async with QueueWorker(engine, {name: gate}, poll_interval=0.2):
        await until(lambda: gate.running)
        yield
        gate.open.set()


# --- registration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_registration_stores_definitions_and_their_first_occurrences(engine, way):
    async with reach(engine, way) as db:
        plan = await register_cron_jobs(db, [CronJob("b", far()), CronJob("a", far(3))])
    assert plan == CronPlan(added=("b", "a"))
    assert await definitions(engine) == await live(engine) == ["a", "b"]
    row, entry = await occurrence(engine, "b"), await definition(engine, "b")
    assert (row.name, row.cron_name, row.state, row.priority, row.data) == ("b", "b", JobState.scheduled, 4, {})
    assert (row.handler_timeout, row.max_retry_count, row.unique_key) == (None, None, None)
    assert row.scheduled_at == row.cron_tick == entry.next_at
    assert (entry.expression, entry.timezone, entry.last_completed_at) == (far(), "UTC", None)


async def test_the_plan_says_what_was_done(engine):
    first = [CronJob("same", far()), CronJob("other", far()), CronJob("gone", far())]
    assert await register_cron_jobs(engine, first) == CronPlan(added=("same", "other", "gone"))
    assert await register_cron_jobs(engine, first) == CronPlan(unchanged=("same", "other", "gone"))
    second = [CronJob("new", far()), CronJob("same", far()), CronJob("other", far(2))]
    assert await register_cron_jobs(engine, second) == CronPlan(
        added=("new",), changed=("other",), removed=("gone",), unchanged=("same",)
    )
    assert await register_cron_jobs(engine, []) == CronPlan(removed=("new", "other", "same"))


@pytest.mark.parametrize("way", ["session", "connection"])
async def test_a_rolled_back_registration_leaves_nothing(engine, way):
    await register_cron_jobs(engine, [CronJob("kept", far(), priority=7)])
    before = await occurrence(engine, "kept")
    with contextlib.suppress(ZeroDivisionError):
        async with reach(engine, way) as db:
            await register_cron_jobs(db, [CronJob("kept", far(2), priority=1), CronJob("new", far())])
            raise ZeroDivisionError
    with contextlib.suppress(ZeroDivisionError):
        async with reach(engine, way) as db:
            await register_cron_jobs(db, [])
            raise ZeroDivisionError
    assert await definitions(engine) == ["kept"]
    after = await occurrence(engine, "kept")
    assert (after.id, after.priority, after.scheduled_at) == (before.id, 7, before.scheduled_at)
    assert await count_jobs(engine) == 1


async def test_a_registration_that_fails_midway_leaves_nothing(engine, monkeypatch):
    await register_cron_jobs(engine, [CronJob("old", far())])

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("queue_kit.cron._store_next", broken)
    with pytest.raises(ZeroDivisionError):
        await register_cron_jobs(engine, [CronJob("new", far())])
    assert await definitions(engine) == await live(engine) == ["old"]


async def test_what_is_not_listed_is_removed_with_its_waiting_occurrence(engine):
    await register_cron_jobs(engine, [CronJob("a", far()), CronJob("due", far()), CronJob("kept", far())])
    await make_due(engine, "due")
    await register_cron_jobs(engine, [CronJob("kept", far())])
    assert await definitions(engine) == ["kept"]
    assert [row.name for row in await rows(engine)] == ["kept"]


async def test_an_empty_list_removes_all(engine):
    await register_cron_jobs(engine, [CronJob("a", far()), CronJob("b", far())])
    await register_cron_jobs(engine, [])
    assert await definitions(engine) == []
    assert await count_jobs(engine) == 0


async def test_completed_occurrences_of_a_removed_entry_stay_as_history(engine, jobs):
    jobs.add("a", nothing)
    await register_cron_jobs(engine, [CronJob("a", far())])
    done, _ = await make_due(engine, "a")
    await QueueWorker(engine, jobs).drain()
    await register_cron_jobs(engine, [])
    assert [row.id for row in await rows(engine)] == [done]


@pytest.mark.parametrize(
    "arguments",
    [
        {"expression": "every day"},
        {"expression": ""},
        {"expression": "0 0 31 2 *"},
        {"expression": "61 * * * *"},
        {"expression": "* * * * * * *"},
        {"expression": None},
        {"timezone": "Mars/Olympus"},
        {"timezone": None},
        {"name": ""},
        {"name": "x" * 201},
        {"priority": -1},
        {"priority": 40_000},
        {"handler_timeout": -1},
        {"data": {"a": b"not JSON"}},
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_scheduled_is_invalid(arguments):
    with pytest.raises(InvalidCron):
        CronJob(**{"name": "a", "expression": "* * * * *", **arguments})


async def test_an_invalid_list_changes_nothing(engine):
    await register_cron_jobs(engine, [CronJob("old", far())])
    with pytest.raises(InvalidCron) as duplicate:
        await register_cron_jobs(engine, [CronJob("new", far()), CronJob("twice", far()), CronJob("twice", far(2))])
    assert duplicate.value.name == "twice"
    with pytest.raises(InvalidCron, match="a list of CronJob values, not CronJob"):
        await register_cron_jobs(engine, CronJob("new", far()))
    with pytest.raises(InvalidCron):
        await register_cron_jobs(engine, [CronJob("new", far()), ("a", far())])
    with pytest.raises(InvalidCron) as impossible:
        await register_cron_jobs(engine, [CronJob("new", far()), CronJob("never", "0 0 31 2 *")])
    assert (impossible.value.name, impossible.value.expression) == ("never", "0 0 31 2 *")
    with pytest.raises(TypeError, match="AsyncEngine"):
        await register_cron_jobs(engine.sync_engine, [])
    assert await definitions(engine) == await live(engine) == ["old"]


async def test_each_entry_has_its_own_data_timeout_and_priority(engine, jobs):
    given = []

    @jobs.handler("a")
    async def a(event, session, job):
        given.append((job.data, job.handler_timeout, job.priority))

    entry = CronJob("a", far(), priority=2, data={"x": [1]}, handler_timeout=timedelta(seconds=90))
    await register_cron_jobs(engine, [entry])
    assert (await register_cron_jobs(engine, [entry])).unchanged == ("a",)
    for _ in range(2):  # the first occurrence and a successor
        await make_due(engine, "a")
        await QueueWorker(engine, jobs).drain()
    assert given == [({"x": [1]}, 90.0, 2)] * 2


async def test_expressions_are_read_in_utc_or_the_entrys_time_zone(engine):
    entries = [CronJob("utc", "30 6 * * *"), CronJob("local", "30 6 * * *", timezone="Asia/Kolkata")]
    await register_cron_jobs(engine, entries)
    now = await database_now(engine)
    utc, local = (await occurrence(engine, "utc")).scheduled_at, (await occurrence(engine, "local")).scheduled_at
    assert (utc.hour, utc.minute) == (6, 30)
    assert (local.hour, local.minute) == (1, 0)
    assert local.astimezone(ZoneInfo("Asia/Kolkata")).strftime("%H:%M:%S") == "06:30:00"
    assert all(timedelta(0) < tick - now <= timedelta(days=1) for tick in (utc, local))


async def test_six_fields_begin_with_the_second(engine):
    await register_cron_jobs(engine, [CronJob("a", "15 0 12 * * *")])
    assert (await occurrence(engine, "a")).scheduled_at.strftime("%H:%M:%S") == "12:00:15"


# --- changing ---------------------------------------------------------------------------------------------------------


async def test_a_changed_entry_takes_effect_at_once(engine):
    await register_cron_jobs(engine, [CronJob("a", far(6), data={"v": 1})])
    before = await occurrence(engine, "a")
    changed = CronJob("a", far(2), priority=9, data={"v": 2}, handler_timeout=5)
    assert (await register_cron_jobs(engine, [changed])).changed == ("a",)
    after, entry = await occurrence(engine, "a"), await definition(engine, "a")
    assert after.id == before.id
    assert after.scheduled_at == after.cron_tick == entry.next_at < before.scheduled_at
    assert after.scheduled_at > await database_now(engine)
    assert (after.priority, after.data, after.handler_timeout, after.state) == (9, {"v": 2}, 5.0, JobState.scheduled)


async def test_a_changed_time_zone_moves_the_tick(engine):
    await register_cron_jobs(engine, [CronJob("a", "0 6 * * *")])
    await register_cron_jobs(engine, [CronJob("a", "0 6 * * *", timezone="Asia/Tokyo")])
    assert (await occurrence(engine, "a")).scheduled_at.hour == 21


async def test_changed_data_alone_does_not_move_the_tick(engine):
    await register_cron_jobs(engine, [CronJob("a", far())])
    tick = (await occurrence(engine, "a")).scheduled_at + timedelta(days=400)  # as if one was stored already
    await change(engine, (await occurrence(engine, "a")).id, scheduled_at=tick, cron_tick=tick)
    await register_cron_jobs(engine, [CronJob("a", far(), data={"new": True})])
    row = await occurrence(engine, "a")
    assert (row.scheduled_at, row.data) == (tick, {"new": True})


async def test_an_overdue_occurrence_stays_due_when_nothing_changed(engine, jobs):
    seen = []

    @jobs.handler("a")
    async def a(event, session, job):
        seen.append(job.scheduled_at)

    await register_cron_jobs(engine, [CronJob("a", far())])
    job_id, tick = await make_due(engine, "a")
    assert (await register_cron_jobs(engine, [CronJob("a", far())])).unchanged == ("a",)
    row = await occurrence(engine, "a")
    assert (row.id, row.scheduled_at, row.cron_tick) == (job_id, tick, tick)
    await QueueWorker(engine, jobs).drain()
    assert seen == [tick]


async def test_an_overdue_occurrence_is_not_lost_by_a_new_expression(engine, jobs):
    seen = []

    @jobs.handler("a")
    async def a(event, session, job):
        seen.append((job.scheduled_at, job.data))

    await register_cron_jobs(engine, [CronJob("a", far())])
    _, tick = await make_due(engine, "a")
    await register_cron_jobs(engine, [CronJob("a", far(2), data={"v": 2})])
    await QueueWorker(engine, jobs).drain()
    assert seen == [(tick, {"v": 2})]
    assert (await occurrence(engine, "a")).scheduled_at.strftime("0 0 15 %-m *") == far(2)


async def test_normal_jobs_are_never_touched_whatever_their_name(engine):
    waiting = await add_job(engine, "a", {"mine": 1}, priority=9)
    later = await add_job(engine, "a", delay=1_000)
    before = [(row.name, row.priority, row.data, row.scheduled_at) for row in await rows(engine)]
    for entries in ([CronJob("a", far())], [CronJob("a", far(2), priority=1, data={"x": 1})], []):
        await register_cron_jobs(engine, entries)
        normal = await rows(engine, JobRow.id.in_([waiting, later]))
        assert [(row.name, row.priority, row.data, row.scheduled_at) for row in normal] == before
        assert {row.cron_name for row in normal} == {None}
        assert len(await live(engine)) == len(entries)


async def test_a_normal_job_is_told_nothing_of_a_cron_entry_of_its_name(engine, jobs):
    seen = []

    @jobs.handler("a")
    async def a(event, session, job):
        seen.append((job.cron_expression, job.cron_last_completed_at))

    await register_cron_jobs(engine, [CronJob("a", far())])
    await add_job(engine, "a")
    await QueueWorker(engine, jobs).drain()
    assert seen == [(None, None)]
    assert len(await live(engine)) == 1


# --- while an occurrence runs -----------------------------------------------------------------------------------------


async def test_registration_does_not_wait_for_a_running_job_nor_touch_it(engine):
    await register_cron_jobs(engine, [CronJob("a", far()), CronJob("b", far())])
    for name in ("a", "b"):
        await lease(engine, (await occurrence(engine, name)).id)
    before = {name: await occurrence(engine, name) for name in ("a", "b")}
    async with asyncio.timeout(5):
        plan = await register_cron_jobs(engine, [CronJob("a", far(2), priority=1, data={"x": 1})])
    assert (plan.changed, plan.removed) == (("a",), ("b",))
    for name, old in before.items():
        row = await row_of(engine, old.id)
        assert (row.state, row.priority, row.data) == (JobState.running, 4, {})
        assert (row.scheduled_at, row.cron_tick, row.cron_name) == (old.scheduled_at, old.cron_tick, name)
    assert await count_jobs(engine) == 2


async def test_registration_does_not_wait_for_a_locked_row_on_postgresql(pg_engine):
    await register_cron_jobs(pg_engine, [CronJob("a", far()), CronJob("b", far())])
    async with pg_engine.begin() as other:
        await other.execute(text("SELECT id FROM queue_kit_job FOR UPDATE"))
        async with asyncio.timeout(5):
            plan = await register_cron_jobs(pg_engine, [CronJob("a", far(2))])
    assert (plan.changed, plan.removed) == (("a",), ("b",))


async def test_a_removed_job_that_runs_leaves_no_successor(engine):
    await register_cron_jobs(engine, [CronJob("a", far())])
    job_id, _ = await make_due(engine, "a")
    gate = Gate()
    async with running(engine, gate, "a"):
        async with asyncio.timeout(5):
            await register_cron_jobs(engine, [])
        assert (await get_job(engine, job_id)).state is JobState.running
    assert [(row.id, row.state) for row in await rows(engine)] == [(job_id, JobState.completed)]


async def test_the_successor_follows_the_definition_as_it_stands_at_the_end(engine):
    await register_cron_jobs(engine, [CronJob("a", far(), data={"v": 1})])
    await make_due(engine, "a")
    gate = Gate()
    async with running(engine, gate, "a"):
        await register_cron_jobs(engine, [CronJob("a", far(2), priority=8, data={"v": 2}, handler_timeout=3)])
        assert len(await live(engine)) == 1
    row = await occurrence(engine, "a")
    assert (row.priority, row.data, row.handler_timeout) == (8, {"v": 2}, 3.0)
    assert row.scheduled_at.strftime("0 0 15 %-m *") == far(2)
    assert gate.begun[0].data == {"v": 1}


async def test_occurrences_never_overlap(engine, jobs):
    await register_cron_jobs(engine, [CronJob("a", "* * * * *")])
    job_id, _ = await make_due(engine, "a")  # an hour ago: its run has gone on through sixty ticks
    gate = Gate()
    async with running(engine, gate, "a"):
        await QueueWorker(engine, jobs).drain()  # which stores what is missing
        assert [row.id for row in await rows(engine)] == [job_id]


# --- the next occurrence ----------------------------------------------------------------------------------------------

# Each ends the due occurrence in its own way, with a worker that drains.


async def completed(engine, jobs, job_id):
    jobs.add("a", nothing)


async def completed_with_its_session(engine, jobs, job_id):
    @jobs.handler("a")
    async def a(event, session, job):
        await session.execute(text("SELECT 1"))


async def failed_for_good(engine, jobs, job_id):
    @jobs.handler("a", max_retry_count=1)
    async def a(event, session, job):
        raise ValueError


async def failed_the_second_time(engine, jobs, job_id):
    @jobs.handler("a", max_retry_count=2, retry_delay=0)
    async def a(event, session, job):
        raise ValueError


async def discarded(engine, jobs, job_id):
    @jobs.handler("a")
    async def a(event, session, job):
        raise Discard("enough")


async def timed_out(engine, jobs, job_id):
    @jobs.handler("a", timeout=0.01, max_retry_count=1)
    async def a(event, session, job):
        await event.signal.wait()


async def cancelled_while_waiting(engine, jobs, job_id):
    jobs.add("a", nothing)
    assert await cancel_job(engine, job_id) is JobState.cancelled


async def cancelled_after_a_lapse(engine, jobs, job_id):
    jobs.add("a", nothing)
    await lease(engine, job_id)
    assert await cancel_job(engine, job_id) is JobState.running
    await lease(engine, job_id, seconds=-5)


async def deleted_by_hand(engine, jobs, job_id):
    jobs.add("a", nothing)
    async with engine.begin() as connection:
        await connection.execute(delete(JobRow).where(JobRow.id == job_id))


async def unreadable(engine, jobs, job_id):
    jobs.add("a", nothing)
    number = f"[{'9' * 5_000}]"  # more digits than Python reads
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE queue_kit_job SET trace_context = :number WHERE id = :id"), {"number": number, "id": job_id}
        )


async def invalid_payload(engine, jobs, job_id):
    jobs.add("a", nothing)
    await change(engine, job_id, data=[1])


async def poison(engine, jobs, job_id):
    jobs.add("a", nothing)
    await change(engine, job_id, lost=3, worker_id=uuid4())


ENDINGS = {
    completed: JobState.completed,
    completed_with_its_session: JobState.completed,
    failed_for_good: JobState.failed,
    failed_the_second_time: JobState.failed,
    discarded: JobState.failed,
    timed_out: JobState.failed,
    cancelled_while_waiting: JobState.cancelled,
    cancelled_after_a_lapse: JobState.cancelled,
    deleted_by_hand: None,
    unreadable: JobState.failed,
    invalid_payload: JobState.failed,
    poison: JobState.failed,
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_the_next_occurrence_is_stored_however_this_one_ended(engine, jobs, ending):
    await register_cron_jobs(engine, [CronJob("a", far())])
    tick = (await occurrence(engine, "a")).scheduled_at
    job_id, _ = await make_due(engine, "a")
    await ending(engine, jobs, job_id)
    await QueueWorker(engine, jobs).drain()
    states = await rows_states(engine)
    assert states.pop(job_id, None) == (None if ENDINGS[ending] is None else ENDINGS[ending].value)
    assert list(states.values()) == ["scheduled"]
    row = await occurrence(engine, "a")
    assert row.scheduled_at == row.cron_tick == (await definition(engine, "a")).next_at == tick
    assert (row.retry_count, row.lost, row.errors, row.priority) == (0, 0, None, 4)


async def rows_states(engine) -> dict[int, str]:
    """The states by the database, without loading what cannot be read."""
    async with engine.connect() as connection:
        return {row.id: row.state for row in await connection.execute(select(JobRow.id, JobRow.state))}


async def test_the_next_occurrence_comes_in_the_transaction_that_settles_this_one(engine, jobs, monkeypatch):
    jobs.add("a", nothing)
    await register_cron_jobs(engine, [CronJob("a", far())])
    job_id, _ = await make_due(engine, "a")
    seen = []

    def broken(*_, **__):
        seen.append(1)
        raise ConnectionResetError("the database went away between the two")

    async with QueueWorker(engine, jobs, poll_interval=0.1):
        with monkeypatch.context() as patched:
            patched.setattr("queue_kit.cron._store_next", broken)
            await until(lambda: seen)
            assert (await get_job(engine, job_id)).state is JobState.running
            assert await count_jobs(engine) == 1
        await until(lambda: is_completed(engine, job_id))
    assert len(await live(engine)) == 1
    assert await count_jobs(engine) == 2


async def test_no_successor_comes_before_the_last_try(engine, jobs):
    seen = []

    @jobs.handler("a", max_retry_count=3, retry_delay=lambda attempt: 0 if attempt == 1 else 1_000)
    async def a(event, session, job):
        seen.append(job.attempt)
        raise ValueError

    await register_cron_jobs(engine, [CronJob("a", far())])
    job_id, tick = await make_due(engine, "a")
    assert (await QueueWorker(engine, jobs).drain())["retried"] == 2
    (row,) = await rows(engine)
    assert (row.id, row.state, row.retry_count, row.cron_tick) == (job_id, JobState.scheduled, 2, tick)
    assert (await definition(engine, "a")).next_at == tick
    assert seen == [1, 2]


async def test_t8_missed_ticks_coalesce_into_one(engine, jobs):
    seen = []

    @jobs.handler("a")
    async def a(event, session, job):
        seen.append(job.scheduled_at)

    await register_cron_jobs(engine, [CronJob("a", far())])
    _, tick = await make_due(engine, "a", seconds=5 * 366 * 86_400)  # five yearly ticks ago
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 1
    assert seen == [tick]
    row = await occurrence(engine, "a")
    assert timedelta(0) < row.scheduled_at - await database_now(engine) < timedelta(days=366)


async def test_the_next_tick_lies_after_this_one_even_when_it_ran_early(engine, jobs):
    jobs.add("a", nothing)
    await register_cron_jobs(engine, [CronJob("a", far())])
    row = await occurrence(engine, "a")
    # Run by hand ahead of its tick: the same tick must not come again.
    await change(engine, row.id, status=1, scheduled_at=await database_now(engine) - timedelta(seconds=1))
    await QueueWorker(engine, jobs).drain()
    assert (await occurrence(engine, "a")).scheduled_at > row.cron_tick


async def test_a_cancelled_occurrence_does_not_come_back(engine, jobs):
    jobs.add("a", nothing)
    await register_cron_jobs(engine, [CronJob("a", far())])
    row = await occurrence(engine, "a")
    await cancel_job(engine, row.id)
    await QueueWorker(engine, jobs).drain()
    assert (await occurrence(engine, "a")).scheduled_at > row.scheduled_at + timedelta(days=360)


async def test_the_tick_is_kept_through_retries_and_snoozes(engine, jobs):
    seen = []

    @jobs.handler("a", max_retry_count=5, retry_delay=0)
    async def a(event, session, job):
        seen.append((job.scheduled_at, job.attempt))
        if len(seen) == 1:
            raise ValueError
        if len(seen) == 2:
            raise Snooze(0)

    await register_cron_jobs(engine, [CronJob("a", far())])
    job_id, tick = await make_due(engine, "a")
    await QueueWorker(engine, jobs).drain()
    assert seen == [(tick, 1), (tick, 2), (tick, 2)]
    row = await row_of(engine, job_id)
    assert (row.cron_tick, row.state) == (tick, JobState.completed)
    assert row.scheduled_at > tick


async def test_a_handler_knows_when_the_entry_last_completed(engine, jobs):
    seen = []
    fail = False

    @jobs.handler("a", max_retry_count=1)
    async def a(event, session, job):
        seen.append((job.cron_expression, job.cron_last_completed_at))
        if fail:
            raise ValueError

    async def run():
        await make_due(engine, "a")
        before = await database_now(engine)
        await QueueWorker(engine, jobs).drain()
        return before, await database_now(engine)

    await register_cron_jobs(engine, [CronJob("a", far())])
    first = await run()
    second = await run()
    fail = True
    await run()
    await run()
    expressions, times = zip(*seen, strict=True)
    assert set(expressions) == {far()}
    assert times[0] is None
    assert first[0] <= times[1] <= first[1]
    assert second[0] <= times[2] <= second[1]
    assert times[3] == times[2]  # a failure is no completion


async def test_a_paused_entry_gets_no_successor_until_it_goes_on(engine, jobs):
    jobs.add("a", nothing)
    await register_cron_jobs(engine, [CronJob("a", far())])
    await make_due(engine, "a")
    await define(engine, "a", paused=True)
    await QueueWorker(engine, jobs).drain()
    assert (await register_cron_jobs(engine, [CronJob("a", far())])).unchanged == ("a",)
    await QueueWorker(engine, jobs).drain()
    assert await live(engine) == []
    assert (await definition(engine, "a")).last_completed_at is not None
    await define(engine, "a", paused=False)
    await QueueWorker(engine, jobs).drain()
    assert (await occurrence(engine, "a")).state is JobState.scheduled


async def test_an_entry_that_nobody_can_schedule_any_more_harms_no_other(engine, jobs, caplog):
    jobs.add("bad", nothing)
    jobs.add("good", nothing)
    await register_cron_jobs(engine, [CronJob("bad", far()), CronJob("good", far())])
    for name in ("bad", "good"):
        await make_due(engine, name)
    await define(engine, "bad", expression="garbage")
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 2
    assert await live(engine) == ["good"]
    assert any("bad cannot be scheduled" in record.getMessage() for record in caplog.records)


async def test_a_deleted_completion_still_has_a_successor(engine, jobs):
    jobs.add("a", nothing)
    await register_cron_jobs(engine, [CronJob("a", far())])
    job_id, _ = await make_due(engine, "a")
    await QueueWorker(engine, jobs, delete_job_on_completion=True).drain()
    (row,) = await rows(engine)
    assert (row.cron_name, row.id == job_id) == ("a", False)


# --- one live occurrence ----------------------------------------------------------------------------------------------


async def test_retrying_an_old_occurrence_by_hand_makes_no_second_one(engine, jobs):
    seen = []

    @jobs.handler("a", max_retry_count=1)
    async def a(event, session, job):
        seen.append(job.scheduled_at)
        if len(seen) == 1:
            raise ValueError

    await register_cron_jobs(engine, [CronJob("a", far())])
    job_id, tick = await make_due(engine, "a")
    await QueueWorker(engine, jobs).drain()
    successor = await occurrence(engine, "a")
    await retry_job(engine, job_id)
    assert await live(engine) == ["a"]
    await QueueWorker(engine, jobs).drain()
    assert seen == [tick, tick]
    assert (await occurrence(engine, "a")).id == successor.id
    assert await count_jobs(engine) == 2


async def test_sweeps_of_many_workers_store_one_occurrence(engine, jobs):
    names = [f"n{number}" for number in range(10)]
    await register_cron_jobs(engine, [CronJob(name, far()) for name in names])
    async with engine.begin() as connection:
        await connection.execute(delete(JobRow))
    await asyncio.gather(*(QueueWorker(engine, jobs).drain() for _ in range(4)))
    assert await live(engine) == sorted(names)


async def test_a_second_live_occurrence_is_refused_by_the_database(engine):
    await register_cron_jobs(engine, [CronJob("a", far())])
    with pytest.raises(IntegrityError):
        async with AsyncSession(engine) as session, session.begin():
            session.add(JobRow(name="a", cron_name="a"))


REGISTER = """
import asyncio, sys
from queue_kit import CronJob, QueueWorker, engine_from_url, register_cron_jobs

async def main(url, number):
    engine = engine_from_url(url)
    async def nothing(event, session, job): ...
    entries = [CronJob(f"n{at}", f"{(at * 7 + number) % 60} 0 1 1 *") for at in range(20)]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for _ in range(3):
        plan = await register_cron_jobs(engine, entries)
        await QueueWorker(engine, {entry.name: nothing for entry in entries}).drain()
    await engine.dispose()
    print("done", flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.parametrize("differing", [False, True], ids=["the same list", "lists that differ"])
async def test_processes_that_register_at_once_leave_one_live_occurrence_each(engine, database_url, differing):
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            REGISTER,
            database_url,
            str(number if differing else 0),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for number in range(3)
    ]
    try:
        async with asyncio.timeout(50):
            for process in processes:
                assert await process.stdout.readline() == b"ready\n"
            results = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
    assert [(out, errors.decode()[-2_000:]) for out, errors in results] == [(b"done\n", "")] * len(processes)
    assert await live(engine) == await definitions(engine) == sorted(f"n{at}" for at in range(20))
    assert (await queue_insights(engine)).scheduled == await count_jobs(engine) == 20
    for name in await definitions(engine):
        row, entry = await occurrence(engine, name), await definition(engine, name)
        assert row.scheduled_at == entry.next_at
        assert row.scheduled_at.minute == int(entry.expression.split()[0])
