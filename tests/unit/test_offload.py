"""Handlers in threads and processes: real ones, with real kills. Everything waits for an event, nothing for a delay."""

import asyncio
import contextvars
import functools
import gc
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import anyio
import pytest

from queue_kit import _offload
from queue_kit._handler import Handler
from queue_kit._offload import in_process, in_thread
from queue_kit.errors import Cancelled, ConfigurationError, Discard, InvalidPayload, JobNotFound, Snooze
from queue_kit.event import AbortToken, Event
from queue_kit.job import Job
from tests.support import PATIENCE, turns, until
from tests.unit.jobs import claimed

current_tenant: contextvars.ContextVar[str] = contextvars.ContextVar("current_tenant", default="nobody")


@dataclass
class Order:
    """A typed payload."""

    number: int


def job_of(data: Any = None) -> Job[Any]:
    return claimed(data=data).job


def start(handler: Callable[..., Coroutine[Any, Any, None]], data: Any = None, event: Event | None = None) -> Any:
    return asyncio.create_task(handler(event or Event(), None, job_of(data)))


@contextmanager
def complaints() -> Iterator[list[Any]]:
    """What asyncio and threads would print."""
    heard: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: heard.append(context))
    hook, threading.excepthook = threading.excepthook, heard.append
    try:
        yield heard
        gc.collect()
    finally:
        threading.excepthook = hook
        loop.set_exception_handler(None)


class Gate:
    """Counts who runs in threads, and lets each go when it is told to."""

    def __init__(self) -> None:
        self.running = 0
        self.peak = 0
        self.started: list[int] = []
        self._lock = threading.Lock()
        self._go = threading.Semaphore(0)

    def work(self, event: Event, job: Job[Any]) -> None:
        self.pass_through(job.data)

    def pass_through(self, data: Any) -> None:
        with self._lock:
            self.running += 1
            self.peak = max(self.peak, self.running)
            self.started.append(data)
        assert self._go.acquire(timeout=PATIENCE)
        with self._lock:
            self.running -= 1

    def release(self, count: int = 1) -> None:
        self._go.release(count)


# --- threads ----------------------------------------------------------------------------------------------------------


async def test_a_thread_gets_event_job_and_context() -> None:
    seen: dict[str, Any] = {}

    def work(event: Event, job: Job[Any]) -> str:
        """Documented."""
        thread = threading.current_thread()
        seen.update(event=event, job=job, thread=thread, tenant=current_tenant.get())
        current_tenant.set("changed in the thread")
        return "dropped"

    current_tenant.set("acme")
    handler = in_thread(work)
    event, job = Event(), job_of({"a": 1})
    assert await handler(event, None, job) is None  # type: ignore[func-returns-value]
    assert (seen["event"], seen["job"], seen["tenant"]) == (event, job, "acme")
    assert seen["thread"] is not threading.main_thread()
    assert seen["thread"].daemon
    assert seen["thread"].name == "queue_kit: job 7 test.job"
    assert current_tenant.get() == "acme"
    assert (handler.__name__, handler.__doc__, handler.__module__) == ("work", "Documented.", __name__)


async def test_never_more_threads_than_slots_even_when_their_waiters_are_gone() -> None:
    gate = Gate()
    handler = in_thread(gate.work, max_threads=2)
    tasks = [start(handler, {"n": n}) for n in range(6)]
    await until(lambda: gate.running == 2)
    for task in tasks[:2]:
        task.cancel()
    await turns()
    assert gate.running == 2
    assert len(gate.started) == 2
    gate.release(6)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2 + [type(None)] * 4
    assert gate.peak == 2
    assert len(gate.started) == 6


async def test_threads_of_one_loop_share_a_bound_unless_they_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_offload, "_threads", _offload.Slots(1, "max_threads"))
    gate = Gate()
    one, two, own = in_thread(gate.work), in_thread(gate.work), in_thread(gate.work, max_threads=1)
    tasks = [start(one, "one")]
    await until(lambda: gate.started == ["one"])
    tasks += [start(two, "two"), start(own, "own")]
    await until(lambda: "own" in gate.started)
    await turns()
    assert gate.started == ["one", "own"]
    gate.release(3)
    await asyncio.gather(*tasks)
    assert gate.started == ["one", "own", "two"]


def test_the_default_bound() -> None:
    assert _offload._threads._size == min(32, (os.cpu_count() or 1) + 4)
    assert _offload._processes._size == (os.cpu_count() or 1)


async def test_a_cancelled_job_lasts_as_long_as_its_thread() -> None:
    gate = Gate()
    task = start(in_thread(gate.work))
    await until(lambda: gate.running)
    for _ in range(3):
        task.cancel("why")
        await turns()
        assert not task.done()
    gate.release()
    with pytest.raises(asyncio.CancelledError, match="why"):
        await task
    assert gate.running == 0


async def test_a_timeout_waits_for_the_thread_and_is_a_timeout_afterwards() -> None:
    gate = Gate()
    event = Event()

    async def run() -> None:
        async with asyncio.timeout(0):
            await in_thread(gate.work)(event, None, job_of())

    task = asyncio.create_task(run())
    await until(lambda: gate.running)
    await turns()
    assert not task.done()
    gate.release()
    with pytest.raises(TimeoutError):
        await task


async def test_waiting_for_a_slot_can_be_cancelled() -> None:
    gate = Gate()
    handler = in_thread(gate.work, max_threads=1)
    first = start(handler, 1)
    await until(lambda: gate.running)
    second, third = start(handler, 2), start(handler, 3)
    await turns()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.release(2)
    await asyncio.gather(first, third)
    assert gate.started == [1, 3]


async def test_the_abort_token_is_seen_in_the_thread() -> None:
    token = AbortToken()
    looking = threading.Event()
    reasons: list[object] = []

    def work(event: Event, job: Job[Any]) -> None:
        looking.set()
        while not event.signal.aborted:
            time.sleep(0.001)
        reasons.append(event.signal.reason)
        event.signal.raise_if_aborted()

    task = start(in_thread(work), event=Event(token))
    await until(looking.is_set)
    reason = Cancelled("asked to")
    token.abort(reason)
    with pytest.raises(Cancelled):
        await task
    assert reasons == [reason]


@pytest.mark.parametrize("error", [ValueError("no"), Snooze(60), Discard("enough"), TimeoutError("slow")], ids=repr)
async def test_what_a_thread_raises_arrives_as_itself(error: Exception) -> None:
    def work(event: Event, job: Job[Any]) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await in_thread(work)(Event(), None, job_of())
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("self"), GeneratorExit(), StopIteration(1)],
    ids=repr,
)
async def test_what_would_end_the_loop_arrives_as_a_runtime_error(error: BaseException) -> None:
    def work(event: Event, job: Job[Any]) -> None:
        raise error

    with complaints() as heard, pytest.raises(RuntimeError, match=type(error).__name__) as caught:
        await in_thread(work)(Event(), None, job_of())
    assert caught.value.__cause__ is error
    assert not heard


async def test_an_error_after_the_cancellation_is_dropped_in_silence() -> None:
    gate = Gate()

    def work(event: Event, job: Job[Any]) -> None:
        gate.pass_through(None)
        raise ValueError("too late")

    with complaints() as heard:
        task = start(in_thread(work))
        await until(lambda: gate.running)
        task.cancel()
        gate.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
    assert not heard


async def test_a_thread_that_cannot_be_started_keeps_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    handler = in_thread(lambda event, job: None, max_threads=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start"):
                await asyncio.wait_for(handler(Event(), None, job_of()), PATIENCE)
    await asyncio.wait_for(handler(Event(), None, job_of()), PATIENCE)


@pytest.mark.parametrize("fails", [False, True])
def test_a_thread_that_outlives_its_loop_says_nothing(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    threads: list[threading.Thread] = []

    def work(event: Event, job: Job[Any]) -> None:
        threads.append(threading.current_thread())
        gate.pass_through(None)
        if fails:
            raise ValueError("nobody hears this")

    heard: list[object] = []
    monkeypatch.setattr(threading, "excepthook", heard.append)
    loop = asyncio.new_event_loop()
    task = loop.create_task(in_thread(work)(Event(), None, job_of()))
    loop.run_until_complete(until(lambda: gate.running))
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's complaint is about this test
    loop.close()
    gate.release()
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    assert not heard


def test_a_stuck_thread_does_not_keep_the_process() -> None:
    program = """
import asyncio, threading
from queue_kit import Event, in_thread
started = threading.Event()

def stuck(event, job):
    started.set()
    threading.Event().wait()

class job: id, name = 1, "stuck"

async def main():
    global task
    task = asyncio.create_task(in_thread(stuck)(Event(), None, job))
    while not started.is_set():
        await asyncio.sleep(0.001)

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
task._log_destroy_pending = False
loop.close()
print("over")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert (done.stdout, done.stderr) == ("over\n", "")


def test_slots_of_closed_loops_are_forgotten() -> None:
    slots = _offload.Slots(1, "max_threads")

    async def contend() -> asyncio.Semaphore:
        assert slots.here() is slots.here()
        return slots.here()

    first, second = asyncio.run(contend()), asyncio.run(contend())
    assert first is not second
    assert list(slots._semaphores.values()) == [second]


# --- registration -----------------------------------------------------------------------------------------------------


def declared(handler: Any) -> Any:
    annotation = handler.__annotations__["job"]
    return get_args(annotation)[0] if get_origin(annotation) is Job else annotation


def order_thread(event: "Unknown", job: "Job[Order]") -> "Unknown":  # type: ignore[name-defined]  # noqa: F821
    """Its other annotations cannot be resolved, and need not be."""


def order_process(data: "Order", more: "Unknown" = None) -> None:  # type: ignore[name-defined]  # noqa: F821
    """As above."""


def nested_thread(event: Event, job: Job["Order"]) -> None: ...
def bare_thread(event, job): ...  # type: ignore[no-untyped-def]
def plain_thread(event: Event, job: Job) -> None: ...  # type: ignore[type-arg]
def bare_process(data): ...  # type: ignore[no-untyped-def]
def dict_process(data: dict[str, Any]) -> None: ...
def list_process(data: list["Order"]) -> None: ...
def extra_thread(event: Event, job: "Job[Annotated[int, 'kept']]", more: int = 1) -> None: ...


class Instance:
    def __call__(self, event: Event, job: "Job[Order]") -> None: ...

    def method(self, data: "Order") -> None: ...

    @staticmethod
    def static(data: "Order") -> None: ...


@pytest.mark.parametrize(
    ("handler", "type_"),
    [
        (in_thread(order_thread), Order),
        (in_thread(nested_thread), Order),
        (in_thread(bare_thread), Job),
        (in_thread(plain_thread), Job),
        (in_thread(extra_thread), Annotated[int, "kept"]),
        (in_thread(Instance()), Order),
        (in_thread(functools.partial(extra_thread, more=2)), Annotated[int, "kept"]),
        (in_process(order_process), Order),
        (in_process(bare_process), Job),
        (in_process(dict_process), dict[str, Any]),
        (in_process(list_process), list[Order]),
        (in_process(Instance.static), Order),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_payload_type_is_that_of_the_function(handler: Any, type_: Any) -> None:
    assert declared(handler) == type_
    Handler(handler)  # registration takes it


def test_a_local_type_is_found_and_read() -> None:
    @dataclass
    class Local:
        size: int

    def work(event: Event, job: "Job[Local]") -> None:
        assert Local  # or it would not know the name

    handler = Handler(in_thread(work))
    assert handler.payload.decode({"size": 3}) == Local(3)
    with pytest.raises(InvalidPayload):
        handler.payload.decode({"size": "large"})


@pytest.mark.parametrize("wrapper", [in_thread, in_process])
def test_an_annotation_that_cannot_be_resolved_is_refused(wrapper: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown.*cannot be resolved.*module level"):
        wrapper(unknown_thread if wrapper is in_thread else unknown_process)


def unknown_thread(event: Event, job: "Job[Unknown]") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def unknown_process(data: "Unknown") -> None: ...  # type: ignore[name-defined]  # noqa: F821


async def async_two(event: Any, job: Any) -> None: ...
async def async_one(data: Any) -> None: ...
async def async_generator(data: Any, job: Any = None) -> AsyncIterator[int]:
    yield 1


def generator(data: Any, job: Any = None) -> Iterator[int]:
    yield 1


def one(data: Any) -> None: ...
def two(event: Any, job: Any) -> None: ...
def three(a: Any, b: Any, c: Any) -> None: ...
def starred(*arguments: Any) -> None: ...
def keywords(*, event: Any, job: Any) -> None: ...


class AsyncCallable:
    async def __call__(self, event: Any, job: Any = None) -> None: ...


@pytest.mark.parametrize("fn", [async_two, async_generator, generator, AsyncCallable(), functools.partial(async_two)])
def test_what_a_thread_would_not_run_is_refused(fn: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"in_thread takes an ordinary function fn\(event, job\).* is async or"
    ):
        in_thread(fn)


@pytest.mark.parametrize("fn", [async_one, async_generator, generator, AsyncCallable()])
def test_what_a_process_would_not_run_is_refused(fn: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"in_process takes an ordinary function fn\(data\).* is async or"):
        in_process(fn)


@pytest.mark.parametrize("fn", [one, three, starred, keywords, bare_process, dict])
def test_a_thread_function_takes_two_parameters(fn: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be called so: give it 2"):
        in_thread(fn)


@pytest.mark.parametrize("fn", [two, three, keywords])
def test_a_process_function_takes_one_parameter(fn: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be called so: give it 1"):
        in_process(fn)


@pytest.mark.parametrize("wrapper", [in_thread, in_process])
@pytest.mark.parametrize("fn", [None, 3, "send"])
def test_only_functions_are_wrapped(wrapper: Any, fn: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"not {type(fn).__name__}"):
        wrapper(fn)


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2", math.inf])
def test_a_bound_is_a_whole_number(limit: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_threads is a whole number"):
        in_thread(two, max_threads=limit)
    with pytest.raises(ConfigurationError, match="max_processes is a whole number"):
        in_process(one, max_processes=limit)


def in_main(data: Any) -> None: ...


def orphan(data: Any) -> None: ...


in_main.__module__ = "__main__"
orphan.__module__ = "no.such.module"
anonymous = lambda data: None  # noqa: E731


def local_function() -> Callable[[Any], None]:
    def local(data: Any) -> None: ...

    return local


@pytest.mark.parametrize(
    ("fn", "mend"),
    [
        (anonymous, "with `def` at the top level"),
        (local_function(), "with `def` at the top level"),
        (functools.partial(two, None), "with `def` at the top level"),
        (Instance().method, "function of the top level"),
        (in_main, "move it to a module that is imported"),
        (orphan, "function of the top level"),
    ],
)
def test_what_a_process_could_not_find_is_refused(fn: Any, mend: str) -> None:
    with pytest.raises(ConfigurationError, match=mend):
        in_process(fn)


def test_in_process_is_no_decorator() -> None:
    namespace: dict[str, Any] = {"in_process": in_process, "__name__": __name__}
    with pytest.raises(ConfigurationError, match="not as a decorator"):
        exec("@in_process\ndef decorated(data): ...", namespace)


async def test_a_function_whose_name_was_taken_by_its_handler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = in_process(one)
    monkeypatch.setattr(sys.modules[__name__], "one", handler)
    with pytest.raises(ConfigurationError, match="not found by that name"):
        await handler(Event(), None, job_of())


# --- processes: these functions run in another one --------------------------------------------------------------------


class Odd(Exception):
    """Cannot be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"odd {one} {two}")


def act(data: dict[str, Any]) -> object:
    """Do what the data says; first write this process's id to a file, where one is named."""
    if "pid" in data:
        path = Path(data["pid"])
        path.with_suffix(".new").write_text(str(os.getpid()))
        path.with_suffix(".new").rename(path)
    match data["do"]:
        case "return":
            return lambda: "a result that no pickle takes"
        case "print":
            print("to a pipe that the parent reads?")
            sys.stderr.write("or here")
        case "hang":
            threading.Event().wait(60)
        case "wait":
            while not Path(data["for"]).exists():
                time.sleep(0.002)
        case "exit":
            os._exit(3)
        case error:
            raise {
                "value": ValueError("from the child", 3),
                "odd": Odd(1, 2),
                "misread": JobNotFound(3),
                "local": type("Local", (Exception,), {})("here"),
                "snooze": Snooze(12.5),
                "discard": Discard("enough"),
                "leave": SystemExit(4),
                "interrupt": KeyboardInterrupt(),
            }[error]
    return None


def typed(data: Order) -> None:
    if data != Order(5):
        raise ValueError(data)


def announced(path: Path) -> int:
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def children() -> set[int]:
    found: set[int] = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # that thread has just ended
            found |= set(map(int, listed.read_text().split()))
    return found


@asynccontextmanager
async def hanging(handler: Any, tmp_path: Path) -> AsyncIterator[tuple["asyncio.Task[None]", int]]:
    """A job that hangs in a process."""
    path = tmp_path / "hanging.pid"
    path.unlink(missing_ok=True)
    task = start(handler, {"do": "hang", "pid": str(path)})
    try:
        await until(lambda: path.exists() or task.done())
        yield task, announced(path)
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_process_gets_the_data_and_answers_with_what_was_raised(tmp_path: Path) -> None:
    handler = in_process(act)
    assert (handler.__name__, handler.__module__) == ("act", __name__)
    event = Event()

    async def run(what: str) -> None:
        await handler(event, None, job_of({"do": what, "pid": str(tmp_path / what)}))

    await run("return")
    await run("print")
    await in_process(typed)(event, None, job_of(Order(5)))
    with pytest.raises(ValueError, match="from the child") as caught:
        await run("value")
    assert caught.value.args == ("from the child", 3)
    assert any("in act" in note for note in caught.value.__notes__)
    for what, text in {
        "odd": r"raised .*test_offload\.Odd: odd 1 2$",
        "misread": "JobNotFound: there is no job with id 3$",
        "local": "Local: here$",
        "leave": "SystemExit: 4$",
        "interrupt": "KeyboardInterrupt$",
    }.items():
        with pytest.raises(RuntimeError, match=f"(?m){text}") as failed:
            await run(what)
        assert any("in act" in note for note in failed.value.__notes__)
    with pytest.raises(Snooze) as snoozed:
        await run("snooze")
    assert snoozed.value.seconds == 12.5
    with pytest.raises(Discard) as discarded:
        await run("discard")
    assert discarded.value.reason == "enough"
    with pytest.raises((TypeError, pickle.PicklingError, AttributeError)):
        await handler(event, None, job_of({"do": lambda: None}))
    pids = {announced(path) for path in tmp_path.iterdir()}
    assert len(pids) == 1  # one process served them all
    assert os.getpid() not in pids


async def test_ctrl_c_is_not_for_the_process(tmp_path: Path) -> None:
    handler = in_process(act)
    path, go = tmp_path / "pid", tmp_path / "go"
    task = start(handler, {"do": "wait", "for": str(go), "pid": str(path)})
    await until(path.exists)
    os.kill(announced(path), signal.SIGINT)
    go.touch()
    await task
    os.kill(announced(path), signal.SIGINT)  # it is idle now
    with pytest.raises(Discard):
        await handler(Event(), None, job_of({"do": "discard", "pid": str(tmp_path / "again")}))
    assert announced(tmp_path / "again") == announced(path)


async def test_a_process_is_killed_on_timeout_on_cancel_and_on_two_cancels(tmp_path: Path) -> None:
    handler = in_process(act, max_processes=1)

    async def limited() -> None:
        async with asyncio.timeout(None) as limit:
            limits.append(limit)
            await handler(Event(), None, job_of({"do": "hang", "pid": str(tmp_path / "timeout")}))

    limits: list[asyncio.Timeout] = []
    task = asyncio.create_task(limited())
    await until((tmp_path / "timeout").exists)
    limits[0].reschedule(asyncio.get_running_loop().time())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task, PATIENCE)
    assert not is_alive(announced(tmp_path / "timeout"))

    for cancels in (1, 2):
        async with hanging(handler, tmp_path) as (task, pid):
            waiting = start(handler, {"do": "return"})
            await turns()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting  # for the one slot
            assert is_alive(pid)
            for _ in range(cancels):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, PATIENCE)
            assert not is_alive(pid)
    await handler(Event(), None, job_of({"do": "return"}))  # and its slot is free


async def test_a_process_that_dies_is_a_failure_of_its_job_alone() -> None:
    handler = in_process(act)
    with pytest.raises(anyio.BrokenWorkerProcess):
        await handler(Event(), None, job_of({"do": "exit"}))
    await handler(Event(), None, job_of({"do": "return"}))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to list the children")
async def test_a_cancellation_during_the_start_leaves_no_process_behind() -> None:
    handler = in_process(act, max_processes=2)
    before = children()
    for number in range(4):
        tasks = [start(handler, {"do": "hang"}) for _ in range(2)]
        if children() == before:
            await until(lambda: children() - before)
        else:  # a process waits already: now before the call that makes it ready, now in it, now behind it
            await turns(number)
        for task in tasks:
            task.cancel()
            task.cancel()
        await asyncio.wait(tasks, timeout=PATIENCE)
        assert all(task.done() and task.cancelled() for task in tasks)
    assert len(children() - before) <= 2  # they wait for the next job
    await handler(Event(), None, job_of({"do": "return"}))
    assert len(children() - before) <= 2


async def test_never_more_processes_than_slots(tmp_path: Path) -> None:
    handler = in_process(act, max_processes=1)
    paths = [tmp_path / f"{n}.pid" for n in range(3)]
    await asyncio.gather(*(start(handler, {"do": "return", "pid": str(path)}) for path in paths))
    assert len({announced(path) for path in paths}) == 1  # which does one thing after the other


async def test_processes_of_one_loop_share_a_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_offload, "_processes", _offload.Slots(1, "max_processes"))
    async with hanging(in_process(act), tmp_path):
        other = start(in_process(typed), Order(5))
        await turns()
        assert _offload._processes.here().locked()
        assert not other.done()
    await asyncio.wait_for(other, PATIENCE)
