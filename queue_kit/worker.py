"""The worker, as an application sees it: what it takes, and when it starts and stops.

It lives inside somebody's application: once started it raises nothing into it, leaves it a connection, and never ends
its process. Only `run()`, for a process of its own, handles signals and may leave. Its tasks are in `_crew.py`.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import _sqlite, migrate
from queue_kit._crew import Crew
from queue_kit._gate import gate_for
from queue_kit._handler import Handler, HandlerFunction, check_limits
from queue_kit._lazy_session import LazySession
from queue_kit._log import BackgroundLog
from queue_kit._run import Limits
from queue_kit._sessions import Sessions
from queue_kit._standalone import run_until_signal
from queue_kit._store import Store
from queue_kit._transactions import Transactions
from queue_kit._transient import READ_ONLY, sqlstate
from queue_kit.errors import ConfigurationError
from queue_kit.handlers import Handlers, as_handlers
from queue_kit.hooks import Observers
from queue_kit.job import Seconds, Verdict
from queue_kit.retry import RetryDelay, check_retry_delay, exponential

_logger = BackgroundLog("queue_kit.worker")

ISOLATION_LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


class QueueWorker:
    """Runs jobs: claim, run, settle, with N pullers at a time. Constructing it starts nothing.

    `handlers` is a `Handlers` or a mapping of names to async functions or `Handler`s. Times are seconds or timedeltas.

    - `parallel_count`: how many jobs run at once.
    - `prefetch`: how many jobs at most are claimed ahead of free pullers; `None`: what is finished in 250 ms at the
      rate of late, up to 2,000. `0` claims strictly from the head of the order, and a puller waits until its job's end
      is stored.
    - `poll_interval`: the longest a job waits that no wake-up announced.
    - `handler_timeout`, `max_retry_count` (tries in total), `retry_delay`: for jobs and handlers that set none.
    - `included_names`, `excluded_names`: which of the registered names to run, one of them at most.
    - `unsafe_ignore_sorting`: allow claims in any order; it changes nothing today, since the order costs nothing.
    - `delete_job_on_completion`: keep no completed rows, and with `keep_failed=False` no failed ones.
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
        unsafe_ignore_sorting: bool = False,  # noqa: ARG002
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
        check_engine(engine)
        self._engine = engine
        self._handlers = _chosen(as_handlers(handlers), included_names, excluded_names)
        if not isinstance(parallel_count, int) or isinstance(parallel_count, bool) or parallel_count < 1:
            raise ConfigurationError(f"parallel_count is a whole number of pullers, at least 1, not {parallel_count!r}")
        self._parallel_count = parallel_count
        if prefetch is not None and (not isinstance(prefetch, int) or isinstance(prefetch, bool) or prefetch < 0):
            raise ConfigurationError(f"prefetch is None or a number of rows, at least 0, not {prefetch!r}")
        self._prefetch = prefetch
        self._poll_interval = _positive(poll_interval, "poll_interval")
        self._lease = _positive(lease, "lease")
        self._grace = _positive(grace, "grace", zero=True)
        self._limits = worker_limits(
            handler_timeout, max_retry_count, retry_delay, _positive(cancel_grace, "cancel_grace", zero=True)
        )
        if not isinstance(listen, bool | AsyncEngine):
            raise ConfigurationError(f"listen is True, False or an AsyncEngine, not {type(listen).__name__}")
        if session_factory is not None and not callable(session_factory):
            raise ConfigurationError(
                f"session_factory is a function that returns an AsyncSession, not {type(session_factory).__name__}"
            )
        if not isinstance(hooks, Sequence):
            raise ConfigurationError(f"hooks is a list of observers, not {type(hooks).__name__}")
        if session_isolation is not None and session_isolation not in ISOLATION_LEVELS:
            raise ConfigurationError(f"session_isolation is one of {', '.join(ISOLATION_LEVELS)}")
        self._delete_completed = delete_job_on_completion
        self._delete_failed = delete_job_on_completion and not keep_failed
        self._listen = listen
        self._session_factory = session_factory
        self._session_isolation = session_isolation
        self._observers = Observers(hooks)
        self._crew: Crew | None = None
        self._starting = asyncio.Lock()
        self._ending: asyncio.Task[bool] | None = None

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
                await self._ended()
                self._crew = await self._assemble(listen=self._listen)
                self._crew.begin()

    async def stop(self, grace: Seconds | None = None) -> None:
        """Start nothing more, let running jobs finish for `grace` (default: the worker's), then abort and cancel them
        and give the rest back. Returns by `grace + cancel_grace` whatever the handlers do (with a `cancel_grace` below
        a second some tenths later); a second call is harmless.
        """
        await self._stop(self._grace if grace is None else _positive(grace, "grace", zero=True))

    async def _stop(self, grace: float) -> bool:
        async with self._starting:
            crew, self._crew = self._crew, None
            if crew is not None:
                crew.close()
                self._end(crew, grace)
            return await self._ended()

    def _end(self, crew: Crew, grace: float) -> None:
        """In a task of its own: a caller that is cancelled must not leave the worker half stopped."""
        self._ending = asyncio.create_task(crew.end(grace), name="queue_kit: stop")

    async def _ended(self) -> bool:
        """Wait for a stop that is under way; whether every handler has ended."""
        return self._ending is None or await asyncio.shield(self._ending)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def drain(self) -> dict[str, int]:
        """Run what is due until nothing is, then return how many runs ended in which way, by verdict.

        For tests and one-off runs: retries with a delay are left. Raises `ConfigurationError` for a worker that is
        started, else as `start`.

        >>> async def catch_up(worker):
        ...     return (await worker.drain())["completed"]
        """
        if self._crew is not None:
            raise ConfigurationError("drain() is for a worker that is not started; stop it first")
        await self._ended()
        crew = await self._assemble(listen=False)
        try:
            await crew.drain()
        finally:
            self._end(crew, self._grace)
            await self._ended()
        return {verdict.value: crew.spine.counts[verdict] for verdict in Verdict}

    async def run(self) -> None:
        """Work until SIGINT or SIGTERM, then stop gracefully; for a process of its own.

        A second signal leaves at once with status 128 + its number. When a handler still refuses to end after the
        stop, the process is left with status 1, since nothing else would end it. Raises `ConfigurationError` outside of
        the main thread and beside another `run()`, else as `start`.

        Meanwhile Python looks for garbage only in what came since the start (`gc.freeze`).
        """
        await run_until_signal(
            self.start,
            lambda: self._stop(self._grace),
            stop_seconds=self._grace + self._limits.cancel_grace,
        )

    async def _assemble(self, *, listen: bool | AsyncEngine) -> Crew:
        reading = self._engine.execution_options(queue_kit_readonly=True)
        async with reading.connect() as connection:
            await migrate.check_schema(connection)
        factory = self._session_factory or partial(LazySession, self._engine)
        gate, bound = gate_for(self._engine.sync_engine, self._parallel_count)
        if bound is not None and 1 < bound < self._parallel_count:
            _logger.info("%d handlers at most use their session at once: the pool is shared", bound)
        worker_id = uuid4()
        store = Store(
            Transactions(self._engine, gate=gate, lease=self._lease),
            worker_id=worker_id,
            names=self._handlers,
            lease=self._lease,
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
            await store.greet()
            await sessions.probe()
        except BaseException as error:
            with suppress(Exception):
                await store.depart()
            await store.dispose()
            if sqlstate(error) == READ_ONLY:
                raise ConfigurationError(
                    "this database is read-only: a worker needs the primary, not a replica of it; with several hosts "
                    "in the URL, add target_session_attrs=read-write"
                ) from error
            raise
        return Crew(
            store,
            sessions,
            self._handlers,
            self._limits,
            self._observers,
            engine=self._engine,
            parallel_count=self._parallel_count,
            poll_interval=self._poll_interval,
            prefetch=self._prefetch,
            listen=listen,
            gate=gate,
        )


def check_engine(engine: object) -> None:
    """Refuse, with a `ConfigurationError`, an engine that jobs cannot be run on."""
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


def worker_limits(
    handler_timeout: Seconds, max_retry_count: int, retry_delay: RetryDelay | None, cancel_grace: float
) -> Limits:
    """What bounds the runs of a worker, from what it was given; else a `ConfigurationError`."""
    timeout, tries = check_limits(handler_timeout, max_retry_count, argument="handler_timeout")
    return Limits(
        timeout=math.inf if timeout is None else timeout,
        max_retry_count=1 if tries is None else tries,
        retry_delay=exponential() if retry_delay is None else check_retry_delay(retry_delay),
        cancel_grace=cancel_grace,
    )


def _chosen(
    handlers: Mapping[str, Handler[Any]], included: Collection[str] | None, excluded: Collection[str] | None
) -> dict[str, Handler[Any]]:
    if included is not None and excluded is not None:
        raise ConfigurationError("give included_names or excluded_names, not both")
    for names, field in ((included, "included_names"), (excluded, "excluded_names")):
        if names is not None and (isinstance(names, str) or not isinstance(names, Collection)):
            raise ConfigurationError(f"{field} is a list of names, not {names!r}")
    if included is not None:
        unknown = sorted(str(name) for name in included if name not in handlers)
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
