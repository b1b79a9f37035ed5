"""The workers that are alive, and what they hold."""

import os
import socket
from datetime import timedelta

import pytest
from sqlalchemy import update

from queue_kit import NewJob, QueueWorker, add_job, add_jobs, fleet, list_workers
from queue_kit.models import WORKERS
from tests.database.clock import WAYS, database_now, lease, reach
from tests.database.running import Gate
from tests.support import until


@pytest.mark.parametrize("way", WAYS)
async def test_a_worker_shows_with_what_it_runs(engine, way):
    gate = Gate()
    ids = [await add_job(engine, "b"), await add_job(engine, "a", priority=1)]
    await lease(engine, await add_job(engine, "a"))  # by somebody unknown
    await add_job(engine, "c")
    async with QueueWorker(engine, {"a": gate, "b": gate}, parallel_count=2, listen=False) as worker:
        await until(lambda: len(gate.running) == 2)
        async with reach(engine, way) as db:
            (info,) = await list_workers(db)
        gate.open.set()
        assert info.id == worker.id
        assert (info.host, info.pid, info.names) == (socket.gethostname(), os.getpid(), ("a", "b"))
        assert info.label == f"pid {os.getpid()}"
        assert [(job.id, job.name, job.attempt) for job in info.jobs] == [(ids[1], "a", 1), (ids[0], "b", 1)]
        assert 0 <= info.seen_seconds_ago < 30
        assert info.started_at <= info.seen_at
    assert await list_workers(engine) == []


async def test_a_worker_that_is_silent_is_not_alive(engine):
    async with QueueWorker(engine, {"a": Gate()}, listen=False):
        assert len(await list_workers(engine)) == 1
        silent = {"seen_at": await database_now(engine) - timedelta(seconds=60)}
        async with engine.begin() as connection:
            await connection.execute(update(WORKERS).values(silent))
        assert await list_workers(engine) == []


async def test_only_the_head_of_the_order_is_looked_at(engine, monkeypatch):
    monkeypatch.setattr(fleet, "LOOKED_AT", 1)
    gate = Gate()
    first, _ = await add_jobs(engine, [NewJob("a")] * 2)
    async with QueueWorker(engine, {"a": gate}, parallel_count=2, listen=False):
        await until(lambda: len(gate.running) == 2)
        (info,) = await list_workers(engine)
        gate.open.set()
    assert [job.id for job in info.jobs] == [first]


async def test_what_is_no_database_is_refused():
    with pytest.raises(TypeError, match="AsyncSession"):
        await list_workers(None)
