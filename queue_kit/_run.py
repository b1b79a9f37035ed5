"""From one claimed job to one outcome: deadline, abort, verdict. It knows no database; the session it hands to the
handler is opaque.

The handler runs in a task of its own and is watched from outside, so one that refuses to end cannot hold its puller.
`asyncio.timeout` does the cancelling, at the deadline and for every other reason, always after the token is set.
"""

import asyncio
import math
import sys
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

from queue_kit._deadlines import Deadlines
from queue_kit._error_record import error_record
from queue_kit._handler import Handler
from queue_kit._log import BackgroundLog
from queue_kit._timings import DID_NOT_RUN, timings_record
from queue_kit.errors import (
    Cancelled,
    DeadlineExceeded,
    Discard,
    InvalidPayload,
    JobAborted,
    LeaseLost,
    ShuttingDown,
    Snooze,
)
from queue_kit.event import AbortToken, Event
from queue_kit.job import Claimed, Job, Outcome, Verdict, log_fields, printable
from queue_kit.retry import RetryDelay, delay_after

_logger = BackgroundLog("queue_kit.worker")

SUCCESS = Outcome(Verdict.completed)


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds one run: seconds, tries in total, the wait between tries, seconds to end after an abort."""

    timeout: float
    max_retry_count: int
    retry_delay: RetryDelay
    cancel_grace: float


def without_running(claimed: Claimed, limits: Limits) -> Outcome | None:
    """How a claimed job ends that must not run at all; `None` for one that may."""
    if claimed.cancel_requested:
        return Outcome(Verdict.cancelled)
    if claimed.unreadable is not None:
        return _refused(claimed, f"the row cannot be read: {claimed.unreadable}")
    if _tries_before(claimed) >= limits.max_retry_count:
        return _refused(
            claimed,
            f"lease lost {claimed.lost} times: its worker crashed, hung or was cut off, or its ending was refused",
        )
    return None


def _tries_before(claimed: Claimed) -> int:
    # One lapse is free: deploys and outages lapse leases too.
    return claimed.job.retry_count + max(claimed.lost - 1, 0)


def _refused(claimed: Claimed, reason: str) -> Outcome:
    return Outcome(Verdict.failed, error=error_record(claimed, None, reason) | DID_NOT_RUN)


@types.coroutine
def _go_on(call: Coroutine[Any, Any, object], waits_for: Any) -> Generator[Any, Any, BaseException | None]:
    """Await a call that was begun by hand and has come to its first suspension; return what it raises."""
    try:
        while True:
            try:
                yield waits_for
            except BaseException as thrown:  # noqa: BLE001 - it is the call's
                waits_for = call.throw(thrown)
            else:
                yield from call
                return None
    except StopIteration:
        return None
    except BaseException as error:  # noqa: BLE001
        return error


class Run:
    """One run of one job. `execute` or `begin` it once; `abort` it from the event loop at any time."""

    # Most runs never wait, so what only one that does needs stands on the class.
    task: "asyncio.Task[BaseException | None] | None" = None
    begun = False
    aborted_at: float | None = None
    """When it was told to end."""
    error: BaseException | None = None
    """What made the handler's try a failure, unless it was aborted."""
    _over: asyncio.Future[None] | None = None
    """Awaited while the handler is; done when it ended, or had its grace."""
    _timeout: asyncio.Timeout | None = None
    _before_cancel: Callable[[], Awaitable[None]] | None = None
    _cancelling: asyncio.Task[None] | None = None

    def __init__(self, claimed: Claimed, limits: Limits, deadlines: Deadlines) -> None:
        self.claimed = claimed
        self._deadlines = deadlines
        self.started = time.monotonic()
        self._limits = limits
        finite = math.isfinite(limits.timeout)
        self.token = AbortToken(self.started + limits.timeout if finite else None)
        job = claimed.job
        self.event = Event.for_job(self.token, job_id=job.id, name=job.name, attempt=job.attempt, began=self.started)
        self._loop = asyncio.get_running_loop()
        self.context = copy_context()
        """What the handler runs in, or a context variable that one job sets would be seen by the next."""

    @property
    def wedged(self) -> bool:
        """Whether the handler was told to end, had its grace, and still runs."""
        return self._over is not None and self._over.done() and self.task is not None and not self.task.done()

    @property
    def waited(self) -> bool:
        """Whether the handler was suspended at least once."""
        return self._over is not None

    @property
    def _is_over(self) -> bool:
        # A task that is done tells who waits for it a turn of the loop later.
        return (self.task is not None and self.task.done()) or (self._over is not None and self._over.done())

    def begin(
        self, handler: Handler[Any], session: Any, *, before_cancel: Callable[[], Awaitable[None]] | None = None
    ) -> Outcome | None:
        """Start the handler. Returns how it ended, or `None` when it was suspended; then await `end`. `before_cancel`
        is awaited between setting the token and cancelling."""
        self._before_cancel = before_cancel
        try:
            job = self._decoded(handler)
        except InvalidPayload as error:
            record = error_record(self.claimed, error, "the payload is invalid") | DID_NOT_RUN
            return Outcome(Verdict.failed, error=record)
        task = self.task = _start(self._loop, self._in_time(handler, session, job), self.context)
        if task.done():
            return self._ended(task)
        self._over = self._loop.create_future()
        task.set_name(f"queue_kit: job {self.claimed.job.id} {self.claimed.job.name}")
        task.add_done_callback(self._end)
        if self.token.deadline is not None:
            self._deadlines.add(self._expire, self.token.deadline)
        return None

    async def execute(
        self, handler: Handler[Any], session: Any, *, before_cancel: Callable[[], Awaitable[None]] | None = None
    ) -> Outcome:
        """`begin`, and `end` where it is needed: a coroutine takes 0.2 us, so small jobs go another way."""
        outcome = self.begin(handler, session, before_cancel=before_cancel)
        return await self.end() if outcome is None else outcome

    async def end(self) -> Outcome:
        """Wait until the handler has ended, or had its grace, and say how."""
        assert self.task is not None
        assert self._over is not None
        try:
            await self._over
        finally:
            self._deadlines.discard(self._expire)
        return self._ended(self.task)

    def _ended(self, task: "asyncio.Task[BaseException | None]") -> Outcome:
        self.event.stop()
        if not task.done():  # it had its grace
            return self._outcome(None)
        # Cancelled is a task that cancelled itself and then returned without an await.
        return self._outcome(asyncio.CancelledError() if task.cancelled() else task.result())

    def abort(self, reason: JobAborted, *, grace: float | None = None) -> None:
        """Tell the handler to end: the token first, then the cancellation, then no more waiting after the grace. One
        that was told before keeps its reason; a `grace` given here bounds the rest of its own."""
        if self._is_over:
            return
        if not self.token.abort(reason):
            if grace is not None:
                self._loop.call_later(grace, self._end)
            return
        self.aborted_at = time.monotonic()
        grace = self._limits.cancel_grace if grace is None else grace
        self._cancelling = self._loop.create_task(self._cancel(grace), name="queue_kit: cancel a job")

    def _expire(self) -> None:
        self.abort(DeadlineExceeded(f"the handler's {self._limits.timeout:g} s are over"))

    async def _cancel(self, grace: float) -> None:
        if self._before_cancel is not None:
            await self._before_cancel()
        if self._timeout is not None:  # else the handler sees the token as it begins
            with suppress(RuntimeError):  # it has just ended by itself
                self._timeout.reschedule(self._loop.time())
        if self._over is not None:
            await asyncio.wait({self._over}, timeout=grace)
            self._end()

    def _end(self, *_: object) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _decoded(self, handler: Handler[Any]) -> Job[Any]:
        job = self.claimed.job
        data = handler.payload.decode(job.data)
        if data is job.data:
            return job
        return Job(
            job.id,
            job.name,
            data,
            job.priority,
            job.scheduled_at,
            job.created_at,
            job.retry_count,
            job.handler_timeout,
            job.cron_expression,
            job.cron_last_completed_at,
        )

    async def _in_time(self, handler: Handler[Any], session: Any, job: Job[Any]) -> BaseException | None:
        """Call the handler inside `asyncio.timeout`, which it enters at its first suspension: before that nothing could
        end it, and of a job that never suspends this would be a twelfth (2 us).

        Its exception is returned, not raised: asyncio would let SystemExit and KeyboardInterrupt end the host.
        """
        try:
            self.event.start(job.name)  # raises when the job was aborted before it began
            self.begun = True
            call = handler.function(self.event, session, job)
            waits_for = call.send(None)
        except StopIteration:
            return None
        except BaseException as error:  # noqa: BLE001
            return error
        async with asyncio.timeout(None) as self._timeout:
            return await _go_on(call, waits_for)

    def _outcome(self, error: BaseException | None) -> Outcome:
        match self.token.reason:
            case None:
                return SUCCESS if error is None else self._verdict(error)
            case LeaseLost() | ShuttingDown():
                return Outcome(Verdict.released)
            case Cancelled():
                return Outcome(Verdict.cancelled)
            case reason:
                return self.failure(reason)

    def _verdict(self, error: BaseException) -> Outcome:
        match error:
            case Snooze(seconds=seconds):
                return Outcome(Verdict.snoozed, delay=seconds)
            case Discard(reason=why):
                return Outcome(Verdict.failed, error=self._record(error, why))
            case failure:
                self.error = failure
                return self.failure(failure)

    def failure(self, error: BaseException) -> Outcome:
        """What a failed try leads to: another one later, or the end."""
        record = self._record(error)
        if _tries_before(self.claimed) + 1 >= self._limits.max_retry_count:
            return Outcome(Verdict.failed, error=record)
        return Outcome(Verdict.retried, delay=self._delay(), error=record)

    def broken_off(self, error: BaseException) -> Outcome:
        """What a try leads to that the database's connection broke off: another one, counted as a lapsed lease."""
        record = self._record(error, "the connection to the database broke")
        return Outcome(Verdict.released, delay=self._delay(), error=record)

    def _record(self, error: BaseException, reason: str | None = None) -> dict[str, Any]:
        seconds = time.monotonic() - self.started
        return error_record(self.claimed, error, reason) | timings_record(seconds, self.event.spans)

    def _delay(self) -> float:
        try:
            return delay_after(self._limits.retry_delay, self.claimed.job.attempt)
        except BaseException:
            job = self.claimed.job
            _logger.exception(
                "retry_delay of job %s failed, it is tried again in 1 s", printable(job.name), extra=log_fields(job)
            )
            return 1.0


def _start(
    loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, BaseException | None], context: Context
) -> "asyncio.Task[BaseException | None]":
    """Run up to the first suspension at once, where Python can: a handler that has none is over then, which spares
    four turns of the loop and a timer (a quarter of a small job)."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(call, loop=loop, context=context, eager_start=True)
    return loop.create_task(call, context=context)
