"""queue_kit, through its public API. What is not an option here is the worker's default."""

from typing import ClassVar

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from benchmarks.effects import EFFECTS
from benchmarks.peers import Note, Queue
from benchmarks.server import alchemy_url
from queue_kit import (
    Event,
    Handlers,
    Job,
    NewJob,
    QueueWorker,
    add_job,
    add_jobs,
    migrate,
    sqlite_engine,
)

NAME = "bench"
A_CALL = 1000


class QueueKit(Queue):
    """`pullers` jobs at once; `keep` the completed rows; `writes` a row through the handler's session; `names`: run
    so many other names as well."""

    packages = ("queue-kit", "sqlalchemy", "asyncpg")
    setting: ClassVar[str] = "defaults, run(), on asyncio's own loop"
    # By priority too, so that a count need not read past a million other rows.
    unfinished = f"SELECT count(*) FROM queue_kit_job WHERE status = 1 AND priority = 5 AND name = '{NAME}'"

    def __init__(
        self,
        url: str,
        *,
        pullers: int = 100,
        keep: bool = False,
        prefetch: int | None = None,
        writes: bool = False,
        pool: int | None = None,
        runs: str = NAME,
        names: int = 0,
        uvloop: bool = False,
    ) -> None:
        super().__init__(url)
        self.pullers, self.keep, self.prefetch, self.writes = pullers, keep, prefetch, writes
        self.uvloop = uvloop
        self.runs = [runs, *(f"{NAME}-{number}" for number in range(names))]
        self.pool = {} if pool is None else {"pool_size": pool, "max_overflow": 0}

    def engine(self) -> AsyncEngine:
        """An engine on the queue's database."""
        if self.url.startswith("postgresql"):
            return create_async_engine(alchemy_url(self.url), **self.pool)
        return sqlite_engine(self.url)

    async def install(self) -> None:
        engine = self.engine()
        await migrate.upgrade(engine)
        await engine.dispose()

    async def open(self) -> None:
        self.adding = self.engine()

    async def close(self) -> None:
        await self.adding.dispose()

    async def add(self, number: int, *, priority: int = 5) -> None:
        await add_job(self.adding, NAME, {"i": number}, priority=priority)

    async def add_many(self, numbers: range) -> None:
        for start in range(0, len(numbers), A_CALL):
            await add_jobs(self.adding, [NewJob(NAME, {"i": number}) for number in numbers[start : start + A_CALL]])

    async def work(self, note: Note) -> None:
        jobs = Handlers()

        async def no_op(event: Event, session: AsyncSession, job: Job) -> None:
            note(job.data["i"])

        async def writes(event: Event, session: AsyncSession, job: Job) -> None:
            note(job.data["i"])
            await session.execute(insert(EFFECTS).values(number=job.data["i"]))

        for name in self.runs:
            jobs.add(name, writes if self.writes else no_op)
        options = {"parallel_count": self.pullers, "delete_job_on_completion": not self.keep, "prefetch": self.prefetch}
        await QueueWorker(self.engine(), jobs, **options).run()  # type: ignore[arg-type]

    async def completed(self) -> int | None:
        return await self.count(f"SELECT count(*) FROM queue_kit_job WHERE status = 2 AND name = '{NAME}'")


QUEUE = QueueKit
