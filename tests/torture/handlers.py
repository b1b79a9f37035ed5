"""The jobs of the torture test. Each run notes in the ledger that it starts and how it ends, and writes its effect
through its session; some have no effect but the one outside, that the ledger knows of the run.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit import Discard, Event, Handlers, Job, Settled, Snooze, WorkerState, add_job, in_thread
from tests.torture.database import add_effect
from tests.torture.ledger import Ledger

FINAL, STEP = "final", "step"
NAMES = ("idle", "short", "long", "holds", "steps", "flaky", "snooze", "chain", "discard", "again", "tick")
"""Those that are coroutines; beside them there is `thread`."""

WITHOUT_EFFECT = ("idle", "thread", "again", "discard")
"""Jobs that write nothing to the database."""

TRIES = 1_000
"""So many that chaos never uses them up."""


class NotYet(Exception):
    """What a flaky handler raises."""


class Told:
    """Tells the ledger of every run, from within the handlers and as a hook."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._runs: dict[int, tuple[Job[Any], str]] = {}
        """The runs that are not settled yet, by the identity of the job that each was given: one that was lost may be
        told after a later run of the same job."""

    @contextmanager
    def run(self, event: Event, job: Job[Any]) -> Iterator[str]:
        """Around a handler; gives the run its name."""
        run = uuid4().hex
        self._runs[id(job)] = job, run
        about = {"job": job.id, "run": run, "name": job.name}
        self.ledger.write("start", **about)
        try:
            yield run
        except BaseException as error:
            self.ledger.write("raised", **about, error=type(error).__name__, told=_reason(event))
            raise
        self.ledger.write("returned", **about, told=_reason(event))

    def on_settled(self, record: Settled) -> None:
        _, run = self._runs.pop(id(record.job), (None, None))
        self.ledger.write("settled", job=record.job.id, run=run, verdict=record.outcome.verdict.value)

    def on_worker_state(self, record: WorkerState) -> None:
        self.ledger.write("state", state=record.state, worker=record.worker_id.hex)


def _reason(event: Event) -> str | None:
    return None if event.signal.reason is None else type(event.signal.reason).__name__


class Jobs:
    """The handlers of one worker."""

    def __init__(self, told: Told, *, actor: str, dialect: str, seed: str, folder: Path) -> None:
        self._told = told
        self._folder = folder
        self._actor = actor
        self._chance = random.Random(seed)
        self._statement = add_effect(dialect)
        self._embedded = dialect == "sqlite"
        self._snoozed: set[int] = set()

    def all(self) -> Handlers:
        """By name."""
        handlers = Handlers()
        for name, function in {
            **{name: getattr(self, name) for name in NAMES},
            "thread": in_thread(self.thread),
        }.items():
            handlers.add(name, function, timeout=60, max_retry_count=TRIES, retry_delay=0.1)
        return handlers

    async def _effect(self, session: AsyncSession, job: Job[Any], run: str, kind: str = FINAL) -> None:
        values = {"job": job.id, "run": run, "kind": kind, "actor": self._actor}
        await session.execute(self._statement, values)

    async def _pause(self, most: float) -> None:
        await asyncio.sleep(self._chance.uniform(0, most))

    async def idle(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        with self._told.run(event, job):
            pass

    def thread(self, event: Event, job: Job[Any]) -> None:
        with self._told.run(event, job):
            time.sleep(job.data["seconds"])

    async def short(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        with self._told.run(event, job) as run:
            await self._pause(0.05)
            await self._effect(session, job, run)
            await self._pause(0.02)

    async def long(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        """Longer than a lease, often; with or without an effect at its end."""
        with self._told.run(event, job) as run:
            await asyncio.sleep(job.data["seconds"])
            if job.data["writes"]:
                await self._effect(session, job, run)

    async def again(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        """Short at first and long when it runs again: whoever ended it first speaks while the other is at it."""
        with self._told.run(event, job):
            await asyncio.sleep(job.data["seconds"] if self._is_first(job) else job.data["later"])

    def _is_first(self, job: Job[Any]) -> bool:
        try:
            self._folder.joinpath(f"{job.id}.begun").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    async def holds(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        """Has its transaction open all the time; on SQLite nobody could write meanwhile."""
        with self._told.run(event, job) as run:
            if self._embedded:
                await asyncio.sleep(job.data["seconds"])
            await self._effect(session, job, run)
            if not self._embedded:
                await asyncio.sleep(job.data["seconds"])

    async def steps(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        """Commits twice on its way."""
        with self._told.run(event, job) as run:
            for _ in range(2):
                await self._effect(session, job, run, STEP)
                await session.commit()
                await self._pause(0.3)
            await self._effect(session, job, run)

    async def flaky(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        """Fails a few times, with its effect already written."""
        with self._told.run(event, job) as run:
            await self._effect(session, job, run)
            if job.retry_count < job.data["failures"]:
                raise NotYet

    async def snooze(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        """Puts its first run in each process off."""
        with self._told.run(event, job) as run:
            await self._effect(session, job, run)
            if job.id not in self._snoozed:
                self._snoozed.add(job.id)
                raise Snooze(self._chance.uniform(0, 0.5))

    async def chain(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        """Adds its successor under its own unique key, in its own transaction."""
        with self._told.run(event, job) as run:
            if job.data["left"]:
                await self._pause(0.05)
                key, left = f"{job.data['key']}+", job.data["left"] - 1
                self._told.ledger.write("intent", keys=[key])
                unique_key = job.data["unique_key"]
                data = {"key": key, "left": left, "parent": job.id, "unique_key": unique_key}
                await add_job(session, "chain", data, unique_key=unique_key, max_retry_count=TRIES)
            await self._effect(session, job, run)

    async def discard(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        with self._told.run(event, job):
            raise Discard("as asked")

    async def tick(self, event: Event, session: AsyncSession, job: Job[Any]) -> None:
        """A cron occurrence."""
        with self._told.run(event, job) as run:
            await self._effect(session, job, run)
