"""A worker in a process of its own, to be broken: `python -m tests.faults.breaking URL [option=value ...]`.

`die` is where it kills itself: `before its handler`, `before its commit` or `after its commit` of a handler's writes.
`memory` limits its address space, in GiB. With `cron` it registers an entry for every second. The other options are
the worker's, as numbers. It says on stdout what it does, a line each.
"""

import asyncio
import ctypes
import os
import resource
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, make_url, text
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from queue_kit import CronJob, Handlers, QueueWorker, in_process, register_cron_jobs, sqlite_engine
from tests.faults.computing import compute
from tests.support import ADD_EFFECT

GIB = 2**30

jobs = Handlers()


def say(*words: object) -> None:
    print(*words, flush=True)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def clock_offset() -> float:
    """What changes only when this process's clock is set."""
    return time.time() - time.monotonic()


@jobs.handler("write")
async def write(event: Any, session: Any, job: Any) -> None:
    """One effect outside of the database, and one in its transaction."""
    with Path(job.data["ledger"]).open("a") as ledger:
        ledger.write(f"{job.id}\n")
    await session.execute(ADD_EFFECT, {"job_id": job.id})
    (await session.connection()).info["wrote"] = True


@jobs.handler("nothing")
async def nothing(event: Any, session: Any, job: Any) -> None: ...


@jobs.handler("wait", timeout=60)
async def wait(event: Any, session: Any, job: Any) -> None:
    """Runs until a file is there, and only then writes its effect."""
    say("running", job.id)
    before = clock_offset()
    while not Path(job.data["until"]).exists():
        await asyncio.sleep(0.02)
        if abs(clock_offset() - before) > 60:
            say("stepped", round((clock_offset() - before) / 3600))
            before = clock_offset()
    await session.execute(ADD_EFFECT, {"job_id": job.id})


@jobs.handler("block", timeout=60)
async def block(event: Any, session: Any, job: Any) -> None:
    """Blocks the event loop, the first time. On SQLite it writes only then, since it would hold the one lock."""
    marker = Path(job.data["marker"])
    first = not marker.exists()
    marker.touch()
    say("running", job.id)
    embedded = session.get_bind().dialect.name == "sqlite"
    if not embedded:
        await session.execute(ADD_EFFECT, {"job_id": job.id})
    if first:
        while not Path(job.data["until"]).exists():
            time.sleep(0.02)
        say("blocked", job.id)
    if embedded:
        await session.execute(ADD_EFFECT, {"job_id": job.id})


@jobs.handler("look")
async def look(event: Any, session: Any, job: Any) -> None:
    """Says how late it is by the database's clock, and how far off the process's is."""
    now = (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
    say("late", (now - job.scheduled_at).total_seconds(), round((datetime.now(UTC) - now).total_seconds() / 3600))


@jobs.handler("greedy", max_retry_count=1)
async def greedy(event: Any, session: Any, job: Any) -> None:
    """Takes memory until there is none."""
    taken = []
    while True:
        taken.append(bytearray(16 * 2**20))


@jobs.handler("careless", max_retry_count=2)
async def careless(event: Any, session: Any, job: Any) -> None:
    """Takes memory as C code does that does not look whether it got any."""
    say("running", job.id)
    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    ctypes.memset(malloc(int(job.data["gib"] * GIB)), 0, 1)


@jobs.handler("parent", timeout=60)
async def parent(event: Any, session: Any, job: Any) -> None:
    """Starts a program that may keep all of its files, and holds a connection while it waits."""
    await session.execute(text("SELECT 1"))
    null = asyncio.subprocess.DEVNULL
    options = {"stdin": null, "stdout": null, "stderr": null, "close_fds": False, "start_new_session": True}
    child = await asyncio.create_subprocess_exec("sleep", "60", **options)
    say("child", child.pid)
    while not Path(job.data["until"]).exists():
        await asyncio.sleep(0.02)
    child.kill()
    await child.wait()


jobs.add("compute", in_process(compute), timeout=60)


class Hook:
    def __init__(self, moment: str | None) -> None:
        self._moment = moment

    def on_started(self, record: Any) -> None:
        if self._moment == "before its handler":
            die()

    def on_settled(self, record: Any) -> None:
        say(record.outcome.verdict, record.job.id)

    def on_worker_state(self, record: Any) -> None:
        say(record.state)


def die_at_commit(engine: AsyncEngine, moment: str) -> None:
    """Of the connection that a handler has written on: others commit and come back in the midst of its commit."""

    def commits(connection: Connection) -> None:
        if "wrote" in connection.info:
            if moment == "before its commit":
                die()
            connection.info["commits"] = True

    def comes_back(_: object, record: ConnectionPoolEntry) -> None:
        if "commits" in record.info:
            die()

    sqlalchemy_event.listen(engine.sync_engine, "commit", commits)
    sqlalchemy_event.listen(engine.sync_engine.pool, "checkin", comes_back)


async def main(url: str, options: dict[str, str]) -> None:
    sqlite = url.startswith("sqlite")
    engine = sqlite_engine(str(make_url(url).database)) if sqlite else create_async_engine(url)
    if (moment := options.pop("die", None)) is not None:
        die_at_commit(engine, moment)
    if memory := options.pop("memory", None):
        limit = int(float(memory) * GIB)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if options.pop("cron", None):
        await register_cron_jobs(engine, [CronJob("look", "* * * * * *")])
    parallel_count = int(options.pop("parallel_count", 2))
    seconds: dict[str, Any] = {name: float(value) for name, value in options.items()}
    worker = QueueWorker(
        engine,
        jobs,
        parallel_count=parallel_count,
        poll_interval=0.1,
        retry_delay=0.05,
        hooks=[Hook(moment)],
        **seconds,
    )
    # Only once run() heeds signals, which is before the loop's next turn.
    asyncio.get_running_loop().call_soon(say, "ready")
    await worker.run()
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], dict(option.split("=", 1) for option in sys.argv[2:])))
