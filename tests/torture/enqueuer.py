"""A process that adds jobs until SIGTERM: `python -m tests.torture.enqueuer ROLE`. For each it first notes that it
will, then what became of it: acknowledged, rolled back, refused for its unique key, or ambiguous.

Now and then it cancels a job that it added, or has a cancelled one run after all.
"""

import asyncio
import random
import signal
from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import AmbiguousCommit, JobConflict, JobState, NewJob, add_jobs, cancel_job, queue_insights, retry_job
from tests.torture.database import engine_for
from tests.torture.handlers import TRIES
from tests.torture.ledger import Ledger
from tests.torture.mutants import ACK_EARLY
from tests.torture.role import Role, end_with_parent

SHARES = {  # each once, then by chance
    "idle": 20,
    "thread": 5,
    "short": 30,
    "long": 6,
    "holds": 5,
    "steps": 10,
    "flaky": 7,
    "snooze": 5,
    "chain": 6,
    "discard": 3,
}
WITHDRAWN = ("idle", "short", "long", "holds")
"""Jobs that it cancels; the others are there to end in ways of their own."""

ENOUGH = 150
"""Due jobs from which on it waits, so that the chaos finds a queue that moves."""


class Enqueuer:
    """One process."""

    def __init__(self, role: Role, engine: AsyncEngine, ledger: Ledger) -> None:
        self._role = role
        self._engine = engine
        self._ledger = ledger
        self._chance = random.Random(role.seed)
        self._added = 0
        self._first = self._chance.sample(list(SHARES), len(SHARES))
        self._recent: list[int] = []
        self._withdrawn: list[int] = []
        self.stopping = asyncio.Event()

    async def serve(self) -> None:
        """Until told to stop, but not before each kind of job was added."""
        while self._first or not self.stopping.is_set():
            try:
                await self._act()
            except Exception as error:
                self._ledger.write("error", error=type(error).__name__)
                await asyncio.sleep(0.1)
            await asyncio.sleep(self._chance.uniform(0.02, 0.15))

    async def _act(self) -> None:
        if self._chance.random() < 0.1:
            await self._operate()
        elif (await queue_insights(self._engine)).pending < ENOUGH:
            jobs = self._jobs()
            self._ledger.write("intent", keys=_keys(jobs))
            await (self._add_alone(jobs) if self._chance.random() < 0.4 else self._add_in_transaction(jobs))
        else:
            await asyncio.sleep(0.1)

    # --- adding -------------------------------------------------------------------------------------------------------

    def _jobs(self) -> list[NewJob[dict[str, Any]]]:
        name = self._first[-1] if self._first else self._chance.choices(list(SHARES), list(SHARES.values()))[0]
        count = self._chance.randint(3, 12) if name in ("idle", "short") else 1
        return [self._job(name) for _ in range(count)]

    def _job(self, name: str) -> NewJob[dict[str, Any]]:
        self._added += 1
        chance, lease = self._chance, self._role.lease
        data: dict[str, Any] = {"key": f"{self._role.actor}/{self._added}"}
        unique_key = None
        if name in ("long", "holds"):
            data |= {"seconds": chance.uniform(0, 2.5 * lease), "writes": chance.random() < 0.3}
        elif name == "thread":
            data["seconds"] = chance.uniform(0, 0.3)
        elif name == "flaky":
            data["failures"] = chance.randint(1, 3)
        elif name == "chain":
            unique_key = data["unique_key"] = f"chain {chance.randrange(20)}"
            data["left"] = chance.randint(0, 3)
        delay = chance.uniform(0, lease) if chance.random() < 0.1 else None
        priority = chance.choice((4, 5, 6))
        return NewJob(name, data, priority, delay=delay, max_retry_count=TRIES, unique_key=unique_key)

    async def _add_alone(self, jobs: Sequence[NewJob[dict[str, Any]]]) -> None:
        """Each call commits by itself, so only what it calls ambiguous may be stored without its word for it."""
        try:
            ids = await add_jobs(self._engine, jobs)
        except AmbiguousCommit as error:
            self._ledger.write("ambiguous", keys=_keys(jobs), error=type(error.__cause__).__name__)
        except Exception as error:
            self._ledger.write("rolled_back", keys=_keys(jobs), error=type(error).__name__)
        else:
            self._acknowledge(jobs, ids)

    async def _add_in_transaction(self, jobs: Sequence[NewJob[dict[str, Any]]]) -> None:
        committing = False
        try:
            async with AsyncSession(self._engine) as session:
                ids = await add_jobs(session, jobs)
                if self._role.mutant == ACK_EARLY:
                    self._acknowledge(jobs, ids)
                if self._chance.random() < 0.15:
                    self._ledger.write("rolled_back", keys=_keys(jobs), error=None)
                    return
                committing = True
                await session.commit()
        except Exception as error:
            what = "ambiguous" if committing else "rolled_back"
            self._ledger.write(what, keys=_keys(jobs), error=type(error).__name__)
        else:
            self._acknowledge(jobs, ids)

    def _acknowledge(self, jobs: Sequence[NewJob[dict[str, Any]]], ids: Sequence[int | None]) -> None:
        stored = {key: job_id for key, job_id in zip(_keys(jobs), ids, strict=True) if job_id is not None}
        self._ledger.write("ack", keys=list(stored))
        if len(stored) < len(jobs):
            self._ledger.write("refused", keys=[key for key in _keys(jobs) if key not in stored])
        self._first = [name for name in self._first if name != jobs[0].name]
        if jobs[0].name in WITHDRAWN:
            self._recent = [*self._recent, *stored.values()][-50:]

    # --- operating ----------------------------------------------------------------------------------------------------

    async def _operate(self) -> None:
        if self._withdrawn and self._chance.random() < 0.4:
            job_id = self._withdrawn.pop()
            try:
                await retry_job(self._engine, job_id)
            except JobConflict:
                return
            self._ledger.write("retried", job=job_id)
        elif self._recent:
            job_id = self._chance.choice(self._recent)
            self._ledger.write("cancelling", job=job_id)
            state = await cancel_job(self._engine, job_id)
            self._ledger.write("cancelled", job=job_id, state=state.value)
            if state in (JobState.cancelled, JobState.running):
                self._withdrawn.append(job_id)


def _keys(jobs: Sequence[NewJob[dict[str, Any]]]) -> list[str]:
    return [job.data["key"] for job in jobs]


async def enqueue(role: Role) -> None:
    engine = engine_for(role.url, role.actor)
    ledger = Ledger(role.ledger, role.actor)
    enqueuer = Enqueuer(role, engine, ledger)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, enqueuer.stopping.set)
    ledger.write("ready")
    await enqueuer.serve()
    await engine.dispose()


def main() -> None:
    end_with_parent()
    asyncio.run(enqueue(Role.given()))


if __name__ == "__main__":
    main()
