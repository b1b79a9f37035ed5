"""The workers that are alive, and what they hold."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from queue_kit._database import Database
from queue_kit._reach import session_on
from queue_kit._statements import workers

LOOKED_AT = 10_000
"""Ready jobs among which held ones are looked for, from the head of the order: a backlog may be millions."""


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that a worker runs, or is about to. `attempt` counts from 1."""

    id: int
    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that said within the last 45 seconds that it is alive, at `seen_at`, `seen_seconds_ago`; it says so
    every 10 seconds. `running` is how many jobs it ran then; `jobs` are those that it holds now, the best first."""

    id: UUID
    label: str
    host: str
    pid: int
    names: tuple[str, ...]
    started_at: datetime
    seen_at: datetime
    seen_seconds_ago: float
    running: int
    jobs: tuple[HeldJob, ...]


async def list_workers(db: Database) -> list[WorkerInfo]:
    """The workers that are alive, the oldest first, with the jobs they hold among the first 10,000 of the order.

    A worker that was killed shows for 45 seconds more.

    >>> async def busy(engine):
    ...     return [worker.host for worker in await list_workers(engine) if worker.jobs]
    """
    async with session_on(db, reading=True) as session:
        found = await alive(session)
        held: dict[UUID, list[HeldJob]] = defaultdict(list)
        if found:
            for row in await session.execute(workers.held_jobs(), {"limit": LOOKED_AT}):
                held[row.worker_id].append(HeldJob(row.id, row.name, row.retry_count + 1))
    return [
        WorkerInfo(
            row.id,
            row.label,
            row.host,
            row.pid,
            tuple(row.names),
            row.started_at,
            row.seen_at,
            max(row.seen_seconds_ago, 0.0),
            row.running,
            tuple(held[row.id]),
        )
        for row in found
    ]


async def alive(db: Database) -> Sequence[Row[Any]]:
    """The rows of the workers that are alive, the oldest first: all that is known of them but what they hold."""
    async with session_on(db, reading=True) as session:
        return (await session.execute(workers.workers_alive())).all()
