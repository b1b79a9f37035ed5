"""The jobs that a worker holds, from claim to settle, and until when. One round renews all of them in one statement;
what has lapsed by the local clock, or is not ours any more, is told to its run.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from queue_kit._run import Run
from queue_kit._store import Store
from queue_kit.errors import Cancelled, JobAborted, LeaseLost
from queue_kit.job import Claimed


@dataclass(slots=True)
class _Lease:
    claimed: Claimed
    expires: float
    run: Run | None = None
    told: JobAborted | None = None
    ended: bool = False
    """Whether its ending is on its way."""
    gone: bool = False
    """Whether the database has said that it is not ours any more."""

    def lose(self) -> None:
        """End the run, or the one to come, since the job was claimed again."""
        self.gone = True
        self.tell(LeaseLost(f"job {self.claimed.job.id} was claimed by another worker"))

    def tell(self, reason: JobAborted) -> None:
        """End the run, or the one to come."""
        self.told = reason
        if self.run is not None:
            self.run.abort(reason)


class Leases:
    """The leases of one worker. Times are this process's monotonic clock, counted from before each request was sent."""

    def __init__(self, store: Store, *, protected: Callable[[], bool]) -> None:
        self._store = store
        self._protected = protected
        self._held: dict[int, _Lease] = {}
        self._locked = False

    def __len__(self) -> int:
        return len(self._held)

    def take(self, jobs: Iterable[Claimed], *, asked_at: float) -> list[Claimed]:
        """Note what a claim that was sent at `asked_at` returned; returns what of it is not taken.

        While the claim was on its way, the lease of a job that waits or is run here may have lapsed, and whoever had
        the job then may have given it back. Two claims of a job must not run beside each other, so the earlier one
        ends first.
        """
        refused = []
        for claimed in jobs:
            earlier = self._held.get(claimed.job.id)
            if earlier is None or earlier.ended:
                self._held[claimed.job.id] = _Lease(claimed, asked_at + self._store.lease)
            else:
                earlier.lose()
                refused.append(claimed)
        return refused

    def attach(self, run: Run) -> None:
        """Note that a held job is being run. It hears what was told while it waited for a puller."""
        lease = self._held[run.claimed.job.id]
        lease.run = run
        if lease.told is not None:
            run.abort(lease.told)

    def detach(self, claimed: Claimed) -> None:
        """Note that a held job is not run any more, or never was; its ending is on its way."""
        lease = self._lease_of(claimed)
        if lease is not None:
            lease.run, lease.ended = None, True

    def drop(self, jobs: Iterable[Claimed]) -> None:
        """Forget jobs that are settled or lost."""
        for claimed in jobs:
            if self._lease_of(claimed) is not None:
                del self._held[claimed.job.id]

    def holds(self, claimed: Claimed) -> bool:
        """Whether a job is held by this very claim."""
        return self._lease_of(claimed) is not None

    def _lease_of(self, claimed: Claimed) -> _Lease | None:
        lease = self._held.get(claimed.job.id)
        # Not by claim_no: a standby may give one again.
        return lease if lease is not None and lease.claimed is claimed else None

    def held(self) -> list[Claimed]:
        """All jobs held."""
        return [lease.claimed for lease in self._held.values()]

    def unfinished(self) -> list[int]:
        """The ids of the jobs whose runs are under way, or were told to end and are not settled yet."""
        return [job_id for job_id, lease in self._held.items() if lease.run is not None or lease.told is not None]

    def runs(self) -> list[Run]:
        """All runs under way."""
        return [lease.run for lease in self._held.values() if lease.run is not None]

    async def renew(self) -> None:
        """Extend every lease; end the runs whose lease is lost or whose job is to be cancelled."""
        asked_at = time.monotonic()
        leases = [lease for lease in self._held.values() if not lease.gone]
        if not leases:
            return
        renewal = await self._store.renew([lease.claimed for lease in leases])
        self._locked = bool(renewal.locked)
        for lease in leases:
            job_id = lease.claimed.job.id
            if self._held.get(job_id) is not lease:  # settled in the meantime
                continue
            if job_id in renewal.ours or job_id in renewal.locked:
                # A row that somebody has locked cannot be claimed by anybody.
                lease.expires = asked_at + self._store.lease
                if renewal.ours.get(job_id):
                    lease.tell(Cancelled("cancel_job was called"))
            else:
                lease.lose()

    def renewal_pause(self) -> float:
        """Seconds until the next round."""
        return min(self._store.lease / 3, 1.0 if self._locked else 10.0)

    async def watch(self) -> None:
        """Abort each run before its lease lapses by the local clock, for as long as this is awaited."""
        pause = self._store.lease / 20
        while True:
            await asyncio.sleep(pause)
            if not self._protected():
                now = time.monotonic()
                for lease in list(self._held.values()):
                    if lease.expires <= now + pause:  # by the next look it would be too late
                        lease.tell(LeaseLost(f"the lease of job {lease.claimed.job.id} was not renewed in time"))
