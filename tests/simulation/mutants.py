"""Wrong cores: each has one rule of the worker taken away, and must be caught by the simulation. One that is not shows
a rule that checks nothing."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from unittest import mock

from queue_kit._claims import Claims
from queue_kit._crew import Crew
from queue_kit._leases import Leases
from queue_kit._link import Link
from queue_kit._pulse import Pulse
from queue_kit._run import Run
from queue_kit._sleep import Sleep
from queue_kit._spine import Spine
from queue_kit.errors import LeaseLost, ShuttingDown
from queue_kit.job import Claimed, Outcome
from tests.simulation.database import Row


class Mutant(NamedTuple):
    """What is taken away, the code that stands there instead, words of the rule that must notice, and a seed that did:
    to search from there is quicker."""

    name: str
    kind: type
    method: str
    instead: Callable[..., Any]
    noticed: str
    seed: int = 0

    def applied(self) -> contextlib.AbstractContextManager[Any]:
        """The wrong core, for as long as this is entered."""
        return mock.patch.object(self.kind, self.method, self.instead)


async def _renew_what_is_lost(self: Leases) -> None:
    renewal = await self._store.renew(self.held())
    for lease in list(self._held.values()):
        job_id = lease.claimed.job.id
        if job_id in renewal.ours or job_id in renewal.locked:
            lease.expires = self._store.lease + asyncio.get_running_loop().time()
        else:
            lease.tell(LeaseLost("lost"))


def _take_what_comes_again(self: Leases, jobs: Iterable[Claimed], *, asked_at: float) -> list[Claimed]:
    for claimed in jobs:
        self._held.pop(claimed.job.id, None)
    return _take(self, jobs, asked_at=asked_at)


async def _never_watch(self: Leases) -> None:
    await asyncio.Event().wait()


async def _die_of_an_exception(self: Crew) -> None:
    while (claimed := await self._claims.next()) is not None:
        try:
            await self.spine.work(claimed)
        except Exception:
            self._leases.drop([claimed])
            return


async def _stop_without_abort(self: Crew, grace: float) -> bool:
    self.close()
    await asyncio.wait(self._pullers, timeout=grace + self._cancel_grace)
    await self._leave()
    return True


async def _stop_without_limit(self: Crew, grace: float) -> bool:
    self.close()
    await asyncio.wait(self._pullers)
    await self._leave()
    return True


async def _persist_once(self: Spine, attempt: Callable[[], Any]) -> Any:
    return await attempt()


async def _keep_the_slot(self: Run, grace: float) -> None:
    if self._timeout is not None:
        with contextlib.suppress(RuntimeError):
            self._timeout.reschedule(self._loop.time())


def _hold_on(self: Claims) -> None:
    self.closed = True
    while (puller := self._next_idle()) is not None:
        puller.set_result(None)
    self._hungry.set()
    self._wakeup.set()


def _count_a_shutdown(self: Run, error: BaseException | None) -> Outcome:
    return _outcome(self, error) if not isinstance(self.token.reason, ShuttingDown) else self.failure(ValueError())


def _begin_after_the_stop(self: Crew) -> None:
    self._claims.wake()


async def _insist_soon(self: Spine, attempt: Callable[[], Any], **_: Any) -> Any:
    while True:
        with contextlib.suppress(Exception):
            return await attempt()
        await asyncio.sleep(0.003)


async def _look_on_and_on(self: Pulse) -> float:
    await _sweep(self)
    return 0.0


async def _leave_the_tasks(self: Crew) -> None:
    await self.spine.close()


async def _sleep_at_once(self: Sleep) -> None:
    await self._too_often.wait()


_outcome, _sweep, _take = Run._outcome, Pulse._sweep, Leases.take

MUTANTS = [
    Mutant("renew what is lost", Leases, "renew", _renew_what_is_lost, "after it was told that it is lost", 33),
    Mutant("never look whether a lease has lapsed", Leases, "watch", _never_watch, "its lease was somebody else's", 25),
    Mutant(
        "run what a claim brings once more", Leases, "take", _take_what_comes_again, "beside another run of it", 243
    ),
    Mutant("a puller dies of an exception", Crew, "_pull", _die_of_an_exception, "ran jobs at once", 53),
    Mutant("stop without an abort", Crew, "end", _stop_without_abort, "has stopped, but holds"),
    Mutant("stop without a limit", Crew, "end", _stop_without_limit, "was to stop at"),
    Mutant("claim and begin after the stop", Crew, "close", _begin_after_the_stop, "after the worker was told to stop"),
    Mutant("keep what is held ahead at the stop", Claims, "close", _hold_on, "has stopped, but holds", 32),
    Mutant("drop an ending that cannot be written", Spine, "persist", _persist_once, "never ended"),
    Mutant("probe a database that is away without a pause", Link, "backoff", lambda _: 0.0, "of an outage", 4),
    Mutant("try a statement again too soon", Spine, "insist", _insist_soon, "statements in a second", 37),
    Mutant("look on and on with nothing to do", Pulse, "_sweep", _look_on_and_on, "idle seconds"),
    Mutant("leave the tasks behind", Crew, "_leave", _leave_the_tasks, "has stopped, but left"),
    Mutant("do not hear a notification", Sleep, "woken", lambda _: None, "though a worker listens"),
    Mutant("do not look after falling asleep", Sleep, "_sleep", _sleep_at_once, "though a worker listens", 49),
    Mutant("never wake the claim", Crew, "_wake", lambda _: None, "never ended"),
    Mutant("keep the slot of a handler that refuses to end", Run, "_cancel", _keep_the_slot, "ran jobs at once"),
    Mutant("let a handler run beyond its deadline", Run, "_expire", lambda _: None, "never ended", 21),
    Mutant("count a shutdown as a failure", Run, "_outcome", _count_a_shutdown, "failures counted"),
    Mutant("settle without the fence", Row, "is_held_by", lambda self, *_: self.status == 1, "did not return"),
]
