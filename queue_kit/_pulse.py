"""The worker's one timer: looks what there is to do, promotes due jobs, mends cron chains, wakes the claim, and finds
out when a database that went away is back. Idle, a worker costs one statement a poll.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from queue_kit._link import Link
from queue_kit._scan import Scan
from queue_kit._store import Store

NUDGE_PAUSE = 0.1
"""Seconds between two looks, however often others ask for one."""

ROUNDING = 0.002
"""Seconds by which the databases' clocks may round a due time."""


class Pulse:
    """Beats at each poll, at the next due time, and soon after a nudge."""

    def __init__(
        self,
        store: Store,
        link: Link,
        scan: Scan,
        *,
        poll_interval: float,
        wake: Callable[[], None],
        check_in: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._link = link
        self._scan = scan
        self._poll_interval = poll_interval
        self._wake = wake
        self._check_in = check_in
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.time()
        self._moved = asyncio.Event()
        self._sweeping = asyncio.Lock()

    def nudge(self, seconds: float = 0.0) -> None:
        """Look again in `seconds` at the latest."""
        due = self._loop.time() + seconds
        if due < self._next:
            self._next = due
            self._moved.set()

    async def serve(self) -> None:
        """Beat for as long as this is awaited."""
        while True:
            self._next = math.inf
            pause = await self._beat()
            self._next = min(self._next, self._loop.time() + pause)  # a nudge during the beat was for another one
            earliest = self._loop.time() + (NUDGE_PAUSE if self._link.is_up else pause)
            while (left := max(self._next, earliest) - self._loop.time()) > 0:
                self._moved.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._moved.wait()

    async def _beat(self) -> float:
        was_up = self._link.is_up
        try:
            if not was_up:
                await self._check_in()  # a write: a standby answers reads
            seconds = await self.sweep()
        except Exception as error:  # noqa: BLE001 - no database error ends a worker
            self._link.failed(error)
            return self._link.backoff()
        if not was_up:
            self._link.answered()
        elif not self._link.is_up:  # others had trouble meanwhile, and the question may be older than that
            return self._link.backoff()
        return seconds

    async def sweep(self) -> float:
        """Do what is due; returns the seconds until there may be more, 0 when something was moved.

        One at a time: two would skip each other's locked rows, and a drain would take them for done.
        """
        async with self._sweeping:
            return await self._sweep()

    async def _sweep(self) -> float:
        after = self._scan.begin()
        asked_at = time.monotonic()
        seen = await self._store.look(after=after)
        seconds = time.monotonic() - asked_at - self._store.round_trip
        self._scan.ended(after, (), more=False, seconds=seconds)
        if seen.claimable and after is None:  # it may be before the mark
            self._scan.rewind()
        moved = 0
        if seen.due_in is not None and seen.due_in <= 0:
            moved += await self._store.promote()
        if seen.cron_missing:
            moved += await self._store.mend_cron()
        if moved or seen.claimable:
            self._wake()
        if moved or seen.due_in is None:
            return 0.0 if moved else self._poll_interval
        return min(max(seen.due_in, 0.0) + ROUNDING, self._poll_interval)
