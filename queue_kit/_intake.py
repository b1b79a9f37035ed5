"""What a worker claims, and when it must not. A job whose lease has lapsed twice may have killed its worker: it is a
suspect, and runs alone, so that a poison job cannot take its neighbours along.
"""

import asyncio
import time
from collections.abc import Callable

from queue_kit._claims import Haul
from queue_kit._leases import Leases
from queue_kit._log import BackgroundLog
from queue_kit._scan import Scan
from queue_kit._spine import Spine
from queue_kit._store import NO_LIMIT, Store
from queue_kit.job import MAX_PAYLOAD_BYTES, Claimed, log_fields, printable

_logger = BackgroundLog("queue_kit.worker")

SUSPECT = 2
"""Lapsed leases from which on a job runs alone."""


class Intake:
    """Claims for pullers and ahead of them, and nothing beside a suspect. `thorough` never leaves out the head of the
    order; else `wake` is called when the head may be looked at again."""

    def __init__(
        self,
        store: Store,
        leases: Leases,
        spine: Spine,
        scan: Scan,
        *,
        parallel_count: int,
        stopping: Callable[[], bool],
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._leases = leases
        self._spine = spine
        self._scan = scan
        self._parallel_count = parallel_count
        self._stopping = stopping
        self._wake = wake
        self._rescan: asyncio.TimerHandle | None = None
        self._suspect_seen: float | None = None
        self._suspect: Claimed | None = None
        self._head_left_out = False
        self.thorough = False

    @property
    def holds_back(self) -> bool:
        """Whether it waits for runs to end before it claims again."""
        return self._suspect is not None or self._suspect_seen is not None

    async def fetch(self, wanted: int, ahead: int, bytes_ahead: int) -> Haul:
        """Up to `wanted` jobs for free pullers and `ahead` more, best first."""
        if self._suspect is not None and self._leases.holds(self._suspect):
            return Haul()
        after_suspect, self._suspect = self._suspect is not None, None
        if len(self._spine.wedged) > self._parallel_count:
            return Haul()
        if self._suspect_seen is not None and not after_suspect:  # the others had their turn
            if not len(self._leases):
                haul = await self._claim_suspect()
                if haul.jobs:
                    return haul
            elif time.monotonic() - self._suspect_seen > self._store.lease:
                return Haul()  # what runs now ends first
        haul = await self._claim_any(wanted, ahead, bytes_ahead)
        if after_suspect and self._suspect_seen is not None and not len(self._leases):
            haul = await self._claim_suspect()
        if haul.more or not self._head_left_out:
            return haul
        if self.thorough:
            self._scan.rewind()
            return Haul(haul.jobs, more=True)
        self._wake_at_rescan()
        return haul

    def _wake_at_rescan(self) -> None:
        if self._rescan is None:
            pause = max(self._scan.rescan_in(), 0.0)
            self._rescan = asyncio.get_running_loop().call_later(pause, self._rescan_is_due)

    def _rescan_is_due(self) -> None:
        self._rescan = None
        self._wake()

    async def _claim_suspect(self) -> Haul:
        self._scan.rewind()
        haul = await self._claim(1, suspects_from=SUSPECT)
        if haul.jobs:
            (self._suspect,) = haul.jobs
        self._suspect_seen = time.monotonic() if haul.jobs else None  # there may be more of them
        return haul

    async def _claim_any(self, wanted: int, ahead: int, bytes_ahead: int) -> Haul:
        idle = not len(self._leases)
        haul = await self._claim(
            wanted,
            ahead=ahead,
            bytes_ahead=bytes_ahead,
            suspects_below=NO_LIMIT if self._suspect_seen is None else SUSPECT,
        )
        suspects = [job for job in haul.jobs if job.lost >= SUSPECT]
        if not suspects:
            return haul
        self._suspect_seen = time.monotonic()  # suspects are claimed here only when none was seen before
        _tell(suspects[0])
        if idle and len(haul.jobs) == len(suspects):
            self._suspect, *too_many = suspects
        else:
            too_many = suspects
        for job in too_many:
            self._spine.give_back(job)
        if self._suspect is not None:
            await self._spine.flushed()  # before it runs: a lease still held would lapse with it
        return Haul([job for job in haul.jobs if job not in too_many], haul.more)

    async def _claim(
        self,
        wanted: int,
        *,
        ahead: int = 0,
        bytes_ahead: int = 0,
        suspects_from: int = 0,
        suspects_below: int = NO_LIMIT,
    ) -> Haul:
        async def claim() -> Haul:
            await self._spine.all_written.wait()
            if self._stopping():
                return Haul()
            after = self._scan.begin()
            asked_at = time.monotonic()
            jobs = await self._store.claim(
                wanted,
                ahead=ahead,
                bytes_ahead=bytes_ahead,
                after=after,
                # What still runs is never begun again, though somebody else may have had it and given it back. Nor is
                # what was told to end: a standby that was promoted may give the same claim_no again, and the ending
                # that is on its way would be taken for the new run's.
                running=(*self._spine.wedged, *self._leases.unfinished()),
                held=[claimed.job.id for claimed in self._leases.held()],
                suspects_from=suspects_from,
                suspects_below=suspects_below,
            )
            refused = self._leases.take(jobs, asked_at=asked_at)
            for job in refused:
                self._spine.give_back(job)
            # The next payload may have been the one that was too long to be taken as well. A puller that waits gets a
            # job of any length, so nothing for it is nothing at all; if none waited at first, one may by now.
            cut = ahead and sum([job.size for job in jobs]) > bytes_ahead - MAX_PAYLOAD_BYTES
            more = len(jobs) == wanted + ahead or bool(cut and (jobs or not wanted))
            self._scan.ended(after, jobs, more=more, seconds=time.monotonic() - asked_at - self._store.round_trip)
            self._head_left_out = after is not None
            return Haul([job for job in jobs if job not in refused] if refused else jobs, more)

        return await self._spine.insist(claim)


def _tell(suspect: Claimed) -> None:
    """Say once why fresh jobs wait, however many suspects there are."""
    job = suspect.job
    _logger.warning(
        "job %s %s lost its lease %d times, so it runs alone; other jobs wait",
        job.id,
        printable(job.name),
        suspect.lost,
        extra=log_fields(job),
    )
