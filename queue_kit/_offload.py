"""Handlers from code that would block the event loop: `in_thread` for code that waits, `in_process` for code that
computes or must be killed at its deadline.

Both are bounded by what really runs: a thread outlives the task that waits for it, so its slot is freed by its end.
Threads are daemons, not an executor's, which the interpreter joins at exit: a stuck one would keep it from ending.
"""

import asyncio
import functools
import importlib
import inspect
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Coroutine
from contextlib import nullcontext, suppress
from contextvars import copy_context
from typing import Any, TypeAlias, TypeVar

from anyio import to_process

from queue_kit._payload import resolved
from queue_kit.errors import ConfigurationError, Discard, Snooze
from queue_kit.event import Event
from queue_kit.job import Job

T = TypeVar("T")
R = TypeVar("R")

AsyncHandler: TypeAlias = Callable[[Event, Any, Job[T]], Coroutine[Any, Any, None]]
_Failure: TypeAlias = tuple[str, Any, str, str]

_START_TIMEOUT = 60.0  # seconds; a process imports the program's main module first, which can be a large one
_unbounded: Any = nullcontext()  # for anyio, whose own limiters let other tasks run before they let one in


class Slots:
    """A bound of its own for each event loop."""

    def __init__(self, size: object, field: str) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigurationError(f"{field} is a whole number, at least 1, not {size!r}")
        self._size = size
        self._semaphores: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    def here(self) -> asyncio.Semaphore:
        """The running loop's; those of closed loops are dropped, since a semaphore keeps its loop alive."""
        loop = asyncio.get_running_loop()
        if loop not in self._semaphores:
            for known in [known for known in list(self._semaphores) if known.is_closed()]:
                self._semaphores.pop(known, None)
            self._semaphores[loop] = asyncio.Semaphore(self._size)
        return self._semaphores[loop]


_threads = Slots(min(32, (os.cpu_count() or 1) + 4), "max_threads")
_processes = Slots(os.cpu_count() or 1, "max_processes")


def in_thread(fn: Callable[[Event, Job[T]], object], *, max_threads: int | None = None) -> AsyncHandler[T]:
    """A handler that calls `fn(event, job)` in a thread, with the context variables of the run.

    All such handlers of an event loop share 4 more threads than there are processors (at most 32), or `max_threads` of
    their own. A thread cannot be stopped: look at `event.signal.aborted` now and then. A cancelled job keeps its slot
    and its lease until its thread has ended, or until the worker gives up on it.

    What `fn` raises is the job's error or verdict; `SystemExit` and the like arrive as a `RuntimeError`. Raises
    `ConfigurationError` for a function that could not be called so.

    >>> def render(event, job): ...
    >>> handler = in_thread(render)
    """
    _check(fn, "in_thread", "event", "job")
    slots = _threads if max_threads is None else Slots(max_threads, "max_threads")

    async def handler(event: Event, session: Any, job: Job[T]) -> None:  # noqa: ARG001 - as every handler
        context = copy_context()
        await _run_thread(slots.here(), lambda: context.run(fn, event, job), f"queue_kit: job {job.id} {job.name}")

    return _dressed(handler, fn, position=1)


async def _run_thread(slots: asyncio.Semaphore, call: Callable[[], object], name: str) -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        slots.release()
        ended.set_result(error)

    def body() -> None:
        error = _raised_by(call)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(finish, error)

    await slots.acquire()
    try:
        threading.Thread(target=body, name=name, daemon=True).start()
    except BaseException:
        slots.release()
        raise
    error = await end_of(ended)
    if isinstance(error, Exception):
        raise error
    if error is not None:  # raised as it is in a task, SystemExit would end the event loop
        raise RuntimeError(f"the thread raised {_described(error)}") from error


def _raised_by(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - it is raised where the thread is awaited
        return error
    return None


async def end_of(ended: asyncio.Future[R], cancel: Callable[[], object] = lambda: None) -> R:
    """Wait for the end, also when cancelled, however often; a cancellation is passed on after it."""
    cancelled: tuple[object, ...] | None = None
    while not ended.done():
        try:
            await asyncio.wait({ended})
        except asyncio.CancelledError as error:
            cancelled = error.args
            cancel()
    if cancelled is not None:
        raise asyncio.CancelledError(*cancelled)
    return ended.result()


def in_process(fn: Callable[[T], object], *, max_processes: int | None = None) -> AsyncHandler[T]:
    """A handler that calls `fn(data)` in another process, which is killed when the job is aborted.

    All such handlers of an event loop share as many processes as there are processors, or `max_processes` of their own;
    a process is kept for the next job. What `fn` returns is dropped. What it raises is the job's error or verdict, with
    the traceback there as a note; what cannot be pickled arrives as a `RuntimeError`, and a process that dies as an
    `anyio.BrokenWorkerProcess`.

    `fn` is sent by its module and name. What cannot be found by them (lambdas, functions inside functions, methods of
    objects, anything in `__main__`) raises `ConfigurationError` here, and so does a function of another shape. A script
    that starts a worker does so below `if __name__ == "__main__":`, since each process imports it.

    >>> handler = in_process(crunch, max_processes=2)  # doctest: +SKIP
    """
    _check(fn, "in_process", "data")
    module, name = _address(fn)
    slots = _processes if max_processes is None else Slots(max_processes, "max_processes")

    async def handler(event: Event, session: Any, job: Job[T]) -> None:  # noqa: ARG001 - as every handler
        _address(fn)  # `crunch = in_process(crunch)` has passed above, but the process would find the handler
        async with slots.here():
            failure = await _run_process(module, name, job.data)
        if failure is not None:
            raise _received(*failure)

    return _dressed(handler, fn, position=0)


async def _run_process(module: str, name: str, data: object) -> _Failure | None:
    begun = stopped = False

    async def run() -> _Failure | None:
        # anyio leaves a process behind when it is cancelled while that starts. So one is made ready by a first call,
        # which is not cancelled; nothing is awaited before the second, which finds it idle. And Ctrl-C is for the
        # worker, which lets its jobs finish: an idle process would answer it, and be one answer ahead from then on.
        nonlocal begun
        async with asyncio.timeout(_START_TIMEOUT):
            await to_process.run_sync(signal.signal, signal.SIGINT, signal.SIG_IGN, limiter=_unbounded)
        if stopped:
            return None
        begun = True
        return await to_process.run_sync(_call, module, name, data, cancellable=True, limiter=_unbounded)

    def stop() -> None:
        nonlocal stopped
        if begun and not stopped:  # once: a second cancellation would break off waiting for the killed process
            running.cancel()
        stopped = True

    running = asyncio.create_task(run(), name=f"queue_kit: process for {name}")
    return await end_of(running, stop)


def _call(module: str, name: str, data: object) -> _Failure | None:
    """In the process: call the function, and say what it raised."""
    try:
        _found(module, name)(data)
    except Snooze as verdict:
        return "snooze", verdict.seconds, "", ""
    except Discard as verdict:
        return "discard", verdict.reason, "", ""
    except BaseException as error:  # noqa: BLE001 - even SystemExit is only this job's failure
        return "error", _pickled(error), _described(error), traceback.format_exc()
    return None


def _pickled(error: BaseException) -> bytes | None:
    with suppress(Exception):
        sent = pickle.dumps(error)
        # One with an __init__ of its own is often written well, but read wrong or not at all.
        read = pickle.loads(sent)  # noqa: S301 - its own
        if isinstance(read, Exception) and _described(read) == _described(error):
            return sent
    return None


def _received(kind: str, value: Any, text: str, trace: str) -> Exception:
    if kind == "snooze":
        return Snooze(value)
    if kind == "discard":
        return Discard(value)
    error: Exception = RuntimeError(f"the process raised {text}")
    if value is not None:
        with suppress(Exception):
            error = pickle.loads(value)  # noqa: S301 - from a process of our own
    error.add_note(f"In the process:\n{trace}")
    return error


def _described(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _found(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _address(fn: object) -> tuple[str, str]:
    """The module and name that a function is sent by, when it can be found by them."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    problem = "it is not found by that name: pass a function of the top level of its module, not as a decorator"
    if not isinstance(module, str) or not isinstance(name, str):
        problem = "it has none: write it with `def` at the top level of a module"
    elif module == "__main__":
        problem = "the process has another `__main__`: move it to a module that is imported"
    elif "<" in name:
        problem = "it has none outside: write it with `def` at the top level of its module"
    else:
        with suppress(ImportError, AttributeError):
            if _found(module, name) is fn:
                return module, name
    raise ConfigurationError(f"in_process sends a function by its module and name; {_name_of(fn)}: {problem}")


def _check(fn: object, wrapper: str, *parameters: str) -> None:
    shape = f"{wrapper} takes an ordinary function fn({', '.join(parameters)})"
    if not callable(fn):
        raise ConfigurationError(f"{shape}, not {type(fn).__name__}")
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_kind(fn) or is_kind(type(fn).__call__) for is_kind in kinds):
        raise ConfigurationError(
            f"{shape}; {_name_of(fn)} is async or a generator: an async function (event, session, job) is a handler"
        )
    try:
        signature = inspect.signature(fn)
        signature.bind(*parameters)
        fits = len(signature.parameters) >= len(parameters)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ConfigurationError(f"{shape}; {_name_of(fn)} cannot be called so: give it {len(parameters)} parameter(s)")


def _name_of(fn: object) -> str:
    return getattr(fn, "__qualname__", repr(fn))


def _dressed(handler: AsyncHandler[T], fn: Callable[..., object], *, position: int) -> AsyncHandler[T]:
    """Give a handler the name of its function, and the payload's type that the parameter at `position` declares."""
    functools.update_wrapper(handler, fn, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
    del handler.__dict__["__wrapped__"]  # or the handler would seem to have the function's parameters
    declared = list(inspect.signature(fn).parameters.values())[position].annotation
    job_type: Any = Job
    if declared is not inspect.Parameter.empty:
        job_type = resolved(fn, declared) if position == 1 else Job[resolved(fn, declared)]  # type: ignore[misc]
    handler.__annotations__["job"] = job_type
    return handler
