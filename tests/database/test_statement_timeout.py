"""A handler's deadline reaches the database: each statement of its session has the time that is left, so that a worker
which is frozen, cut off or dead leaves no statement behind. On PostgreSQL; on SQLite the worker interrupts the
statement, and a statement dies with its process."""

import asyncio
import math
import time
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from queue_kit import JobRow, JobState, QueueWorker, add_job
from tests.database.running import locked, raw
from tests.proxy import through_proxy
from tests.support import ADD_EFFECT, Recorder, count_jobs, effects, is_completed, make_effects, row_of, until

SLEEP = text("SELECT pg_sleep(600)")


async def timeout_of(session: AsyncSession) -> int:
    """Milliseconds that the database gives a statement of this session."""
    milliseconds = await session.scalar(text("SELECT setting FROM pg_settings WHERE name = 'statement_timeout'"))
    return int(milliseconds)


async def active(engine: AsyncEngine, statement: str) -> int:
    """How many sessions of this database run a statement that contains this."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'active' AND pid <> pg_backend_pid() AND strpos(query, :part) > 0"
    )
    ((count,),) = await raw(engine, query, part=statement)
    return count


async def test_each_transaction_has_the_time_that_is_left_then(pg_engine):
    seen: list[tuple[int, float]] = []

    async def handler(event: Any, session: AsyncSession, job: Any) -> None:
        for _ in range(2):
            left = event.signal.deadline
            seen.append((await timeout_of(session), left))
            await session.commit()
        await session.execute(text("SELECT 1"))
        await session.rollback()
        left = event.signal.deadline
        async with session.begin_nested():
            seen.append((await timeout_of(session), left))

    await add_job(pg_engine, "a", handler_timeout=60)
    await QueueWorker(pg_engine, {"a": handler}).drain()
    assert len(seen) == 3
    assert all(0 < milliseconds <= math.ceil(left * 1_000) for milliseconds, left in seen)
    assert seen[0][0] > 50_000
    assert [*seen] == sorted(seen, reverse=True)
    async with AsyncSession(pg_engine) as session:  # the connections of the pool are as they were
        assert await timeout_of(session) == 0


@pytest.mark.parametrize("deadline", [math.inf, 30 * 86_400.0])
async def test_without_a_deadline_or_with_a_distant_one_the_database_has_none(pg_engine, deadline):
    seen: list[int] = []

    async def handler(event: Any, session: AsyncSession, job: Any) -> None:
        seen.append(await timeout_of(session))

    await add_job(pg_engine, "a", handler_timeout=deadline)
    await QueueWorker(pg_engine, {"a": handler}).drain()
    assert seen == [0]


async def test_a_connection_that_ends_just_after_it_began_costs_no_try(pg_engine, monkeypatch):
    """As when somebody ends it while its answer to BEGIN waits to be read."""
    execute, began = asyncpg.Connection.execute, []

    async def execute_and_end_once(self: asyncpg.Connection, query: str, *args: Any, **kw: Any) -> str:
        status = await execute(self, query, *args, **kw)
        if query.startswith("BEGIN") and "statement_timeout" in query:
            if not began:
                self.terminate()
            began.append(query)
        return status

    monkeypatch.setattr(asyncpg.Connection, "execute", execute_and_end_once)

    async def handler(event: Any, session: AsyncSession, job: Any) -> None:
        await session.execute(text("SELECT 1"))

    job_id = await add_job(pg_engine, "a", handler_timeout=60)
    async with QueueWorker(pg_engine, {"a": handler}, retry_delay=0):
        await until(lambda: is_completed(pg_engine, job_id))
    assert len(began) == 2
    assert (await row_of(pg_engine, job_id)).retry_count == 0
    assert pg_engine.pool.checkedout() == 0


async def test_a_shorter_limit_of_the_database_stays(pg_engine):
    strict = create_async_engine(pg_engine.url, connect_args={"server_settings": {"statement_timeout": "5s"}})
    seen: dict[str, int] = {}

    async def handler(event: Any, session: AsyncSession, job: Any) -> None:
        seen[job.name] = await timeout_of(session)

    await add_job(strict, "long", handler_timeout=60)
    await add_job(strict, "short", handler_timeout=2)
    await QueueWorker(strict, {"long": handler, "short": handler}).drain()
    await strict.dispose()
    assert seen["long"] == 5_000
    assert 0 < seen["short"] <= 2_000


@pytest.mark.parametrize("isolation", [None, "SERIALIZABLE"])
async def test_a_transaction_that_an_engines_listener_began_has_it_too(pg_engine, isolation):
    @event.listens_for(pg_engine.sync_engine, "begin")
    def _(connection: Any) -> None:
        connection.exec_driver_sql("SET LOCAL application_name = 'tenant'")

    seen: list[Any] = []

    async def handler(event: Any, session: AsyncSession, job: Any) -> None:
        seen.append(await session.scalar(text("SHOW application_name")))
        seen.append(await session.scalar(text("SHOW transaction_isolation")))
        seen.append(await timeout_of(session))
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    await make_effects(pg_engine)
    job_id = await add_job(pg_engine, "a", handler_timeout=60)
    await QueueWorker(pg_engine, {"a": handler}, session_isolation=isolation).drain()
    assert seen[:2] == ["tenant", (isolation or "READ COMMITTED").lower()]
    assert 0 < seen[2] <= 60_000
    assert await effects(pg_engine) == [job_id]


async def test_a_transaction_is_one_for_the_driver_too(pg_engine):
    async def handler(event: Any, session: AsyncSession, job: Any) -> None:
        await session.execute(ADD_EFFECT, {"job_id": 1})
        driver = (await (await session.connection()).get_raw_connection()).driver_connection
        assert driver is not None
        undone = driver.transaction()  # a savepoint, or it would refuse
        await undone.start()
        await driver.execute("INSERT INTO effect VALUES (2)")
        await undone.rollback()
        await driver.execute("INSERT INTO effect VALUES (3)")

    await make_effects(pg_engine)
    await add_job(pg_engine, "a")
    assert (await QueueWorker(pg_engine, {"a": handler}).drain())["completed"] == 1
    assert await effects(pg_engine) == [1, 3]


async def test_a_worker_that_is_cut_off_leaves_no_statement_behind(pg_engine):
    began = asyncio.Event()

    async def endless(event: Any, session: AsyncSession, job: Any) -> None:
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        began.set()
        await session.execute(SLEEP)

    await make_effects(pg_engine)
    await add_job(pg_engine, "endless", handler_timeout=1.0)
    async with through_proxy(pg_engine) as (proxy, engine), QueueWorker(engine, {"endless": endless}, grace=0):
        await until(began.is_set)
        await until(lambda: active(pg_engine, "pg_sleep"))
        proxy.stall()
        proxy.refusing = True  # so that no request to cancel arrives either
        await until(lambda: no_longer_active(pg_engine))
        proxy.down()
        assert await count_jobs(pg_engine, ~JobRow.is_complete) == 1
        proxy.up()


async def no_longer_active(engine: AsyncEngine) -> bool:
    return await active(engine, "pg_sleep") == 0


async def test_a_statement_at_the_deadline_is_a_deadline_exceeded(pg_engine):
    async def endless(event: Any, session: AsyncSession, job: Any) -> None:
        await session.execute(SLEEP)

    ids = [await add_job(pg_engine, "endless", handler_timeout=0.2, max_retry_count=1) for _ in range(4)]
    await QueueWorker(pg_engine, {"endless": endless}, parallel_count=4).drain()
    rows = [await row_of(pg_engine, job_id) for job_id in ids]
    assert [row.errors[0]["class"] for row in rows] == ["DeadlineExceeded"] * 4


async def test_what_settles_a_job_has_a_budget_of_its_own(pg_engine):
    """A transaction that began just before the deadline gave its statements a second: the completion has four."""

    async def last_minute(event: Any, session: AsyncSession, job: Any) -> None:
        await until(lambda: event.signal.deadline < 1.0)
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        assert 0 < await timeout_of(session) <= 1_000

    await make_effects(pg_engine)
    job_id = await add_job(pg_engine, "a", handler_timeout=3.0, max_retry_count=1)
    hook = Recorder()
    waits = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '1.3 s'"
    )
    async with QueueWorker(pg_engine, {"a": last_minute}, lease=12.0, hooks=[hook]):
        await until(lambda: hook.started)
        async with locked(pg_engine, job_id):
            await until(lambda: raw(pg_engine, waits))
        await until(lambda: hook.settled)
    assert hook.verdicts == ["completed"]
    assert await effects(pg_engine) == [job_id]


@pytest.mark.parametrize("begun", [False, True])
async def test_what_a_late_handler_has_not_flushed_yet_has_the_budget_of_the_completion(pg_engine, begun):
    """It has blocked the loop past its deadline, so nothing could abort it: it has completed."""

    async def blocks(event: Any, session: AsyncSession, job: Any) -> None:
        if begun:
            await session.execute(text("SELECT 1"))
        session.add_all(JobRow(name="other", data={"n": n}) for n in range(500))
        while event.signal.deadline > 0:
            time.sleep(0.01)

    job_id = await add_job(pg_engine, "a", handler_timeout=1.0, max_retry_count=1)
    counts = await QueueWorker(pg_engine, {"a": blocks}).drain()
    assert (counts["completed"], (await row_of(pg_engine, job_id)).errors) == (1, None)
    assert await count_jobs(pg_engine, JobRow.name == "other") == 500


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_connection_that_breaks_as_a_transaction_begins_fails_nobody(pg_engine, delivered):
    runs: list[int] = []

    async def handler(event: Any, session: AsyncSession, job: Any) -> None:
        runs.append(job.id)
        if len(runs) == 1:
            proxy.down_at(b"SET LOCAL statement_timeout", delivered=delivered)
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    await make_effects(pg_engine)
    async with through_proxy(pg_engine) as (proxy, engine):
        hook = Recorder()
        job_id = await add_job(pg_engine, "a", max_retry_count=1)
        async with QueueWorker(engine, {"a": handler}, retry_delay=0.05, poll_interval=0.05, hooks=[hook]):
            await until(proxy.tripped.is_set)
            proxy.up()
            await until(lambda: len(hook.settled) == 2)
    assert runs == [job_id, job_id]
    assert hook.verdicts == ["released", "completed"]
    assert await effects(pg_engine) == [job_id]
    row = await row_of(pg_engine, job_id)
    assert (row.state, row.retry_count, row.lost) == (JobState.completed, 0, 1)
