"""The worker: a task group of N pullers, and beside them the claim, the lease keeper, the pulse and the listener.

It lives inside somebody's application: once started it raises nothing into it, leaves it a connection, and never ends
its process. Only `run()`, for a process of its own, handles signals and may leave.
"""

import asyncio
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import _sqlite, migrate
from queue_kit._claims import Claims
from queue_kit._gate import gate_for
from queue_kit._handler import Handler, HandlerFunction, check_limits
from queue_kit._intake import Intake
from queue_kit._leases import Leases
from queue_kit._link import Link
from queue_kit._pulse import Pulse
from queue_kit._run import Limits
from queue_kit._session import Sessions
from queue_kit._spine import Spine
from queue_kit._store import Store
from queue_kit._wakeup import Listener, on_commit
from queue_kit.errors import ConfigurationError, ShuttingDown
from queue_kit.handlers import Handlers, as_handlers
from queue_kit.hooks import Observers, WorkerState
from queue_kit.job import Outcome, Seconds, Verdict
from queue_kit.retry import RetryDelay, check_retry_delay, exponential

_logger = logging.getLogger("queue_kit.worker")

ISOLATION_LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


class QueueWorker:
    """Runs jobs: claim, run, settle, with N pullers at a time. Constructing it starts nothing.

    `handlers` is a `Handlers` or a mapping of names to async functions or `Handler`s. Times are seconds or timedeltas.

    - `parallel_count`: how many jobs run at once. `prefetch=0` (for now also `None`) claims for free pullers only.
    - `poll_interval`: the longest a job waits that no wake-up announced.
    - `handler_timeout`, `max_retry_count` (tries in total), `retry_delay`: for jobs and handlers that set none.
    - `included_names`, `excluded_names`: which of the registered names to run, one of them at most.
    - `unsafe_ignore_sorting`: claim in any order. `delete_job_on_completion`: keep no completed rows, and with
      `keep_failed=False` no failed ones.
    - `lease`: how long a job stays ours without renewal, so how soon another worker takes over from one that died.
    - `grace`: how long `stop()` lets jobs run; `cancel_grace`: how long a cancelled handler may take to end.
    - `listen`: `True`, `False` (poll only), or an `AsyncEngine` that reaches the database directly.
    - `session_factory`, `session_isolation`: how handlers' sessions are made, and their isolation level.
    - `hooks`: observers of this worker (see `install_hooks`).

    Raises `ConfigurationError` for what could not work.

    >>> worker = QueueWorker(engine, jobs, parallel_count=10)
    >>> async def lifespan(app):
    ...     async with worker:
    ...         yield
    """

    def __init__(
        self,
        engine: AsyncEngine,
        handlers: Handlers | Mapping[str, Handler[Any] | HandlerFunction[Any]],
        *,
        parallel_count: int = 1,
        poll_interval: Seconds = 1.5,
        handler_timeout: Seconds = 30.0,
        max_retry_count: int = 2,
        retry_delay: RetryDelay | None = None,
        included_names: Collection[str] | None = None,
        excluded_names: Collection[str] | None = None,
        unsafe_ignore_sorting: bool = False,
        delete_job_on_completion: bool = False,
        keep_failed: bool = True,
        lease: Seconds = 30.0,
        grace: Seconds = 20.0,
        cancel_grace: Seconds = 5.0,
        prefetch: int | None = None,
        listen: bool | AsyncEngine = True,
        session_factory: Callable[[], AsyncSession] | None = None,
        session_isolation: str | None = None,
        hooks: Sequence[object] = (),
    ) -> None:
        _check_engine(engine)
        self._engine = engine
        self._handlers = _chosen(as_handlers(handlers), included_names, excluded_names)
        if not isinstance(parallel_count, int) or isinstance(parallel_count, bool) or parallel_count < 1:
            raise ConfigurationError(f"parallel_count is a whole number of pullers, at least 1, not {parallel_count!r}")
        self._parallel_count = parallel_count
        if prefetch is not None and (not isinstance(prefetch, int) or isinstance(prefetch, bool) or prefetch < 0):
            raise ConfigurationError(f"prefetch is None or a number of rows, at least 0, not {prefetch!r}")
        self._poll_interval = _positive(poll_interval, "poll_interval")
        self._lease = _positive(lease, "lease")
        self._grace = _positive(grace, "grace", zero=True)
        timeout, tries = check_limits(handler_timeout, max_retry_count)
        self._limits = Limits(
            timeout=math.inf if timeout is None else timeout,
            max_retry_count=1 if tries is None else tries,
            retry_delay=exponential() if retry_delay is None else check_retry_delay(retry_delay),
            cancel_grace=_positive(cancel_grace, "cancel_grace", zero=True),
        )
        if not isinstance(listen, bool | AsyncEngine):
            raise ConfigurationError(f"listen is True, False or an AsyncEngine, not {type(listen).__name__}")
        if session_isolation is not None and session_isolation not in ISOLATION_LEVELS:
            raise ConfigurationError(f"session_isolation is one of {', '.join(ISOLATION_LEVELS)}")
        self._ordered = not unsafe_ignore_sorting
        self._delete_completed = delete_job_on_completion
        self._delete_failed = delete_job_on_completion and not keep_failed
        self._listen = listen
        self._session_factory = session_factory
        self._session_isolation = session_isolation
        self._observers = Observers(hooks)
        self._crew: _Crew | None = None
        self._starting = asyncio.Lock()

    @property
    def id(self) -> UUID | None:
        """The id of this start, as in `queue_kit_worker`; `None` while stopped."""
        return None if self._crew is None else self._crew.store.worker_id

    @property
    def healthy(self) -> bool:
        """Whether the worker runs, reaches its database, and has pullers left that no wedged handler has used up."""
        return self._crew is not None and self._crew.healthy

    async def start(self) -> None:
        """Start the pullers in the background; a second call is harmless.

        Raises what the driver raises when the database cannot be reached, `SchemaMismatch` when its tables do not fit,
        and `ConfigurationError` when sessions or connections cannot serve.
        """
        async with self._starting:
            if self._crew is None:
                self._crew = await self._assemble()
                self._crew.begin()

    async def stop(self, grace: Seconds | None = None) -> None:
        """Start nothing more, let running jobs finish for `grace` (default: the worker's), then abort and cancel them
        and give the rest back. Returns by `grace + cancel_grace` whatever the handlers do; a second call is harmless.
        """
        seconds = self._grace if grace is None else _positive(grace, "grace", zero=True)
        async with self._starting:
            crew, self._crew = self._crew, None
            if crew is not None:
                # A task of its own: a caller that is cancelled must not leave the worker half stopped.
                self._ending = asyncio.create_task(crew.end(seconds), name="queue_kit: stop")
                await asyncio.shield(self._ending)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def drain(self) -> dict[str, int]:
        """Run what is due until nothing is, then return how many runs ended in which way, by verdict.

        For tests and one-off runs: retries with a delay are left, and the worker must not be started.

        >>> async def catch_up(worker):
        ...     return (await worker.drain())["completed"]
        """
        if self._crew is not None:
            raise ConfigurationError("drain() is for a worker that is not started; stop it first")
        crew = await self._assemble()
        try:
            await crew.drain()
        finally:
            await crew.end(self._grace)
        return {verdict.value: crew.spine.counts[verdict] for verdict in Verdict}

    async def run(self) -> None:
        """Work until SIGINT or SIGTERM, then stop gracefully; for a process of its own.

        A second signal leaves at once with status 128 + its number. When a handler still refuses to end after the
        stop, the process is left with status 1, since nothing else would end it.
        """
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()

        def received(number: int) -> None:
            if asked.is_set():
                _logger.error("a second signal: leaving at once")
                _leave(128 + number)
            asked.set()

        signals = (signal.SIGINT, signal.SIGTERM)
        try:
            for number in signals:
                loop.add_signal_handler(number, received, number)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"run() handles signals, which works in the main thread on POSIX only ({error}); use start() and stop()"
            ) from error
        wedged = False
        try:
            starting = asyncio.create_task(self.start(), name="queue_kit: start")
            asking = asyncio.create_task(asked.wait(), name="queue_kit: wait for a signal")
            try:
                await asyncio.wait({starting, asking}, return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    await starting
                    await asking
                else:
                    starting.cancel()
                    with suppress(asyncio.CancelledError):
                        await starting
            finally:
                asking.cancel()
            crew = self._crew
            await self.stop()
            wedged = crew is not None and bool(crew.spine.wedged)
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
        if wedged:
            _logger.error("a handler refuses to end: leaving without it")
            _leave(1)

    async def _assemble(self) -> "_Crew":
        reading = self._engine.execution_options(queue_kit_readonly=True)
        async with reading.connect() as connection:
            await migrate.check_schema(connection)
        factory = self._session_factory or (lambda: AsyncSession(self._engine, expire_on_commit=False))
        gate, bound = gate_for(self._engine.sync_engine, self._parallel_count)
        if bound is not None and 1 < bound < self._parallel_count:
            _logger.info("%d handlers at most use their session at once: the pool is shared", bound)
        worker_id = uuid4()
        store = Store(
            self._engine,
            worker_id=worker_id,
            names=self._handlers,
            lease=self._lease,
            gate=gate,
            ordered=self._ordered,
            delete_completed=self._delete_completed,
            delete_failed=self._delete_failed,
        )
        sessions = Sessions(
            factory,
            worker_id=worker_id,
            lease=self._lease,
            isolation=self._session_isolation,
            gate=gate,
            embedded=store.embedded,
        )
        try:
            await store.greet(f"pid {os.getpid()}", self._handlers)
            await sessions.probe()
        except BaseException:
            with suppress(Exception):
                await store.depart()
            await store.dispose()
            raise
        return _Crew(
            store,
            sessions,
            self._handlers,
            self._limits,
            self._observers,
            engine=self._engine,
            parallel_count=self._parallel_count,
            poll_interval=self._poll_interval,
            listen=self._listen,
            gate=gate,
        )


class _Crew:
    """Everything that lives from one start to its stop."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        handlers: Mapping[str, Handler[Any]],
        limits: Limits,
        observers: Observers,
        *,
        engine: AsyncEngine,
        parallel_count: int,
        poll_interval: float,
        listen: bool | AsyncEngine,
        gate: asyncio.Semaphore,
    ) -> None:
        self.store = store
        self._names = list(handlers)
        self._observers = observers
        self._engine = engine
        self._listen = listen
        self._cancel_grace = limits.cancel_grace
        self._parallel_count = parallel_count
        self._link = Link(on_change=self._announce, on_trouble=self._probe)
        # While one of our handlers holds SQLite's write lock nobody can claim its jobs, so no lease lapses meanwhile.
        self._leases = Leases(store, protected=lambda: store.embedded and gate.locked())
        self.spine = Spine(
            handlers,
            limits,
            store=store,
            leases=self._leases,
            link=self._link,
            sessions=sessions,
            observers=observers,
            on_settled=self._settled,
        )
        self._intake = Intake(
            store, self._leases, self.spine, parallel_count=parallel_count, stopping=lambda: self._claims.closed
        )
        self._claims = Claims(self._intake.fetch, self.spine.give_back)
        self._pulse = Pulse(store, self._link, poll_interval=poll_interval, wake=self._claims.wake)
        self._renew_now = asyncio.Event()
        self._pullers: set[asyncio.Task[None]] = set()
        self._services: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether it can claim and run."""
        return self._link.is_up and len(self.spine.wedged) <= self._parallel_count

    # --- from start to stop -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start all tasks."""
        self._main = asyncio.create_task(self._serve(), name="queue_kit: worker")
        self._announce("started")

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._parallel_count):
                self._pullers.add(group.create_task(self._pull(), name=f"queue_kit: puller {number}"))
            self._serving(group, self._claims.serve, "claim")
            self._serving(group, self._leases.watch, "watch leases")
            self._serving(group, self._keep_leases, "renew leases")
            self._serving(group, self._pulse.serve, "pulse")
            if self.store.embedded:
                self._unsubscribe = on_commit(self._engine, self._heard)
            elif self._listen is not False:
                engine = self.store.engine if self._listen is True else self._listen
                listener = Listener(engine, on_job=self._heard, on_cancel=self._renew_now.set)
                self._serving(group, listener.serve, "listen")

    def _serving(self, group: asyncio.TaskGroup, serve: Callable[[], Awaitable[None]], what: str) -> None:
        async def guarded() -> None:
            while True:
                try:
                    return await serve()
                except Exception:
                    # A defect of ours must not end the siblings: in a task group one failure cancels all.
                    _logger.exception("the worker's task %r failed and is started again", what)
                    await asyncio.sleep(1.0)

        self._services.add(group.create_task(guarded(), name=f"queue_kit: {what}"))

    async def drain(self) -> None:
        """Work until nothing is due."""
        self.begin()
        moved = True
        while moved:
            await self._pulse.sweep()
            await self._claims.run_dry(self._parallel_count)
            moved = await self._pulse.sweep() == 0

    async def end(self, grace: float) -> None:
        """Stop, in `grace + cancel_grace` at the latest."""
        if self._main is None:
            await self._leave()
            return
        self._announce("stopping")
        deadline = time.monotonic() + grace + self._cancel_grace
        self._claims.close()
        claiming = {task for task in self._services if task.get_name() == "queue_kit: claim"}
        working = self._pullers | claiming
        if working:
            await asyncio.wait(working, timeout=grace)
        for run in self._leases.runs():
            run.abort(ShuttingDown("the worker stops"), grace=self._cancel_grace * 0.6)
        if any(not task.done() for task in working):
            await asyncio.wait(working, timeout=max(deadline - time.monotonic() - 0.1, 0.05))
        self._main.cancel()
        with suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(max(deadline - time.monotonic(), 0.5)):
                await asyncio.wait({self._main})
                await self._leave()
        self._announce("stopped")

    async def _leave(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
        await self.spine.close()
        if self._link.is_up:
            with suppress(Exception):
                await self.store.depart()
        with suppress(Exception):
            await self.store.dispose()

    # --- the tasks ----------------------------------------------------------------------------------------------------

    async def _pull(self) -> None:
        while (claimed := await self._claims.next()) is not None:
            try:
                await self.spine.work(claimed)
            except Exception:
                _logger.exception("job %s was not settled; its lease will lapse", claimed.job.id)
                self._leases.drop(claimed)

    async def _keep_leases(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._leases.renewal_pause()):
                    await self._renew_now.wait()
            self._renew_now.clear()
            await self._link.wait_up()
            try:
                await self._leases.renew()
                if not await self.store.seen(len(self._leases)):
                    await self.store.greet(f"pid {os.getpid()}", self._names)
            except Exception as error:  # noqa: BLE001 - no database error ends a worker
                self._link.failed(error)

    # --- what they tell each other ------------------------------------------------------------------------------------

    def _heard(self) -> None:
        self._claims.wake()
        self._pulse.nudge()

    def _probe(self) -> None:
        self._pulse.nudge()

    def _settled(self, outcome: Outcome) -> None:
        if outcome.verdict in (Verdict.retried, Verdict.snoozed):
            self._pulse.nudge(outcome.delay)
        if self._intake.holds_back:
            self._claims.wake()

    def _announce(self, state: str) -> None:
        self._observers.worker_state(WorkerState(self.store.worker_id, state))


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _check_engine(engine: object) -> None:
    if not isinstance(engine, AsyncEngine):
        raise ConfigurationError(f"engine must be an AsyncEngine (create_async_engine), not {type(engine).__name__}")
    if engine.dialect.name == "sqlite":
        if not _sqlite.is_safe(engine):
            raise ConfigurationError(
                f"a worker on SQLite needs the engine of sqlite_engine(path), not {engine.url.render_as_string()}: "
                "without its settings transactions lose updates and leak locks"
            )
    elif (engine.dialect.name, engine.dialect.driver) != ("postgresql", "asyncpg"):
        raise ConfigurationError(
            "a worker runs on postgresql+asyncpg or sqlite_engine(path), "
            f"not {engine.dialect.name}+{engine.dialect.driver}"
        )


def _chosen(
    handlers: Mapping[str, Handler[Any]], included: Collection[str] | None, excluded: Collection[str] | None
) -> dict[str, Handler[Any]]:
    if included is not None and excluded is not None:
        raise ConfigurationError("give included_names or excluded_names, not both")
    for names, field in ((included, "included_names"), (excluded, "excluded_names")):
        if isinstance(names, str):
            raise ConfigurationError(f"{field} is a list of names, not one text: [{names!r}]")
    if included is not None:
        unknown = sorted(set(included) - set(handlers))
        if unknown:
            raise ConfigurationError(f"included_names holds names without a handler: {', '.join(unknown)}")
        return {name: handlers[name] for name in included}
    return {name: handler for name, handler in handlers.items() if name not in (excluded or ())}


def _positive(value: Seconds, field: str, *, zero: bool = False) -> float:
    try:
        seconds, _ = check_limits(value, None)
    except ConfigurationError:
        seconds = None
    if seconds is None or not math.isfinite(seconds) or (seconds == 0 and not zero):
        raise ConfigurationError(
            f"{field} is a finite number of seconds, {'at least' if zero else 'above'} 0, not {value!r}"
        )
    return seconds
