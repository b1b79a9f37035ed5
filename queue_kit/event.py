"""What a handler holds while it runs: an `Event` with a logger, spans that time its parts, and the abort token.

The token is set *before* the handler's task is cancelled, so code that never awaits, or runs in a thread, can look at
it. It knows nothing of workers and stores; whoever runs the job aborts it.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from queue_kit.errors import JobAborted

_logger = logging.getLogger("queue_kit.job")


class AbortToken:
    """Tells a running job that it must end, and why. Readable from any thread."""

    __slots__ = ("_aborted_at", "_deadline", "_reason", "_waiters")

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline = deadline
        self._reason: JobAborted | None = None
        self._aborted_at: float | None = None
        self._waiters: list[asyncio.Future[None]] | None = None

    @property
    def aborted(self) -> bool:
        """Whether the job must end now."""
        return self._reason is not None

    @property
    def reason(self) -> JobAborted | None:
        """A `DeadlineExceeded`, `LeaseLost`, `ShuttingDown` or `Cancelled`; `None` while the job may run."""
        return self._reason

    @property
    def deadline(self) -> float | None:
        """Seconds left until the handler's timeout, never below 0; `None` when it has no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def raise_if_aborted(self) -> None:
        """Raise the reason when the job must end."""
        if self._reason is not None:
            raise self._reason.with_traceback(None)

    async def wait(self) -> JobAborted:
        """Wait until the job must end; return the reason."""
        if self._waiters is None:
            self._waiters = []
        while self._reason is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)
        return self._reason

    def abort(self, reason: JobAborted) -> bool:
        """Set the token, for the runner's event loop only. The first reason stays; returns whether this was it."""
        if self._reason is not None:
            return False
        self._aborted_at = time.monotonic()
        self._reason = reason
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(None)
        return True


@dataclass(slots=True)
class Span:
    """A timed part of a run: seconds from the start of the root, the duration, and when the token aborted in it."""

    name: str
    started: float
    duration: float | None = None
    aborted: float | None = None
    children: list["Span"] = field(default_factory=list)


class _JobLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the job's id, name and attempt to each record, beside what the caller gives as `extra`."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class Event:
    """The first argument of every handler.

    `log` is a `logging.LoggerAdapter` bound to the job's id, name and attempt (`job_id`, `job_name`, `job_attempt` on
    each record); `signal` is the abort token.

    >>> async def handler(event, session, job):
    ...     with event.span("user.list") as child:
    ...         child.log.info("listing")
    """

    __slots__ = ("_about", "_ended", "_log", "_name", "_parent", "_root_started", "_span", "_started", "signal")

    def __init__(
        self,
        signal: AbortToken | None = None,
        *,
        log: "logging.LoggerAdapter[logging.Logger] | None" = None,
        parent: "Event | None" = None,
    ) -> None:
        self.signal: AbortToken = signal if signal is not None else AbortToken()
        self._log = log
        self._about: tuple[int, str, int] | None = None
        self._parent = parent
        self._root_started: float = parent._root_started if parent is not None else time.monotonic()
        self._started: float | None = None
        self._ended: float | None = None
        self._span: Span | None = None

    @classmethod
    def for_job(
        cls, signal: AbortToken, *, job_id: int, name: str, attempt: int, began: float | None = None
    ) -> "Event":
        """The root event of one run, from the time at which that began by `time.monotonic()`: its deadline counts from
        then as well."""
        event = cls(signal)
        if began is not None:
            event._root_started = began
        event._about = job_id, name, attempt
        return event

    @property
    def log(self) -> "logging.LoggerAdapter[logging.Logger]":
        """The logger of the job."""
        if self._log is None:
            about: dict[str, object] = {}
            if self._about is not None:
                about["job_id"], about["job_name"], about["job_attempt"] = self._about
            self._log = _JobLogger(_logger, about)
        return self._log

    def child(self) -> "Event":
        """A new event below this one; call `start(name)` on it. Raises the abort reason when the job must end."""
        self.signal.raise_if_aborted()
        return Event(self.signal, log=self.log, parent=self)

    def start(self, name: str) -> None:
        """Begin timing under `name`. Raises the abort reason when the job must end."""
        self.signal.raise_if_aborted()
        self._name, self._started, self._ended, self._span = name, time.monotonic() - self._root_started, None, None
        outer = None if self._parent is None else self._parent.spans
        if outer is not None:
            outer.children.append(self._make_span(self._started))

    def stop(self) -> None:
        """End the timing that `start` began; calling it twice is harmless."""
        if self._started is not None and self._ended is None:
            self._ended = time.monotonic() - self._root_started
            if self._span is not None:
                self._finish(self._span, self._ended)

    def _make_span(self, started: float) -> Span:
        """The span of this event, made when somebody looks at it or opens another in it: in most jobs nobody does."""
        span = self._span = Span(self._name, started)
        if self._ended is not None:
            self._finish(span, self._ended)
        return span

    def _finish(self, span: Span, ended: float) -> None:
        span.duration = ended - span.started
        if self.signal._aborted_at is not None:
            aborted = self.signal._aborted_at - self._root_started
            span.aborted = max(aborted, span.started) if aborted <= ended else None

    @contextmanager
    def span(self, name: str) -> Iterator["Event"]:
        """A timed child event. Raises the abort reason on entry when the job must end.

        >>> with Event().span("user.list") as child:
        ...     pass
        """
        child = self.child()
        child.start(name)
        try:
            yield child
        finally:
            child.stop()

    @property
    def spans(self) -> Span | None:
        """The tree of spans from here down; `None` before `start`."""
        if self._span is None and self._started is not None:
            return self._make_span(self._started)
        return self._span
