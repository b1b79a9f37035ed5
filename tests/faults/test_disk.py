"""Faults of the disk (D13 to D16 of the fault matrix): it is full, under either database; SQLite's file is shared by
processes that write at once, or that are killed while they write."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import JobRow, JobState, NewJob, QueueWorker, add_job, add_jobs, sqlite_engine
from tests.conftest import Server
from tests.crowd import crowd
from tests.database.running import Gate, raw
from tests.faults.disk import filled, small_disk
from tests.faults.running import QUICK, adding, each_happened_once, told_each_change_once, write
from tests.faults.server import own_server, raw_autocommit, ready
from tests.support import Recorder, all_complete, count_jobs, effects, row_of, until

HERE = Path(__file__).parent

PAD = "x" * 2_000


@contextlib.asynccontextmanager
async def on_small_disk(database: Server | Path) -> AsyncIterator[tuple[Path, AsyncEngine]]:
    """A small disk, and an engine on a database of that kind, all of which is on that disk."""
    if isinstance(database, Path):
        with small_disk("3m") as disk:
            async with ready(sqlite_engine(disk / "queue.db")) as engine:
                yield disk, engine
        return
    with small_disk("128m") as disk:
        async with own_server(disk) as own, own.database() as engine:
            assert own.data.is_relative_to(disk)
            # What is written meanwhile fits into one file of the log: at its end the server could not go on.
            await raw_autocommit(engine, "SELECT pg_switch_wal()", "CHECKPOINT")
            yield disk, engine


def full(error: BaseException) -> bool:
    """Whether the database says that its disk is full."""
    cause: Any = getattr(error, "orig", None)
    return getattr(cause, "sqlstate", None) == "53100" or getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL


async def test_d13_d14_a_full_disk_takes_no_job_and_loses_none(database, caplog):
    gate, hook = Gate(), Recorder()
    async with on_small_disk(database) as (disk, engine):
        held = await add_jobs(engine, [NewJob("hold", max_retry_count=1)] * 2)
        handlers = {"hold": gate.__call__, "write": write}
        async with QueueWorker(engine, handlers, parallel_count=4, hooks=[hook], **QUICK) as worker:
            async with adding(engine, pad=PAD) as ledger:
                await ledger.grows(10)
                with filled(disk):
                    await until(lambda: len(ledger.refused) >= 5)
                    gate.open.set()
                    await until(lambda: not gate.running)
                await ledger.grows(10)
            await all_complete(engine)
            await until(lambda: worker.healthy)
        assert all(map(full, ledger.refused))
        rows = [await row_of(engine, job_id) for job_id in held]
        assert [(row.state, row.claim_no, row.retry_count) for row in rows] == [(JobState.completed, 1, 0)] * 2
        await each_happened_once(engine, ledger, tries_spent=True)
        if engine.name == "sqlite":
            assert await raw(engine, "PRAGMA integrity_check") == [("ok",)]
    told_each_change_once(caplog, hook.states)


async def test_d13_d14_a_handler_that_meets_a_full_disk_spends_no_try(database):
    gate, hook, tried = Gate(), Recorder(), asyncio.Event()
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i FROM n"

    async def write_much(event: Any, session: Any, job: Any) -> None:
        await gate(event, session, job)
        try:
            await session.execute(text(f"INSERT INTO effect {numbers}"))
        finally:
            tried.set()

    async with on_small_disk(database) as (disk, engine):
        job_id = await add_job(engine, "write much", max_retry_count=1)
        options = {"parallel_count": 1, "hooks": [hook], "poll_interval": 0.1, "retry_delay": 600}
        async with QueueWorker(engine, {"write much": write_much}, **options) as worker:
            await until(lambda: gate.running)
            with filled(disk):
                gate.open.set()
                await tried.wait()
                await until(lambda: hook.settled or not worker.healthy)
            await until(lambda: hook.settled)
        assert hook.verdicts == ["released"]
        row = await row_of(engine, job_id)
        assert "No space left on device" in str(row.errors) or "disk is full" in str(row.errors)
        assert row.retry_count == 0


async def test_d15_four_processes_that_write_into_one_file_lose_no_update(tmp_path):
    path = tmp_path / "queue.db"
    async with ready(sqlite_engine(path)) as engine, crowd(HERE / "counting.py", path) as workers:
        await raw(engine, "CREATE TABLE tally (n INTEGER)")
        await raw(engine, "INSERT INTO tally VALUES (0)")
        for _ in range(4):
            await workers.start()
        for worker in workers.all:
            await worker.says("started")
        await add_jobs(engine, [NewJob("count", max_retry_count=1)] * 100)
        await all_complete(engine, seconds=40)
        assert await asyncio.gather(*(worker.stop() for worker in workers.all)) == [0] * 4
        assert sum(worker.count("completed") > 0 for worker in workers.all) >= 2  # nobody promises each of them a share
        assert await count_jobs(engine, JobRow.state == JobState.completed.value) == 100
        assert await raw(engine, "SELECT n FROM tally") == [(100,)]


async def test_d16_writers_that_are_killed_leave_a_sound_file_with_all_that_was_acknowledged(tmp_path):
    """Scaled: 30 kills instead of 200."""
    path, told = tmp_path / "queue.db", tmp_path / "acknowledged"
    async with ready(sqlite_engine(path)) as engine:
        async with crowd(HERE / "killed.py", path, told, 16, 30) as processes:
            killer = await processes.start()
            await until(lambda: killer.count("killed") == 30, seconds=40)
        assert await raw(engine, "PRAGMA integrity_check") == [("ok",)]
        acknowledged = [int(line) for line in told.read_text().split()]
        ids = [job_id for (job_id,) in await raw(engine, "SELECT id FROM queue_kit_job ORDER BY id")]
        assert len(acknowledged) >= 30
        assert set(acknowledged) <= set(ids)
        async with QueueWorker(engine, {"write": write}, parallel_count=4, poll_interval=0.1):
            await all_complete(engine)
        assert await count_jobs(engine, JobRow.lost > 0) > 0
        assert await effects(engine) == ids
