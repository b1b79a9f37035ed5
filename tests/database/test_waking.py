"""What wakes an idle worker long before its next poll, and what the poll finds without being woken."""

import asyncio
import contextlib
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import event, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.util import await_only

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
    insert_jobs,
    register_cron_jobs,
    sqlite_engine,
)
from queue_kit._dialect.clock import seconds_until
from queue_kit._sleep import AFTER_FALLING_ASLEEP
from tests.database.clock import occurrence
from tests.database.running import LISTENS, claims, fast_asleep, listening, nothing, raw, statements
from tests.support import Recorder, count_jobs, until

NEVER = {"poll_interval": 86_400.0}


async def ready_to_wake(engine: AsyncEngine, hook: Recorder) -> None:
    """The worker has looked and found nothing more; on PostgreSQL it listens, and looks no more by itself."""
    await add_job(engine, "first")
    await until(lambda: hook.settled)
    if engine.name == "postgresql":
        await fast_asleep(engine)


# --- every way to insert ----------------------------------------------------------------------------------------------


async def by_add_job(engine: AsyncEngine) -> None:
    await add_job(engine, "work")


async def by_handler(engine: AsyncEngine) -> None:
    await Handlers().add("work", nothing).add(engine)


async def by_add_jobs_in_a_session(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await add_jobs(session, [NewJob("work")])
        await session.commit()


async def by_insert_jobs_in_a_sync_session(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await session.run_sync(lambda sync: sync.execute(insert_jobs([NewJob("work")])))
        await session.commit()


async def by_orm(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        session.add(JobRow(name="work"))
        await session.commit()


async def by_core(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(insert(JobRow.__table__).values(name="work"))


async def by_plain_sql(engine: AsyncEngine) -> None:
    await raw(engine, "INSERT INTO queue_kit_job (name) VALUES ('work')")


INSERTS = [
    by_add_job,
    by_handler,
    by_add_jobs_in_a_session,
    by_insert_jobs_in_a_sync_session,
    by_orm,
    by_core,
    by_plain_sql,
]


async def wakes_by_every_way(engine: AsyncEngine, other: AsyncEngine) -> None:
    """A worker on one engine runs at once what is inserted through the other one. It is one worker for all: woken, it
    looks, and then no more by itself."""
    hook = Recorder()
    async with QueueWorker(engine, {"first": nothing, "work": nothing}, hooks=[hook], **NEVER):
        await ready_to_wake(engine, hook)
        for count, way in enumerate(INSERTS, 2):
            await way(other)
            await until(lambda count=count: len(hook.settled) == count)


async def test_every_insert_of_this_process_wakes(engine):
    await wakes_by_every_way(engine, engine)


async def test_on_postgresql_every_insert_of_another_program_wakes(pg_engine):
    other = create_async_engine(pg_engine.url)
    await wakes_by_every_way(pg_engine, other)
    await other.dispose()


async def test_a_job_wakes_when_its_transaction_commits_and_not_before(engine):
    hook = Recorder()
    async with QueueWorker(engine, {"first": nothing, "work": nothing}, hooks=[hook], **NEVER):
        await ready_to_wake(engine, hook)
        async with AsyncSession(engine) as session:
            job_id = await add_job(session, "work")
            if engine.name == "postgresql":  # on SQLite this would wait for the session's own lock
                await add_job(engine, "first")
                await until(lambda: len(hook.settled) == 2)
            assert all(record.job.id != job_id for record in hook.settled)
            await session.commit()
        await until(lambda: hook.settled[-1].job.id == job_id)


async def test_a_handlers_own_new_job_wakes(engine):
    async def parent(event, session, job):
        await add_job(session, "child")

    hook = Recorder()
    async with QueueWorker(engine, {"first": parent, "child": nothing}, hooks=[hook], **NEVER):
        await add_job(engine, "first")
        await until(lambda: len(hook.settled) == 2)
    assert [record.job.name for record in hook.settled] == ["first", "child"]


# --- due times --------------------------------------------------------------------------------------------------------

SOON = 0.4


async def seconds_since_due(engine: AsyncEngine, job_id: int) -> float:
    """How long ago a job was due, by the database's clock."""
    query = select(seconds_until(JobRow.__table__.c.scheduled_at)).where(JobRow.id == job_id)
    async with engine.connect() as connection:
        return -(await connection.execute(query)).scalar_one()


async def test_a_scheduled_job_runs_at_its_time_and_never_before(engine):
    late = []

    async def work(event, session, job):
        late.append(await seconds_since_due(engine, job.id))

    hook = Recorder()
    async with QueueWorker(engine, {"first": nothing, "work": work}, hooks=[hook], **NEVER):
        await ready_to_wake(engine, hook)
        third, first, second = await add_jobs(engine, [NewJob("work", delay=n * SOON) for n in (3, 1, 2)])
        await until(lambda: len(hook.settled) == 4)
    assert [record.job.id for record in hook.settled][1:] == [first, second, third]
    assert all(seconds >= -0.002 for seconds in late)  # SQLite's clock counts whole milliseconds


@pytest.mark.parametrize("how", ["retried", "snoozed"])
async def test_a_job_that_goes_on_later_is_run_again_in_time(engine, how):
    async def twice(event, session, job):
        if len(hook.settled) == 0:
            raise Snooze(SOON) if how == "snoozed" else ValueError("once")

    hook = Recorder()
    async with QueueWorker(engine, {"first": twice}, retry_delay=SOON, hooks=[hook], **NEVER):
        await add_job(engine, "first")
        await until(lambda: len(hook.settled) == 2)
    assert hook.verdicts == [how, "completed"]


async def test_a_worker_that_starts_knows_what_is_scheduled(engine):
    await add_job(engine, "work", delay=SOON)
    hook = Recorder()
    async with QueueWorker(engine, {"work": nothing}, hooks=[hook], **NEVER):
        await until(lambda: hook.settled)


async def test_a_cron_tick_comes_in_time(engine):
    await register_cron_jobs(engine, [CronJob("tick", "* * * * * *")])
    first = (await occurrence(engine, "tick")).cron_tick
    hook = Recorder()
    async with QueueWorker(engine, {"tick": nothing}, hooks=[hook], **NEVER):
        await until(lambda: len(hook.settled) >= 2)
    ticks = [record.job.scheduled_at for record in hook.settled]
    assert ticks[0] == first < ticks[1]


async def test_a_tick_comes_in_time_also_when_the_one_before_was_settled_late(engine):
    await register_cron_jobs(engine, [CronJob("tick", "* * * * * *")])
    ran: list[int] = []

    async def tick(event, session, job):
        ran.append(job.id)
        if len(ran) == 1:
            locked.append(await stack.enter_async_context(engine.connect()))
            await locked[0].execute(select(JobRow.id).where(JobRow.id == job.id).with_for_update())

    locked: list[Any] = []
    async with contextlib.AsyncExitStack() as stack, QueueWorker(engine, {"tick": tick}, **NEVER):
        await until(lambda: locked)
        await asyncio.sleep(0.4)  # the worker has looked, and seen no other tick
        await locked[0].rollback()
        await until(lambda: len(ran) == 2)


async def test_what_is_scheduled_by_a_slow_commit_is_known_when_it_is_over(sqlite_path):
    engine = sqlite_engine(sqlite_path)
    hook = Recorder()
    async with QueueWorker(engine, {"first": nothing, "work": nothing}, hooks=[hook], **NEVER):
        await ready_to_wake(engine, hook)
        event.listen(engine.sync_engine, "commit", lambda _: await_only(asyncio.sleep(0.3)), once=True)
        await add_job(engine, "work", delay=SOON)
        await until(lambda: len(hook.settled) == 2)
    await engine.dispose()


@pytest.mark.parametrize("seconds", [0, 0.05])
async def test_what_is_scheduled_on_a_connection_that_stays_open_is_known_too(embedded_engine, monkeypatch, seconds):
    commit = aiosqlite.Connection.commit

    async def slow_commit(connection):
        await asyncio.sleep(seconds)
        await commit(connection)

    hook = Recorder()
    async with QueueWorker(embedded_engine, {"first": nothing, "work": nothing}, hooks=[hook], **NEVER):
        await ready_to_wake(embedded_engine, hook)
        await asyncio.sleep(0.4)  # the looks that the first job brought are over
        async with embedded_engine.connect() as connection:
            await add_job(connection, "work", delay=SOON)
            monkeypatch.setattr(aiosqlite.Connection, "commit", slow_commit)
            await connection.commit()
            await until(lambda: len(hook.settled) == 2)


# --- cancelling -------------------------------------------------------------------------------------------------------


async def test_cancelling_reaches_a_running_job_long_before_its_renewal(pg_engine):
    aborted = asyncio.Event()

    async def wait(event, session, job):
        await event.signal.wait()
        aborted.set()

    hook = Recorder()
    async with QueueWorker(pg_engine, {"first": nothing, "wait": wait}, lease=86_400, hooks=[hook], **NEVER):
        await ready_to_wake(pg_engine, hook)
        job_id = await add_job(pg_engine, "wait")
        await until(lambda: len(hook.started) == 2)
        loop = asyncio.get_running_loop()
        asked = loop.time()
        assert await cancel_job(pg_engine, job_id) is JobState.running
        await until(aborted.is_set)
        assert loop.time() - asked < 5.0  # the next renewal is up to ten seconds away
        await until(lambda: len(hook.settled) == 2)
    assert hook.verdicts == ["completed", "cancelled"]


# --- listen= ----------------------------------------------------------------------------------------------------------


async def test_listening_can_go_through_another_engine(pg_engine):
    direct = create_async_engine(pg_engine.url, connect_args={"server_settings": {"application_name": "direct"}})
    hook = Recorder()
    async with QueueWorker(pg_engine, {"first": nothing, "work": nothing}, listen=direct, hooks=[hook], **NEVER):
        await ready_to_wake(pg_engine, hook)
        listeners = await raw(
            pg_engine,
            f"SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND {LISTENS}",
        )
        assert [row.application_name for row in listeners] == ["direct"]
        await raw(pg_engine, "INSERT INTO queue_kit_job (name) VALUES ('work')")
        await until(lambda: len(hook.settled) == 2)
    await direct.dispose()


async def test_without_listening_the_poll_finds_it_and_nobody_listens(pg_engine):
    hook = Recorder()
    async with QueueWorker(pg_engine, {"work": nothing}, listen=False, poll_interval=0.1, hooks=[hook]):
        await add_job(pg_engine, "work")
        await until(lambda: len(hook.settled) == 1)
        await add_job(pg_engine, "work")
        await until(lambda: len(hook.settled) == 2)
        assert not await listening(pg_engine)


async def test_the_poll_finds_what_another_program_writes_into_the_file(sqlite_path):
    engine, other = sqlite_engine(sqlite_path), sqlite_engine(sqlite_path)
    hook = Recorder()
    async with QueueWorker(engine, {"first": nothing, "work": nothing}, poll_interval=0.1, hooks=[hook]):
        await ready_to_wake(engine, hook)
        await add_job(other, "work")
        await until(lambda: len(hook.settled) == 2)
    await engine.dispose()
    await other.dispose()


async def test_one_job_wakes_with_one_claim_however_many_pullers_wait(engine):
    hook = Recorder()
    async with QueueWorker(engine, {"first": nothing, "work": nothing}, parallel_count=20, hooks=[hook], **NEVER):
        await ready_to_wake(engine, hook)
        with statements() as sent:
            await add_job(engine, "work")
            await until(lambda: len(hook.settled) == 2)
    assert len(claims(sent)) <= 4  # one for it, one more for the pullers that still wait, and what a commit wakes
    assert await count_jobs(engine, JobRow.is_complete) == 2


async def test_c7_one_job_costs_ten_idle_workers_about_one_claim_each(pg_engine):
    hook = Recorder()

    async def all_sleep() -> bool:
        asleep = "SELECT count(*) FROM queue_kit_worker WHERE idle_until > clock_timestamp()"
        return hook.listener.count("listening") == 10 and await raw(pg_engine, asleep) == [(10,)]

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(QueueWorker(pg_engine, {"work": nothing}, hooks=[hook], **NEVER))
        await until(all_sleep)
        await asyncio.sleep(2 * sum(AFTER_FALLING_ASLEEP))  # the looks of one that has just fallen asleep are over
        with statements() as sent:
            await add_job(pg_engine, "work")
            await until(lambda: hook.settled)
            await asyncio.sleep(0.2)
    # One each; who got it looks for another one, and a look that began before it was taken makes its worker ask too.
    assert 1 <= len(claims(sent)) <= 20
    assert len(hook.settled) == 1
