"""Says who blocks the event loop, from a thread of its own, since nothing on the loop can say so meanwhile.

While the loop is blocked no lease is renewed: they lapse, other workers take the jobs over, and the fence refuses what
the blocked handler writes afterwards. So the watchdog only tells; it ends nothing.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress

from queue_kit._log import BackgroundLog
from queue_kit._run import Run
from queue_kit.job import printable

_logger = BackgroundLog("queue_kit.worker")

LONGEST_BLOCK = 5.0
"""Seconds after which a blocked loop is reported, or a third of a lease when that is less: a renewal is late then."""

A_MOMENT = 0.1
"""Seconds by which a wait of this thread's own is late only when the whole process stood still; and in which a loop
answers after that."""

FRAMES = 20

RUNS_HANDLERS = Run.begin.__code__.co_filename


class Watchdog:
    """Watches the event loop from `start()`, on that loop, to `stop()`. `runs` are the jobs that may be at fault."""

    def __init__(self, runs: Callable[[], Iterable[Run]], *, lease: float) -> None:
        self._runs = runs
        self._longest = min(lease / 3, LONGEST_BLOCK)
        self._answered = threading.Event()
        self._over = threading.Event()

    def start(self) -> None:
        """Watch the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        threading.Thread(target=self._watch, name="queue_kit: watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()

    def _watch(self) -> None:
        pause = self._longest / 2
        while True:
            began = time.monotonic()
            if self._over.wait(pause):
                return
            self._answered.clear()
            try:
                self._loop.call_soon_threadsafe(self._answered.set)
            except RuntimeError:  # the loop is closed
                return
            asked_at = time.monotonic()
            answered = self._answered.wait(self._longest)
            still = time.monotonic() - began - pause
            if not answered and not (still > self._longest + A_MOMENT and self._answered.wait(A_MOMENT)):
                self._report(asked_at)
            elif still > self._longest:
                _logger.warning(
                    "nothing ran in this process for %.1f s: it was suspended, or something kept the interpreter busy",
                    still,
                )

    def _report(self, asked_at: float) -> None:
        blocked = time.monotonic() - asked_at
        culprit, stack = self._culprit(), self._stack()
        _logger.error("%s blocks the event loop, for %.1f s now, so no lease is renewed:\n%s", culprit, blocked, stack)
        while not self._answered.wait(self._longest):
            if self._over.is_set():
                return
        _logger.warning("the event loop runs again, after %.1f s", time.monotonic() - asked_at)

    def _culprit(self) -> str:
        task = asyncio.current_task(self._loop)
        with suppress(RuntimeError):  # the loop runs again, and changes what is looked through here
            for run in self._runs():
                # The first step of a handler may run before its task is known.
                if run.task is task if run.task is not None else run.begun:
                    return f"job {run.claimed.job.id} {printable(run.claimed.job.name)}"
        return "a callback" if task is None else f"task {task.get_name()!r}"

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - documented, for debuggers such as this
        frames = traceback.extract_stack(frame, limit=FRAMES)
        # What leads to a handler is always the same, and some loggers cut a long line.
        before = [number for number, each in enumerate(frames, 1) if each.filename == RUNS_HANDLERS]
        return "".join(traceback.format_list(frames[max(before, default=0) :] or frames)).rstrip()
