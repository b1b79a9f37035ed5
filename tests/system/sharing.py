"""A worker in a process of its own, for the tests of many workers: `python sharing.py URL [option=value ...]`.

`listen=URL` listens there; `pooled=yes` suits a transaction pooler; `at=NAME` adds a handler
`at NAME` that only this process has. The other options are the worker's, as numbers.

It says on stdout what it does, a line each: `running ID`, then how that ended and the id.
"""

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import Handlers, QueueWorker
from tests.support import ADD_EFFECT, NO_CACHES

jobs = Handlers()


def say(*words: object) -> None:
    print(*words, flush=True)


@jobs.handler("write", retry_delay=0.05, max_retry_count=20)
async def write(event: Any, session: Any, job: Any) -> None:
    """Several statements in one transaction."""
    await session.execute(text("SELECT 1"))
    await asyncio.sleep(random.uniform(0, 0.1))
    await session.execute(ADD_EFFECT, {"job_id": job.id})


@jobs.handler("idle")
async def idle(event: Any, session: Any, job: Any) -> None:
    """Keeps its puller for a moment, without a session."""
    await asyncio.sleep(0.05)


@jobs.handler("wait", timeout=60)
async def wait(event: Any, session: Any, job: Any) -> None:
    """Runs until a file is there; with `write` in a transaction."""
    if job.data["write"]:
        await session.execute(ADD_EFFECT, {"job_id": job.id})
    say("running", job.id)
    try:
        while not Path(job.data["until"]).exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        say("aborted", job.id, type(event.signal.reason).__name__)
        raise
    say("through", job.id)


class Hook:
    def on_settled(self, record: Any) -> None:
        say(record.outcome.verdict, record.job.id)

    def on_worker_state(self, record: Any) -> None:
        say(record.state)


def engine_for(url: str, *, pooled: bool) -> AsyncEngine:
    return create_async_engine(url, connect_args=NO_CACHES if pooled else {})


async def main(url: str, options: dict[str, str]) -> None:
    engine = engine_for(url, pooled=options.pop("pooled", "no") == "yes")
    listen = options.pop("listen", None)
    listening = True if listen is None else engine_for(listen, pooled=False)
    if at := options.pop("at", None):
        jobs.add(f"at {at}", idle.function)
    parallel_count = int(options.pop("parallel_count", 3))
    seconds: dict[str, Any] = {name: float(value) for name, value in options.items()}
    worker = QueueWorker(engine, jobs, parallel_count=parallel_count, listen=listening, hooks=[Hook()], **seconds)
    await worker.run()
    await engine.dispose()


asyncio.run(main(sys.argv[1], dict(option.split("=", 1) for option in sys.argv[2:])))
