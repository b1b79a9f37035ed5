"""Procrastinate with its async psycopg connector. It claims one job a statement, so a higher concurrency than this
brings nothing for no-op jobs."""

from typing import Any

import procrastinate

from benchmarks.peers import Note, Queue


class Procrastinate(Queue):
    """Procrastinate."""

    packages = ("procrastinate", "psycopg")
    setting = "concurrency 100, pool 20"
    unfinished = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing') AND scheduled_at IS NULL"

    def app(self, note: Note, *, pool: int) -> tuple[Any, Any]:
        """The application and its one task."""
        connector = procrastinate.PsycopgConnector(conninfo=self.url, min_size=pool, max_size=pool)
        app = procrastinate.App(connector=connector)

        async def bench(i: int) -> None:
            note(i)

        return app, app.task(name="bench")(bench)

    async def install(self) -> None:
        app, _ = self.app(_ignore, pool=1)
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    async def open(self) -> None:
        self.adding, self.task = self.app(_ignore, pool=1)
        await self.adding.open_async()

    async def close(self) -> None:
        await self.adding.close_async()

    async def add(self, number: int) -> None:
        await self.task.defer_async(i=number)

    async def add_many(self, numbers: range) -> None:
        for start in range(0, len(numbers), 1000):
            await self.task.batch_defer_async(*({"i": number} for number in numbers[start : start + 1000]))

    async def work(self, note: Note) -> None:
        app, _ = self.app(note, pool=20)
        async with app.open_async():
            await app.run_worker_async(concurrency=100, install_signal_handlers=False)


def _ignore(number: int) -> None:
    """The note of a process that only adds."""


QUEUE = Procrastinate
