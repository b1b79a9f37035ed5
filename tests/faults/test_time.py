"""Faults of time (T1 to T9 of the fault matrix) that no other test shows: clocks of processes and of the database that
are wrong or jump, processes that stand still together, and renewals that are slow.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import JobRow, JobState, LeaseLost, NewJob, QueueWorker, add_job, add_jobs
from tests.conftest import Server
from tests.database.clock import database_now, lease, rows
from tests.database.movable_clock import MovableClock, database_with_clock
from tests.database.running import Gate, nothing
from tests.faults.broken import processes
from tests.proxy import through_proxy
from tests.support import ADD_EFFECT, MARGIN, Recorder, effects, make_effects, reading, row_of, until

LEASE = 1.0
POLL = 0.1
SAFE = 5.0
"""A lease that a busy machine does not let lapse."""

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
needs_faketime = pytest.mark.skipif(FAKETIME is None, reason="libfaketime is missing: it gives a process a wrong clock")


@pytest.fixture
async def effect_engine(engine: AsyncEngine) -> AsyncEngine:
    """`engine` with a table of effects."""
    await make_effects(engine)
    return engine


# --- T1, T2: the clock of a worker's process --------------------------------------------------------------------------
# On PostgreSQL: SQLite takes the time from the process that asks, and a machine has one clock for all of them.


def wrong_clock(**settings: object) -> dict[str, str]:
    """A wall clock of its own; the monotonic one, by which an event loop sleeps, stays."""
    return {
        "LD_PRELOAD": str(FAKETIME),
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        **{f"FAKETIME{name}": str(value) for name, value in settings.items()},
    }


@needs_faketime
@pytest.mark.parametrize("hours", [1, -1])
async def test_t1_a_process_whose_clock_is_an_hour_off_starts_nothing_early_and_takes_no_live_lease(
    pg_engine, postgres_url, tmp_path, hours
):
    await make_effects(pg_engine)
    end = tmp_path / "end"
    async with processes(postgres_url) as workers:
        settings = wrong_clock(**{"": f"{hours:+}h"})
        held = []
        for environment in (settings, None):
            holder = await workers.start(environment=environment, lease=SAFE, parallel_count=1)
            held.append(await add_job(pg_engine, "wait", {"until": str(end)}))
            await holder.says(f"running {held[-1]}")
        wrong = await workers.start(environment=settings, lease=SAFE, cron="yes")
        await wrong.says("started")
        later = await add_jobs(pg_engine, [NewJob("look", delay=seconds / 4) for seconds in range(12)])
        await until(lambda: complete(pg_engine, *later))
        await until(lambda: wrong.count("late") >= 15)
        for job_id in held:
            left = (await row_of(pg_engine, job_id)).lease_until - await database_now(pg_engine)
            assert left <= timedelta(seconds=SAFE)
        end.touch()
        await until(lambda: complete(pg_engine, *held))
        looks = [line.split()[1:] for line in wrong.lines if line.startswith("late")]
    assert {int(off) for _, off in looks} == {hours}
    assert all(0 <= float(late) < 15 for late, _ in looks), looks
    assert await effects(pg_engine) == held
    assert {(row.claim_no, row.lost) for row in await rows(pg_engine) if row.is_complete} == {(1, 0)}


@needs_faketime
async def test_t2_a_clock_that_is_set_while_a_job_runs_changes_neither_lease_nor_deadline(
    pg_engine, postgres_url, tmp_path
):
    await make_effects(pg_engine)
    end, clock = tmp_path / "end", tmp_path / "clock"
    clock.write_text("+0\n")
    async with processes(postgres_url) as workers:
        settings = wrong_clock(_TIMESTAMP_FILE=clock, _NO_CACHE=1)
        stepped = await workers.start(environment=settings, lease=SAFE)
        job_id = await add_job(pg_engine, "wait", {"until": str(end)}, handler_timeout=30)
        await stepped.says(f"running {job_id}")
        await (other := await workers.start(lease=SAFE)).says("started")
        for offset, step in (("+1h", 1), ("-1h", -2)):
            seen = stepped.count("stepped")
            (moved := tmp_path / "moved").write_text(f"{offset}\n")
            moved.replace(clock)  # in one: an empty file would be another time
            await until(lambda: stepped.count("stepped") > seen)  # noqa: B023
            assert [line for line in stepped.lines if line.startswith("stepped")][-1] == f"stepped {step}"
            await extended(pg_engine, job_id, by=SAFE / 4)
        end.touch()
        await stepped.says(f"completed {job_id}")
        assert other.count("running") == 0
    assert await effects(pg_engine) == [job_id]
    assert (await row_of(pg_engine, job_id)).claim_no == 1


async def complete(engine: AsyncEngine, *job_ids: int) -> bool:
    return all([(await row_of(engine, job_id)).is_complete for job_id in job_ids])


async def extended(engine: AsyncEngine, job_id: int, *, by: float) -> None:
    """Wait until a job's lease has been extended by so many seconds."""
    before = (await row_of(engine, job_id)).lease_until

    async def later() -> bool:
        return (await row_of(engine, job_id)).lease_until >= before + timedelta(seconds=by)

    await until(later)


# --- T3, T4: the database's clock -------------------------------------------------------------------------------------


@pytest.fixture
async def clocked(database: Server | Path) -> AsyncIterator[tuple[AsyncEngine, MovableClock]]:
    async with database_with_clock(database) as (engine, clock):
        await make_effects(engine)
        yield engine, clock


async def test_t3_a_database_clock_that_jumps_ahead_lets_leases_lapse_early_and_the_fence_holds(clocked):
    engine, clock = clocked
    hooks, gates = (Recorder(), Recorder()), (Gate(), Gate())

    def handler(gate: Gate) -> Any:
        async def hold(event: Any, session: Any, job: Any) -> None:
            await gate(event, session, job)
            await session.execute(ADD_EFFECT, {"job_id": job.id})

        return hold

    job_id = await add_job(engine, "hold", max_retry_count=1)
    # Once it listens a worker renews, which must not come after the jump.
    options: dict[str, Any] = {"lease": 60, "listen": False}
    first = QueueWorker(engine, {"hold": handler(gates[0])}, poll_interval=3600, hooks=[hooks[0]], **options)
    second = QueueWorker(engine, {"hold": handler(gates[1])}, poll_interval=POLL, hooks=[hooks[1]], **options)
    async with first:
        await until(lambda: gates[0].running)
        async with second:
            await clock.move(clock.now + timedelta(hours=1))
            await until(lambda: gates[1].running)
            gates[0].open.set()
            await until(lambda: hooks[0].settled)
            gates[1].open.set()
            await until(lambda: hooks[1].settled)
    assert (hooks[0].verdicts, hooks[1].verdicts) == (["lost"], ["completed"])
    assert await effects(engine) == [job_id]
    row = await row_of(engine, job_id)
    assert (row.state, row.claim_no, row.lost, row.retry_count) == (JobState.completed, 2, 1, 0)


async def test_t4_a_database_clock_that_jumps_back_keeps_what_a_dead_worker_held_for_the_jump_and_its_lease(clocked):
    engine, clock = clocked
    jump, gate, hook = timedelta(hours=1), Gate(), Recorder()
    held, dead = await add_jobs(engine, [NewJob("hold"), NewJob("dead")])
    await lease(engine, dead, seconds=LEASE)
    start, lapses = clock.now, (await row_of(engine, dead)).lease_until
    handlers = {"hold": gate.__call__, "dead": nothing, "later": nothing}
    options = {"lease": SAFE, "poll_interval": POLL, "parallel_count": 2}
    async with QueueWorker(engine, handlers, hooks=[hook], **options):
        await until(lambda: gate.running == {held})
        await clock.move(start - jump)
        await until(lambda: leased_until(engine, held, start - jump + timedelta(seconds=SAFE)))
        for now in (start - jump, lapses):
            await clock.move(now)
            later = await add_job(engine, "later")  # by the end of it the worker has looked for jobs again
            await until(lambda: complete(engine, later))  # noqa: B023
            assert (await row_of(engine, dead)).claim_no == 1
        await clock.move(lapses + timedelta(milliseconds=1))
        await until(lambda: complete(engine, dead))
        gate.open.set()
        await until(lambda: complete(engine, held))
    assert hook.verdicts == ["completed"] * 4
    assert [(row.claim_no, row.lost) for row in await rows(engine, JobRow.id.in_([held, dead]))] == [(1, 0), (2, 1)]


async def leased_until(engine: AsyncEngine, job_id: int, at: datetime) -> bool:
    """Whether a live worker's lease has followed the clock, as it does at a renewal."""
    return (await row_of(engine, job_id)).lease_until == at


# --- T5: a machine that sleeps ----------------------------------------------------------------------------------------


async def test_t5_workers_that_sleep_and_wake_together_do_every_job_once(effect_engine, database_url, tmp_path):
    """Scaled: two leases of a second instead of five minutes. The machine's other clocks go on, as after a suspend."""
    end = tmp_path / "end"
    held = await add_jobs(effect_engine, [NewJob("wait", {"until": str(end)}, max_retry_count=9)] * 4)
    async with processes(database_url) as workers:
        for _ in range(2):
            await workers.start(lease=LEASE)
        await until(lambda: len({line for each in workers.all for line in each.lines if line[:7] == "running"}) == 4)
        for process in workers.all:
            await process.freeze()
        await until(lambda: lapsed(effect_engine, *held))
        end.touch()  # so that each commits as soon as it wakes, if it can
        for process in workers.all:
            process.thaw()
        await until(lambda: complete(effect_engine, *held))
        await until(lambda: sum(process.count("completed") for process in workers.all) == 4)
    assert await effects(effect_engine) == held
    assert {(row.state, row.retry_count) for row in await rows(effect_engine)} == {(JobState.completed, 0)}


async def lapsed(engine: AsyncEngine, *job_ids: int) -> bool:
    """Whether the leases of all these jobs lapsed some time ago."""
    long_ago = await database_now(reading(engine)) - timedelta(seconds=LEASE)
    return all([(await row_of(engine, job_id)).lease_until < long_ago for job_id in job_ids])


# --- T9: slow renewals ------------------------------------------------------------------------------------------------


async def test_t9_a_worker_whose_renewals_are_slow_ends_its_handler_by_the_end_of_the_lease(pg_engine):
    """It looks at its leases twenty times in each; somebody else may begin in that twentieth, and the fence holds."""
    lease_seconds, times, reasons = 2.4, {}, []

    async def wait(event: Any, session: Any, job: Any) -> None:
        times["started"] = time.monotonic()
        try:
            await asyncio.Event().wait()
        finally:
            times["told"] = time.monotonic()
            reasons.append(event.signal.reason)

    async def take_over(event: Any, session: Any, job: Any) -> None:
        times["taken"] = time.monotonic()

    job_id, hook = await add_job(pg_engine, "wait"), Recorder()
    options = {"lease": lease_seconds, "poll_interval": POLL}
    async with through_proxy(pg_engine) as (proxy, slow):
        first = QueueWorker(slow, {"wait": wait}, hooks=[hook], grace=0, cancel_grace=0.5, **options)
        async with first:
            await until(lambda: "started" in times)
            async with QueueWorker(pg_engine, {"wait": take_over}, **options):
                await extended(pg_engine, job_id, by=lease_seconds / 4)
                since = time.monotonic()
                proxy.latency = lease_seconds * 0.6
                await until(lambda: {"told", "taken"} <= {*times})
                proxy.latency = 0.0
                await until(lambda: complete(pg_engine, job_id))
                await until(lambda: hook.settled)
    (reason,) = reasons
    assert isinstance(reason, LeaseLost)
    assert times["told"] - since <= lease_seconds * 1.05 + MARGIN
    assert times["told"] - times["taken"] <= lease_seconds / 20 + MARGIN
    assert hook.verdicts == ["lost"]
    row = await row_of(pg_engine, job_id)
    assert (row.state, row.claim_no, row.lost, row.retry_count) == (JobState.completed, 2, 1, 0)
