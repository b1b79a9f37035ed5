"""A worker in a process of its own: it works until a signal, and then leaves by a fixed deadline, also while a job
blocks the event loop. Meanwhile garbage is looked for only in what came since the start.

A signal is heard twice: by a Python handler, and by a thread that reads what the C handler writes to the wake-up file
descriptor. The thread hears it even when the loop waits in C, for a driver that is not asynchronous; the Python handler
hears it even when something else, as `loop.add_signal_handler` does, takes the descriptor away.
"""

import asyncio
import gc
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import NoReturn, Self

from queue_kit.errors import ConfigurationError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

LEEWAY = 2.0
"""Seconds past the deadline of a stop after which the process is left without it."""


async def run_until_signal(
    start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[bool]], *, stop_seconds: float
) -> None:
    """Start, wait for SIGINT or SIGTERM, stop. `stop` takes at most `stop_seconds` and says whether all has ended.

    A second signal leaves at once with status 128 + its number; a stop that does not come to its end, with status 1.
    """
    asked = asyncio.Event()
    with _Signals(asked.set, stop_seconds + LEEWAY), _spared_by_the_collector():
        starting = asyncio.ensure_future(start())
        asking = asyncio.create_task(asked.wait(), name="queue_kit: wait for a signal")
        try:
            await asyncio.wait({starting, asking}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                starting.cancel()
            await asyncio.wait({starting})
            if not starting.cancelled():
                starting.result()
                await asking
        finally:
            asking.cancel()
            starting.cancel()
            ended = await stop()
    if not ended:
        _leave(1, "a handler refuses to end")


@contextmanager
def _spared_by_the_collector() -> Iterator[None]:
    """While entered, Python's garbage collector has less to do. What an application imported lives as long as its
    process: to walk through it finds nothing, and under load all jobs stood still for 45 ms each second (now 4 ms)."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Signals:
    """While entered, calls `on_first` in the event loop at the first signal, and leaves the process at the second one,
    or when `seconds` have passed since the first."""

    def __init__(self, on_first: Callable[[], object], seconds: float) -> None:
        self._on_first = on_first
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._heard: Counter[str] = Counter()
        self._deadline: float | None = None
        self._over = False

    def __enter__(self) -> Self:
        if any(isinstance(getattr(signal.getsignal(number), "__self__", None), _Signals) for number in SIGNALS):
            raise ConfigurationError("another worker's run() handles this process's signals; use start() and stop()")
        self._receiver, self._sender = socket.socketpair()
        self._sender.settimeout(0)  # the C handler must never wait
        try:
            self._descriptor_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        except ValueError as error:
            self._receiver.close()
            self._sender.close()
            raise ConfigurationError(
                f"run() handles signals, which works in the main thread only ({error}); use start() and stop()"
            ) from error
        self._handlers_before = {number: signal.signal(number, self._received) for number in SIGNALS}
        self._thread = threading.Thread(target=self._listen, name="queue_kit: signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._descriptor_before)
        self._over = True
        self._wake()
        self._thread.join()
        self._receiver.close()
        self._sender.close()

    def _received(self, number: int, _frame: FrameType | None) -> None:
        self._hear("handler", number)

    def _listen(self) -> None:
        while not self._over:
            left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.001)
            self._receiver.settimeout(left)
            try:
                (number,) = self._receiver.recv(1)
            except TimeoutError:
                _leave(1, "the worker did not stop in time")
            if number in SIGNALS:
                self._hear("descriptor", number)
            if number and self._descriptor_before != -1:
                with suppress(OSError):
                    os.write(self._descriptor_before, bytes([number]))

    def _hear(self, way: str, number: int) -> None:
        self._heard[way] += 1  # apart, since both ways hear of each signal
        if self._heard[way] > 1:
            _leave(128 + number, "a second signal")
        if self._deadline is None:
            self._deadline = time.monotonic() + self._seconds
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._on_first)
            self._wake()

    def _wake(self) -> None:
        with suppress(OSError):
            self._sender.send(b"\0")


def _leave(status: int, why: str) -> NoReturn:
    # Not by way of logging or sys.stderr: what this interrupts may hold their locks.
    with suppress(OSError):
        os.write(2, f"queue_kit: {why}, leaving\n".encode())
    os._exit(status)
