"""Chancy with its async executor, eager polling, and its default plugins. It writes completions once a second, so one
can be lost that was counted; here a job counts when its row says so."""

import logging
from typing import Any

import chancy

from benchmarks.peers import Note, Queue

LOG = logging.getLogger("chancy")
LOG.setLevel(logging.WARNING)

_note: list[Note] = []


async def bench(*, i: int) -> None:
    """Chancy finds the function again by its import path, so the note is kept in the module."""
    _note[0](i)


TASK: Any = chancy.job(queue="default")(bench)
bench = TASK


class Chancy(Queue):
    """Chancy."""

    packages = ("chancy", "psycopg")
    setting = "concurrency 500, async executor, eager polling"
    unfinished = "SELECT count(*) FROM chancy_jobs WHERE state IN ('pending', 'retrying', 'running')"

    async def install(self) -> None:
        async with chancy.Chancy(self.url, log=LOG) as app:
            await app.migrate()

    async def open(self) -> None:
        self.app: Any = chancy.Chancy(self.url, log=LOG, min_connection_pool_size=1, max_connection_pool_size=1)
        await self.app.__aenter__()

    async def close(self) -> None:
        await self.app.__aexit__(None, None, None)

    async def add(self, number: int) -> None:
        await self.app.push(TASK.job.with_kwargs(i=number))

    async def add_many(self, numbers: range) -> None:
        async for _ in self.app.push_many([TASK.job.with_kwargs(i=number) for number in numbers]):
            pass

    async def work(self, note: Note) -> None:
        _note[:] = [note]
        async with chancy.Chancy(self.url, log=LOG) as app:
            executor = chancy.Chancy.Executor.Async
            queue = chancy.Queue("default", executor=executor, concurrency=500, polling_interval=1, eager_polling=True)
            await app.declare(queue, upsert=True)
            async with chancy.Worker(app, register_signal_handlers=False) as worker:
                await worker.wait_for_shutdown()


QUEUE = Chancy
