"""What the simulated jobs do: end at once, take their time, fail, snooze, refuse to end, block, or take their process
along. Each run leaves a record of how it went, against which the rules check what the worker made of it."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from queue_kit._handler import Handler
from queue_kit.errors import Discard, JobAborted, Snooze
from queue_kit.event import AbortToken
from queue_kit.job import Claimed
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.plan import JobPlan

TIMEOUT = 30.0
"""Of the kinds that end by themselves: beyond what any of them takes."""

SHORT = 1.0
"""Of those that do not."""


class Odd(BaseException):
    """What no `except Exception` catches."""


@dataclass(slots=True, eq=False)
class RunRecord:
    """One run, from the worker's wish to begin it until its handler has ended."""

    claimed: Claimed
    token: AbortToken
    process: Process
    worker: object
    stage: "Stage"
    begun: bool = False
    ended: bool = False
    returned: bool = False
    aborted_in_time: bool = False
    """Whether the token was set when the handler ended."""

    @property
    def runs(self) -> bool:
        return self.begun and not self.ended and self.process.alive

    def __str__(self) -> str:
        return (
            f"job {self.claimed.job.id} {self.claimed.job.name} (claim {self.claimed.claim_no}) in {self.process.name}"
        )


Body = Callable[[Any, Any, Any, "Stage"], Coroutine[Any, Any, None]]


class Rendezvous:
    """Jobs that all wait for each other: they end once as many run at once as there are pullers."""

    def __init__(self) -> None:
        self.wanted = 0
        self.here = 0
        self.most = 0
        self.met = asyncio.Event()

    async def wait(self) -> None:
        self.here += 1
        self.most = max(self.most, self.here)
        try:
            if self.here >= self.wanted:
                self.met.set()
            await self.met.wait()
        finally:
            self.here -= 1


class Stage:
    """What the handlers of one simulation share, and what they know of their jobs."""

    def __init__(
        self, loop: VirtualLoop, kill: Callable[[Process], None], on_begin: Callable[[RunRecord], None]
    ) -> None:
        self.loop = loop
        self.kill = kill
        self.on_begin = on_begin
        self.jobs: dict[int, JobPlan] = {}
        self.before: dict[int, int] = {}
        """How many runs of each job had begun before the last one."""
        self.rendezvous = Rendezvous()
        self.let_go = asyncio.Event()
        """Lets the wedged handlers end."""

    def seconds(self, job: Any) -> float:
        return self.jobs[job.id].seconds if job.id in self.jobs else 1.0


def _handler(name: str, body: Body) -> Handler[Any]:
    async def run(event: Any, session: Any, job: Any) -> None:
        record: RunRecord = session.run
        stage = record.stage
        record.begun = True
        stage.before[job.id] = stage.before.get(job.id, -1) + 1
        stage.on_begin(record)
        try:
            await body(event, session, job, stage)
            record.returned = True
        finally:
            record.ended = True
            record.aborted_in_time = record.token.aborted

    return Handler(run, timeout=SHORT if name in _ENDLESS else TIMEOUT, retry_delay=0.3)


async def _quick(event: Any, session: Any, job: Any, stage: Stage) -> None:
    pass


async def _nap(event: Any, session: Any, job: Any, stage: Stage) -> None:
    await asyncio.sleep(stage.seconds(job) / 10)


async def _long(event: Any, session: Any, job: Any, stage: Stage) -> None:
    await asyncio.sleep(2 * stage.seconds(job))


async def _write(event: Any, session: Any, job: Any, stage: Stage) -> None:
    await session.add_effect()
    await asyncio.sleep(stage.seconds(job) / 10)


async def _checkpoint(event: Any, session: Any, job: Any, stage: Stage) -> None:
    await session.add_effect()
    await session.checkpoint()
    await asyncio.sleep(stage.seconds(job) / 10)
    await session.add_effect()


async def _fail(event: Any, session: Any, job: Any, stage: Stage) -> None:
    await asyncio.sleep(stage.seconds(job) / 10)
    raise ValueError("it fails")


async def _flaky(event: Any, session: Any, job: Any, stage: Stage) -> None:
    await session.add_effect()
    if not stage.before[job.id]:
        raise Odd


async def _snooze(event: Any, session: Any, job: Any, stage: Stage) -> None:
    if not stage.before[job.id]:
        raise Snooze(stage.seconds(job))


async def _discard(event: Any, session: Any, job: Any, stage: Stage) -> None:
    raise Discard


async def _hang(event: Any, session: Any, job: Any, stage: Stage) -> None:
    await asyncio.Event().wait()


async def _swallow(event: Any, session: Any, job: Any, stage: Stage) -> None:
    try:
        await asyncio.sleep(stage.seconds(job))
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)


async def _refuse(event: Any, session: Any, job: Any, stage: Stage) -> None:
    ends = stage.loop.time() + 2.0 + stage.seconds(job)
    while (left := ends - stage.loop.time()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left)


async def _linger(event: Any, session: Any, job: Any, stage: Stage) -> None:
    """The first run takes a moment to end after it was cancelled; the others ask for another one."""
    if stage.before[job.id]:
        raise Snooze(0.0) if stage.before[job.id] < 3 else Discard
    try:
        await asyncio.sleep(stage.seconds(job))
    except asyncio.CancelledError:
        await asyncio.sleep(0.5)
        raise


async def _block(event: Any, session: Any, job: Any, stage: Stage) -> None:
    """Blocks everybody: every process of the machine stands still."""
    stage.loop.advance(stage.seconds(job))


async def _stall(event: Any, session: Any, job: Any, stage: Stage) -> None:
    """Blocks its own process."""
    session.run.process.freeze(stage.seconds(job))
    await asyncio.sleep(0)


async def _leave(event: Any, session: Any, job: Any, stage: Stage) -> None:
    await asyncio.sleep(0.01)
    raise SystemExit(3) if stage.before[job.id] % 2 else KeyboardInterrupt


async def _cancel_itself(event: Any, session: Any, job: Any, stage: Stage) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    if stage.before[job.id] % 2:
        await asyncio.sleep(1.0)


async def _crash(event: Any, session: Any, job: Any, stage: Stage) -> None:
    await asyncio.sleep(0.01)
    stage.kill(session.run.process)
    await asyncio.sleep(0)


async def _obey(event: Any, session: Any, job: Any, stage: Stage) -> None:
    reason = await event.signal.wait()
    assert isinstance(reason, JobAborted)


async def _wedge(event: Any, session: Any, job: Any, stage: Stage) -> None:
    while not stage.let_go.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await stage.let_go.wait()


async def _meet(event: Any, session: Any, job: Any, stage: Stage) -> None:
    await stage.rendezvous.wait()


_BODIES: dict[str, Body] = {
    "quick": _quick,
    "nap": _nap,
    "long": _long,
    "write": _write,
    "checkpoint": _checkpoint,
    "fail": _fail,
    "flaky": _flaky,
    "snooze": _snooze,
    "discard": _discard,
    "hang": _hang,
    "swallow": _swallow,
    "refuse": _refuse,
    "linger": _linger,
    "block": _block,
    "stall": _stall,
    "leave": _leave,
    "cancel itself": _cancel_itself,
    "crash": _crash,
    "obey": _obey,
    "wedge": _wedge,
    "meet": _meet,
}

_ENDLESS = {"hang", "refuse", "wedge"}

NEVER_FAIL = {"quick", "nap", "long", "write", "checkpoint", "snooze", "swallow", "block", "stall", "meet"}
"""The kinds whose handlers fail by nothing of their own."""

HANDLERS = {name: _handler(name, body) for name, body in _BODIES.items()}
