"""Worker processes, and the memory in which their handlers note what they ran.

Each worker is a process of its own, so its processor time and memory are the worker's alone. It is watched through
shared memory, which costs neither side a question.
"""

import asyncio
import multiprocessing
import time
from types import TracebackType
from typing import Any, Self

from benchmarks import machine, peers
from benchmarks.peers import Options

CONTEXT = multiprocessing.get_context("spawn")
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
    """`count` workers of a queue, from the entry to the exit of this context."""

    def __init__(
        self, name: str, url: str, options: Options, *, jobs: int, count: int = 1, timed: bool = False
    ) -> None:
        self.tallies = [Tally(jobs, timed=timed) for _ in range(count)]
        self._together = CONTEXT.Barrier(count)
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

    async def until(self, handled: int, *, seconds: float, step: float = 0.002) -> bool:
        """Wait until so many handlers have started; false when that takes longer."""
        deadline = time.monotonic() + seconds
        while self.handled < handled:
            dead = [process.exitcode for process in self.processes if process.exitcode is not None]
            if dead:
                raise RuntimeError(f"a worker ended by itself, with status {dead[0]}")
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(step)
        return True

    async def at_work(self) -> None:
        """Wait for the first job."""
        if not await self.until(1, seconds=FIRST_JOB_SECONDS):
            raise RuntimeError(f"no job was started within {FIRST_JOB_SECONDS:.0f} s")


def _work(name: str, url: str, options: Options, tally: Tally, together: Any) -> None:
    queue = peers.load(name, url, options)
    together.wait()  # until all have imported what they need
    if queue.uvloop:
        import uvloop

        uvloop.run(queue.work(tally.note))
    else:
        asyncio.run(queue.work(tally.note))
