"""Start and stop: what a worker leaves behind, which is nothing, how long it may take, and what becomes of its jobs."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import make_url, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from queue_kit import (
    ConfigurationError,
    JobState,
    NewJob,
    QueueWorker,
    SchemaMismatch,
    add_job,
    add_jobs,
    migrate,
    sqlite_engine,
)
from queue_kit._store import Store
from queue_kit.models import WorkerRow
from tests.conftest import engine_for
from tests.database.running import Gate, raw, worker_rows
from tests.support import ADD_EFFECT, Recorder, effects, make_effects, row_of, until

LONG = 600.0
"""A time that no test lives to see the end of."""

SOON = 8.0
"""What "at once" may take on a busy machine: far below `LONG`, and below SQLite's busy timeout."""

Leftovers = Callable[[], Awaitable[list[str]]]


@pytest.fixture
async def leftovers(engine: AsyncEngine) -> Leftovers:
    """What is there now and was not before: tasks, rows of workers, connections and listeners of the host's engine."""
    before = asyncio.all_tasks()
    listeners = len(engine.sync_engine.dispatch.commit)

    async def look() -> list[str]:
        found = [task.get_name() for task in asyncio.all_tasks() - before - {asyncio.current_task()}]
        if engine.pool.checkedout():
            found.append(f"{engine.pool.checkedout()} connections")
        if len(engine.sync_engine.dispatch.commit) != listeners:
            found.append("a listener for commits")
        found.extend(f"row of worker {row.id}" for row in await worker_rows(engine))
        return found

    return look


def nothing_left(leftovers: Leftovers) -> Callable[[], Awaitable[bool]]:
    async def gone() -> bool:
        return await leftovers() == []

    return gone


async def is_given_back(engine: AsyncEngine, job_id: int) -> bool:
    """Whether a job was claimed once and waits again, nothing counted."""
    row = await row_of(engine, job_id)
    counted = (row.retry_count, row.lost, row.errors)
    return (row.state, row.claim_no, row.worker_id, counted) == (JobState.ready, 1, None, (0, 0, None))


# --- start ------------------------------------------------------------------------------------------------------------


def test_constructing_starts_nothing_and_needs_no_loop(sqlite_path):
    connected = []
    for engine in (sqlite_engine(sqlite_path), create_async_engine("postgresql+asyncpg://u@127.0.0.1:1/none")):
        sqlalchemy_event.listen(engine.sync_engine.pool, "first_connect", lambda *_: connected.append(1))
        worker = QueueWorker(engine, {})
        assert (worker.id, worker.healthy, connected) == (None, False, [])


async def test_starting_and_stopping_again_is_harmless_also_at_once(engine, leftovers):
    gate = Gate()
    gate.open.set()
    hook = Recorder()
    worker = QueueWorker(engine, {"work": gate}, hooks=[hook])
    await asyncio.gather(worker.stop(), worker.stop())
    await asyncio.gather(*(worker.start() for _ in range(3)))
    first = worker.id
    await worker.start()
    assert [row.id for row in await worker_rows(engine)] == [first] == [worker.id]
    job_id = await add_job(engine, "work")
    await until(lambda: hook.settled)
    await asyncio.gather(*(worker.stop() for _ in range(3)))
    await worker.stop()
    assert (gate.ran, hook.states) == ([job_id], ["started", "stopping", "stopped"])
    assert (worker.id, worker.healthy) == (None, False)
    assert await leftovers() == []


async def test_a_start_during_a_stop_and_a_stop_during_a_start_take_turns(engine, leftovers):
    worker = QueueWorker(engine, {})
    await asyncio.gather(worker.start(), worker.stop(), worker.start(), worker.stop(), worker.start())
    assert [row.id for row in await worker_rows(engine)] == [worker.id]
    await asyncio.gather(worker.stop(), worker.start(), worker.stop())
    assert await leftovers() == []


async def test_a_stopped_worker_starts_again_under_a_new_id(engine, leftovers):
    hook, gate = Recorder(), Gate()
    gate.open.set()
    worker = QueueWorker(engine, {"work": gate}, hooks=[hook])
    ids = []
    for _ in range(2):
        async with worker as entered:
            assert entered is worker
            assert worker.healthy
            ids.append(worker.id)
            hook.settled.clear()
            await add_job(engine, "work")
            await until(lambda: hook.verdicts == ["completed"])
        assert await leftovers() == []
    assert ids[0] != ids[1]


async def test_an_error_in_the_body_passes_and_the_worker_is_stopped(engine, leftovers):
    with pytest.raises(LookupError, match="the host's own"):
        async with QueueWorker(engine, {}):
            raise LookupError("the host's own")
    assert await leftovers() == []


async def test_start_raises_when_the_database_cannot_be_reached(database_url, tmp_path):
    before, threads = asyncio.all_tasks(), threading.active_count()
    url = make_url(database_url)
    if url.get_backend_name() == "postgresql":
        unreachable = create_async_engine(url.set(host="127.0.0.1", port=1, query={}))
    else:
        (tmp_path / "folder").mkdir()
        unreachable = sqlite_engine(tmp_path / "folder" / "queue.db")
        (tmp_path / "folder").rmdir()
    worker = QueueWorker(unreachable, {})
    for attempt in (worker.start, worker.drain, worker.__aenter__):
        with pytest.raises((OSError, DBAPIError)):
            await attempt()
        assert (worker.id, unreachable.pool.checkedout()) == (None, 0)
        assert asyncio.all_tasks() == before
    await unreachable.dispose()
    await until(lambda: threading.active_count() <= threads)


async def test_start_names_the_command_when_tables_are_missing_and_succeeds_afterwards(empty_database_url):
    before = asyncio.all_tasks()
    engine = engine_for(empty_database_url)
    worker = QueueWorker(engine, {})
    for attempt in (worker.start, worker.drain):
        with pytest.raises(SchemaMismatch, match="`queue-kit migrate`"):
            await attempt()
    assert (asyncio.all_tasks(), engine.pool.checkedout()) == (before, 0)
    await migrate.upgrade(engine)
    async with worker:
        assert worker.healthy
    await engine.dispose()


@pytest.mark.parametrize(
    ("versions", "mend"), [((7, migrate.VERSION + 1), "upgrade queue-kit"), ((0, 0), "`queue-kit migrate`")]
)
async def test_start_refuses_a_schema_that_does_not_fit(engine, leftovers, versions, mend):
    await raw(engine, "DELETE FROM queue_kit_schema")
    sql = "INSERT INTO queue_kit_schema VALUES (:version, :compatible_from)"
    await raw(engine, sql, version=versions[0], compatible_from=versions[1])
    with pytest.raises(SchemaMismatch, match=mend) as caught:
        await QueueWorker(engine, {}).start()
    assert (caught.value.found, caught.value.needed) == (versions[0], migrate.VERSION)
    assert await leftovers() == []


async def test_start_accepts_a_newer_schema_that_says_it_fits(engine):
    await raw(engine, "INSERT INTO queue_kit_schema VALUES (7, :from_)", from_=migrate.VERSION)
    async with QueueWorker(engine, {}) as worker:
        assert worker.healthy


async def test_a_start_that_fails_after_its_row_was_written_takes_it_back(engine, leftovers, tmp_path):
    elsewhere = sqlite_engine(tmp_path / "elsewhere.db")
    with pytest.raises(ConfigurationError, match="another database"):
        await QueueWorker(engine, {}, session_factory=lambda: AsyncSession(elsewhere)).start()
    assert await leftovers() == []
    assert elsewhere.pool.checkedout() == 0
    await elsewhere.dispose()


# The connections that a start takes: for the schema, for its row (of the private pool), for looking at its sessions.
@pytest.mark.parametrize("moment", [("checkout", 1), ("checkin", 1), ("checkout", 2), ("checkin", 2), ("checkout", 3)])
async def test_a_cancelled_start_leaves_nothing_behind(engine, leftovers, moment):
    kind, number = moment
    times = []
    worker = QueueWorker(engine, {})
    starting = asyncio.create_task(worker.start())

    def cancel(*_: object) -> None:
        times.append(kind)
        if len(times) == number:
            starting.cancel()

    sqlalchemy_event.listen(engine.sync_engine.pool, kind, cancel)
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert worker.id is None
    assert await leftovers() == []
    await add_job(engine, "writable")
    async with worker:
        assert worker.healthy


# --- stop -------------------------------------------------------------------------------------------------------------


async def test_stop_finishes_running_jobs_and_starts_none_afterwards(engine, leftovers):
    gate, hook = Gate(), Recorder()
    worker = QueueWorker(engine, {"work": gate}, parallel_count=2, grace=LONG, hooks=[hook])
    ids = await add_jobs(engine, [NewJob("work")] * 4)
    await worker.start()
    await until(lambda: len(gate.running) == 2)
    stopping = asyncio.create_task(worker.stop())
    await until(lambda: hook.states == ["started", "stopping"])
    ids += [await add_job(engine, "work", priority=0)]
    gate.open.set()
    await asyncio.wait_for(stopping, SOON)
    assert (gate.ran, hook.verdicts) == (ids[:2], ["completed"] * 2)
    assert [(await row_of(engine, job_id)).claim_no for job_id in ids] == [1, 1, 0, 0, 0]
    assert await leftovers() == []


async def test_a_claim_under_way_when_stop_is_called_starts_nothing(engine, leftovers, monkeypatch):
    claimed, answer, claim = asyncio.Event(), asyncio.Event(), Store.claim

    async def slow(*args, **options):
        jobs = await claim(*args, **options)
        if jobs:
            claimed.set()
            await answer.wait()
        return jobs

    monkeypatch.setattr(Store, "claim", slow)
    gate, hook = Gate(), Recorder()
    gate.open.set()
    worker = QueueWorker(engine, {"work": gate}, hooks=[hook])
    await worker.start()
    job_id = await add_job(engine, "work")
    await claimed.wait()
    stopping = asyncio.create_task(worker.stop())
    await until(lambda: "stopping" in hook.states)
    answer.set()
    await asyncio.wait_for(stopping, SOON)
    assert (gate.ran, hook.started) == ([], [])
    assert await is_given_back(engine, job_id)
    assert await leftovers() == []


async def test_jobs_claimed_together_start_no_more_once_one_of_them_has_called_stop(engine, leftovers):
    stopped, late = [], []

    async def stops(event, session, job):
        if stopped:
            late.append(job.id)
        stopped.append(job.id)
        await worker.stop(grace=0)

    worker = QueueWorker(engine, {"stops": stops}, parallel_count=3)
    ids = await add_jobs(engine, [NewJob("stops")] * 3)
    await worker.start()
    await until(nothing_left(leftovers))
    assert (stopped, late) == (ids[:1], [])
    for job_id in ids:
        assert await is_given_back(engine, job_id)


async def test_an_idle_worker_stops_at_once(engine, leftovers):
    async with asyncio.timeout(SOON):
        async with QueueWorker(engine, {}, parallel_count=4, poll_interval=LONG, grace=LONG, cancel_grace=LONG):
            pass
    assert await leftovers() == []


async def test_an_idle_worker_stops_at_once_also_while_its_database_is_away(engine):
    hook = Recorder()
    worker = QueueWorker(engine, {"work": Gate()}, poll_interval=0.05, grace=LONG, hooks=[hook])
    await worker.start()
    await raw(engine, "ALTER TABLE queue_kit_job RENAME TO away")
    await until(lambda: hook.states[-1] == "database_down")
    await asyncio.wait_for(worker.stop(), SOON)
    assert hook.states[-1] == "stopped"


ENDINGS = ["cancelled", "returns when cancelled", "fails when cancelled", "refuses", "refuses and holds its session"]


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_job_that_is_cut_off_is_given_back_and_runs_elsewhere_at_once(engine, refusing, leftovers, ending):
    await make_effects(engine)
    again, reasons = Gate(), []
    again.open.set()

    async def work(event, session, job):
        reasons.append(event.signal)
        if ending != "refuses":
            await session.execute(ADD_EFFECT, {"job_id": job.id})
        if ending.startswith("refuses"):
            await refusing(event, session, job)
            await session.commit()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            if ending == "cancelled":
                raise
            assert ending == "returns when cancelled", "this fails the handler"

    job_id = await add_job(engine, "work", max_retry_count=1)
    worker = QueueWorker(engine, {"work": work}, lease=LONG, handler_timeout=math.inf, cancel_grace=2.0)
    await worker.start()
    await until(lambda: reasons)
    began = time.monotonic()
    await worker.stop(grace=0.2)
    assert time.monotonic() - began < 2.2 + SOON
    assert type(reasons[0].reason).__name__ == "ShuttingDown"
    assert refusing.cancelled == ending.startswith("refuses")
    assert await is_given_back(engine, job_id)
    counts = await asyncio.wait_for(QueueWorker(engine, {"work": again}).drain(), SOON)
    assert (counts["completed"], again.ran) == (1, [job_id])
    refusing.let_go.set()
    await until(nothing_left(leftovers))
    assert await effects(engine) == []


async def test_the_ending_of_a_job_whose_deadline_passed_before_the_stop_is_written_in_it(engine, refusing, leftovers):
    """It has its own, longer grace by then; the stop's is what counts."""
    job_id = await add_job(engine, "refusing", handler_timeout=0.1, max_retry_count=9)
    worker = QueueWorker(engine, {"refusing": refusing}, cancel_grace=2.0, retry_delay=LONG)
    await worker.start()
    await until(lambda: refusing.cancelled)
    await asyncio.wait_for(worker.stop(grace=0), SOON)
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count) == (JobState.scheduled, 1)
    refusing.let_go.set()
    await until(nothing_left(leftovers))


async def test_stop_returns_in_time_though_the_database_does_not_answer(engine, leftovers):
    hook = Recorder()
    worker = QueueWorker(engine, {}, hooks=[hook], cancel_grace=0.2)
    await worker.start()
    async with engine.begin() as connection:
        await connection.execute(update(WorkerRow).values(label="whoever wants this row waits"))
        began = time.monotonic()
        await worker.stop(grace=0.2)
        assert time.monotonic() - began < 0.4 + SOON
    assert hook.states == ["started", "stopping", "stopped"]

    async def gone() -> bool:
        return not [each for each in await leftovers() if not each.startswith("row of worker")]

    await until(gone)


@pytest.mark.parametrize("finishes", [True, False], ids=["jobs that finish", "jobs that do not"])
async def test_a_cancelled_stop_leaves_nothing_behind(engine, leftovers, finishes):
    gate, hook = Gate(), Recorder()
    worker = QueueWorker(engine, {"work": gate}, grace=LONG if finishes else 0.1, hooks=[hook])
    job_id = await add_job(engine, "work")
    await worker.start()
    await until(lambda: gate.running)
    stopping = asyncio.create_task(worker.stop())
    await until(lambda: "stopping" in hook.states)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    if finishes:
        gate.open.set()
    await until(nothing_left(leftovers))
    assert hook.verdicts == (["completed"] if finishes else ["released"])
    assert (await row_of(engine, job_id)).worker_id is None or finishes


async def test_stop_after_a_cancelled_stop_waits_for_its_end(engine, leftovers):
    gate = Gate()
    worker = QueueWorker(engine, {"work": gate}, grace=LONG)
    await add_job(engine, "work")
    await worker.start()
    await until(lambda: gate.running)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(worker.stop(), 0.05)
    gate.open.set()
    await worker.stop()
    assert await leftovers() == []


async def test_a_cancelled_run_stops_the_worker(engine, leftovers):
    gate = Gate()
    job_id = await add_job(engine, "work")
    running = asyncio.create_task(QueueWorker(engine, {"work": gate}, grace=0.1).run())
    await until(lambda: gate.running)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(nothing_left(leftovers))
    assert await is_given_back(engine, job_id)
