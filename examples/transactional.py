"""Transactions: a worker is killed in the middle of a handler, and the handler's effect is there exactly once.

    python examples/transactional.py [--database-url postgresql+asyncpg://user@host/name]

The handler moves money from one account to another: two rows in a ledger. The script starts a worker process, kills it
with SIGKILL when the first row is written but not committed, and looks; then it starts another worker and looks again.
Without a URL it uses an SQLite file that it throws away.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from queue_kit import Event, Handlers, Job, QueueWorker, engine_from_url, get_job, migrate

LEASE = 2.0
"""Seconds after which another worker takes over from one that died. Short, so that nobody waits; the default is 30."""


class Base(DeclarativeBase):
    """This example's tables."""


class Entry(Base):
    """A line of the ledger. Nothing in it is unique, so nothing but the queue prevents a second one."""

    __tablename__ = "transactional_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[str]
    amount: Mapped[int]
    job_id: Mapped[int]


@dataclass
class Transfer:
    """The payload."""

    payer: str
    payee: str
    amount: int


jobs = Handlers()


@jobs.handler("money.transfer")
async def transfer(_event: Event, session: AsyncSession, job: Job[Transfer]) -> None:
    """Write both sides of a transfer. They and the job's completion commit together, or none of them does."""
    session.add(Entry(account=job.data.payer, amount=-job.data.amount, job_id=job.id))
    await session.flush()  # the INSERT has been sent; nothing is committed
    if os.environ.get("STALL"):
        print("in the middle", flush=True)
        await asyncio.Event().wait()  # until somebody kills this process
    session.add(Entry(account=job.data.payee, amount=job.data.amount, job_id=job.id))


async def work(url: str) -> None:
    """The worker process: run jobs until SIGTERM."""
    await QueueWorker(engine_from_url(url), jobs, lease=LEASE, poll_interval=0.2).run()


async def start_worker(url: str, *, stall: bool) -> Process:
    """Start a worker process; with `stall` its handler stops halfway."""
    environment = {**os.environ, "WORKER_URL": url, "STALL": "yes" if stall else ""}
    return await asyncio.create_subprocess_exec(sys.executable, __file__, env=environment, stdout=PIPE)


async def show(engine: AsyncEngine, job_id: int) -> None:
    """Print what the database holds."""
    job = await get_job(engine, job_id)
    async with AsyncSession(engine) as session:
        entries = (await session.scalars(select(Entry).where(Entry.job_id == job_id).order_by(Entry.id))).all()
    print(f"   job {job_id} is {job.state if job else 'gone'}, the ledger has {len(entries)} entries for it")
    for entry in entries:
        print(f"   {entry.account:6} {entry.amount:+d}")


async def story(url: str) -> None:
    """Tell what happens, step by step."""
    engine = engine_from_url(url)
    await migrate.upgrade(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    print("1. A transfer is added.")
    job_id = await transfer.add(engine, Transfer("ada", "grace", 100))
    await show(engine, job_id)

    print("2. A worker runs it, and is killed with SIGKILL when it has written one entry of two.")
    first = await start_worker(url, stall=True)
    assert first.stdout is not None
    assert await first.stdout.readline() == b"in the middle\n"
    first.kill()
    await first.wait()
    await show(engine, job_id)

    print(f"3. Another worker starts. The dead one's lease runs out within {LEASE:g} s, then it runs the job again.")
    second = await start_worker(url, stall=False)
    try:
        await completion(engine, job_id)
        await show(engine, job_id)
    finally:
        second.terminate()
    print(f"4. It is told to end with SIGTERM; its exit status is {await second.wait()}.")
    await engine.dispose()


async def completion(engine: AsyncEngine, job_id: int) -> None:
    """Wait until a job is complete, for half a minute at most."""
    async with asyncio.timeout(30):
        while True:
            job = await get_job(engine, job_id)
            if job is not None and job.is_complete:
                return
            await asyncio.sleep(0.05)


def main() -> None:
    """Be the worker when started as one, else tell the story."""
    if worker_url := os.environ.get("WORKER_URL"):
        asyncio.run(work(worker_url))
        return
    parser = argparse.ArgumentParser(description="Kill a worker in the middle of a handler, and look.")
    parser.add_argument("--database-url", help="postgresql+asyncpg://..., in place of a temporary SQLite file")
    url = parser.parse_args().database_url
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(story(url or f"sqlite:///{Path(folder, 'transactional.db')}"))


if __name__ == "__main__":
    main()
