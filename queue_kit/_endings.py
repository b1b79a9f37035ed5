"""How runs ended, on its way to the database. While one batch is in flight, endings wait; when it is answered, all who
waited go out as the next. Idle, an ending travels alone and at once; under load a batch grows to fit the round trip and
a short pause.

A puller does not wait for its ending (with one puller that is worth a factor of ten), only for room among those that
are not written yet.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from queue_kit._log import BackgroundLog
from queue_kit.errors import JobAborted
from queue_kit.event import Span
from queue_kit.job import Claimed, Outcome, Verdict

_logger = BackgroundLog("queue_kit.worker")

LOCKED_PAUSE = 0.25
"""Seconds until an ending whose row somebody has locked is tried again."""

MOST_UNWRITTEN = 2_000
"""Endings on their way from which on pullers wait: how many jobs at most run again after a crash though they ended.
With 1,000 small jobs stand still whenever a claim holds up a batch (7 % slower); 4,000 was 4 % faster still, for twice
as many that run again."""

MANY = 100
"""Endings in a batch that show a load."""

GATHERING = 0.004
"""Seconds in which more endings may join when there were many: half as many statements and commits, and small jobs some
2 % faster (2.5 to 10 ms: the same)."""


class Settlement(Enum):
    """What became of an ending."""

    done = auto()
    locked = auto()
    lost = auto()


@dataclass(slots=True)
class Ending:
    """How a job ended, and for one that ran the seconds it took, its spans, and when it began by the process's clock;
    `why` is what a run was told that had to end for the worker's sake.

    It holds nothing else of the run: what waits here in hundreds is what Python's garbage collector walks through.
    """

    claimed: Claimed
    outcome: Outcome
    seconds: float | None = None
    spans: Span | None = None
    written: asyncio.Future[None] | None = None
    began: float = 0.0
    why: JobAborted | None = None


class Endings:
    """Takes endings one by one and hands them on to `flush`, in batches of one ending a job, which answers with one
    settlement each.

    `on_written` is told of those that are stored, with the outcomes that stand: `lost` when a job is not ours any more.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[tuple[Claimed, Outcome]]], Awaitable[Sequence[Settlement]]],
        on_written: Callable[[Sequence[Ending]], None],
    ) -> None:
        self._flush = flush
        self._on_written = on_written
        self._waiting: dict[int, Ending] = {}
        """The next batch, by the ids of its jobs."""
        self._behind: list[Ending] = []
        """Of a job that was lost and claimed again, what the second run came to."""
        self._unwritten = 0
        self._awaited = 0
        self._answered = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._closed = False

    def put(self, ending: Ending) -> None:
        """Have an ending written."""
        self._unwritten += 1
        self._send(ending)

    async def write(self, ending: Ending) -> None:
        """Have an ending written, and wait until it is."""
        ending.written = asyncio.get_running_loop().create_future()
        self.put(ending)
        self._awaited += 1
        try:
            await ending.written
        finally:
            self._awaited -= 1

    @property
    def full(self) -> bool:
        """Whether a puller has to wait for room."""
        return self._unwritten > MOST_UNWRITTEN

    async def room(self, most: int = MOST_UNWRITTEN) -> None:
        """Wait until at most this many endings are not written yet."""
        while self._unwritten > most:
            self._answered.clear()
            await self._answered.wait()

    def _send(self, ending: Ending) -> None:
        if self._closed:
            return
        if self._waiting.setdefault(ending.claimed.job.id, ending) is not ending:
            self._behind.append(ending)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run(), name="queue_kit: settle")

    async def _run(self) -> None:
        pause = 0.0
        while self._waiting:
            await asyncio.sleep(pause)  # let what ends in this turn of the loop join
            batch = self._next_batch()
            settlements = await self._flush([(ending.claimed, ending.outcome) for ending in batch])
            self._settled(batch, settlements)
            pause = GATHERING if len(batch) > MANY and not (self.full or self._awaited) else 0.0

    def _next_batch(self) -> Collection[Ending]:
        batch, self._waiting = self._waiting, {}
        behind, self._behind = self._behind, []
        for ending in behind:
            self._send(ending)
        return batch.values()

    def _settled(self, batch: Collection[Ending], settlements: Sequence[Settlement]) -> None:
        written = []
        for ending, settlement in zip(batch, settlements, strict=True):
            if settlement is Settlement.locked:
                asyncio.get_running_loop().call_later(LOCKED_PAUSE, self._send, ending)
                continue
            if settlement is Settlement.lost:
                ending.outcome = Outcome(Verdict.lost)
            written.append(ending)
            if ending.written is not None and not ending.written.done():
                ending.written.set_result(None)
        self._unwritten -= len(written)
        self._answered.set()
        try:
            self._on_written(written)
        except Exception:
            _logger.exception("%d endings are stored, but were not all reported", len(written))

    async def close(self) -> None:
        """Give up what is still under way or waits for a lock."""
        self._closed = True
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            await asyncio.wait({self._pump})
