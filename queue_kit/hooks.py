"""Observers of the queue. A hook is an object with any of five methods, each given one frozen value; what a hook raises
is logged and swallowed, so watching never harms a job.

`QueueWorker(hooks=...)` is heard for one worker; `install_hooks` for the whole process, also by enqueue.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from queue_kit._log import BackgroundLog
from queue_kit.errors import ConfigurationError, InvalidJob
from queue_kit.event import Span
from queue_kit.job import Job, NewJob, Outcome, check_payload

_logger = BackgroundLog("queue_kit.hooks")


@dataclass(frozen=True, slots=True, eq=False)
class _Installed:
    """One installation, so that an equal hook, or the same one installed twice, is not taken away with it."""

    hook: object


_installed: list[_Installed] = []
_OF_WORKERS = ("on_started", "on_settled", "on_worker_state")
_METHODS = ("on_enqueue", "on_enqueued", *_OF_WORKERS)


@dataclass(frozen=True, slots=True)
class Enqueued:
    """After the insert statement, before the caller's commit: it may still be rolled back."""

    job_id: int
    new_job: NewJob[Any]


@dataclass(frozen=True, slots=True)
class Started:
    """A handler is about to be called. `trace_context` is what `on_enqueue` returned when the job was added, `due` when
    this run was due by the database's clock (a cron job's `scheduled_at` stays its tick, also in a retry).

    `on_started` is called in the context in which the handler runs: a context variable that it sets, the handler sees.
    """

    worker_id: UUID
    job: Job[Any]
    trace_context: Mapping[str, Any] | None
    due: datetime


@dataclass(frozen=True, slots=True)
class Settled:
    """A run has ended and its outcome is stored. `seconds` is the run's duration, `spans` what it timed."""

    worker_id: UUID
    job: Job[Any]
    outcome: Outcome
    seconds: float
    spans: Span | None


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker changed its state: `started`, `stopping`, `stopped`, `database_down`, `database_up`, `listening` (the
    database notifies it of new jobs), `polling` (it should, but does not), `unhealthy` (its slots are used up by
    handlers that refuse to end), `healthy` (no more)."""

    worker_id: UUID
    state: str


def install_hooks(*hooks: object) -> Callable[[], None]:
    """Have `hooks` heard by everything in this process; returns a function that takes them away again.

    A hook has any of `on_enqueued(Enqueued)`, `on_started(Started)`, `on_settled(Settled)` and
    `on_worker_state(WorkerState)`. An installed hook may also have `on_enqueue(NewJob)`, which may return the
    `trace_context` (a JSON mapping) to store with the job. ORM and plain SQL inserts call no hook. Raises
    `ConfigurationError` for an object with none of these, or with an async one.

    >>> class Counter:
    ...     def on_settled(self, record): ...
    >>> uninstall = install_hooks(Counter())
    >>> uninstall()
    """
    _check_hooks(hooks, _METHODS)
    installed = [_Installed(hook) for hook in hooks]
    _installed.extend(installed)

    def uninstall() -> None:
        _installed[:] = [entry for entry in _installed if entry not in installed]

    return uninstall


def _check_hooks(hooks: Iterable[object], heard: Sequence[str]) -> None:
    """Refuse, with a `ConfigurationError`, what would never hear anything: it has none of the methods `heard` here."""
    for hook in hooks:
        found = {method: listener for method in _METHODS if (listener := _listener(hook, method)) is not None}
        if not found:
            raise ConfigurationError(f"a hook has any of the methods {', '.join(_METHODS)}; {hook!r} has none")
        if found.keys().isdisjoint(heard):
            raise ConfigurationError(
                f"a worker tells its hooks nothing of enqueue, and {hook!r} hears nothing else: use install_hooks"
            )
        if isinstance(hook, type):
            raise ConfigurationError(f"a hook is an object: give an instance, {hook.__name__}(...)")
        if any(map(inspect.iscoroutinefunction, found.values())):
            raise ConfigurationError(f"the methods of a hook are ordinary functions, but {hook!r} has an async one")


def trace_context_for(job: NewJob[Any]) -> Mapping[str, Any] | None:
    """What the installed hooks want stored with a new job, merged."""
    if not _installed:
        return None
    context: dict[str, Any] = {}
    for hook in _everybody():
        answer = _call(hook, "on_enqueue", job)
        if isinstance(answer, Mapping):
            try:
                context.update(check_payload(dict(answer)))
            except InvalidJob:
                _logger.exception("hook %s.on_enqueue gave what cannot be stored", type(hook).__name__)
    return context or None


def emit_enqueued(records: Iterable[Enqueued]) -> None:
    """Tell the installed hooks of jobs that were just inserted."""
    if _installed:
        for record in records:
            for hook in _everybody():
                _call(hook, "on_enqueued", record)


class Observers:
    """The hooks of one worker, and those installed for the process."""

    def __init__(self, hooks: Sequence[object]) -> None:
        _check_hooks(hooks, _OF_WORKERS)
        self._hooks = tuple(hooks)

    def __bool__(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._hooks or _installed)

    def started(self, record: Started) -> None:
        """A handler is about to be called."""
        self._emit("on_started", record)

    def settled(self, record: Settled) -> None:
        """A run's outcome is stored."""
        self._emit("on_settled", record)

    def worker_state(self, record: WorkerState) -> None:
        """The worker changed its state."""
        self._emit("on_worker_state", record)

    def _emit(self, method: str, record: object) -> None:
        for hook in _everybody(*self._hooks):
            _call(hook, method, record)


def _everybody(*own: object) -> Iterator[object]:
    """Who is to be told: a worker's own hooks and the installed ones, each object once."""
    told: list[object] = []
    for hook in (*own, *(entry.hook for entry in _installed)):
        if not any(hook is other for other in told):
            told.append(hook)
            yield hook


def _listener(hook: object, method: str) -> object:
    try:
        return getattr(hook, method, None)
    except Exception:  # noqa: BLE001 - it is logged when the hook is called
        return True


def _call(hook: object, method: str, record: object) -> object:
    try:
        listener = getattr(hook, method, None)
        return None if listener is None else listener(record)
    except (Exception, asyncio.CancelledError, SystemExit, GeneratorExit):
        # Nothing is awaited here, so a cancellation is the hook's own: of a future whose result it asked for.
        _logger.exception("hook %s.%s failed", type(hook).__name__, method)
        return None
