"""What handlers do with their sessions that they should not: it costs their own job at most, never a connection, a
lock or a place that others wait for."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker

from queue_kit import (
    ConfigurationError,
    Handlers,
    JobState,
    LeaseLost,
    NewJob,
    QueueWorker,
    UnfencedCommit,
    add_job,
    add_jobs,
)
from tests.database.running import locked, waits_for_a_lock
from tests.support import ADD_EFFECT, Recorder, effects, make_effects, row_of, until


@pytest.fixture
def jobs() -> Handlers:
    handlers = Handlers()

    @handlers.handler("use")
    async def use(event, session, job):
        await session.execute(text("SELECT 1"))

    return handlers


@pytest.mark.parametrize(
    "inside", ["", "first", "second"], ids=["later", "in the first statement", "in the second one"]
)
async def test_a_task_that_outlives_its_handler_gets_nothing_from_its_session(engine, jobs, inside):
    await make_effects(engine)
    over, left = asyncio.Event(), []

    async def child(session, job):
        if inside:
            await session.execute(ADD_EFFECT, {"job_id": job.id})
        await over.wait()
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        await session.commit()

    @jobs.handler("leaves", max_retry_count=1)
    async def leaves(event, session, job):
        if inside == "second":
            await session.execute(text("SELECT 1"))
        left.append(asyncio.create_task(child(session, job)))
        await asyncio.sleep(0)
        raise ValueError("the sibling failed")

    hook = Recorder()
    await add_job(engine, "leaves")
    async with QueueWorker(engine, jobs, hooks=[hook]):
        await until(lambda: hook.settled)
        over.set()
        await asyncio.wait(left)
        await add_jobs(engine, [NewJob("use")] * 3)  # SQLite's lock is free
        await until(lambda: len(hook.settled) == 4)
    assert hook.verdicts == ["failed", "completed", "completed", "completed"]
    refusal = left[0].exception()  # which asyncio would else log in the midst of another test
    assert inside or isinstance(refusal, LeaseLost)
    assert await effects(engine) == []
    assert engine.pool.checkedout() == 0


async def test_a_session_that_several_tasks_use_at_once_costs_its_own_job_only(engine, jobs):
    @jobs.handler("shares", max_retry_count=1)
    async def shares(event, session, job):
        await asyncio.gather(*(session.execute(text("SELECT 1")) for _ in range(3)))

    hook = Recorder()
    await add_jobs(engine, [NewJob("shares", handler_timeout=20)] * 4 + [NewJob("use")] * 8)
    async with QueueWorker(engine, jobs, parallel_count=12, hooks=[hook]):
        await until(lambda: len(hook.settled) == 12)
    failures = {error["class"] for record in hook.settled if (error := record.outcome.error)}
    assert failures <= {"InvalidRequestError", "IllegalStateChangeError", "InterfaceError"}
    assert InvalidRequestError.__name__ in failures
    assert hook.verdicts.count("completed") >= 8


async def test_autocommit_is_refused_where_nothing_would_check_the_lease(pg_engine, jobs):
    await make_effects(pg_engine)
    raised = []

    @jobs.handler("commits", max_retry_count=1)
    async def commits(event, session, job):
        try:
            await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            await session.execute(ADD_EFFECT, {"job_id": job.id})
        except UnfencedCommit as error:
            raised.append(error)
            raise

    job_id = await add_job(pg_engine, "commits")
    counts = await QueueWorker(pg_engine, jobs).drain()
    assert (counts["failed"], len(raised)) == (1, 1)
    assert await effects(pg_engine) == []
    assert (await row_of(pg_engine, job_id)).state is JobState.failed
    assert pg_engine.pool.checkedout() == 0


@pytest.mark.parametrize("factory", [None, async_sessionmaker], ids=["its own sessions", "a factory's"])
@pytest.mark.parametrize("way", ["close", "reset", "invalidate", "async with"])
async def test_a_handler_that_closes_its_session_is_told_so_and_loses_nothing_silently(engine, jobs, factory, way):
    await make_effects(engine)

    @jobs.handler("closes", max_retry_count=1)
    async def closes(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        if way == "async with":
            async with session:
                pass
        else:
            await getattr(session, way)()

    job_id = await add_job(engine, "closes")
    counts = await QueueWorker(engine, jobs, session_factory=factory and factory(engine)).drain()
    row = await row_of(engine, job_id)
    assert (counts["failed"], row.errors[0]["class"]) == (1, "InvalidRequestError")
    assert "closed by its worker" in row.errors[0]["message"]
    assert await effects(engine) == []


async def test_a_factory_that_gives_one_session_to_many_runs_is_refused(engine, jobs):
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    with pytest.raises(ConfigurationError, match="async_sessionmaker, not an async_scoped_session"):
        await QueueWorker(engine, jobs, session_factory=scoped).start()
    await scoped.remove()
    async with QueueWorker(engine, jobs, session_factory=async_sessionmaker(engine)):
        pass


@pytest.mark.parametrize("freed", [True, False], ids=["freed in time", "kept"])
async def test_a_checkpoint_waits_for_its_locked_row_but_not_for_ever(pg_engine, jobs, freed):
    await make_effects(pg_engine)
    commit_now, raised = asyncio.Event(), asyncio.Event()

    @jobs.handler("checkpoints", max_retry_count=1)
    async def checkpoints(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        await commit_now.wait()
        try:
            await session.commit()
        except BaseException:
            raised.set()
            raise

    hook = Recorder()
    job_id = await add_job(pg_engine, "checkpoints")
    async with QueueWorker(pg_engine, jobs, lease=6, hooks=[hook]):
        await until(lambda: hook.started)
        async with locked(pg_engine, job_id):
            commit_now.set()
            await until(lambda: waits_for_a_lock(pg_engine))
            if not freed:
                await asyncio.wait_for(raised.wait(), 20)
        await until(lambda: hook.settled)
    assert hook.verdicts == ["completed" if freed else "failed"]
    assert await effects(pg_engine) == ([job_id] if freed else [])
