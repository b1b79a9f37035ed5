"""What is done to a queue, one function a kind of run: `await workload(name, url, options, **sizes)` -> figures.

Rows that a workload needs beside its own jobs are made with plain SQL, since a million of them through any API would
take most of the time; `INSERT INTO queue_kit_job` is a documented way to add a job.
"""

import asyncio
import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.schema import CreateTable

from benchmarks.crew import Crew, bare_loop
from benchmarks.effects import EFFECTS
from benchmarks.machine import cpu_seconds
from benchmarks.measure import (
    BYSTANDER,
    Costs,
    Figures,
    Meter,
    WrongRun,
    check_runs,
    drain,
    emptied,
    expect_waiting,
    fill,
    metered,
    writing,
)
from benchmarks.peers import Options, Queue, load
from benchmarks.peers.queue_kit import NAME, QueueKit
from benchmarks.server import connected, execute
from queue_kit import Handler, QueueWorker, add_job, job_queue_cleanup
from queue_kit._sleep import OFTEN
from queue_kit._wakeup import JOB_CHANNEL

CLEANUP = "queue_kit.queue.cleanup"
_LEFT = "SELECT count(*) FROM (SELECT FROM queue_kit_job WHERE status = 2 AND name = 'finished' LIMIT 1) one"
INSERT = "INSERT INTO queue_kit_job (name, priority, data) VALUES ($1, $2, $3) RETURNING id"
PATIENCE = 20.0
GAP = 0.05
INSERTERS = 8
IDLE_STATEMENTS = 0.8
"""Statements a second of an idle worker."""
SETTLE = 11.0
"""A backend that falls idle reports its statements after ten seconds at the latest."""


async def throughput(name: str, url: str, options: Options, *, jobs: int, cap: float, workers: int = 1) -> Figures:
    """Drain waiting no-op jobs."""
    queue = await _installed(name, url, options)
    return await drain(name, queue, options, jobs=jobs, cap=cap, workers=workers)


async def backlog(name: str, url: str, options: Options, *, jobs: int, cap: float, rows: int) -> Figures:
    """Drain beside `rows` jobs that are scheduled for tomorrow at a better priority, and as many finished ones."""
    queue = await _installed(name, url, options)
    later = _rows(rows, scheduled_at="now() + interval '1 day' + number * interval '1 second'", priority="0")
    await execute(url, later, _rows(rows, name="'finished'", status="2"), "VACUUM ANALYZE")
    return await drain(name, queue, options, jobs=jobs, cap=cap)


async def foreign(name: str, url: str, options: Options, *, jobs: int, cap: float, rows: int) -> Figures:
    """Drain behind `rows` due jobs of ten names that this worker does not run, at a better priority."""
    queue = await _installed(name, url, options)
    await execute(url, _rows(rows, name="'other-' || number % 10", priority="0"), "VACUUM ANALYZE")
    return await drain(name, queue, options, jobs=jobs, cap=cap)


async def held_snapshot(name: str, url: str, options: Options, *, jobs: int, cap: float, rounds: int) -> Figures:
    """Fill and drain, over and over, while another session holds a snapshot, so that nothing dead can be removed. The
    rate is that of the fifth round and those behind it."""
    queue = await _installed(name, url, options)
    figures: Figures = {}
    rates = []
    async with connected(url) as holder:
        await holder.execute(f"SET application_name = '{BYSTANDER}'")
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
        for _ in range(rounds):
            figures = await drain(name, queue, options, jobs=jobs, cap=cap)
            rates.append(figures["rate"])
            if figures["cut"]:
                break
    return figures | {"rate": statistics.median(rates[4:] or rates[-1:]), "rounds": rates}


async def add_many(name: str, url: str, options: Options, *, jobs: int) -> Figures:
    """Add jobs by the thousand."""
    queue = await _installed(name, url, options)
    return await _added(queue, jobs, lambda: queue.add_many(range(1, jobs + 1)))


async def add_one(name: str, url: str, options: Options, *, jobs: int) -> Figures:
    """Add jobs one by one, each in a transaction of its own."""
    queue = await _installed(name, url, options)

    async def add() -> None:
        for number in range(1, jobs + 1):
            await queue.add(number)

    return await _added(queue, jobs, add)


async def add_or_insert(name: str, url: str, options: Options, *, jobs: int, turns: int) -> Figures:
    """Add jobs one by one, `jobs` in a turn, and have the driver alone insert the same rows into the same table."""
    queue = await _installed(name, url, options)
    await queue.open()
    async with connected(url) as connection:

        async def insert_row(number: int) -> None:
            await connection.fetchval(INSERT, NAME, 5, json.dumps({"i": number}))

        async def turn(add: Callable[[int], Awaitable[None]]) -> float:
            began = time.perf_counter()
            for number in range(jobs):
                await add(number)
            return jobs / (time.perf_counter() - began)

        for each in (queue.add, insert_row):
            await each(0)  # prepares what is prepared once
        added, inserted = await _in_turns(partial(turn, queue.add), partial(turn, insert_row), turns)
    await queue.close()
    await expect_waiting(queue, 2 * (1 + turns * jobs))
    await queue.look_away()
    return _compared(added, inserted, "bare_rate")


async def pickup(name: str, url: str, options: Options, *, jobs: int) -> Figures:
    """Add jobs one by one to an idle queue: from the commit, as the adder sees it, to the start of the handler."""
    queue = await _installed(name, url, options)
    warm = 5
    with Crew(name, url, options, jobs=warm + jobs, timed=True) as crew:
        await queue.open()
        await queue.add(0)
        await crew.at_work()
        await _paced(queue, range(1, warm))
        waits = await _paced(queue, range(warm, warm + jobs))
        if not await crew.until(warm + jobs, seconds=PATIENCE):
            raise WrongRun(f"{crew.handled} of {warm + jobs} jobs were started")
        check_runs(crew.runs, finished=True)
        figures = _waits(crew, waits)
    await queue.close()
    return figures


async def pickup_under_load(name: str, url: str, options: Options, *, backlog: int, jobs: int) -> Figures:
    """Add jobs of the best priority while a backlog of a worse one is run."""
    queue = await _installed(name, url, options)
    assert isinstance(queue, QueueKit)
    with Crew(name, url, options, jobs=backlog + jobs, timed=True) as crew:
        await fill(queue, range(backlog))
        await queue.open()
        await crew.at_work()
        waits: dict[int, tuple[float, float]] = {}
        for number in range(backlog, backlog + jobs):
            if crew.handled > 0.9 * backlog:
                break
            waits |= await _paced(queue, range(number, number + 1), priority=0)
        deadline = time.monotonic() + PATIENCE
        while not all(crew.tallies[0].starts[number] for number in waits):
            if time.monotonic() > deadline:
                raise WrongRun("jobs of the best priority were not started")
            await asyncio.sleep(0.01)
        check_runs(crew.runs, finished=False)
        figures = _waits(crew, waits) if len(waits) > 1 else {"jobs": len(waits)}
    await queue.close()
    return figures


async def wakeups(name: str, url: str, options: Options, *, seconds: float, turns: int) -> Figures:
    """Insert over eight connections, with wake-ups and without them in turn, while a worker is there.

    With the option `runs` of another name the worker is idle, and sleeps when a turn begins. Else it runs what is
    inserted, and is woken when a turn begins, also without wake-ups: it would leave its work to the next poll, and what
    the work takes from the inserts would be taken for the price of the wake-ups.
    """
    queue = await _installed(name, url, options)
    busy = "runs" not in options
    triggers = await _notifying(url)
    if not triggers:
        raise WrongRun("no trigger of the table notifies, so there is nothing to be compared")
    with Crew(name, url, options, jobs=1) as crew:
        inserters = [await asyncpg.connect(url) for _ in range(INSERTERS)]
        inserted = await _insert(inserters, 0.1)
        await (crew.at_work() if busy else crew.begin())

        async def turn(action: str) -> float:
            nonlocal inserted
            await execute(url, *(f"ALTER TABLE queue_kit_job {action} TRIGGER {trigger}" for trigger in triggers))
            await (_wake(url) if busy else _sleeping(url))
            added = await _insert(inserters, seconds)
            inserted += added
            if busy:
                await _empty(queue)
            else:
                await execute(url, "DELETE FROM queue_kit_job", "VACUUM queue_kit_job")
            return added / seconds

        on, off = await _in_turns(partial(turn, "ENABLE"), partial(turn, "DISABLE"), turns)
        if crew.handled != (inserted if busy else 0):
            raise WrongRun(f"{crew.handled} of {inserted} jobs were run")
        for connection in inserters:
            await connection.close()
    return _compared(on, off, "rate_off")


async def idle(name: str, url: str, options: Options, *, seconds: float, turns: int) -> Figures:
    """Watch a worker that has nothing to do. Autovacuum comes by once in a minute, in which its transactions count too:
    the statements are those of the median turn.

    Beside it is watched a bare loop that asks as often: on some virtual machines to wake up takes milliseconds of
    processor, whatever is done then.
    """
    queue = await _installed(name, url, options)
    with Crew(name, url, options, jobs=1) as crew, bare_loop(url, seconds=1 / IDLE_STATEMENTS) as bare:
        await queue.open()
        await queue.add(0)
        await crew.at_work()
        await queue.close()
        await asyncio.sleep(SETTLE)
        async with metered(url) as meter:
            costs, bare_costs = Costs(crew.cpu, meter), Costs(lambda: cpu_seconds(bare), None)
            seen = [await meter.statements()]
            await costs.begin()
            await bare_costs.begin()
            for _ in range(turns):
                await asyncio.sleep(seconds)
                seen.append(await meter.statements())
            await costs.end()
            await bare_costs.end()
        check_runs(crew.runs, finished=True)
    percent = {"core_percent": costs.own, "bare_core_percent": bare_costs.own, "server_core_percent": costs.server}
    statements = [(after - before) / seconds for before, after in itertools.pairwise(seen)]
    return {"statements": statistics.median(statements), "turns": statements} | {
        key: None if used is None else used / (turns * seconds) * 100 for key, used in percent.items()
    }


async def memory(name: str, url: str, options: Options, *, jobs: int, cap: float) -> Figures:
    """Run many jobs in one worker, and look how much memory it holds after a fifth of them and at the end."""
    queue = await _installed(name, url, options)
    with Crew(name, url, options, jobs=jobs) as crew:
        await fill(queue, range(jobs))
        await crew.at_work()
        await crew.until(jobs // 5, seconds=cap / 2)
        early = crew.memory(peak=False)
        finished = await crew.until(jobs, seconds=cap)
        late, peak, handled = crew.memory(peak=False), crew.memory(), crew.handled
        if finished:
            await _empty(queue)
    check_runs(crew.runs, finished=finished)
    growth = late / early if early and late else None
    return {
        "memory_mb": peak,
        "early_mb": early,
        "late_mb": late,
        "growth": growth,
        "jobs": handled,
        "cut": not finished,
    }


async def retention(name: str, url: str, options: Options, *, rows: int, jobs: int) -> Figures:
    """Pickups on an idle queue, then the same while another worker deletes `rows` finished jobs that are too old."""
    queue = await _installed(name, url, options)
    assert isinstance(queue, QueueKit)
    old = {"status": "2", "updated_at": "now() - interval '30 days'"}
    await execute(url, _rows(rows, **old, name="'finished'"), "VACUUM ANALYZE")
    cleaning = QueueWorker(queue.engine(), {CLEANUP: Handler(job_queue_cleanup(), timeout=math.inf)})
    with Crew(name, url, options, jobs=1 + 100 * jobs, timed=True) as crew:
        await queue.open()
        await queue.add(0)
        await crew.at_work()
        before = _waits(crew, await _paced(queue, range(1, 1 + jobs)))
        first = 1 + jobs
        async with cleaning:
            await add_job(queue.adding, CLEANUP)
            began = time.monotonic()
            waits: dict[int, tuple[float, float]] = {}
            while await queue.count(_LEFT):
                start = first + len(waits)
                waits |= await _paced(queue, range(start, start + 10))
            seconds = time.monotonic() - began
        during = _waits(crew, waits)
        check_runs(crew.runs, finished=False)
    await queue.close()
    await queue.look_away()
    return during | {f"before_{key}": value for key, value in before.items()} | {"rate": rows / seconds}


async def session_writes(name: str, url: str, options: Options, *, jobs: int, cap: float) -> Figures:
    """Have handlers write a row through their session, beside a bare loop that does the same on a pool of the size."""
    queue = await _installed(name, url, options)
    assert isinstance(queue, QueueKit)
    await execute(url, str(CreateTable(EFFECTS)))
    bare = [await _bare_loop(queue.engine(), queue.pullers, jobs // 2)]
    await execute(url, f"TRUNCATE {EFFECTS.name}")
    figures = await drain(name, queue, options, jobs=jobs, cap=cap)
    written = await queue.count(f"SELECT count(DISTINCT number) * 1000000 + count(*) FROM {EFFECTS.name}")
    await queue.look_away()
    if not figures["cut"] and written != jobs * 1_000_001:
        raise WrongRun(f"the handlers' rows are not one a job: {divmod(written, 1_000_000)}")
    bare.append(await _bare_loop(queue.engine(), queue.pullers, jobs // 2))
    return figures | {"bare_rate": statistics.mean(bare), "ratio": figures["rate"] / statistics.mean(bare)}


async def claim_cost(name: str, url: str, options: Options, *, rows: int, shape: str = "plain") -> Figures:
    """Run the first 2,000 of `rows` waiting jobs, fifty at a time and nothing claimed ahead: a claim and its endings.

    Shapes: a thousand `priorities`, two hundred `names`, or first twenty thousand jobs `leased` by another worker.
    """
    jobs = min(rows, 2000)
    await _installed(name, url, options)
    waiting = {"priorities": {"priority": "number % 1000"}, "names": {"name": f"'{NAME}-' || number % 200"}}
    await execute(url, _rows(rows, **waiting.get(shape, {})))
    if shape == "leased":
        await execute(
            url,
            "UPDATE queue_kit_job SET lease_until = now() + interval '1 hour', worker_id = gen_random_uuid(), "
            "claim_no = 1 WHERE id <= 20000",
        )
    await execute(url, "VACUUM ANALYZE")
    with Crew(name, url, options, jobs=rows) as crew:
        await crew.at_work()
        await crew.until(jobs, seconds=PATIENCE, step=0.001)
        seconds, handled = time.monotonic() - crew.started, crew.handled
        check_runs(crew.runs, finished=False)
    return {"claim_ms": seconds / handled * 50 * 1000, "job_us": seconds / handled * 1e6, "rows": rows, "jobs": handled}


async def _installed(name: str, url: str, options: Options) -> Queue:
    queue = load(name, url, options)
    await queue.install()
    return queue


def _rows(count: int, **columns: str) -> str:
    columns = {"name": f"'{NAME}'", "data": "jsonb_build_object('i', number - 1)"} | columns
    return (
        f"INSERT INTO queue_kit_job ({', '.join(columns)}) SELECT {', '.join(columns.values())} "
        f"FROM generate_series(1, {count}) number"
    )


async def _added(queue: Queue, jobs: int, add: Callable[[], Awaitable[None]]) -> Figures:
    async def work(meter: Meter | None) -> Figures:
        costs = Costs(time.process_time, meter)
        await queue.open()
        await queue.add_many(range(1))  # connects, and prepares what is prepared once
        await queue.add(jobs + 1)
        await costs.begin()
        began = time.perf_counter()
        await add()
        seconds = time.perf_counter() - began
        await costs.end()
        await queue.close()
        return {"rate": jobs / seconds, "jobs": jobs, "seconds": seconds} | costs.per_job(jobs)

    figures = await writing(queue, work)
    await expect_waiting(queue, jobs + 2)
    await queue.look_away()
    return figures


async def _paced(queue: Any, numbers: range, **options: int) -> dict[int, tuple[float, float]]:
    """Add jobs with pauses; by number, when each call began and ended."""
    called = {}
    for number in numbers:
        began = time.monotonic()
        await queue.add(number, **options)
        called[number] = (began, time.monotonic())
        await asyncio.sleep(GAP * random.uniform(0.5, 1.5))  # noqa: S311 - so that no poll keeps step with it
    return called


def _waits(crew: Crew, called: dict[int, tuple[float, float]]) -> Figures:
    starts = crew.tallies[0].starts
    figures: Figures = {"jobs": len(called)}
    for prefix, from_commit in (("", True), ("call_", False)):
        waits = [max(0.0, starts[number] - times[from_commit]) * 1000 for number, times in called.items()]
        cuts = statistics.quantiles(waits, n=100, method="inclusive")
        figures |= {f"{prefix}p{percent}": cuts[percent - 1] for percent in (50, 95, 99)}
    return figures


async def _notifying(url: str) -> list[str]:
    query = (
        "SELECT tgname FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid "
        "WHERE tgrelid = 'queue_kit_job'::regclass AND prosrc LIKE '%notify%'"
    )
    async with connected(url) as connection:
        return [row["tgname"] for row in await connection.fetch(query)]


async def _wake(url: str) -> None:
    """Wake the worker so often that it stays up."""
    await execute(url, *[f"NOTIFY {JOB_CHANNEL}"] * 2 * OFTEN)


async def _sleeping(url: str) -> None:
    """Wait until the worker asks to be woken."""
    deadline = time.monotonic() + PATIENCE
    async with connected(url) as connection:
        while not await connection.fetchval("SELECT max(idle_until) > clock_timestamp() FROM queue_kit_worker"):
            if time.monotonic() > deadline:
                raise WrongRun("the worker does not fall asleep")
            await asyncio.sleep(0.05)


async def _insert(connections: list[asyncpg.Connection], seconds: float) -> int:
    until = time.monotonic() + seconds

    async def insert_on(connection: asyncpg.Connection) -> int:
        count = 0
        while time.monotonic() < until:
            await connection.execute(f"INSERT INTO queue_kit_job (name, data) VALUES ('{NAME}', '{{\"i\": 0}}')")
            count += 1
        return count

    return sum(await asyncio.gather(*map(insert_on, connections)))


async def _empty(queue: Queue) -> None:
    if not await emptied(queue, PATIENCE):
        raise WrongRun("jobs are left")


async def _bare_loop(engine: AsyncEngine, concurrency: int, count: int) -> float:
    numbers = iter(range(count))

    async def loop() -> None:
        for number in numbers:
            async with AsyncSession(engine) as session:
                await session.execute(insert(EFFECTS).values(number=number))
                await session.commit()

    began = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(concurrency)))
    seconds = time.perf_counter() - began
    await engine.dispose()
    return count / seconds


async def _in_turns(
    one: Callable[[], Awaitable[float]], other: Callable[[], Awaitable[float]], turns: int
) -> tuple[list[float], list[float]]:
    """Do two things in turn, each so many times and as often before the other as behind it; what they returned."""
    found: tuple[list[float], list[float]] = [], []
    for which in itertools.islice(itertools.cycle((0, 1, 1, 0)), 2 * turns):
        found[which].append(await (one, other)[which]())
    return found


def _compared(rates: list[float], others: list[float], name: str) -> Figures:
    rate, other = statistics.median(rates), statistics.median(others)
    return {"rate": rate, name: other, "ratio": rate / other, "turns": rates, "other_turns": others}
