"""Not a queue but the ceiling of `add_job`: the same row into the same table, with its triggers and indexes, inserted
by asyncpg alone. The raw loop has a thinner table.
"""

import json

import asyncpg

from benchmarks.peers import Queue
from benchmarks.peers.queue_kit import NAME, QueueKit

INSERT = "INSERT INTO queue_kit_job (name, priority, data) VALUES ($1, $2, $3) RETURNING id"


class RawRow(Queue):
    """Adds, and runs nothing."""

    packages = ("asyncpg",)
    setting = "an INSERT into queue_kit's table"
    unfinished = QueueKit.unfinished

    async def install(self) -> None:
        await QueueKit(self.url).install()

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self.url)

    async def close(self) -> None:
        await self.connection.close()

    async def add(self, number: int) -> None:
        await self.connection.fetchval(INSERT, NAME, 5, json.dumps({"i": number}))


QUEUE = RawRow
