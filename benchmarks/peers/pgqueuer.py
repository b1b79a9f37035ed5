"""PgQueuer on asyncpg: one queue manager with a connection of its own, batches of 1000, on uvloop as its own command
line runs it. More managers in one process, or smaller batches, are slower. It deletes what is done, and keeps a log."""

import json
from typing import Any

import asyncpg
from pgqueuer import PgQueuer as Manager
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from benchmarks.peers import Note, Queue


class PgQueuer(Queue):
    """PgQueuer."""

    packages = ("pgqueuer", "asyncpg", "uvloop")
    setting = "1 manager, batch 1000, uvloop"
    uvloop = True
    unfinished = "SELECT count(*) FROM pgqueuer WHERE execute_after <= now()"

    async def install(self) -> None:
        connection = await asyncpg.connect(self.url)
        queries = Queries(AsyncpgDriver(connection))
        await queries.install()
        await queries.optimize_autovacuum()
        await connection.close()

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self.url)
        self.queries = Queries(AsyncpgDriver(self.connection))

    async def close(self) -> None:
        await self.connection.close()

    async def add(self, number: int) -> None:
        await self.queries.enqueue(["bench"], [_payload(number)], [0])

    async def add_many(self, numbers: range) -> None:
        for start in range(0, len(numbers), 1000):
            payloads = [_payload(number) for number in numbers[start : start + 1000]]
            await self.queries.enqueue(["bench"] * len(payloads), payloads, [0] * len(payloads))

    async def work(self, note: Note) -> None:

        async def bench(job: Any) -> None:
            note(json.loads(job.payload)["i"])

        manager = Manager(AsyncpgDriver(await asyncpg.connect(self.url)))
        manager.entrypoint("bench")(bench)
        await manager.run(batch_size=1000)


def _payload(number: int) -> bytes | None:
    return json.dumps({"i": number}).encode()


QUEUE = PgQueuer
