"""Jobs that are claimed and wait for a puller, best first. They are leased like any other; what waits for long goes
back to the queue, since another worker may have a puller free.
"""

from collections.abc import Iterable
from datetime import datetime

from queue_kit.job import Claimed

_Entry = tuple[int, datetime, int, float, Claimed]


class Window:
    """Claimed jobs in order, and how many bytes of payload they are together.

    They come hundreds at a time, in order and mostly behind all that is held, so to sort costs next to nothing; a heap
    takes 0.8 us a job.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        """The best last."""
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, jobs: Iterable[Claimed], *, at: float) -> None:
        """Take jobs that were claimed at this time."""
        entries = [(*claimed.place, at, claimed) for claimed in jobs]
        self.size += sum(entry[4].size for entry in entries)
        self._entries += entries
        self._entries.sort(reverse=True)

    @property
    def best(self) -> Claimed:
        """The job that `pop` takes out; `IndexError` when there is none."""
        return self._entries[-1][4]

    def pop(self) -> Claimed:
        """Take out the best job; `IndexError` when there is none."""
        claimed = self._entries.pop()[4]
        self.size -= claimed.size
        return claimed

    def shed(self, *, before: float) -> list[Claimed]:
        """Take out the jobs that were claimed before this time."""
        shed = [entry[4] for entry in self._entries if entry[3] < before]
        if shed:
            self._entries = [entry for entry in self._entries if entry[3] >= before]
        self.size -= sum(claimed.size for claimed in shed)
        return shed
