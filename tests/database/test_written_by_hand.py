"""Columns that only plain SQL can have written: each harms its own job or entry, and nothing stops."""

import json
from datetime import timedelta

import pytest

from queue_kit import (
    CronJob,
    Handlers,
    JobState,
    NewJob,
    QueueWorker,
    add_job,
    add_jobs,
    get_job,
    list_jobs,
    queue_insights,
    register_cron_jobs,
)
from tests.database.clock import database_now, far, make_due, occurrence
from tests.database.running import nothing, raw
from tests.support import Recorder, row_of, until


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


# --- looking ----------------------------------------------------------------------------------------------------------

DEEP = "[" * 3_000 + "]" * 3_000
"""Too deep for some versions of Python."""
HUGE = "9" * 6_000
BEYOND_PYTHON = [
    ("scheduled_at", "12000-01-01"),
    ("created_at", "0044-03-15 BC"),
    ("data", f'{{"n": {HUGE}}}'),
    ("trace_context", f"[{HUGE}]"),
    ("errors", f"[{HUGE}]"),
]


try:
    json.loads(DEEP)
except RecursionError:
    BEYOND_PYTHON += [("data", DEEP), ("trace_context", DEEP)]


@pytest.mark.parametrize(
    ("column", "value"), BEYOND_PYTHON, ids=[f"{column}-{at}" for at, (column, _) in enumerate(BEYOND_PYTHON)]
)
async def test_what_cannot_be_read_is_named_with_its_job(engine, column, value):
    good = await add_job(engine, "a")
    bad = await add_job(engine, "b")
    await raw(engine, f"UPDATE queue_kit_job SET {column} = '{value}' WHERE id = {bad}")
    with pytest.raises(ValueError, match=rf"job {bad}: {column} \("):
        await list_jobs(engine)
    with pytest.raises(ValueError, match=rf"job {bad}: {column} \("):
        await get_job(engine, bad)
    assert [row.id for row in await list_jobs(engine, name="a")] == [good]
    async with engine.connect() as connection:  # the caller's goes on
        with pytest.raises(ValueError, match=column):
            await list_jobs(connection)
        assert (await get_job(connection, good)).id == good


async def test_an_unreadable_time_of_creation_does_not_stop_a_search_by_time(pg_engine):
    first = await add_job(pg_engine, "a")
    await raw(pg_engine, f"UPDATE queue_kit_job SET created_at = '12000-01-01' WHERE id = {first}")
    last = await add_job(pg_engine, "b")
    an_hour_ago = await database_now(pg_engine) - timedelta(hours=1)
    assert [row.id for row in await list_jobs(pg_engine, name="b", created_after=an_hour_ago)] == [last]
