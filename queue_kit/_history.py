"""What runs came to, minute by minute: counted in memory as they settle, and added to the database once a minute.

Many workers add to the same rows. It only informs, so nothing waits for it: what a killed worker had not written is
lost, and what the database would not take, a minute at most of each.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.exc import DBAPIError

from queue_kit._dialect.columns import as_utc_text
from queue_kit._endings import Ending
from queue_kit._link import in_a_line
from queue_kit._log import BackgroundLog
from queue_kit._store import Store
from queue_kit._transient import is_transient
from queue_kit.job import Verdict

_logger = BackgroundLog("queue_kit.worker")

KEPT_DAYS = 14.0
"""Days of history that workers keep."""

MINUTE = 60.0

SPREAD = 5.0
"""Seconds after a minute within which its counts are written: the workers of a fleet take turns by chance."""


class Counts:
    """What the runs of one name came to."""

    __slots__ = ("ends", "longest_run", "longest_wait", "run_seconds", "wait_seconds")

    def __init__(self) -> None:
        self.ends: defaultdict[Verdict, int] = defaultdict(int)
        self.run_seconds = self.longest_run = self.wait_seconds = self.longest_wait = 0.0

    def as_row(self) -> dict[str, Any]:
        """Its columns."""
        seconds = {column: getattr(self, column) for column in self.__slots__ if column != "ends"}
        return {verdict.value: count for verdict, count in self.ends.items()} | seconds


class History:
    """Counts the runs of one worker."""

    def __init__(self, store: Store, *, guarded: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]) -> None:
        self._store = store
        self._guarded = guarded
        self._counts: defaultdict[str, Counts] = defaultdict(Counts)
        self._ended: list[dict[str, Any]] = []
        self._refused = False
        self._prunes_at = random.randrange(60)  # noqa: S311 - each worker at a minute of its own

    def add(self, runs: Iterable[Ending]) -> None:
        """Count runs."""
        epoch = self._store.epoch
        for ending in runs:
            claimed, seconds = ending.claimed, ending.seconds or 0.0
            counts = self._counts[claimed.job.name]
            counts.ends[ending.outcome.verdict] += 1
            counts.run_seconds += seconds
            if seconds > counts.longest_run:
                counts.longest_run = seconds
            waited = ending.began + epoch - (claimed.due or claimed.job.scheduled_at).timestamp()
            if waited > 0.0:
                counts.wait_seconds += waited
                if waited > counts.longest_wait:
                    counts.longest_wait = waited

    async def serve(self) -> None:
        """Write at each minute of the database's clock, for as long as this is awaited."""
        while True:
            minute = self._minute()  # before the timer, which may be early or late
            await asyncio.sleep((minute + 1) * MINUTE - self._now())
            self._end(minute)
            await asyncio.sleep(random.random() * SPREAD)  # noqa: S311
            await self._guarded(self._write)
            if minute % 60 == self._prunes_at:
                await self._guarded(self._prune)

    def _now(self) -> float:
        return time.monotonic() + self._store.epoch

    def _minute(self) -> int:
        return int(self._now() // MINUTE)

    def _end(self, minute: int) -> None:
        """Put aside what was counted, as this minute's."""
        at = as_utc_text(datetime.fromtimestamp(minute * MINUTE, UTC))
        counts, self._counts = self._counts, defaultdict(Counts)
        self._ended += [{"minute": at, "name": name, **each.as_row()} for name, each in counts.items()]

    async def finish(self) -> None:
        """Write what was counted so far."""
        await self._write()  # alone: it may be of the same minute, and a statement adds to a row only once
        self._end(self._minute())
        await self._write()

    async def _write(self) -> None:
        rows, self._ended = self._ended, []  # not twice, whatever becomes of the statement
        if rows:
            await self._unless_refused(self._store.add_history(rows))

    async def _prune(self) -> None:
        await self._unless_refused(self._store.prune_history(KEPT_DAYS))

    async def _unless_refused(self, statement: Awaitable[None]) -> None:
        try:
            await statement
            self._refused = False
        except DBAPIError as error:
            if is_transient(error):
                raise
            if not self._refused:
                self._refused = True
                _logger.warning("the history of throughput is not written: %s", in_a_line(error))
