"""Jobs that are claimed and wait for a puller, best first. They are leased like any other; what waits for long goes
back to the queue, since another worker may have a puller free.
"""

from collections.abc import Iterable
from datetime import datetime
from heapq import heapify, heappop, heappush

from queue_kit.job import Claimed

_Entry = tuple[int, datetime, int, float, Claimed]


class Window:
    """A heap of claimed jobs, which knows how many bytes of payload it holds."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, jobs: Iterable[Claimed], *, at: float) -> None:
        """Take jobs that were claimed at this time."""
        for claimed in jobs:
            heappush(self._heap, (*claimed.place, at, claimed))
            self.size += claimed.size

    @property
    def best(self) -> Claimed:
        """The job that `pop` takes out; `IndexError` when there is none."""
        return self._heap[0][4]

    def pop(self) -> Claimed:
        """Take out the best job; `IndexError` when there is none."""
        *_, claimed = heappop(self._heap)
        self.size -= claimed.size
        return claimed

    def shed(self, *, before: float) -> list[Claimed]:
        """Take out the jobs that were claimed before this time."""
        out = [entry for entry in self._heap if entry[3] < before]
        if out:
            self._heap = [entry for entry in self._heap if entry[3] >= before]
            heapify(self._heap)
        shed = [entry[4] for entry in out]
        self.size -= sum(claimed.size for claimed in shed)
        return shed
