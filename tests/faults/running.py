"""What the tests of faults share: a load that knows what was acknowledged, and what must hold however the fault went:
every acknowledged job is there, each job's effect is there once, no try was spent, and the log told each change once.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import AmbiguousCommit, JobRow, JobState, add_job
from tests.support import ADD_EFFECT, AWAY, DOWN, SQLALCHEMY_2_0, UP, changes, count_jobs, effects, until

QUICK = {"poll_interval": 0.1, "retry_delay": 0.05}


async def write(event: Any, session: Any, job: Any) -> None:
    """Two statements in a transaction, with some time between them."""
    await session.execute(text("SELECT 1"))
    await asyncio.sleep(0.02)
    await session.execute(ADD_EFFECT, {"job_id": job.id})


class Ledger:
    """What a load was told: the ids of the jobs that were acknowledged, and the errors of those that were not."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.refused: list[BaseException] = []

    async def fill(self, engine: AsyncEngine, data: dict[str, str]) -> None:
        while True:
            try:
                self.acknowledged.append(await add_job(engine, "write", data, max_retry_count=20))
            except (*AWAY, AmbiguousCommit) as error:
                self.refused.append(error)
            await asyncio.sleep(0.02)

    async def grows(self, by: int = 1) -> None:
        """Wait until as many more jobs were acknowledged."""
        enough = len(self.acknowledged) + by
        await until(lambda: len(self.acknowledged) >= enough)


@contextlib.asynccontextmanager
async def adding(engine: AsyncEngine, **data: str) -> AsyncIterator[Ledger]:
    """Jobs for `write` are added one after the other for as long as this lasts."""
    ledger = Ledger()
    task = asyncio.create_task(ledger.fill(engine, data))
    try:
        yield ledger
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def each_happened_once(engine: AsyncEngine, ledger: Ledger, *, tries_spent: bool = False) -> None:
    """Of the jobs for `write` none that was acknowledged is lost, none happened twice, and none spent a try."""
    assert ledger.acknowledged
    async with engine.connect() as connection:
        written = select(JobRow.id).where(JobRow.name == "write").order_by(JobRow.id)
        ids = list((await connection.execute(written)).scalars())
    assert set(ledger.acknowledged) <= set(ids)
    assert await effects(engine) == ids
    completed = [JobRow.name == "write", JobRow.state == JobState.completed.value]
    if not tries_spent:
        completed.append(JobRow.retry_count == 0)
    assert await count_jobs(engine, *completed) == len(ids)


def told_each_change_once(caplog: pytest.LogCaptureFixture, states: list[str]) -> None:
    """The log has a line for each change of the worker's state, and neither an error nor a traceback."""
    said = {DOWN: "database_down", UP: "database_up"}
    assert [said[each] for each in changes(caplog)] == [each for each in states if each.startswith("database")]
    cuts = "sqlalchemy.pool" if SQLALCHEMY_2_0 else ()
    traced = [record for record in caplog.records if record.exc_info and not record.name.startswith(cuts)]
    assert [record.getMessage() for record in traced] == []
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in errors if record.name.startswith("queue_kit")] == []
