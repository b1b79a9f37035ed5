"""What a worker claims, and when it must not. A job whose lease has lapsed twice may have killed its worker: it is a
suspect, and runs alone, so that a poison job cannot take its neighbours along.
"""

import time
from collections.abc import Callable, Iterable

from queue_kit._leases import Leases
from queue_kit._spine import Spine
from queue_kit._store import NO_LIMIT, Store
from queue_kit.job import Claimed

SUSPECT = 2
"""Lapsed leases from which on a job runs alone."""


class Intake:
    """Claims for idle pullers: strictly from the head of the order, and nothing beside a suspect."""

    def __init__(
        self, store: Store, leases: Leases, spine: Spine, *, parallel_count: int, stopping: Callable[[], bool]
    ) -> None:
        self._store = store
        self._leases = leases
        self._spine = spine
        self._parallel_count = parallel_count
        self._stopping = stopping
        self._suspect_seen: float | None = None
        self._suspect: Claimed | None = None

    @property
    def holds_back(self) -> bool:
        """Whether it waits for runs to end before it claims again."""
        return self._suspect is not None or self._suspect_seen is not None

    async def fetch(self, wanted: int) -> list[Claimed]:
        """Up to `wanted` jobs, best first."""
        if self._suspect is not None and self._leases.holds(self._suspect):
            return []
        self._suspect = None
        if len(self._spine.wedged) > self._parallel_count:
            return []
        if self._suspect_seen is not None:
            if not len(self._leases):
                return await self._claim_suspect() or await self._claim_any(wanted)
            if time.monotonic() - self._suspect_seen > self._store.lease:
                return []  # what runs now ends first
        return await self._claim_any(wanted)

    async def _claim_suspect(self) -> list[Claimed]:
        self._suspect_seen = None
        jobs = await self._claim(1, suspects_from=SUSPECT)
        if jobs:
            (self._suspect,) = jobs
        return jobs

    async def _claim_any(self, wanted: int) -> list[Claimed]:
        idle = not len(self._leases)
        jobs = await self._claim(wanted, suspects_below=NO_LIMIT if self._suspect_seen is None else SUSPECT)
        suspects = [job for job in jobs if job.lost >= SUSPECT]
        if idle and suspects and jobs == suspects:
            self._suspect, *too_many = suspects
        else:
            too_many = suspects
            if suspects:
                self._suspect_seen = time.monotonic()
        for job in too_many:
            await self._spine.give_back(job)
        return [job for job in jobs if job not in too_many]

    async def _claim(self, limit: int, *, suspects_from: int = 0, suspects_below: int = NO_LIMIT) -> list[Claimed]:
        async def claim() -> list[Claimed]:
            await self._spine.all_written.wait()
            if self._stopping():
                return []
            asked_at = time.monotonic()
            jobs = await self._store.claim(
                limit, running=self._still_running(), suspects_from=suspects_from, suspects_below=suspects_below
            )
            self._leases.take(jobs, asked_at=asked_at)
            return jobs

        return await self._spine.insist(claim)

    def _still_running(self) -> Iterable[int]:
        """An id is never started twice in one worker, also when its row lapses earlier than it seems from here."""
        return [*self._spine.wedged, *(claimed.job.id for claimed in self._leases.held())]
