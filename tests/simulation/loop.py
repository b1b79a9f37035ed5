"""An event loop on virtual time. It opens nothing: when no callback is ready, its clock jumps to the next timer, so a
minute takes milliseconds, and the same callbacks come in the same order each time.

What runs in it belongs to processes, found by a context variable: one can be frozen or killed while others go on.
"""

import asyncio
import contextlib
import contextvars
import heapq
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

TURN = 0.00002
"""Seconds that one turn of the loop takes, so that a loop without a pause gets somewhere and can be counted."""

MOST_TURNS = 1_000_000
"""Turns after which a simulation is taken for endless."""

_process: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


class Process:
    """What is frozen, or dies, together. `turns` counts its callbacks."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.name = name
        self.alive = True
        self.turns = 0
        self.thaws_at = 0.0
        self.stood_still = 0.0
        """Seconds that it was frozen in all."""
        self.tasks: list[asyncio.Task[Any]] = []
        self._loop = loop
        self._held: list[asyncio.Handle] = []
        self._context = contextvars.copy_context()
        self._context.run(_process.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> "asyncio.Task[Any]":
        """Run something in this process."""
        return self._loop.create_task(work, name=name, context=self._context)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Have something called in this process."""
        self._loop.call_later(seconds, callback, context=self._context)

    @property
    def frozen(self) -> bool:
        """Whether it stands still now."""
        return self.thaws_at > self._loop.time()

    def freeze(self, seconds: float) -> None:
        """Stand still for a while, as after a SIGSTOP."""
        now = self._loop.time()
        thaws_at = max(self.thaws_at, now + seconds)
        self.stood_still += thaws_at - max(self.thaws_at, now)
        self.thaws_at = thaws_at
        self._loop.call_at(self.thaws_at, self._thaw, context=contextvars.Context())

    def kill(self) -> None:
        """End without a last word, as after a SIGKILL."""
        self.alive = False
        self._held.clear()

    def hold(self, handle: asyncio.Handle) -> None:
        """Keep a callback until the thaw."""
        self._held.append(handle)

    def _thaw(self) -> None:
        if not self.frozen:
            self._loop.put_back(self._held)
            self._held = []


class _NumberedTask(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks have the same order each time."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in order of their times, and never waits."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = self._tasks_made = 0
        self.turns = 0
        self.blocked = 0.0
        """Seconds that all processes were blocked in all."""
        self.complaints: list[str] = []
        """What asyncio would have logged: exceptions that nobody has seen."""
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]
        self.set_exception_handler(lambda _, context: self.complaints.append(_in_words(context)))

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Of two timers of the same time, the one that was set first is called first."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """In the next turn."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def advance(self, seconds: float) -> None:
        """Let time pass while the running callback does not return: code that blocks."""
        self._now += seconds
        self.blocked += seconds

    def put_back(self, handles: list[asyncio.Handle]) -> None:
        """Run callbacks that were held back, before all others."""
        self._ready.extendleft(reversed(handles))

    def abandon(self) -> None:
        """Close what is left, without a word about it."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with contextlib.suppress(BaseException):
                task.get_coro().close()  # type: ignore[union-attr]
        self.close()

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> "asyncio.Task[Any]":
        task = _NumberedTask.__new__(_NumberedTask)
        self._tasks_made += 1
        task.number = self._tasks_made
        task.__init__(work, loop=loop, **options)  # type: ignore[misc]
        process = options["context"].get(_process) if options.get("context") else _process.get()
        if process is not None:
            process.tasks.append(task)
        return task

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise RuntimeError("nothing will ever happen any more")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                self._run(handle)
        self._now += TURN
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise RuntimeError(f"{MOST_TURNS:,} turns of the loop in {self._now:.0f} s")

    def _run(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(_process)
        if process is not None:
            if not process.alive:
                return
            if process.thaws_at > self._now:
                process.hold(handle)
                return
            process.turns += 1
        handle._run()

    def _process_events(self, event_list: object) -> None:
        raise NotImplementedError

    def _write_to_self(self) -> None:
        raise NotImplementedError


def _in_words(context: dict[str, Any]) -> str:
    return f"{context['message']}: {context.get('exception')!r}"


@contextlib.contextmanager
def virtual_time(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """Have all of the library read this loop's clock, and draw its random numbers from this seed."""
    clock, chance = SimpleNamespace(monotonic=loop.time), random.Random(seed)
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("queue_kit"):
                for word, real, ours in (("time", time, clock), ("random", random, chance)):
                    if vars(module).get(word) is real:
                        stack.enter_context(mock.patch.object(module, word, ours))
        yield


def outside() -> contextvars.Context:
    """The context of what belongs to no process: the database and the network."""
    return contextvars.Context()


def run(loop: VirtualLoop, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a simulation to its end, and leave nothing of it."""
    try:
        loop.run_until_complete(main())
    finally:
        loop.abandon()
