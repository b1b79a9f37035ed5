"""How far ahead of its pullers a worker may claim: as much as it finishes in a quarter of a second at the rate of late,
as if all of it were of the slowest name seen lately. What is held ahead is begun soon, so slow handlers hold nothing
that another worker could run, and a better job waits for little.
"""

import time

HORIZON = 0.25
"""Seconds of work that may be held ahead."""

AT_FIRST = 4
"""How many times what was finished is held at most, while the rate is hardly known. With what was finished alone it
took five claims to get to speed (20,000 small jobs: some 3 % slower)."""

RECENT = 10.0
"""Seconds after which a name's last run says nothing any more."""

FADING = 0.9
"""How much of a slow run a name remembers after the next one."""

MOST_AHEAD = 2_000
"""Jobs held ahead at most, however fast they go: more gain nothing (1,000: 3 % slower, 500: 10 %, 3,000: the same)."""


class Pace:
    """Watches runs end; `ahead` is how many jobs to hold. Seconds are of this process's monotonic clock."""

    def __init__(self, parallel_count: int, *, most: int | None) -> None:
        self._parallel_count = parallel_count
        self._most = MOST_AHEAD if most is None else most
        self.strict = most == 0
        """Whether nothing is ever held ahead."""
        self._names: dict[str, tuple[float, float]] = {}
        self._since = self._since_before = time.monotonic()
        self._ended = 0
        self._ended_before = 0

    def ended(self, name: str, seconds: float, at: float) -> None:
        """A run of `name` took this long and ended at this time."""
        self._turn(at)
        self._ended += 1
        known = self._names.get(name)
        if known is not None and known[0] * FADING > seconds:
            seconds = known[0] * FADING
        self._names[name] = seconds, at

    def ahead(self) -> int:
        """How many jobs to hold ahead now."""
        if self.strict:
            return 0
        now = time.monotonic()
        self._turn(now)
        ended = self._ended + self._ended_before
        if not ended:
            return 0
        self._names = {name: (seconds, at) for name, (seconds, at) in self._names.items() if now - at < RECENT}
        slowest = max((seconds for seconds, _ in self._names.values()), default=HORIZON)
        in_time = self._parallel_count * HORIZON / max(slowest, 1e-6)
        soon = ended * min(HORIZON / max(now - self._since_before, 1e-6), AT_FIRST)
        return min(int(soon), int(in_time), self._most)

    def _turn(self, now: float) -> None:
        """Count in two halves of the horizon, and forget the older one."""
        passed = now - self._since
        if passed >= HORIZON / 2:
            lately = passed < HORIZON
            self._ended_before, self._since_before = (self._ended, self._since) if lately else (0, now)
            self._ended, self._since = 0, now
