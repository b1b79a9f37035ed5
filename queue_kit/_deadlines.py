"""One timer for the deadlines of all runs. Nearly every run ends long before its own, and to set and cancel a timer for
each takes 5 us, a sixth of a small job.
"""

import asyncio
from collections.abc import Callable


class Deadlines:
    """Calls `late()` of what was added and not discarded, at its time or a turn of the loop later."""

    def __init__(self) -> None:
        self._at: dict[Callable[[], None], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, late: Callable[[], None], seconds: float) -> None:
        """Have `late` called in this many seconds."""
        loop = asyncio.get_running_loop()
        self._at[late] = at = loop.time() + seconds
        if self._timer is None or at < self._timer.when():
            self._set(loop, at)

    def discard(self, late: Callable[[], None]) -> None:
        """Forget it. The timer stays: the next one may be due a little later."""
        self._at.pop(late, None)

    def _set(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(at, self._fire, loop)

    def _fire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for late in [late for late, at in self._at.items() if at <= now]:
            del self._at[late]
            late()
        if self._at:
            self._set(loop, min(self._at.values()))
