"""Whether the database can be reached, for all loops of one worker: the first failure closes the gate for all, one of
them probes, and everything goes on together. One log line a change, not one an attempt.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable

from queue_kit._log import BackgroundLog
from queue_kit.job import printable

_logger = BackgroundLog("queue_kit.worker")

LONGEST_WAIT = 2.0
"""Seconds between two probes at most, or a third of a lease when that is less: as often as a lease is renewed."""

STEADY = 1.0
"""Seconds that the database must have answered for until the next trouble counts as a new outage: a statement may fail
for ever while the probe goes well."""


def in_a_line(error: BaseException) -> str:
    """A database error for the log, without the statement and the parameters that SQLAlchemy shows with it."""
    text = str(getattr(error, "orig", None) or error).partition("\n")[0]
    return f"{type(error).__name__}: {printable(text)}"


class Link:
    """The state of the worker's connection to its database."""

    def __init__(self, *, lease: float, on_change: Callable[[str], None], on_trouble: Callable[[], None]) -> None:
        self._longest_wait = min(lease / 3, LONGEST_WAIT)
        self.is_up = True
        """Whether the last attempt went well."""
        self._up = asyncio.Event()
        self._up.set()
        self._failures = 0
        self._up_since = -math.inf
        self._on_change = on_change
        self._on_trouble = on_trouble

    async def wait_up(self) -> None:
        """Wait until the database answers."""
        await self._up.wait()

    def failed(self, error: BaseException) -> None:
        """An attempt failed; the probe will find out when to go on."""
        if self.is_up:
            self.is_up = False
            self._up.clear()
            if time.monotonic() - self._up_since > STEADY:
                self._failures = 0
            _logger.warning("the database does not answer, waiting for it: %s", in_a_line(error))
            self._on_change("database_down")
            self._on_trouble()

    def answered(self) -> None:
        """The probe went well."""
        if not self.is_up:
            self.is_up = True
            self._up.set()
            self._up_since = time.monotonic()
            _logger.warning("the database answers again")
            self._on_change("database_up")

    def backoff(self) -> float:
        """Seconds until the next probe: none after the trouble and the first probe, then more and more, with jitter."""
        self._failures += 1
        if self._failures <= 2:
            return 0.0
        doublings = min(self._failures - 3, 2)  # up to the longest; a float holds no more than a thousand
        return min(0.5 * 2.0**doublings, self._longest_wait) * (0.5 + random.random() / 2)  # noqa: S311
