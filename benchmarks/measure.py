"""How a drain is measured, the same for every queue: from the start of the first handler until the last completion is
to be seen in the database from another connection. A run that did anything else than run each job once is wrong."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import make_url

from benchmarks import machine
from benchmarks.crew import Crew
from benchmarks.peers import Options, Queue
from benchmarks.server import connected, execute, maintenance_url

Figures = dict[str, Any]

BYSTANDER = "bystander"
"""The application name of a session that does not count as a user of the database."""


class WrongRun(Exception):
    """A run that did not do what it should have done. However fast it was, it counts for nothing."""


class Meter:
    """What the server spends on a database, read from another one, so that reading does not count."""

    def __init__(self, connection: asyncpg.Connection, database: str, *, local: bool) -> None:
        self._connection, self._database, self._local = connection, database, local

    async def cpu(self) -> dict[int, float]:
        """Processor seconds by backend; empty when the server is on another machine."""
        pids = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND backend_type <> 'autovacuum worker'"
        rows = await self._connection.fetch(pids, self._database) if self._local else []
        return {row["pid"]: seconds for row in rows if (seconds := machine.cpu_seconds(row["pid"])) is not None}

    async def written(self) -> tuple[int, int]:
        """The position in the WAL, in bytes, and the commits so far."""
        query = (
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, xact_commit "
            "FROM pg_stat_database WHERE datname = $1"
        )
        wal, commits = await self._connection.fetchrow(query, self._database)
        return wal, commits

    async def statements(self) -> int:
        """Statements so far where pg_stat_statements counts them, else transactions, as a worker's mostly are."""
        query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1"
        if await self._connection.fetchval("SELECT to_regclass('pg_stat_statements')"):
            query = "SELECT sum(calls) FROM pg_stat_statements JOIN pg_database d ON d.oid = dbid WHERE datname = $1"
        return int(await self._connection.fetchval(query, self._database) or 0)

    async def alone(self) -> None:
        """Wait until nobody is connected: a backend reports its commits at its end at the latest."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend' "
            "AND application_name <> $2"
        )
        for _ in range(200):
            if not await self._connection.fetchval(query, self._database, BYSTANDER):
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def metered(url: str) -> AsyncIterator[Meter]:
    """A meter for a database."""
    async with connected(maintenance_url(url)) as connection:
        local = machine.is_postgres(await connection.fetchval("SELECT pg_backend_pid()"))
        yield Meter(connection, str(make_url(url).database), local=local)


class Costs:
    """Processor time between `begin` and `end`: of a worker, as `own` tells it, and of the server."""

    def __init__(self, own: Callable[[], float | None], meter: Meter | None) -> None:
        self._own, self._meter = own, meter

    async def begin(self) -> None:
        """From here."""
        self._before = self._own(), await self._server()

    async def end(self) -> None:
        """To here."""
        (own, server), own_after, server_after = self._before, self._own(), await self._server()
        self.own = None if own is None or own_after is None else own_after - own
        used = (seconds - server.get(pid, 0.0) for pid, seconds in server_after.items())
        self.server = sum(used) if server_after else None

    def per_job(self, jobs: int) -> Figures:
        """In microseconds."""
        both = {"worker_us": self.own, "server_us": self.server}
        return {name: None if seconds is None else seconds / jobs * 1e6 for name, seconds in both.items()}

    async def _server(self) -> dict[int, float]:
        return await self._meter.cpu() if self._meter else {}


async def writing(queue: Queue, do: Callable[[Meter | None], Awaitable[Figures]]) -> Figures:
    """Do something, and add to its figures what was written to the WAL and committed, by job."""
    if not queue.url.startswith("postgresql"):
        return await do(None)
    await queue.look_away()
    async with metered(queue.url) as meter:
        await meter.alone()
        wal, commits = await meter.written()
        figures = await do(meter)
        await queue.look_away()
        await meter.alone()
        wal_after, commits_after = await meter.written()
    jobs = figures["jobs"]
    return figures | {"wal_bytes": (wal_after - wal) / jobs, "commits": (commits_after - commits) / jobs}


async def fill(queue: Queue, jobs: range) -> None:
    """Add jobs, and have the planner know of them, as autovacuum would within a minute."""
    await queue.open()
    await queue.add_many(jobs)
    await queue.close()
    if queue.url.startswith("postgresql"):
        await execute(queue.url, "ANALYZE")
    await expect_waiting(queue, len(jobs))


async def expect_waiting(queue: Queue, jobs: int) -> None:
    """Raise `WrongRun` unless so many jobs wait."""
    if (waiting := await queue.remaining()) != jobs:
        raise WrongRun(f"{waiting} jobs wait, not {jobs}")


async def drain(name: str, queue: Queue, options: Options, *, jobs: int, cap: float, workers: int = 1) -> Figures:
    """Add jobs while the workers start, and run them. After `cap` seconds the workers are stopped, and the rate is that
    of what they did."""
    with Crew(name, queue.url, options, jobs=jobs, count=workers) as crew:
        await fill(queue, range(jobs))
        return await writing(queue, lambda meter: _drained(crew, queue, options, jobs, cap, meter))


async def _drained(crew: Crew, queue: Queue, options: Options, jobs: int, cap: float, meter: Meter | None) -> Figures:
    kept = await queue.completed()
    costs = Costs(crew.cpu, meter)
    await crew.at_work()
    await costs.begin()
    finished = await crew.until(jobs, seconds=cap) and await emptied(queue, cap)
    seconds = time.monotonic() - crew.started
    await costs.end()
    memory, runs = crew.memory(), crew.runs
    done = jobs if finished else jobs - await queue.remaining()
    crew.stop()
    check_runs(runs, finished=finished)
    if not done:
        raise WrongRun("no job was completed")
    if finished and kept is not None:
        kept, expected = await queue.completed() or 0, kept + jobs if options.get("keep") else kept
        if kept != expected:
            raise WrongRun(f"{kept} completed rows are kept, not {expected}")
    figures = {"rate": done / seconds, "jobs": done, "seconds": seconds, "cut": not finished, "memory_mb": memory}
    return figures | costs.per_job(done)


async def emptied(queue: Queue, seconds: float) -> bool:
    """Wait until no job is left; false when that takes longer."""
    deadline = time.monotonic() + seconds
    while await queue.remaining():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True


def check_runs(runs: list[int], *, finished: bool) -> None:
    """Raise `WrongRun` unless each job ran exactly once, or at most once in a run that was cut short."""
    wrong = Counter(count for count in runs if count != 1 and (finished or count > 1))
    if wrong:
        raise WrongRun("; ".join(f"{jobs} jobs ran {count} times" for count, jobs in sorted(wrong.items())))
