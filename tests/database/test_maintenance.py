"""The built-in jobs: cleanup deletes what is old and complete and nothing else, insights says what it sees."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import (
    ConfigurationError,
    CronJob,
    Event,
    Handlers,
    Insights,
    Job,
    JobRow,
    JobState,
    QueueWorker,
    add_job,
    job_queue_cleanup,
    job_queue_insights,
    queue_insights,
    register_cron_jobs,
)
from queue_kit.models import WORKERS
from tests.database.clock import age, database_now, far, make_due, occurrence, rows
from tests.database.running import STATES, in_every_state, job_in, nothing
from tests.support import change, row_of

CLEANUP, INSIGHTS = "queue_kit.queue.cleanup", "queue_kit.queue.insights"
COMPLETE = ("completed", "failed", "cancelled")


async def clean(engine: AsyncEngine, **options: Any) -> JobRow:
    """Run a cleanup; its own job's row."""
    job_id = await add_job(engine, CLEANUP, max_retry_count=1)
    await QueueWorker(engine, {CLEANUP: job_queue_cleanup(**options)}).drain()
    return await row_of(engine, job_id)


async def old(engine: AsyncEngine, state: str, days: float, **columns: Any) -> int:
    """A job that came into this state some days ago."""
    job_id = await job_in(engine, state, **columns)
    await age(engine, job_id, days=days)
    return job_id


async def left(engine: AsyncEngine) -> list[int]:
    """The ids of all jobs but the cleanups themselves."""
    return [row.id for row in await rows(engine, JobRow.name != CLEANUP)]


# --- cleanup: what is deleted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "days"),
    [({}, 5), ({"queue_history_in_days": 30}, 30), ({"queue_history_in_days": 0.25}, 0.25)],
    ids=str,
)
async def test_complete_jobs_older_than_the_history_are_deleted(engine, options, days):
    young = [await old(engine, state, days - 0.1) for state in COMPLETE]
    for state in COMPLETE:
        await old(engine, state, days + 0.1)
    assert (await clean(engine, **options)).state is JobState.completed
    assert await left(engine) == young


async def test_a_history_of_zero_days_keeps_nothing_that_is_complete(engine):
    for state in COMPLETE:
        await old(engine, state, 0.001)
    own = await clean(engine, queue_history_in_days=0, failed_history_in_days=0)
    assert await left(engine) == []
    assert own.state is JobState.completed


async def test_the_age_counts_from_the_end_and_not_from_the_beginning(engine):
    just_ended = await job_in(engine, "completed")
    long_ago = await database_now(engine) - timedelta(days=100)
    await change(engine, just_ended, created_at=long_ago, scheduled_at=long_ago)
    await clean(engine)
    assert await left(engine) == [just_ended]


@pytest.mark.parametrize(("failed_days", "kept"), [(30, "failed 6 failed 29"), (1, ""), (None, ""), (0, "")])
async def test_failed_jobs_have_a_history_of_their_own(engine, failed_days, kept):
    ids = {
        f"{state} {days}": await old(engine, state, days)
        for state, days in [("failed", 6), ("failed", 29), ("failed", 31), ("completed", 6), ("cancelled", 6)]
    }
    await clean(engine, queue_history_in_days=5, failed_history_in_days=failed_days)
    remaining = await left(engine)
    assert " ".join(name for name, job_id in ids.items() if job_id in remaining) == kept


async def test_failed_jobs_may_go_before_the_others(engine):
    completed = await old(engine, "completed", 2)
    await old(engine, "failed", 2)
    await clean(engine, queue_history_in_days=5, failed_history_in_days=1)
    assert await left(engine) == [completed]


async def test_live_jobs_are_never_deleted_however_old(engine):
    ids = await in_every_state(engine)
    for job_id in ids.values():
        await age(engine, job_id, days=10_000)
    await clean(engine, queue_history_in_days=0)
    assert await left(engine) == [ids[state] for state in STATES if state not in COMPLETE]


# --- cleanup: how -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_pages(monkeypatch) -> None:
    monkeypatch.setattr("queue_kit.maintenance.PAGE", 3)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.usefixtures("small_pages")
async def test_every_page_of_ids_is_walked_to_the_last(engine, caplog, count):
    own = await add_job(engine, CLEANUP)
    kept = [await old(engine, "failed", 1), await old(engine, "scheduled", 9), await old(engine, "completed", 1)]
    for _ in range(count):
        await old(engine, "completed", 9)
    with caplog.at_level(logging.INFO, "queue_kit.job"):
        await QueueWorker(engine, {CLEANUP: job_queue_cleanup()}).drain()
    assert await left(engine) == kept
    (record,) = [record for record in caplog.records if "deleted" in record.getMessage()]
    assert (record.getMessage(), record.job_id) == (f"deleted {count} jobs", own)


@pytest.mark.usefixtures("small_pages")
async def test_gaps_between_ids_cost_nothing(engine):
    past = await database_now(engine) - timedelta(days=9)
    sparse = [1, 2, 1_000, 1_001, 1_002, 1_003, 10**9, 2**40, 2**62]
    async with AsyncSession(engine) as session, session.begin():
        session.add_all(JobRow(id=job_id, name="a", status=2, updated_at=past) for job_id in sparse)
    deletes = Statements(engine, "DELETE FROM queue_kit_job")
    own = await clean_with_id(engine, 2**62 + 1)
    assert (own, await left(engine)) == (JobState.completed, [])
    assert deletes.count <= len(sparse)


async def clean_with_id(engine: AsyncEngine, job_id: int) -> JobState:
    async with AsyncSession(engine) as session, session.begin():
        session.add(JobRow(id=job_id, name=CLEANUP, handler_timeout=15, max_retry_count=1))
    await QueueWorker(engine, {CLEANUP: job_queue_cleanup()}).drain()
    return (await row_of(engine, job_id)).state


class Statements:
    """Counts an engine's statements that begin in some way, and fails in the place of one of them."""

    def __init__(self, engine: AsyncEngine, beginning: str, *, fail_at: int | None = None) -> None:
        self.count = 0
        self.beginning = beginning
        self.fail_at = fail_at
        event.listen(engine.sync_engine, "before_cursor_execute", self.see)

    def see(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(self.beginning):
            self.count += 1
            if self.count == self.fail_at:
                raise ZeroDivisionError


@pytest.mark.usefixtures("small_pages")
async def test_each_page_is_committed_by_itself(engine):
    ids = [await old(engine, "completed", 9) for _ in range(12)]
    Statements(engine, "DELETE FROM queue_kit_job", fail_at=3)
    own = await clean(engine)
    assert (own.state, own.errors[0]["class"]) == (JobState.failed, "ZeroDivisionError")
    assert await left(engine) == ids[6:]


async def test_an_empty_history_is_cleaned_in_peace(engine):
    own = await clean(engine)
    assert own.state is JobState.completed
    assert await left(engine) == []


async def test_workers_that_were_not_seen_for_a_day_are_forgotten(engine):
    now = await database_now(engine)
    seen = {hours: uuid4() for hours in (0, 23, 25, 1_000)}
    async with engine.begin() as connection:
        for hours, worker_id in seen.items():
            row = {"label": "", "host": "", "pid": 1, "names": [], "seen_at": now - timedelta(hours=hours)}
            await connection.execute(insert(WORKERS).values(id=worker_id, **row))
    await clean(engine)
    async with engine.connect() as connection:
        known = set((await connection.execute(select(WORKERS.c.id))).scalars())
    assert known == {seen[0], seen[23]}


@pytest.mark.parametrize("days", [-1, -0.001, float("nan"), float("inf"), "5", True, timedelta(days=5), [5]], ids=repr)
def test_days_that_mean_nothing_are_refused(days):
    with pytest.raises(ConfigurationError, match="queue_history_in_days"):
        job_queue_cleanup(days)
    with pytest.raises(ConfigurationError, match="failed_history_in_days"):
        job_queue_cleanup(failed_history_in_days=days)


def test_the_history_itself_must_be_a_number():
    with pytest.raises(ConfigurationError, match="queue_history_in_days"):
        job_queue_cleanup(None)


# --- insights ---------------------------------------------------------------------------------------------------------


async def told(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the insights job logs; the handlers of this worker also run "a"."""
    await add_job(engine, INSIGHTS, priority=0)
    handlers = {INSIGHTS: job_queue_insights(), "a": nothing}
    caplog.clear()
    with caplog.at_level(logging.INFO, "queue_kit.job"):
        counts = await QueueWorker(engine, handlers).drain()
    assert counts["completed"] >= 1
    return [record for record in caplog.records if record.name == "queue_kit.job"]


async def test_insights_are_logged_with_their_figures(engine, caplog):
    for state in ("ready", "ready", "scheduled", "failed", "failed", "failed"):
        await job_in(engine, state)
    await change(engine, 1, scheduled_at=await database_now(engine) - timedelta(seconds=90))
    (record,) = await told(engine, caplog)
    assert record.levelno == logging.INFO
    found = record.insights
    assert isinstance(found, Insights)
    # The job of insights itself is the one that runs.
    assert (found.pending, found.scheduled, found.running, found.failed) == (2, 1, 1, 3)
    assert 90 <= found.oldest_due_seconds < 150
    text = record.getMessage()
    assert text.startswith("pending 2, scheduled 1, running 1, failed 3, oldest due for ")
    assert record.job_name == INSIGHTS


async def test_names_that_nobody_runs_are_a_warning(engine, caplog):
    await add_job(engine, "forgotten")
    await add_job(engine, "also", delay=1_000)
    await add_job(engine, "a")
    records = await told(engine, caplog)
    assert [record.levelname for record in records] == ["INFO", "WARNING"]
    assert records[1].getMessage() == "no live worker runs: also, forgotten"


async def test_a_cron_job_that_nobody_runs_is_an_error(engine, caplog):
    await register_cron_jobs(engine, [CronJob("tick", far()), CronJob("a", far())])
    await add_job(engine, "forgotten")
    records = await told(engine, caplog)
    assert [record.levelname for record in records if record.levelno > logging.INFO] == ["ERROR", "WARNING"]
    (error,) = [record for record in records if record.levelname == "ERROR"]
    assert error.getMessage() == "no live worker runs these cron jobs: tick"


async def test_insights_are_returned_too(engine):
    await add_job(engine, "a")
    now = datetime.now(UTC)
    job = Job(id=1, name=INSIGHTS, data={}, priority=4, scheduled_at=now, created_at=now)
    async with AsyncSession(engine) as session:
        found = await job_queue_insights()(Event(), session, job)
    assert (found.pending, found.unhandled_names) == (1, ("a",))


# --- as cron jobs -----------------------------------------------------------------------------------------------------


async def test_both_run_as_cron_jobs_in_a_worker(engine, caplog):
    jobs = Handlers()
    jobs.add(CLEANUP, job_queue_cleanup(queue_history_in_days=5))
    jobs.add(INSIGHTS, job_queue_insights())
    await register_cron_jobs(engine, [CronJob(CLEANUP, far()), CronJob(INSIGHTS, far())])
    gone, kept = await old(engine, "completed", 6), await old(engine, "completed", 4)
    ticks = {name: await make_due(engine, name) for name in (CLEANUP, INSIGHTS)}
    with caplog.at_level(logging.INFO, "queue_kit.job"):
        counts = await QueueWorker(engine, jobs).drain()
    assert counts == {**dict.fromkeys(counts, 0), "completed": 2}
    remaining = {row.id for row in await rows(engine)}
    assert (gone in remaining, kept in remaining) == (False, True)
    for name, (job_id, tick) in ticks.items():
        assert (await row_of(engine, job_id)).state is JobState.completed
        assert (await occurrence(engine, name)).scheduled_at > tick
    assert [record.levelname for record in caplog.records if record.name == "queue_kit.job"] == ["INFO", "INFO"]
    assert (await queue_insights(engine)).scheduled == 2
