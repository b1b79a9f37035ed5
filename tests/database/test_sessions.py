"""The handler's session: its writes and the job's ending are one, and nothing passes the fence."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from queue_kit import (
    Cancelled,
    ConfigurationError,
    JobRow,
    JobState,
    LeaseLost,
    NewJob,
    QueueWorker,
    UnfencedCommit,
    add_job,
    add_jobs,
    cancel_job,
    get_job,
)
from queue_kit._gate import gate_for
from tests.database.clock import database_now
from tests.database.running import steal
from tests.support import ADD_EFFECT, Recorder, count_jobs, effects, make_effects, row_of, until


class Base(DeclarativeBase):
    pass


class Unique(Base):
    __tablename__ = "uniq"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
async def engine(engine: AsyncEngine) -> AsyncEngine:
    await make_effects(engine)
    return engine


async def test_writes_and_completion_commit_together(engine, jobs):
    seen = []

    @jobs.handler("write")
    async def write(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        seen.append((await effects(engine), (await row_of(engine, job.id)).state) if engine.name != "sqlite" else None)

    job_id = await add_job(engine, "write")
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 1
    assert await effects(engine) == [job_id]
    assert (await row_of(engine, job_id)).state is JobState.completed
    assert seen == ([([], JobState.running)] if engine.name != "sqlite" else [None])


async def test_a_failed_handler_leaves_no_writes_but_its_retry_is_recorded(engine, jobs):
    @jobs.handler("fail", retry_delay=1000)
    async def fail(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        raise ValueError("no")

    job_id = await add_job(engine, "fail")
    assert (await QueueWorker(engine, jobs).drain())["retried"] == 1
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count) == (JobState.scheduled, 1)
    assert await effects(engine) == []


async def test_an_own_commit_is_a_checkpoint_that_stays(engine, jobs):
    @jobs.handler("checkpoint", max_retry_count=1)
    async def checkpoint(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": 1001})
        await session.commit()
        await session.execute(ADD_EFFECT, {"job_id": 1002})
        raise ValueError("after the checkpoint")

    await add_job(engine, "checkpoint")
    assert (await QueueWorker(engine, jobs).drain())["failed"] == 1
    assert await effects(engine) == [1001]


async def test_after_the_lease_is_lost_nothing_commits_not_even_by_its_own_commit(engine, jobs):
    started, stolen, told = asyncio.Event(), asyncio.Event(), []

    @jobs.handler("zombie")
    async def zombie(event, session, job):
        started.set()
        await stolen.wait()
        for _ in range(2):
            await session.execute(ADD_EFFECT, {"job_id": job.id})
            try:
                await session.commit()
            except LeaseLost:
                told.append(type(event.signal.reason))
                await session.rollback()

    job_id = await add_job(engine, "zombie")
    hook = Recorder()
    async with QueueWorker(engine, jobs, hooks=[hook], listen=False):  # which would renew as soon as it listens
        await until(started.is_set)
        await steal(engine, job_id)
        stolen.set()
        await until(lambda: hook.settled)
    assert hook.verdicts == ["lost"]
    assert set(told) == {LeaseLost}
    assert await effects(engine) == []
    assert (await row_of(engine, job_id)).retry_count == 0


async def test_a_completion_after_the_lease_is_lost_rolls_the_writes_back(engine, jobs):
    started, stolen = asyncio.Event(), asyncio.Event()

    @jobs.handler("late")
    async def late(event, session, job):
        started.set()
        await stolen.wait()
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    job_id = await add_job(engine, "late")
    hook = Recorder()
    async with QueueWorker(engine, jobs, hooks=[hook]):
        await until(started.is_set)
        await steal(engine, job_id)
        stolen.set()
        await until(lambda: hook.settled)
    assert hook.verdicts == ["lost"]
    assert await effects(engine) == []
    assert (await row_of(engine, job_id)).status == 1


async def test_an_unused_session_is_fenced_as_well(engine, jobs):
    started, stolen = asyncio.Event(), asyncio.Event()

    @jobs.handler("unused")
    async def unused(event, session, job):
        started.set()
        await stolen.wait()

    job_id = await add_job(engine, "unused")
    hook = Recorder()
    async with QueueWorker(engine, jobs, hooks=[hook]):
        await until(started.is_set)
        await steal(engine, job_id)
        stolen.set()
        await until(lambda: hook.settled)
    assert hook.verdicts == ["lost"]
    assert (await row_of(engine, job_id)).status == 1


async def test_every_commit_raises_once_the_token_is_aborted(engine, jobs):
    raised = []

    @jobs.handler("aborted", timeout=1.0, max_retry_count=1)
    async def aborted(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            try:
                await session.commit()
            except Exception as error:
                raised.append(type(error).__name__)

    await add_job(engine, "aborted")
    assert (await QueueWorker(engine, jobs).drain())["failed"] == 1
    assert raised == ["DeadlineExceeded"]
    assert await effects(engine) == []


async def test_a_commit_beneath_the_session_is_refused(engine, jobs):
    @jobs.handler("beneath", max_retry_count=1)
    async def beneath(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        with pytest.raises(UnfencedCommit):
            await (await session.connection()).commit()
        raise RuntimeError("as expected")

    job_id = await add_job(engine, "beneath")
    await QueueWorker(engine, jobs).drain()
    assert (await row_of(engine, job_id)).errors[0]["message"] == "as expected"
    assert await effects(engine) == []


async def test_savepoints_are_the_handlers_own(engine, jobs):
    @jobs.handler("savepoint")
    async def savepoint(event, session, job):
        async with session.begin_nested():
            await session.execute(ADD_EFFECT, {"job_id": 1})
        nested = await session.begin_nested()
        await session.execute(ADD_EFFECT, {"job_id": 2})
        await nested.rollback()

    await add_job(engine, "savepoint")
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 1
    assert await effects(engine) == [1]


async def test_what_the_database_refuses_at_the_end_is_a_failed_try(engine, jobs):
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    @jobs.handler("insert", max_retry_count=1)
    async def insert(event, session, job):
        session.add(Unique(id=1))

    first, second = await add_jobs(engine, [NewJob("insert"), NewJob("insert")])
    await QueueWorker(engine, jobs).drain()
    assert (await row_of(engine, first)).state is JobState.completed
    row = await row_of(engine, second)
    assert row.state is JobState.failed
    assert row.errors[0]["class"] == "IntegrityError"


@pytest.mark.parametrize("way", ["add_job", "orm"])
async def test_a_job_may_add_itself_again_under_its_own_key(engine, jobs, way):
    @jobs.handler("again", max_retry_count=1)
    async def again(event, session, job):
        if job.data.get("round", 0) < 2:
            data = {"round": job.data.get("round", 0) + 1}
            if way == "orm":
                session.add(JobRow(name="again", data=data, unique_key="key"))
            else:
                assert await add_job(session, "again", data, unique_key="key") is not None

    await add_job(engine, "again", unique_key="key")
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 3


async def test_a_key_handed_over_comes_back_when_the_handler_fails(engine, jobs):
    @jobs.handler("fails", retry_delay=1000)
    async def fails(event, session, job):
        await add_job(session, "fails", unique_key="key")
        raise ValueError("no")

    job_id = await add_job(engine, "fails", unique_key="key")
    await QueueWorker(engine, jobs).drain()
    assert (await row_of(engine, job_id)).unique_key == "key"
    assert await count_jobs(engine) == 1


async def test_sessions_come_from_the_factory(engine, jobs):
    class Mine(AsyncSession):
        pass

    seen: list[Any] = []

    @jobs.handler("mine")
    async def mine(event, session, job):
        seen.append(type(session))
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    job_id = await add_job(engine, "mine")
    await QueueWorker(engine, jobs, session_factory=lambda: Mine(engine)).drain()
    assert seen == [Mine]
    assert await effects(engine) == [job_id]


async def test_the_session_that_a_start_looks_through_is_closed_before_others_have_its_turn(engine, jobs):
    """Or their transactions would wait for SQLite's lock, by its busy timeout, instead of at the gate."""
    gate, _ = gate_for(engine.sync_engine, parallel_count=1)
    places, closed_with = gate._value, []

    class Mine(AsyncSession):
        async def close(self):
            await super().close()
            closed_with.append(gate._value)

    async with QueueWorker(engine, jobs, session_factory=lambda: Mine(engine)):
        assert closed_with == [places - 1]


async def test_a_cancelled_job_keeps_nothing(engine, jobs):
    started, reasons = asyncio.Event(), []

    @jobs.handler("wait")
    async def wait(event, session, job):
        started.set()
        reasons.append(await event.signal.wait())
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    job_id = await add_job(engine, "wait")
    async with QueueWorker(engine, jobs, lease=6.0):
        await until(started.is_set)
        assert await cancel_job(engine, job_id) is JobState.running

        async def cancelled() -> bool:
            return (await row_of(engine, job_id)).state is JobState.cancelled

        await until(cancelled)
    assert isinstance(reasons[0], Cancelled)
    assert await effects(engine) == []


# --- PostgreSQL: isolation, pools, locked rows ------------------------------------------------------------------------


async def test_sessions_run_read_committed_whatever_the_engine_says(pg_engine, jobs):
    strict = create_async_engine(pg_engine.url, isolation_level="REPEATABLE READ")
    levels = []

    @jobs.handler("level")
    async def level(event, session, job):
        levels.append((await session.execute(text("SHOW transaction_isolation"))).scalar_one())

    await add_job(pg_engine, "level")
    await QueueWorker(strict, jobs).drain()
    await add_job(pg_engine, "level")
    await QueueWorker(strict, jobs, session_isolation="SERIALIZABLE").drain()
    await strict.dispose()
    assert levels == ["read committed", "serializable"]


async def test_sessions_in_autocommit_are_refused(pg_engine, jobs):
    careless = pg_engine.execution_options(isolation_level="AUTOCOMMIT")
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        await QueueWorker(pg_engine, jobs, session_factory=lambda: AsyncSession(careless)).start()


async def test_handlers_never_take_the_hosts_last_connection(pg_engine, jobs):
    engine = create_async_engine(pg_engine.url, pool_size=3, max_overflow=0, pool_timeout=5)
    holding, go = [], asyncio.Event()

    @jobs.handler("hold")
    async def hold(event, session, job):
        await session.execute(text("SELECT 1"))
        holding.append(job.id)
        await go.wait()

    await add_jobs(engine, [NewJob("hold")] * 5)
    hook = Recorder()
    async with QueueWorker(engine, jobs, parallel_count=5, hooks=[hook]):
        await until(lambda: len(hook.started) == 5 and holding)
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
        assert len(holding) == 1
        go.set()
        await until(lambda: len(hook.settled) == 5)
    await engine.dispose()
    assert hook.verdicts == ["completed"] * 5


async def test_a_handler_that_locks_its_own_row_keeps_its_lease(pg_engine, jobs):
    go = asyncio.Event()

    @jobs.handler("locks")
    async def locks(event, session, job):
        await add_job(session, "locks-next", unique_key="key")
        await go.wait()

    job_id = await add_job(pg_engine, "locks", unique_key="key")
    hook = Recorder()

    async def its_lease_has_lapsed_in_the_row() -> bool:
        return (await row_of(pg_engine, job_id)).lease_until < await database_now(pg_engine)

    async with QueueWorker(pg_engine, jobs, lease=3.0, hooks=[hook]):
        await until(lambda: hook.started)
        await until(its_lease_has_lapsed_in_the_row)
        go.set()
        await until(lambda: hook.settled)
    assert hook.verdicts == ["completed"]
    assert (await row_of(pg_engine, job_id)).lost == 0


# --- SQLite: deadlines and locks --------------------------------------------------------------------------------------


ENDLESS = text("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c")


async def test_deadlines_inside_a_statement_leak_no_lock(embedded_engine, jobs):
    await make_effects(embedded_engine)

    @jobs.handler("endless", max_retry_count=1)
    async def endless(event, session, job):
        if job.id % 2:
            await session.execute(ADD_EFFECT, {"job_id": job.id})
        await session.execute(ENDLESS)

    await add_jobs(embedded_engine, [NewJob("endless", handler_timeout=(n % 30 + 1) / 1000) for n in range(200)])
    counts = await QueueWorker(embedded_engine, jobs, parallel_count=4).drain()
    assert counts["failed"] == 200
    assert await effects(embedded_engine) == []
    loop = asyncio.get_running_loop()
    began = loop.time()
    await add_job(embedded_engine, "writer")
    assert loop.time() - began < 4.0


async def test_a_handler_that_keeps_the_lock_is_named_in_the_log(embedded_engine, jobs, caplog, monkeypatch):
    monkeypatch.setattr("queue_kit._session.LONG_HOLD", 0.0)

    @jobs.handler("keeper")
    async def keeper(event, session, job):
        await session.execute(text("SELECT 1"))

    job_id = await add_job(embedded_engine, "keeper")
    await QueueWorker(embedded_engine, jobs).drain()
    assert f"job {job_id} keeper kept SQLite's write lock" in caplog.text
    assert (await get_job(embedded_engine, job_id)).state is JobState.completed
