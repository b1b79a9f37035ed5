"""arq, on the Redis of QUEUE_KIT_BENCH_REDIS_URL. Not durable in the same sense: Redis writes to disk later, if at all.
It polls, so a short poll delay; more than ten jobs at a time make it slower."""

import asyncio
import os
from typing import Any

import arq
from arq.connections import RedisSettings
from arq.worker import Worker, func

from benchmarks.peers import Note, Queue

REDIS = "QUEUE_KIT_BENCH_REDIS_URL"


class Arq(Queue):
    """arq, under a key of its own: nothing else in that Redis is touched."""

    packages = ("arq", "redis")
    needs = REDIS
    setting = "max_jobs 10, polling each 10 ms; not durable in the same sense"

    async def open(self) -> None:
        self.redis: Any = await arq.create_pool(RedisSettings.from_dsn(os.environ[REDIS]))

    async def close(self) -> None:
        await self.redis.aclose()

    async def add(self, number: int) -> None:
        await self.redis.enqueue_job("bench", number, _job_id=f"{self.url}:{number}", _queue_name=self.url)

    async def add_many(self, numbers: range) -> None:
        for start in range(0, len(numbers), 100):
            await asyncio.gather(*map(self.add, numbers[start : start + 100]))

    async def work(self, note: Note) -> None:
        async def bench(_context: object, number: int) -> None:
            note(number)

        task: Any = bench
        worker = Worker(
            [func(task, name="bench", keep_result=0)],
            queue_name=self.url,
            redis_settings=RedisSettings.from_dsn(os.environ[REDIS]),
            handle_signals=False,
            max_jobs=10,
            poll_delay=0.01,
        )
        await worker.async_run()

    async def remaining(self) -> int:
        await self.open()
        count = int(await self.redis.zcard(self.url))
        await self.close()
        return count

    async def discard(self) -> None:
        await self.open()
        keys = [key async for key in self.redis.scan_iter(f"arq:*{self.url}:*", count=1000)]
        await self.redis.delete(self.url, f"{self.url}:health-check", *keys)
        await self.close()


QUEUE = Arq
