"""Workers that are killed, frozen or end themselves in the middle of their jobs: what was in a transaction happens
exactly once, and somebody else goes on."""

import contextlib
import signal
import sqlite3
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import JobRow, JobState, NewJob, add_job, add_jobs
from queue_kit.models import JOBS, CronRow, WorkerRow
from tests.crowd import Member, crowd
from tests.database.running import alone, worker_rows
from tests.support import MARGIN, count_jobs, effects, make_effects, reading, row_of, until

SCRIPT = Path(__file__).with_name("crashing.py")
LEASE = 2.0


@pytest.fixture(autouse=True)
async def effect_table(engine: AsyncEngine) -> None:
    await make_effects(engine)


async def complete(engine: AsyncEngine) -> int:
    return await count_jobs(engine, JobRow.is_complete)


async def test_p1_killed_workers_do_every_effect_exactly_once(engine, database_url):
    batch = [NewJob("write", max_retry_count=20)] * 15
    ids = await add_jobs(engine, batch)
    async with crowd(SCRIPT, database_url, LEASE) as workers:

        async def at_work() -> Member | None:
            """A worker that stands still in the middle of a job."""
            for each in workers.all:
                if each.status is None:
                    await each.freeze()
                    if await holds_a_job(each):
                        return each
                    each.thaw()
            return None

        async def holds_a_job(member: Member) -> bool:
            of_worker = JobRow.worker_id.in_(select(WorkerRow.id).where(WorkerRow.pid == member.pid))
            return await count_jobs(engine, of_worker, JobRow.state == JobState.running.value) > 0

        for _ in range(2):
            await workers.start()
        for _ in range(3):
            ids += await add_jobs(engine, batch)
            victim = await until(at_work)
            await victim.kill()
            await workers.start()
        await reached(engine, len(ids), seconds=60)
    assert await effects(engine) == ids
    assert await count_jobs(engine, JobRow.state == JobState.completed.value) == len(ids)
    assert await count_jobs(engine, JobRow.retry_count > 0) == 0
    async with reading(engine).connect() as connection:
        assert await connection.scalar(select(func.sum(JOBS.c.lost))) >= 3


async def test_p1_another_worker_starts_a_killed_workers_job_within_a_lease_and_a_poll(engine, database_url, tmp_path):
    lease, poll, margin = timedelta(seconds=LEASE), timedelta(seconds=0.1), timedelta(seconds=MARGIN)
    done = tmp_path / "done"
    job_id = await add_job(engine, "freeze", {"until": str(done)})
    async with crowd(SCRIPT, database_url, LEASE) as workers:
        first = await workers.start()
        await until(lambda: "running" in first.lines)
        second = await workers.start()

        async def both_are_there() -> bool:
            return len(await worker_rows(engine)) == 2

        await until(both_are_there)
        await first.kill()
        held = await row_of(engine, job_id)
        await until(lambda: "running" in second.lines)
        taken = await row_of(engine, job_id)
        done.touch()
        await reached(engine, 1)
    assert (held.claim_no, taken.claim_no, taken.lost) == (1, 2, 1)
    assert taken.lease_until - lease <= held.lease_until + poll + margin
    assert await effects(engine) == [job_id]


async def reached(engine: AsyncEngine, count: int, *, seconds: float = 40.0) -> None:
    async def enough() -> bool:
        return await complete(engine) >= count

    await until(enough, seconds=seconds)


@pytest.mark.parametrize("wakes", ["while the other runs", "after the other has finished"])
async def test_p5_a_worker_frozen_past_its_lease_commits_nothing_when_it_wakes(engine, database_url, tmp_path, wakes):
    end = tmp_path / "end"
    job_id = await add_job(engine, "freeze", {"until": str(end)}, max_retry_count=9)
    async with crowd(SCRIPT, database_url, LEASE) as workers:
        zombie = await workers.start()
        await until(lambda: zombie.lines == ["running"])

        async def stands_still() -> bool:
            """And has not the lock of SQLite's one writer, or nobody else could start."""
            await zombie.freeze()
            if is_writable(engine):
                return True
            zombie.thaw()
            return False

        await until(stands_still)
        other = await workers.start()
        await until(lambda: other.lines == ["running"], seconds=30)
        if wakes == "while the other runs":
            zombie.thaw()
            await until(lambda: zombie.lines == ["running", "woke LeaseLost", "lost"])
            assert await complete(engine) == 0
            end.touch()
            await reached(engine, 1)
        else:
            end.touch()
            await reached(engine, 1)
            zombie.thaw()
            await until(lambda: zombie.lines[-1] == "lost")
        await until(lambda: other.lines == ["running", "woke NoneType", "completed"])
    assert await effects(engine) == [job_id]
    row = await row_of(engine, job_id)
    assert (row.state, row.claim_no, row.lost, row.retry_count) == (JobState.completed, 2, 1, 0)


async def test_a_handler_that_ends_its_process_fails_in_the_end_and_its_neighbours_finish(engine, database_url):
    """After a round trip; one that ends it at once is P13's."""
    poison = await add_job(engine, "poison", priority=0)
    neighbours = await add_jobs(engine, [NewJob("neighbour")] * 6)
    async with crowd(SCRIPT, database_url, LEASE) as workers:

        async def over() -> bool:
            if all(process.status is not None for process in workers.all):
                await workers.start()  # as a supervisor would
            return await complete(engine) == 7

        await until(over, seconds=50)
        statuses = [process.status for process in workers.all]
    assert statuses == [3, 3, 3, None]
    row = await row_of(engine, poison)
    assert (row.state, row.lost) == (JobState.failed, 3)
    assert "lease lost 3 times" in row.errors[0]["reason"]
    assert await effects(engine) == neighbours
    assert {(await row_of(engine, job_id)).state for job_id in neighbours} == {JobState.completed}


async def test_t7_many_processes_register_and_run_the_same_cron_jobs_and_no_tick_runs_twice(engine, database_url):
    async with crowd(SCRIPT, database_url, LEASE, "cron") as workers:
        for _ in range(8):
            await workers.start()
        await reached(engine, 20, seconds=60)
        await workers.all[0].kill()
        assert await twice_live(engine) == []
        so_far = await complete(engine)
        await reached(engine, so_far + 40, seconds=60)

        async def each_completed() -> bool:  # also what the killed worker held until its lease lapsed
            return len({name for name, _ in await completed_ticks(engine)}) == 20

        await until(each_completed, seconds=60)
        assert await twice_live(engine) == []
    assert [process.status for process in workers.all] == [-signal.SIGKILL] * 8
    await alone(engine)
    async with reading(engine).connect() as connection:
        names = list((await connection.execute(select(CronRow.name))).scalars())
    ticks = await completed_ticks(engine)
    assert [tick for tick, times in Counter(ticks).items() if times > 1] == []
    assert len(names) == 20
    assert {name for name, _ in ticks} == set(names)
    assert await effects(engine) == await completed_ids(engine)


def is_writable(engine: AsyncEngine) -> bool:
    """Whether nobody has the lock of SQLite's one writer."""
    if engine.dialect.name != "sqlite":
        return True
    with contextlib.closing(sqlite3.connect(engine.url.database, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
    return True


async def completed_ids(engine: AsyncEngine) -> list[int]:
    async with reading(engine).connect() as connection:
        return list(
            (await connection.execute(select(JOBS.c.id).where(JOBS.c.status == 2).order_by(JOBS.c.id))).scalars()
        )


async def completed_ticks(engine: AsyncEngine) -> list[tuple[str, datetime]]:
    query = select(JOBS.c.cron_name, JOBS.c.cron_tick).where(JOBS.c.status == 2)
    async with reading(engine).connect() as connection:
        return [(name, tick) for name, tick in await connection.execute(query)]


async def twice_live(engine: AsyncEngine) -> list[str]:
    """Cron entries with more than one live occurrence."""
    query = select(JOBS.c.cron_name).where(JOBS.c.status < 2).group_by(JOBS.c.cron_name).having(func.count() > 1)
    async with reading(engine).connect() as connection:
        return list((await connection.execute(query)).scalars())
