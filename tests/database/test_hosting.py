"""A worker inside its host: how many jobs it runs at once, the row that tells of it, a drain, and that whatever goes
wrong stays inside it.
"""

import asyncio
import os
import socket
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from queue_kit import ConfigurationError, Discard, NewJob, QueueWorker, Snooze, add_job, add_jobs, cancel_job
from tests.conftest import engine_for
from tests.database.clock import database_now
from tests.database.running import Gate, lapse, nothing, raw, worker_rows
from tests.support import Recorder, count_jobs, until

# --- pullers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 20])
async def test_parallel_count_jobs_run_at_once_and_never_more(engine, count):
    hook, running, most, step = Recorder(), set(), [], asyncio.Semaphore(0)

    async def work(event, session, job):
        running.add(job.id)
        most.append(len(running))
        await step.acquire()
        running.discard(job.id)

    await add_jobs(engine, [NewJob("work")] * (count * 3))
    async with QueueWorker(engine, {"work": work}, parallel_count=count, hooks=[hook]):
        for done in range(count * 2 + 1):
            await until(lambda done=done: len(running) == count and len(hook.settled) == done)
            step.release()
        for _ in range(count):
            step.release()
        await until(lambda: len(hook.settled) == count * 3)
    assert max(most) == count
    assert hook.verdicts == ["completed"] * (count * 3)


async def test_a_worker_takes_six_connections_and_one_for_each_session_in_use(pg_engine):
    let_go, holding = asyncio.Event(), []

    async def hold(event, session, job):
        await session.execute(text("SELECT 1"))
        holding.append(job.id)
        await let_go.wait()

    hook = Recorder()
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    looking = create_async_engine(pg_engine.url, poolclass=NullPool)
    await add_jobs(pg_engine, [NewJob("hold", priority=0)] * 3 + [NewJob("small")] * 500)
    async with QueueWorker(pg_engine, {"hold": hold, "small": nothing}, parallel_count=10, hooks=[hook]):
        await until(lambda: len(holding) == 3 and hook.verdicts.count("completed") == 500)
        async with looking.connect() as connection:
            taken = await connection.scalar(others)
        let_go.set()
    assert 3 < taken <= 6 + 3


async def test_a_poll_finds_what_nothing_announced(engine, database_url):
    hook, gate = Recorder(), Gate()
    gate.open.set()
    elsewhere = engine_for(database_url)
    async with QueueWorker(engine, {"work": gate}, listen=False, poll_interval=0.05, hooks=[hook]):
        for number in range(1, 3):
            await raw(elsewhere, "INSERT INTO queue_kit_job (name) VALUES ('work')")
            await until(lambda number=number: len(hook.settled) == number)
    await elsewhere.dispose()


async def test_two_workers_of_one_process_start_and_stop_apart(engine):
    gate, hooks = Gate(), (Recorder(), Recorder())
    one, two = (QueueWorker(engine, {"work": gate}, hooks=[hook], poll_interval=0.05) for hook in hooks)
    await add_jobs(engine, [NewJob("work")] * 2)
    async with two:
        async with one:
            await until(lambda: len(gate.running) == 2)
            assert {row.id for row in await worker_rows(engine)} == {one.id, two.id}
            assert [len(hook.started) for hook in hooks] == [1, 1]
            gate.open.set()
        assert (one.healthy, two.healthy) == (False, True)
        assert [row.id for row in await worker_rows(engine)] == [two.id]
        await add_job(engine, "work")
        await until(lambda: len(hooks[1].settled) == 2)
    assert [len(hook.settled) for hook in hooks] == [1, 2]
    assert await worker_rows(engine) == []


# --- the worker's row -------------------------------------------------------------------------------------------------


async def test_the_row_tells_who_runs_what_and_is_gone_after_stop(engine):
    names = {name: Gate() for name in "cab"}
    async with QueueWorker(engine, names, excluded_names=["a"]) as worker:
        (row,) = await worker_rows(engine)
        assert (row.id, row.names, row.host, row.pid) == (worker.id, ["b", "c"], socket.gethostname(), os.getpid())
        assert (row.label, row.running) == (f"pid {os.getpid()}", 0)
        assert row.started_at <= row.seen_at <= await database_now(engine) + timedelta(seconds=0.01)
    assert await worker_rows(engine) == []


async def test_the_row_is_kept_up_to_date_and_comes_back_when_somebody_deletes_it(engine):
    gate = Gate()
    await add_jobs(engine, [NewJob("work")] * 3)

    async def tells(running: int, *, since) -> bool:
        rows = await worker_rows(engine)
        return [(row.id, row.running) for row in rows if row.seen_at > since] == [(worker.id, running)]

    async with QueueWorker(engine, {"work": gate}, parallel_count=2, lease=1.5) as worker:
        await until(lambda: len(gate.running) == 2)
        now = await database_now(engine)
        await until(lambda: tells(2, since=now))
        await raw(engine, "DELETE FROM queue_kit_worker")
        gate.open.set()
        await until(lambda: len(set(gate.ran)) == 3)
        now = await database_now(engine)
        await until(lambda: tells(0, since=now))
    assert await worker_rows(engine) == []


# --- drain ------------------------------------------------------------------------------------------------------------


async def test_drain_returns_the_counts_by_verdict(engine):
    async def work(event, session, job):
        match job.data["how"]:
            case "fails":
                raise ValueError
            case "discards":
                raise Discard
            case "snoozes":
                raise Snooze(1000)
            case "is cancelled":
                await cancel_job(engine, job.id)
                await event.signal.wait()

    hows = ["is fine", "is fine", "is fine", "fails", "fails", "discards", "snoozes", "is cancelled"]
    ids = await add_jobs(engine, [NewJob("work", {"how": how}) for how in hows])
    await lapse(engine, ids[0])
    worker = QueueWorker(engine, {"work": work}, parallel_count=3, retry_delay=1000, lease=3)
    counts = await worker.drain()
    expected = {"completed": 3, "retried": 2, "failed": 1, "snoozed": 1, "cancelled": 1, "released": 0, "lost": 0}
    assert counts == expected
    assert await worker.drain() == dict.fromkeys(expected, 0)
    assert await worker_rows(engine) == []


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("way", ["session", "engine"])
async def test_drain_runs_the_jobs_that_jobs_add(engine, count, way):
    async def grow(event, session, job):
        if job.data["left"]:
            db = session if way == "session" else engine
            await add_jobs(db, [NewJob("grow", {"left": job.data["left"] - 1})] * 2)

    await add_job(engine, "grow", {"left": 4})
    counts = await QueueWorker(engine, {"grow": grow}, parallel_count=count).drain()
    assert counts["completed"] == 2**5 - 1 == await count_jobs(engine)


async def test_drain_retries_what_is_due_at_once(engine):
    async def fails(event, session, job):
        raise ValueError

    await add_job(engine, "fails", max_retry_count=5)
    counts = await QueueWorker(engine, {"fails": fails}, retry_delay=0).drain()
    assert (counts["retried"], counts["failed"]) == (4, 1)


async def test_drain_refuses_on_a_started_worker_which_goes_on(engine):
    hook, gate = Recorder(), Gate()
    gate.open.set()
    async with QueueWorker(engine, {"work": gate}, hooks=[hook]) as worker:
        with pytest.raises(ConfigurationError, match="not started"):
            await worker.drain()
        await add_job(engine, "work")
        await until(lambda: hook.verdicts == ["completed"])


async def test_a_cancelled_drain_stops_what_it_started(engine):
    gate = Gate()
    before = asyncio.all_tasks()
    await add_job(engine, "work")
    draining = asyncio.create_task(QueueWorker(engine, {"work": gate}, grace=0.1).drain())
    await until(lambda: gate.running)
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert asyncio.all_tasks() == before
    assert await worker_rows(engine) == []


async def test_a_drain_that_is_cancelled_again_while_it_stops_comes_to_its_end(engine):
    hook, gate = Recorder(), Gate()
    before = asyncio.all_tasks()
    await add_job(engine, "work")
    worker = QueueWorker(engine, {"work": gate}, grace=0.5, hooks=[hook])
    draining = asyncio.create_task(worker.drain())
    await until(lambda: gate.running)
    draining.cancel()
    await until(lambda: "stopping" in hook.states)
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    await worker.stop()
    assert hook.states[-1] == "stopped"
    assert asyncio.all_tasks() == before
    assert await worker_rows(engine) == []


# --- the host ---------------------------------------------------------------------------------------------------------


class Faulty:
    """A hook that raises whatever it is told."""

    def __getattr__(self, name: str):
        raise RuntimeError(name)


async def a_hook_fails(engine, go_on):
    await go_on()


async def handlers_raise_what_would_end_a_program(engine, go_on):
    await add_jobs(engine, [NewJob(error) for error in ENDS])
    await go_on()
    await until(lambda: all_ended(engine))


async def the_tables_are_away_for_a_while(engine, go_on):
    await raw(engine, "ALTER TABLE queue_kit_job RENAME TO away")
    await go_on()
    await raw(engine, "ALTER TABLE away RENAME TO queue_kit_job")


async def the_engine_is_disposed(engine, go_on):
    await engine.dispose()
    await go_on()


async def all_ended(engine: AsyncEngine) -> bool:
    ((left,),) = await raw(engine, "SELECT count(*) FROM queue_kit_job WHERE status < 2")
    return left == 0


ENDS = {error.__name__: error for error in (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)}
FAULTS = [
    a_hook_fails,
    handlers_raise_what_would_end_a_program,
    the_tables_are_away_for_a_while,
    the_engine_is_disposed,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_whatever_happens_to_a_worker_its_host_goes_on_and_so_does_the_worker(engine, fault):
    ticks, hook = 0, Recorder()

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async def go_on() -> None:
        seen = ticks
        await until(lambda: ticks > seen + 200)

    async def raises(event, session, job):
        raise ENDS[job.name]

    async def work(event, session, job):
        await session.execute(text("SELECT 1"))

    handlers = {"work": work, **dict.fromkeys(ENDS, raises)}
    async with asyncio.TaskGroup() as host:
        ticking = host.create_task(tick())
        options = {"max_retry_count": 1, "poll_interval": 0.05, "hooks": [Faulty(), hook]}
        async with QueueWorker(engine, handlers, **options) as worker:
            await fault(engine, go_on)
            await add_job(engine, "work")
            await until(lambda: "completed" in hook.verdicts)
            await until(lambda: worker.healthy)
        await go_on()
        ticking.cancel()


async def test_a_worker_outlives_the_task_that_started_it(engine):
    hook, gate = Recorder(), Gate()
    gate.open.set()
    worker = QueueWorker(engine, {"work": gate}, hooks=[hook])
    async with asyncio.TaskGroup() as host:
        host.create_task(worker.start())
    await add_job(engine, "work")
    await until(lambda: hook.verdicts == ["completed"])
    await worker.stop()


async def test_a_host_whose_task_group_fails_stops_its_worker_first(engine):
    gate = Gate()
    job_id = await add_job(engine, "work")

    async def host() -> None:
        async with QueueWorker(engine, {"work": gate}, grace=0.1):
            await asyncio.Event().wait()

    async def neighbour() -> None:
        await until(lambda: gate.running)
        raise LookupError("the host's own")

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(host())
            group.create_task(neighbour())

    with pytest.raises(ExceptionGroup) as caught:
        await both()
    assert [repr(error) for error in caught.value.exceptions] == ['LookupError("the host\'s own")']
    assert await worker_rows(engine) == []
    assert await raw(engine, f"SELECT worker_id, retry_count, lost FROM queue_kit_job WHERE id = {job_id}") == [
        (None, 0, 0)
    ]
