"""A worker in a process of its own: it works until a signal, and then leaves by a fixed deadline.

The handlers are Python's, not the event loop's, so that a second signal also works while a job blocks the loop, and a
thread leaves when even that does not help.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from types import FrameType

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
    loop = asyncio.get_running_loop()
    begun, over = threading.Event(), threading.Event()

    def received(number: int, _frame: FrameType | None) -> None:
        if begun.is_set():
            _leave(128 + number, "a second signal")
        begun.set()
        loop.call_soon_threadsafe(asked.set)

    def guard() -> None:
        begun.wait()
        if not over.wait(stop_seconds + LEEWAY):
            _leave(1, "the worker did not stop in time")

    try:
        before = {number: signal.signal(number, received) for number in SIGNALS}
    except ValueError as error:
        raise ConfigurationError(
            f"run() handles signals, which works in the main thread only ({error}); use start() and stop()"
        ) from error
    threading.Thread(target=guard, name="queue_kit: guard of the stop", daemon=True).start()
    starting = asyncio.ensure_future(start())
    asking = asyncio.create_task(asked.wait(), name="queue_kit: wait for a signal")
    ended = True
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
        over.set()
        begun.set()
        for number, handler in before.items():
            signal.signal(number, handler)
    if not ended:
        _leave(1, "a handler refuses to end")


def _leave(status: int, why: str) -> None:
    # Not by way of logging: its locks may be held by what this interrupts.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"queue_kit: {why}, leaving\n".encode())
    os._exit(status)
