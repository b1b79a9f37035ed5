"""Running jobs in tests: a stand-in for a worker that died, handlers that wait or refuse to end, and what a worker
meets and sends meanwhile.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import JobRow, add_job
from queue_kit._sleep import AFTER_FALLING_ASLEEP
from queue_kit.models import WorkerRow
from tests.database.clock import database_now, lease
from tests.support import change, until


async def lapse(engine: AsyncEngine, job_id: int, *, times: int = 1) -> None:
    """Let a job's lease have lapsed this often, by the next claim's count."""
    past = await database_now(engine) - timedelta(seconds=60)
    held = {"worker_id": uuid4(), "claim_no": JobRow.claim_no + 1, "lease_until": past, "lost": times - 1}
    await change(engine, job_id, status=1, scheduled_at=past, **held)


async def steal(engine: AsyncEngine, job_id: int) -> None:
    """Another worker claims the job, as after a lapse."""
    await change(engine, job_id, claim_no=JobRow.claim_no + 1)


STATES = ("scheduled", "ready", "lapsed", "running", "completed", "failed", "cancelled")
"""Every state that a job can be in; "lapsed" is ready again, since its worker died."""


async def in_every_state(engine: AsyncEngine) -> dict[str, int]:
    """The id of a job in each of `STATES`."""
    return {state: await job_in(engine, state) for state in STATES}


async def job_in(engine: AsyncEngine, state: str, *, name: str = "a", **columns: Any) -> int:
    """A job in one of `STATES`, with these columns."""
    job_id = await add_job(engine, name, delay=1_000 if state == "scheduled" else None)
    if state in ("running", "lapsed"):
        await lease(engine, job_id, seconds=600 if state == "running" else -600)
    columns = {"completed": {"status": 2}, "failed": {"status": 3}, "cancelled": {"status": 4}}.get(state, {}) | columns
    if columns:
        await change(engine, job_id, **columns)
    return job_id


async def raw(engine: AsyncEngine, sql: str, **parameters: Any) -> list[Any]:
    """Plain SQL, as another program would send it; the rows of a SELECT."""
    async with engine.begin() as connection:
        result = await connection.execute(text(sql), parameters)
        return list(result.all()) if result.returns_rows else []


async def worker_rows(engine: AsyncEngine) -> list[WorkerRow]:
    """What the workers tell of themselves, in the order in which they started."""
    async with AsyncSession(engine) as session:
        return list(await session.scalars(select(WorkerRow).order_by(WorkerRow.started_at)))


LISTENS = "(query ILIKE 'LISTEN%queue_kit_cancel%' OR query = 'SELECT 1')"
"""Who listens, by `pg_stat_activity`: to one channel after the other, the cancellations last; then it only probes."""


async def listening(engine: AsyncEngine) -> bool:
    """Whether a worker listens."""
    return bool(await raw(engine, f"SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND {LISTENS}"))


async def fast_asleep(engine: AsyncEngine) -> None:
    """Wait until a worker listens, asks to be notified, and is past its looks after falling asleep."""

    async def sleeps() -> bool:
        return any(row.idle_until is not None for row in await worker_rows(engine)) and await listening(engine)

    await until(sleeps)
    await asyncio.sleep(2 * sum(AFTER_FALLING_ASLEEP))


@contextlib.asynccontextmanager
async def locked(engine: AsyncEngine, job_id: int) -> AsyncIterator[None]:
    """Somebody holds a job's row locked (PostgreSQL: on SQLite a lock is on the whole file)."""
    async with engine.begin() as connection:
        await connection.execute(select(JobRow.id).where(JobRow.id == job_id).with_for_update())
        yield


async def waits_for_a_lock(engine: AsyncEngine) -> bool:
    """Whether somebody in this database waits for a lock."""
    query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(await raw(engine, query))


async def alone(engine: AsyncEngine) -> None:
    """Wait until nobody else is in the database. A process that was killed is gone, but on PostgreSQL its last
    transaction may still be on the way."""
    if engine.dialect.name == "sqlite":
        return
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    )

    async def last() -> bool:
        return await raw(engine, query) == [(1,)]

    await until(last)


@contextlib.contextmanager
def statements() -> Iterator[list[str]]:
    """What is sent to a database meanwhile, by whatever engine: a worker's own is private."""
    sent: list[str] = []

    def remember(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(" ".join(statement.split()))

    event.listen(Engine, "before_cursor_execute", remember)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", remember)


def claims(sent: list[str]) -> list[str]:
    """Those of the statements that claim."""
    return [each for each in sent if "UPDATE queue_kit_job" in each and "claim_no=(" in each]


async def nothing(event: Any, session: Any, job: Any) -> None:
    """A handler that completes at once."""


class Refusing:
    """A handler that goes on however often it is cancelled, until it is let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, event: Any, session: Any, job: Any) -> None:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1


class Gate:
    """A handler that waits until it is opened, and tells which jobs run, how many at once, and in which order."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.running: set[int] = set()
        self.begun: list[Any] = []

    @property
    def ran(self) -> list[int]:
        return [job.id for job in self.begun]

    async def __call__(self, event: Any, session: Any, job: Any) -> None:
        self.running.add(job.id)
        self.begun.append(job)
        try:
            await self.open.wait()
        finally:
            self.running.discard(job.id)
