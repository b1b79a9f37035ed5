"""What a run leaves behind, read once after it: the rows, effects and history of the database, and the ledgers."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit.models import JOBS
from tests.torture.database import EFFECTS, HISTORY
from tests.torture.history import Change, Verdict, judge
from tests.torture.ledger import Line


@dataclass(frozen=True, slots=True)
class Effect:
    """A row that a handler wrote, and what tells the transaction in which it did."""

    job: int
    run: str
    kind: str
    actor: str
    fence: int


@dataclass(slots=True)
class Probe:
    """A job that was added while nobody listened: the seconds until it began, or `None`."""

    key: str
    seconds: float | None


@dataclass
class Evidence:
    """Everything that the checks look at."""

    jobs: Sequence[Any]
    effects: Sequence[Effect]
    changes: Sequence[Change]
    fences: set[tuple[int, str, int]]
    """Job, process and transaction of each extension and each end in the history."""
    lines: Sequence[Line]
    probes: list[Probe] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    leased: list[int] = field(default_factory=list)
    integrity: list[str] = field(default_factory=list)

    @cached_property
    def verdict(self) -> Verdict:
        return judge(self.changes)

    @cached_property
    def by_key(self) -> dict[str, list[Any]]:
        found = defaultdict(list)
        for job in self.jobs:
            if isinstance(job.data, dict) and "key" in job.data:
                found[job.data["key"]].append(job)
        return found

    @cached_property
    def finals(self) -> dict[int, list[Effect]]:
        found = defaultdict(list)
        for effect in self.effects:
            if effect.kind == "final":
                found[effect.job].append(effect)
        return found

    def said(self, do: str) -> list[Line]:
        """The lines of the ledgers that say this."""
        return [line for line in self.lines if line["do"] == do]

    def keys(self, do: str) -> list[str]:
        """The keys in the lines of the ledgers that say this."""
        return [key for line in self.said(do) for key in line["keys"]]


async def gather(engine: AsyncEngine, lines: Sequence[Line]) -> Evidence:
    """Read it all."""
    history = HISTORY.c
    fence = func.coalesce(history.fence, history.seq).label("of_fence")
    async with engine.connect() as connection:
        jobs = (await connection.execute(select(JOBS))).all()
        effects = (await connection.execute(select(EFFECTS))).all()
        rows = (await connection.execute(select(*history, fence).order_by(history.seq))).all()
    changes = [_change(row) for row in rows]
    fences = {(row.job, row.actor, row.of_fence) for row in rows if row.kind in ("extend", "done")}
    found = [Effect(row.job, row.run, row.kind, row.actor, row.fence) for row in effects]
    return Evidence(jobs, found, changes, fences, lines)


def _change(row: Any) -> Change:
    at: datetime = row.at
    return Change(row.job, row.kind, row.worker, row.claim_no, row.lease_until, row.status, row.actor, at)
