"""SAQ on PostgreSQL. It has no bulk insert: as in its own benchmark, many are added by calls under a semaphore."""

import asyncio
from typing import Any

import saq

from benchmarks.peers import Note, Queue


class Saq(Queue):
    """SAQ."""

    packages = ("saq", "psycopg")
    setting = "concurrency 100, pool 20"
    unfinished = "SELECT count(*) FROM saq_jobs WHERE status IN ('queued', 'active')"

    async def install(self) -> None:
        await self.open()
        await self.close()

    async def open(self, size: int = 1) -> None:
        self.queue: Any = saq.Queue.from_url(self.url, min_size=size, max_size=size)
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.disconnect()

    async def add(self, number: int) -> None:
        await self.queue.enqueue("bench", i=number)

    async def add_many(self, numbers: range) -> None:
        await self.close()
        await self.open(20)
        places = asyncio.Semaphore(20)

        async def add(number: int) -> None:
            async with places:
                await self.add(number)

        await asyncio.gather(*map(add, numbers))

    async def work(self, note: Note) -> None:

        async def bench(_context: object, *, i: int) -> None:
            note(i)

        await self.open(20)
        await saq.Worker(self.queue, functions=[("bench", bench)], concurrency=100).start()


QUEUE = Saq
