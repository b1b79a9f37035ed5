"""Running the due jobs inside of a test's transaction: a worker's own spine, one job at a time, on a store and on
sessions that have joined the caller's connection. What would take a second connection is left out.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from queue_kit import migrate
from queue_kit._handler import Handler, HandlerFunction
from queue_kit._leases import Leases
from queue_kit._link import Link
from queue_kit._pace import Pace
from queue_kit._run import Limits
from queue_kit._sessions import Sessions
from queue_kit._spine import Spine
from queue_kit._statements import looking
from queue_kit.errors import ConfigurationError
from queue_kit.handlers import Handlers, as_handlers
from queue_kit.hooks import Observers
from queue_kit.job import Claimed, Seconds, Verdict
from queue_kit.retry import RetryDelay
from queue_kit.testing._handler import CANCEL_GRACE, refuses_to_end
from queue_kit.testing._transaction import LEASE, Transaction, joined, joined_store
from queue_kit.worker import check_engine, worker_limits

_logger = logging.getLogger("queue_kit.testing")


async def drain(
    db: Transaction,
    jobs: Handlers | Mapping[str, Handler[Any] | HandlerFunction[Any]],
    *,
    max_runs: int = 1_000,
    handler_timeout: Seconds = 30.0,
    max_retry_count: int = 2,
    retry_delay: RetryDelay | None = None,
    session_factory: Callable[..., AsyncSession] | None = None,
    hooks: Sequence[object] = (),
) -> dict[str, int]:
    """Run what is due in the caller's transaction until nothing is, also what the handlers add; return how many runs
    ended in which way, by verdict, as `QueueWorker.drain()` does.

    `db` is an `AsyncSession` or an `AsyncConnection`; nothing is committed. Each handler gets a session of its own on
    that connection, in a savepoint: what a failed one wrote is rolled back. Retries with a delay and later jobs are
    left until `move_clock` makes them due. `handler_timeout`, `max_retry_count`, `retry_delay` and `hooks` are those of
    the worker. `session_factory` is, too, but is called with `bind=` and `join_transaction_mode=`, which an
    `async_sessionmaker` takes.

    Due jobs of names that `jobs` has no handler for are left; a line of the log names them.

    Raises `AssertionError` when more than `max_runs` jobs have run, when a handler refuses to end, and when one has
    ended the transaction; `TypeError` for an engine (that is for `QueueWorker(engine, jobs).drain()`),
    `ConfigurationError` and `SchemaMismatch` for what no worker could run on.

    >>> async def test_welcome(session):
    ...     await sign_up(session, "a@b.c")
    ...     assert (await drain(session, jobs))["completed"] == 1
    """
    connection = await joined(db, "drain")
    check_engine(connection.engine)
    handlers = as_handlers(jobs)
    limits = worker_limits(handler_timeout, max_retry_count, retry_delay, CANCEL_GRACE)
    if not isinstance(max_runs, int) or isinstance(max_runs, bool) or max_runs < 1:
        raise ConfigurationError(f"max_runs is a number of jobs, at least 1, not {max_runs!r}")
    observers = Observers(hooks)
    await migrate.check_schema(connection)
    draining = _Drain(connection, handlers, limits, observers, session_factory, max_runs=max_runs)
    try:
        return await draining.run()
    finally:
        await draining.close()


class _Drain:
    def __init__(
        self,
        connection: AsyncConnection,
        handlers: Mapping[str, Handler[Any]],
        limits: Limits,
        observers: Observers,
        session_factory: Callable[..., AsyncSession] | None,
        *,
        max_runs: int,
    ) -> None:
        self._connection = connection
        self._handlers = handlers
        self._transaction = connection.sync_connection.get_transaction() if connection.sync_connection else None
        self._max_runs = max_runs
        self._runs: Counter[str] = Counter()
        self._store = joined_store(connection, handlers)
        self._leases = Leases(self._store, protected=lambda: True)
        self._link = _Link()
        make = _plain_session if session_factory is None else session_factory
        self._sessions = Sessions(
            lambda: make(bind=connection, join_transaction_mode="create_savepoint"),
            worker_id=self._store.worker_id,
            lease=LEASE,
            isolation=None,
            gate=asyncio.Semaphore(1),
            embedded=self._store.embedded,
            joined=True,
        )
        self._spine = Spine(
            handlers,
            limits,
            store=self._store,
            leases=self._leases,
            link=self._link,
            pace=Pace(1, most=0),
            sessions=self._sessions,
            observers=observers,
            on_settled=_nothing,
            on_returned=_nothing,
            on_wedged=_nothing,
        )

    async def run(self) -> dict[str, int]:
        while await self._sweep() or await self._run_due():
            pass
        await self._name_what_is_left()
        return {verdict.value: self._spine.counts[verdict] for verdict in Verdict}

    async def _name_what_is_left(self) -> None:
        """A name that is misspelt on one side looks like a queue in which nothing is due."""
        due = {row.name for row in await self._connection.execute(looking.counts()) if row.state == "pending"}
        others = sorted(due - set(self._handlers))
        if others:
            names = ", ".join(map(repr, others))
            _logger.warning("drain() leaves due jobs of names that it was given no handler for: %s", names)

    async def _sweep(self) -> bool:
        seen = await self._store.look()
        moved = 0
        if seen.due_in is not None and seen.due_in <= 0:
            moved += await self._store.promote()
        if seen.cron_missing:
            moved += await self._store.mend_cron()
        return moved > 0

    async def _run_due(self) -> bool:
        ran = False
        while claimed := await self._store.claim(1):
            ran = True
            self._leases.take(claimed, asked_at=time.monotonic())
            await self._work(*claimed)
        return ran

    async def _work(self, claimed: Claimed) -> None:
        name = claimed.job.name
        if self._runs.total() >= self._max_runs:
            often, times = self._runs.most_common(1)[0]
            raise AssertionError(
                f"{self._max_runs:,} jobs have run, {times:,} of them {often!r}, and {name!r} is due: does a handler "
                "add its own job again? Give a later one a delay, or drain() a higher max_runs"
            )
        self._runs[name] += 1
        work = asyncio.create_task(self._spine.work(claimed), name="queue_kit: drain")
        either: set[asyncio.Future[Any]] = {work, self._link.broken}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            await asyncio.wait({work})
        if self._spine.wedged:
            raise refuses_to_end(name)
        self._check_transaction(claimed)
        if not work.cancelled():
            work.result()

    def _check_transaction(self, claimed: Claimed) -> None:
        error = self._link.broken.result() if self._link.broken.done() else None
        sync = self._connection.sync_connection
        if error is not None or sync is None or sync.invalidated or sync.get_transaction() is not self._transaction:
            raise AssertionError(
                f"job {claimed.job.id} {claimed.job.name!r} has ended the transaction that drain() works in: it "
                "committed or rolled back beneath its session, or was cancelled in the middle of a statement; run it "
                "on an engine, with QueueWorker(engine, jobs).drain()"
            ) from error

    async def close(self) -> None:
        await self._spine.close()
        self._sessions.close()
        await self._store.dispose()


class _Link(Link):
    """The connection is the caller's, so there is no other one to wait for: trouble ends the drain."""

    def __init__(self) -> None:
        super().__init__(lease=LEASE, on_change=_nothing, on_trouble=_nothing)
        self.broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def failed(self, error: BaseException) -> None:
        super().failed(error)
        if not self.broken.done():
            self.broken.set_result(error)


def _plain_session(**options: Any) -> AsyncSession:
    return AsyncSession(expire_on_commit=False, **options)


def _nothing(*_: object) -> None:
    pass
