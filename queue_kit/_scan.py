"""Where a claim begins to look. Jobs come in order, so the next one is usually behind the last one claimed; all before
it is rows that are leased, ended or dead, and a claim that walks past them gets slower with every job (to a tenth under
a held snapshot). Now and then a claim begins at the head, for what came late: retried, promoted, lapsed, of a better
priority, or locked when it was passed.
"""

import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

from queue_kit.job import MAX_PRIORITY, Claimed

Place = tuple[int, datetime, int]
"""Priority, due time, id: the order in which jobs are claimed."""

RESCAN_EVERY = 0.25
"""Seconds between two claims from the head while there is more to do than a claim takes."""

SHARE = 20
"""A claim from the head is not repeated before this many times what it takes, so that it takes 5 % of the time."""

RESCAN_WITHIN = 5.0
"""Seconds after which the head is looked at again in any case: a lapsed lease must not wait for longer, and what seemed
to take the time may have been a handler that lets nobody else run."""

CHEAP = 0.005
"""Seconds that a claim from the head may take to be repeated at once when there is little to do."""

SAMPLES = 4
"""Claims from the head of which the quickest counts: one alone may have waited for a processor or a connection."""


_END: Place = (MAX_PRIORITY, datetime.max.replace(tzinfo=UTC), 0)


class Scan:
    """The place of one worker. `strict` always begins at the head."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._mark = _END
        self._rescan_at = 0.0
        self._costs = deque([0.0] * SAMPLES, maxlen=SAMPLES)

    def begin(self) -> Place | None:
        """The place behind which to look now; `None` is the head."""
        return None if self.rescan_in() <= 0.0 else self._mark

    def rescan_in(self) -> float:
        """Seconds until the head may be looked at again."""
        return 0.0 if self._strict else self._rescan_at - time.monotonic()

    def rewind(self) -> None:
        """There is something before the mark."""
        self._rescan_at = 0.0

    def ended(self, begun: Place | None, found: Sequence[Claimed], *, more: bool, seconds: float) -> None:
        """Note what a look brought, best first: whether there may be more, and how long it took beyond a round trip."""
        if found:
            last = found[-1].place
            self._mark = last if more or self._mark is _END else max(self._mark, last)
        if begun is None:
            self._costs.append(seconds)
            cost = min(self._costs)
            pause = min(SHARE * cost, RESCAN_WITHIN) if cost > CHEAP else 0.0
            self._rescan_at = time.monotonic() + max(pause, RESCAN_EVERY if more else 0.0)
