"""What `queue-kit bench` measures: how fast the queue is on a database of one's own, in a few seconds.

The jobs do nothing, under a name that no other worker knows, and all of them are removed again, however it ends. The
figures are those of one process.
"""

import asyncio
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from queue_kit import migrate
from queue_kit._dialect.clock import clock_time
from queue_kit.enqueue import add_job, add_jobs
from queue_kit.errors import QueueKitError
from queue_kit.event import Event
from queue_kit.hooks import Settled
from queue_kit.job import Job, NewJob
from queue_kit.models import HISTORY, JOBS
from queue_kit.worker import QueueWorker

MOST_JOBS = 100_000

AT_ONCE = 1_000
"""Jobs that one `add_jobs` adds."""

ONE_BY_ONE = 200
"""Jobs that are added by as many `add_job`, and then run by one puller."""

PULLERS = 100

ROUND_TRIPS = 50

PICKUPS = 50
PICKUP_SECONDS = 10.0
"""When to be content with fewer pickups: where nothing announces a job, each takes a poll."""
FEWEST_PICKUPS = 5

WARMING_UP = 3
"""Pickups that do not count: by then the worker listens, as its first poll has passed."""

AN_IDLE_MOMENT = 0.02


@dataclass(frozen=True, slots=True)
class Pickup:
    """Milliseconds from calling `add_job` on an idle queue until the handler begins."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured. Rates are jobs a second."""

    database: str
    settings: dict[str, str]
    pooled: bool
    round_trip_ms: float
    jobs: int
    add_jobs_per_second: float
    add_job_per_second: float
    drain_100_pullers_per_second: float
    drain_1_puller_per_second: float
    pickups: int
    pickup_ms: Pickup


async def measure(engine: AsyncEngine, jobs: int) -> Figures:
    """Measure with this many jobs, from 1 to `MOST_JOBS`. Raises `SchemaMismatch` when the tables do not fit.

    The engine must work through a pooler. Without one, another to the same database takes its place, which caches
    statements as an application's does.
    """
    pooled = await _is_pooled(engine)
    if pooled or engine.dialect.name == "sqlite":
        return await _measure(engine, jobs, pooled=pooled)
    caching = create_async_engine(engine.url)
    try:
        return await _measure(caching, jobs, pooled=False)
    finally:
        await caching.dispose()


async def _is_pooled(engine: AsyncEngine) -> bool:
    if engine.dialect.name == "sqlite":
        return False
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        backend = await connection.scalar(select(func.pg_backend_pid()))
        return bool(driver.get_server_pid() != backend)  # a pooler makes up the number that it tells


async def _measure(engine: AsyncEngine, jobs: int, *, pooled: bool) -> Figures:
    async with engine.execution_options(queue_kit_readonly=True).connect() as connection:
        await migrate.check_schema(connection)
        database, settings = await _describe(connection)
        round_trip = await _round_trip(connection)
    async with _left_as_it_was(engine) as name:
        many = await _timed(lambda: _add_at_once(engine, name, jobs))
        many_drained = await _drain(engine, name, jobs, pullers=PULLERS)
        single = await _timed(lambda: _add_one_by_one(engine, name))
        single_drained = await _drain(engine, name, ONE_BY_ONE, pullers=1)
        pickups = await _pick_up(engine, name)
    return Figures(
        database=database,
        settings=settings,
        pooled=pooled,
        round_trip_ms=round(round_trip * 1_000, 3),
        jobs=jobs,
        add_jobs_per_second=round(jobs / many, 1),
        add_job_per_second=round(ONE_BY_ONE / single, 1),
        drain_100_pullers_per_second=round(jobs / many_drained, 1),
        drain_1_puller_per_second=round(ONE_BY_ONE / single_drained, 1),
        pickups=len(pickups),
        pickup_ms=_percentiles(pickups),
    )


async def _describe(connection: AsyncConnection) -> tuple[str, dict[str, str]]:
    """The database's name and version, and how careful it is with what was committed."""
    if connection.dialect.name == "postgresql":
        names = ("server_version", "fsync", "synchronous_commit")
        row = (await connection.execute(select(*(func.current_setting(name).label(name) for name in names)))).one()
        version, *values = row
        return f"PostgreSQL {version}", dict(zip(names[1:], values, strict=True))
    version = await connection.scalar(select(func.sqlite_version()))
    journal = (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar_one()
    synchronous = (await connection.exec_driver_sql("PRAGMA synchronous")).scalar_one()
    levels = ("off", "normal", "full", "extra")
    return f"SQLite {version}", {"journal_mode": journal, "synchronous": levels[synchronous]}


async def _round_trip(connection: AsyncConnection) -> float:
    nothing = select(1)

    async def ask() -> None:
        await connection.execute(nothing)

    await ask()  # prepares the statement
    return statistics.median([await _timed(ask) for _ in range(ROUND_TRIPS)])


async def _timed(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    await action()
    return time.perf_counter() - began


@asynccontextmanager
async def _left_as_it_was(engine: AsyncEngine) -> AsyncIterator[str]:
    """A name for jobs, of which neither rows nor history are left afterwards."""
    name = f"queue_kit.bench.{secrets.token_hex(4)}"
    async with engine.connect() as connection:
        newest, began = (await connection.execute(select(func.coalesce(func.max(JOBS.c.id), 0), clock_time()))).one()
    try:
        yield name
    finally:
        try:
            async with engine.begin() as connection:
                # By id as well, or a long history would be read for it.
                await connection.execute(delete(JOBS).where(JOBS.c.id > newest, JOBS.c.name == name))
        except Exception as error:
            raise QueueKitError(f"the jobs named {name!r} could not be removed: {error}") from error
        with suppress(DBAPIError):  # who may not delete history may not write it either
            async with engine.begin() as connection:
                recent = HISTORY.c.minute > began - timedelta(minutes=2)
                await connection.execute(delete(HISTORY).where(recent, HISTORY.c.name == name))


async def _add_at_once(engine: AsyncEngine, name: str, count: int) -> None:
    for begin in range(0, count, AT_ONCE):
        await add_jobs(engine, [NewJob(name)] * min(AT_ONCE, count - begin))


async def _add_one_by_one(engine: AsyncEngine, name: str) -> None:
    for _ in range(ONE_BY_ONE):
        await add_job(engine, name)


class _Countdown:
    """A hook that waits for so many endings."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.over = asyncio.Event()

    def on_settled(self, _record: Settled) -> None:
        self._left -= 1
        if self._left == 0:
            self.over.set()


async def _drain(engine: AsyncEngine, name: str, count: int, *, pullers: int) -> float:
    """Seconds that a worker needs for the jobs that are there, from its start on."""

    async def nothing(_event: Event, _session: AsyncSession, _job: Job[Any]) -> None:
        pass

    countdown = _Countdown(count)
    async with QueueWorker(engine, {name: nothing}, parallel_count=pullers, listen=False, hooks=[countdown]):
        return await _timed(countdown.over.wait)


async def _pick_up(engine: AsyncEngine, name: str) -> list[float]:
    """Seconds from adding a job to an idle queue until its handler begins, once a job."""
    begun: asyncio.Queue[float] = asyncio.Queue()

    async def begins(_event: Event, _session: AsyncSession, _job: Job[Any]) -> None:
        begun.put_nowait(time.perf_counter())

    async def pickup() -> float:
        asked = time.perf_counter()
        await add_job(engine, name)
        seconds = await begun.get() - asked
        await asyncio.sleep(AN_IDLE_MOMENT)
        return seconds

    async with QueueWorker(engine, {name: begins}, parallel_count=PULLERS):
        for _ in range(WARMING_UP):
            await pickup()
        enough = time.monotonic() + PICKUP_SECONDS
        seconds: list[float] = []
        while len(seconds) < PICKUPS and (len(seconds) < FEWEST_PICKUPS or time.monotonic() < enough):
            seconds.append(await pickup())
    return seconds


def _percentiles(seconds: list[float]) -> Pickup:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return Pickup(*(round(cuts[percent - 1] * 1_000, 2) for percent in (50, 95, 99)))


def as_table(figures: Figures) -> str:
    """The figures for people."""
    settings = ", ".join(f"{name} {value}" for name, value in figures.settings.items())
    way = " through a pooler" if figures.pooled else ""
    rows = [
        (f"add_jobs, {min(AT_ONCE, figures.jobs):,} at once", figures.jobs, figures.add_jobs_per_second),
        ("add_job, one by one", ONE_BY_ONE, figures.add_job_per_second),
        (f"run, {PULLERS} pullers", figures.jobs, figures.drain_100_pullers_per_second),
        ("run, 1 puller", ONE_BY_ONE, figures.drain_1_puller_per_second),
    ]
    pickup = figures.pickup_ms
    times = f"p50 {pickup.p50:.1f} ms, p95 {pickup.p95:.1f} ms, p99 {pickup.p99:.1f} ms"
    return "\n".join(
        [
            f"{figures.database}; {settings}",
            f"a round trip{way} takes {figures.round_trip_ms:.2f} ms",
            "",
            f"{'':24}{'jobs':>8}{'a second':>12}",
            *(f"{what:24}{jobs:>8,}{rate:>12,.0f}" for what, jobs, rate in rows),
            f"{'pickup when idle':24}{figures.pickups:>8,}    {times}",
        ]
    )
