"""Worker processes, and the memory in which their handlers note what they ran.

Each worker is a process of its own, so its processor time and memory are the worker's alone. It is watched through
shared memory, which costs neither side a question.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from benchmarks import machine, peers
from benchmarks.peers import Options
from benchmarks.server import connected, maintenance_url

CONTEXT = multiprocessing.get_context("spawn")
START_SECONDS = 20.0
FIRST_JOB_SECONDS = 40.0


class Tally:
    """How often each job ran in one worker, when the first one started, and if `timed` when each did."""

    def __init__(self, jobs: int, *, timed: bool) -> None:
        self.runs = CONTEXT.RawArray("B", jobs)
        self.handled = CONTEXT.RawValue("q", 0)
        self.first = CONTEXT.RawValue("d", 0.0)
        self.starts = CONTEXT.RawArray("d", jobs if timed else 0)

    def note(self, number: int) -> None:
        """A job's handler has started."""
        if not self.handled.value:
            self.first.value = time.monotonic()
        self.runs[number] += 1
        if self.starts:
            self.starts[number] = time.monotonic()
        self.handled.value += 1


class Crew:
    """`count` workers of a queue, from the entry to the exit of this context. They import what they need, and wait to
    be set to work."""

    def __init__(
        self, name: str, url: str, options: Options, *, jobs: int, count: int = 1, timed: bool = False
    ) -> None:
        self.tallies = [Tally(jobs, timed=timed) for _ in range(count)]
        self._together = CONTEXT.Barrier(count + 1)
        self.processes = [
            CONTEXT.Process(target=_work, args=(name, url, options, tally, self._together)) for tally in self.tallies
        ]

    def __enter__(self) -> Self:
        for process in self.processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill them, at the latest at the exit."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    @property
    def handled(self) -> int:
        """How many handlers have started."""
        return sum(tally.handled.value for tally in self.tallies)

    @property
    def started(self) -> float:
        """When the first handler started."""
        return min(float(tally.first.value) for tally in self.tallies if tally.handled.value)

    @property
    def runs(self) -> list[int]:
        """How often each job ran."""
        return [sum(each) for each in zip(*(bytes(tally.runs) for tally in self.tallies), strict=True)]

    def cpu(self) -> float | None:
        """Processor seconds so far."""
        return machine.total([process.pid for process in self.processes if process.pid])

    def memory(self, *, peak: bool = True) -> float | None:
        """The resident memory of the largest worker, in MB."""
        sizes = [machine.memory_mb(process.pid, peak=peak) for process in self.processes if process.pid]
        return max((size for size in sizes if size is not None), default=None)

    async def begin(self) -> None:
        """Set all to work at once."""
        if not await self._until(lambda: self._together.n_waiting == len(self.processes), seconds=START_SECONDS):
            raise RuntimeError(f"not all workers were there within {START_SECONDS:.0f} s")
        self._together.wait()

    async def at_work(self) -> None:
        """Set all to work, and wait for the first job."""
        await self.begin()
        if not await self.until(1, seconds=FIRST_JOB_SECONDS):
            raise RuntimeError(f"no job was started within {FIRST_JOB_SECONDS:.0f} s")

    async def until(self, handled: int, *, seconds: float, step: float = 0.002) -> bool:
        """Wait until so many handlers have started; false when that takes longer."""
        return await self._until(lambda: self.handled >= handled, seconds=seconds, step=step)

    async def _until(self, condition: Callable[[], bool], *, seconds: float, step: float = 0.002) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            dead = [process.exitcode for process in self.processes if process.exitcode is not None]
            if dead:
                raise RuntimeError(f"a worker ended by itself, with status {dead[0]}")
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(step)
        return True


@contextmanager
def bare_loop(url: str, *, seconds: float) -> Iterator[int]:
    """A process that asks the server for nothing, over and over after this pause; its pid."""
    process = CONTEXT.Process(target=_ask, args=(url, seconds))
    process.start()
    assert process.pid is not None
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


def _ask(url: str, seconds: float) -> None:
    async def ask() -> None:
        async with connected(maintenance_url(url)) as connection:
            while True:
                await connection.fetchval("SELECT 1")
                await asyncio.sleep(seconds)

    asyncio.run(ask())


def _work(name: str, url: str, options: Options, tally: Tally, together: Any) -> None:
    queue = peers.load(name, url, options)
    together.wait()
    if queue.uvloop:
        import uvloop

        uvloop.run(queue.work(tally.note))
    else:
        asyncio.run(queue.work(tally.note))
