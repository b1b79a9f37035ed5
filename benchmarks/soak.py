"""`python -m benchmarks.soak --minutes 60`: a steady load of every kind of job for a long time, to see what grows.

One worker process runs what this process adds at a constant rate. Its memory, files and connections, the table's size
and how long jobs wait are read once an interval. At the end each job must have ended as it should, each transactional
effect be there once, and nothing be left behind; otherwise the exit status is 1.
"""

import asyncio
import json
import logging
import multiprocessing
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import asyncpg
import click
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import QueuePool

from benchmarks import machine, server
from queue_kit import (
    CronJob,
    Event,
    Handlers,
    Job,
    NewJob,
    QueueWorker,
    Snooze,
    add_jobs,
    in_thread,
    job_queue_cleanup,
    migrate,
    register_cron_jobs,
)

CONTEXT = multiprocessing.get_context("spawn")
KINDS = {"quick": 50, "write": 30, "slow": 8, "thread": 4, "fails": 3, "snoozes": 2, "blob": 2, "late": 1}
"""Of a hundred jobs, how many are of which kind."""

STEP = 0.02
"""Seconds between two transactions that add jobs."""

KEEP_DAYS = 1 / 1440
"""Finished rows are kept for a minute."""

WARM_UP = 0.1
"""The share of the run at its beginning that no slope is read from."""


def handlers(pickups: "Connection[float, float]") -> Handlers:
    """One of each kind; `quick` tells how long it waited."""
    jobs = Handlers()

    @jobs.handler("quick")
    async def quick(event: Event, session: AsyncSession, job: Job[Any]) -> None:
        pickups.send(time.monotonic() - job.data["at"])  # one clock for all processes of a machine

    @jobs.handler("write")
    async def write(event: Event, session: AsyncSession, job: Job[Any]) -> None:
        await session.execute(text("INSERT INTO effect VALUES (:job_id)"), {"job_id": job.id})

    @jobs.handler("slow")
    async def slow(event: Event, session: AsyncSession, job: Job[Any]) -> None:
        await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - of no consequence

    def in_a_thread(event: Event, job: Job[Any]) -> None:
        time.sleep(0.01)

    @jobs.handler("fails", retry_delay=0.5)
    async def fails(event: Event, session: AsyncSession, job: Job[Any]) -> None:
        if job.attempt == 1:
            raise ValueError("the first try")

    @jobs.handler("snoozes")
    async def snoozes(event: Event, session: AsyncSession, job: Job[Any]) -> None:
        if time.monotonic() - job.data["at"] < 1:
            raise Snooze(1)

    @jobs.handler("blob")
    async def blob(event: Event, session: AsyncSession, job: Job[Any]) -> None:
        assert len(job.data["blob"]) == 65_536

    @jobs.handler("late", timeout=0.2, max_retry_count=1)
    async def late(event: Event, session: AsyncSession, job: Job[Any]) -> None:
        await session.execute(text("SELECT pg_sleep(60)"))

    @jobs.handler("tick")
    async def tick(event: Event, session: AsyncSession, job: Job[Any]) -> None:
        await session.execute(text("SELECT 1"))

    jobs.add("thread", in_thread(in_a_thread))
    jobs.add("cleanup", job_queue_cleanup(queue_history_in_days=KEEP_DAYS))
    return jobs


def work(url: str, pullers: int, pickups: "Connection[float, float]") -> None:
    """The worker's process."""

    logging.getLogger("queue_kit").setLevel(logging.ERROR)  # some jobs fail on purpose

    async def main() -> None:
        engine = create_async_engine(url, pool_size=pullers + 5)
        await QueueWorker(engine, handlers(pickups), parallel_count=pullers, lease=15).run()
        await engine.dispose()

    asyncio.run(main())


@dataclass(frozen=True)
class Sample:
    """One interval: `minute` of its end, sizes in MB, waits of `quick` jobs in ms, rows of the table at its end."""

    minute: float
    memory: float | None
    files: int
    connections: int
    wait_p50: float
    wait_p95: float
    wait_max: float
    live_rows: int
    finished_rows: int
    table: float


class Soak:
    """A load on a database, and what is read meanwhile."""

    def __init__(self, url: str, *, rate: float, pullers: int) -> None:
        self._url = url
        self._rate = rate
        self._engine = create_async_engine(server.alchemy_url(url))
        self._reading, sending = CONTEXT.Pipe(duplex=False)
        self._worker = CONTEXT.Process(target=work, args=(server.alchemy_url(url), pullers, sending))
        self.added: Counter[str] = Counter()
        self._waits: list[float] = []
        self.samples: list[Sample] = []

    async def run(self, seconds: float, interval: float) -> list[str]:
        """Load, sample, stop, and say what is wrong."""
        await migrate.upgrade(self._engine)
        await server.execute(self._url, "CREATE TABLE effect (job_id bigint)")
        await register_cron_jobs(self._engine, [CronJob("cleanup", "*/10 * * * * *"), CronJob("tick", "* * * * * *")])
        self._worker.start()
        try:
            adding = asyncio.create_task(self._add(seconds))
            async with server.connected(self._url) as connection:
                for number in range(1, round(seconds / interval) + 1):
                    await asyncio.sleep(interval)
                    self.samples.append(await self._sample(connection, number * interval / 60))
                    click.echo(" ".join(f"{name}={value}" for name, value in asdict(self.samples[-1]).items()))
                await adding
                return await self._wrong(connection)
        finally:
            self._worker.kill()
            self._worker.join()
            await self._engine.dispose()

    async def _add(self, seconds: float) -> None:
        names, weights = list(KINDS), list(KINDS.values())
        began = time.monotonic()
        while (since := time.monotonic() - began) < seconds:
            due = int(since * self._rate) - self.added.total()
            kinds = random.choices(names, weights, k=max(due, 0))  # noqa: S311
            await add_jobs(self._engine, [NewJob(kind, _payload(kind)) for kind in kinds])
            self.added.update(kinds)
            self._hear()
            await asyncio.sleep(STEP)

    async def _sample(self, connection: asyncpg.Connection, minute: float) -> Sample:
        waits = sorted(self._waits)
        self._waits.clear()
        pid = self._worker.pid
        assert pid is not None
        live, finished, size = await connection.fetchrow(
            "SELECT count(*) FILTER (WHERE status < 2), count(*) FILTER (WHERE status >= 2),"
            " pg_total_relation_size('queue_kit_job') FROM queue_kit_job"
        )
        return Sample(
            minute=round(minute, 1),
            memory=machine.memory_mb(pid, peak=False),
            files=machine.open_files(pid) or 0,
            connections=await self._connections(connection),
            wait_p50=_quantile(waits, 0.5),
            wait_p95=_quantile(waits, 0.95),
            wait_max=_quantile(waits, 1.0),
            live_rows=live,
            finished_rows=finished,
            table=round(size / 2**20, 1),
        )

    def _hear(self) -> None:
        """Take what was sent of waits, often, since a full pipe would block the worker."""
        while self._reading.poll():
            self._waits.append(self._reading.recv() * 1e3)

    async def _connections(self, connection: asyncpg.Connection) -> int:
        """Those of the worker: all but the sampler's, and this process's pool of one."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        pool = self._engine.pool
        assert isinstance(pool, QueuePool)
        return int(await connection.fetchval(query)) - pool.checkedin()

    async def _wrong(self, connection: asyncpg.Connection) -> list[str]:
        """What is not as it should be, once all is done and the worker has stopped."""
        wrong = []
        live = "SELECT count(*) FROM queue_kit_job WHERE status < 2 AND cron_name IS NULL"
        if left := await _left(lambda: connection.fetchval(live), seconds=60):
            wrong.append(f"{left} jobs are left")
        self._worker.terminate()
        await asyncio.to_thread(self._worker.join, 30)
        if self._worker.exitcode != 0:
            wrong.append(f"the worker ended with status {self._worker.exitcode}")
        if await connection.fetchval("SELECT count(*) FROM queue_kit_job WHERE lease_until > clock_timestamp()"):
            wrong.append("jobs are still leased")
        # A backend takes a moment to see that its client is gone.
        if left := await _left(lambda: self._connections(connection), seconds=10):
            wrong.append(f"{left} connections are left")
        effects, different = await connection.fetchrow("SELECT count(*), count(DISTINCT job_id) FROM effect")
        if (effects, different) != (self.added["write"], self.added["write"]):
            wrong.append(f"{effects} effects of {different} jobs, not {self.added['write']}")
        return wrong


def _payload(kind: str) -> dict[str, Any]:
    return {"at": time.monotonic(), "blob": "x" * 65_536 if kind == "blob" else ""}


async def _left(count: Callable[[], Awaitable[int]], *, seconds: float) -> int:
    """How many are left, once there are none or the time is over."""
    deadline = time.monotonic() + seconds
    while left := await count():
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    return left


def _quantile(values: list[float], share: float) -> float:
    return round(values[min(int(len(values) * share), len(values) - 1)], 2) if values else 0.0


def slope(samples: list[Sample], of: str) -> float:
    """By how much a figure grows in an hour, by a straight line through the samples."""
    points = [(each.minute / 60, getattr(each, of)) for each in samples if getattr(each, of) is not None]
    if len(points) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def drift(samples: list[Sample], of: str) -> float:
    """The median of the last third by that of the first."""
    third = max(len(samples) // 3, 1)
    first, last = (
        statistics.median(getattr(each, of) for each in part) for part in (samples[:third], samples[-third:])
    )
    return last / first if first else 0.0


def summary(samples: list[Sample], added: Counter[str]) -> dict[str, Any]:
    """What is to be known of the run."""
    steady = samples[round(len(samples) * WARM_UP) :]
    memory = [each.memory for each in steady if each.memory is not None]
    return {
        "jobs added": added.total(),
        "memory MB, first and last": [memory[0], memory[-1]] if memory else None,
        "memory slope MB/h": round(slope(steady, "memory"), 2),
        "connections, fewest and most": [min(e.connections for e in steady), max(e.connections for e in steady)],
        "open files, fewest and most": [min(e.files for e in steady), max(e.files for e in steady)],
        "wait p50 ms, median": statistics.median(e.wait_p50 for e in steady),
        "wait p95 ms, median": statistics.median(e.wait_p95 for e in steady),
        "wait p50 drift": round(drift(steady, "wait_p50"), 2),
        "wait p95 drift": round(drift(steady, "wait_p95"), 2),
        "table MB, first and last": [steady[0].table, steady[-1].table],
    }


@asynccontextmanager
async def _database(url: str | None) -> AsyncIterator[str]:
    with server.serving(url) as serving:
        async with server.database(serving) as made:
            yield made


async def _soak(url: str | None, *, minutes: float, rate: float, pullers: int, interval: float) -> dict[str, Any]:
    async with _database(url) as made:
        soak = Soak(made, rate=rate, pullers=pullers)
        wrong = await soak.run(minutes * 60, interval)
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "minutes": minutes,
            "rate": rate,
            "machine": machine.describe(),
            "summary": summary(soak.samples, soak.added),
            "wrong": wrong,
            "samples": [asdict(each) for each in soak.samples],
        }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="How long.")
@click.option("--rate", type=click.FloatRange(min=1), default=200.0, show_default=True, help="Jobs a second.")
@click.option(
    "--pullers", type=click.IntRange(min=1), default=20, show_default=True, help="The worker's parallel_count."
)
@click.option(
    "--interval", type=click.FloatRange(min=0.5), default=30.0, show_default=True, help="Seconds of a sample."
)
@click.option(
    "--database-url",
    envvar="QUEUE_KIT_BENCH_DATABASE_URL",
    show_envvar=True,
    help="A server where databases named qk_bench_* may be made and dropped; else one is started.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file for the result, as JSON.")
def main(
    *, minutes: float, rate: float, pullers: int, interval: float, database_url: str | None, output: Path | None
) -> None:
    """Load a worker steadily for a long time, and see what grows.

    \b
    Exit status: 0 all jobs ended as they should and nothing is left, 1 not so, 2 wrong usage.
    """
    result = asyncio.run(_soak(database_url, minutes=minutes, rate=rate, pullers=pullers, interval=interval))
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(json.dumps(result["summary"], indent=1))
    for problem in result["wrong"]:
        click.secho(problem, fg="red", err=True)
    sys.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
