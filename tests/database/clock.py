"""Time and reach for the tests of this folder: time is moved by writing rows, never by sleeping; a database is reached
through each of the three things that `db` may be.
"""

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from queue_kit import JobRow
from queue_kit._dialect.clock import clock_time
from queue_kit.models import CRON_ENTRIES, CronRow
from tests.support import change, move

WAYS = ("session", "connection", "engine")


@contextlib.asynccontextmanager
async def reach(engine: AsyncEngine, way: str) -> AsyncIterator[AsyncSession | AsyncConnection | AsyncEngine]:
    """A session, a connection or the engine itself; what is done is committed at the end."""
    if way == "engine":
        yield engine
    elif way == "connection":
        async with engine.begin() as connection:
            yield connection
    else:
        async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
            yield session


async def database_now(engine: AsyncEngine) -> datetime:
    """The database's clock."""
    async with engine.connect() as connection:
        return (await connection.execute(select(clock_time()))).scalar_one()


async def age(engine: AsyncEngine, job_id: int, *, days: float) -> None:
    """Let a job's last change lie this far back."""
    await move(engine, job_id, updated_at=-days * 86_400)


async def lease(engine: AsyncEngine, job_id: int, *, seconds: float = 600.0) -> None:
    """Let some other worker hold a job, for `seconds` from now: below 0 its lease has lapsed."""
    now = await database_now(engine)
    await change(
        engine,
        job_id,
        status=1,
        scheduled_at=now - timedelta(days=1),
        lease_until=now + timedelta(seconds=seconds),
        worker_id=uuid4(),
        claim_no=JobRow.claim_no + 1,
    )


async def rows(engine: AsyncEngine, *conditions: Any) -> list[JobRow]:
    """Jobs, oldest first."""
    async with AsyncSession(engine) as session:
        return list(await session.scalars(select(JobRow).where(*conditions).order_by(JobRow.id)))


async def definition(engine: AsyncEngine, name: str) -> CronRow:
    """A cron definition, which must be there."""
    async with AsyncSession(engine) as session:
        return await session.get_one(CronRow, name)


async def define(engine: AsyncEngine, name: str, **values: Any) -> None:
    """Write columns of a cron definition behind the library's back."""
    async with engine.begin() as connection:
        await connection.execute(update(CRON_ENTRIES).where(CronRow.name == name).values(**values))


async def occurrence(engine: AsyncEngine, name: str) -> JobRow:
    """The one live occurrence of a cron definition."""
    (row,) = await rows(engine, JobRow.cron_name == name, ~JobRow.is_complete)
    return row


async def make_due(engine: AsyncEngine, name: str, *, seconds: float = 3_600.0) -> tuple[int, datetime]:
    """Let the tick of a cron definition's live occurrence be `seconds` ago; returns the job's id and the tick."""
    tick = (await database_now(engine) - timedelta(seconds=seconds)).replace(microsecond=0)
    job_id = (await occurrence(engine, name)).id
    await change(engine, job_id, scheduled_at=tick, cron_tick=tick)
    await define(engine, name, next_at=tick)
    return job_id, tick


def far(months: int = 6) -> str:
    """A yearly cron expression whose next tick is about that many months away, whenever this runs."""
    return f"0 0 15 {(datetime.now(UTC).month + months - 1) % 12 + 1} *"
