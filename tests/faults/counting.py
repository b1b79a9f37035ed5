"""A worker in a process of its own, for the test of busy writers: `python counting.py FILE`. Its handler reads a number
and writes the next one, so that a transaction which began on an old snapshot would lose an update."""

import asyncio
import sys
from typing import Any

from sqlalchemy import text

from queue_kit import Handlers, QueueWorker, sqlite_engine

jobs = Handlers()


@jobs.handler("count")
async def count(event: Any, session: Any, job: Any) -> None:
    n = await session.scalar(text("SELECT n FROM tally"))
    await asyncio.sleep(0.002)
    await session.execute(text("UPDATE tally SET n = :n"), {"n": n + 1})


class Hook:
    def on_worker_state(self, record: Any) -> None:
        print(record.state, flush=True)

    def on_settled(self, record: Any) -> None:
        print(record.outcome.verdict, flush=True)


async def main(file: str) -> None:
    engine = sqlite_engine(file)
    await QueueWorker(engine, jobs, parallel_count=2, poll_interval=0.05, prefetch=0, hooks=[Hook()]).run()
    await engine.dispose()


asyncio.run(main(sys.argv[1]))
