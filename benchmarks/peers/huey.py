"""Huey on SQLite, one thread. A job's row is deleted when it is picked up: done means run, at most once. Its default is
SQLite's `synchronous=FULL` and it offers no NORMAL, which is what `sqlite_engine` has."""

import asyncio
from typing import Any

import huey
from huey.consumer import Consumer

from benchmarks.peers import Note, Queue


class Huey(Queue):
    """Huey."""

    packages = ("huey",)
    setting = "1 thread, polling each 10 ms, no results kept, synchronous=FULL"

    def make(self, note: Note | None = None) -> tuple[Any, Any]:
        """The queue and its one task."""
        queue = huey.SqliteHuey("bench", filename=self.url, results=False)

        def bench(number: int) -> None:
            if note is not None:
                note(number)

        return queue, queue.task()(bench)

    async def open(self) -> None:
        self.queue, self.task = self.make()

    async def close(self) -> None:
        self.queue.storage.close()

    async def add(self, number: int) -> None:
        self.task(number)

    async def work(self, note: Note) -> None:
        queue, _ = self.make(note)
        consumer = Consumer(queue, workers=1, periodic=False, initial_delay=0.01, max_delay=0.01)
        consumer._set_signal_handlers = lambda: None  # noqa: SLF001 - they belong to a main thread
        await asyncio.to_thread(consumer.run)

    async def remaining(self) -> int:
        queue, _ = self.make()
        return int(queue.pending_count())


QUEUE = Huey
