"""The session of one run and its fence: what stands between an ordinary `AsyncSession` of a handler and the database.

It connects when first used, behind a gate that leaves connections to the host application (on SQLite the gate is the
fair lock around all of the queue's transactions). Before each commit the lease is checked in the same transaction; the
last commit carries the job's ending, so the handler's writes and the completion are one.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, event, util
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from queue_kit._begin import begin
from queue_kit._commits import Commits
from queue_kit._error_record import chain
from queue_kit._lazy_session import GUARD, FencedSession, LazySession, listen, run_is_over
from queue_kit._log import BackgroundLog
from queue_kit._statements import database, fencing
from queue_kit._transient import is_connection_lost, is_server_trouble
from queue_kit.enqueue import HELD_JOB
from queue_kit.errors import JobAborted, LeaseLost, ShuttingDown, UnfencedCommit
from queue_kit.event import AbortToken
from queue_kit.job import Claimed, log_fields, printable

_logger = BackgroundLog("queue_kit.worker")

LONG_HOLD = 1.0
"""Seconds after which a handler that keeps SQLite's only write lock is named in the log."""

QUIESCE_SECONDS = 15.0
"""Longer than SQLite's busy timeout, which bounds any statement that waits for another process."""

LONGEST_TIMEOUT = 2**31 - 1
"""Milliseconds that PostgreSQL takes for a timeout; a handler may have more, and then its statements have no limit."""

_ENDS = ("commit", "rollback", "close")
"""What SQLite's driver is asked for while a transaction ends."""

INTERRUPT_EVERY = 0.02
"""Seconds between two interrupts, since one that comes before its statement has reached SQLite has no effect."""


def settling_seconds(lease: float) -> float:
    """How long a fenced commit may take, whatever the handler's timeout: within it a lease is renewed."""
    return max(lease / 3, 1.0)


@dataclass(slots=True)
class Setting:
    """What all sessions of a worker's handlers share."""

    worker_id: UUID
    lease: float
    embedded: bool
    gate: asyncio.Semaphore
    commits: Commits
    isolation: str | None = None
    """What transactions must be told to be; `None`: they are it already."""
    statement_timeout: float = math.inf
    """Milliseconds that the database itself gives each statement."""
    joined: bool = False
    """Whether sessions live inside of a transaction of somebody else's, whose settings are not ours to change."""


class HandlerSession:
    """One run's session with its fence. `session` goes to the handler; the rest belongs to the worker."""

    # Most runs use no session, so what only a used one needs stands on the class.
    _sync: Session | None = None
    _fence: Mapping[str, Any] = {}
    _held_since: float | None = None
    _entering = False
    _committing = False
    _closing = False
    _ending: Callable[[Connection | Session], None] | None = None
    _connection: Connection | None = None
    _statement_timeout: int | None = None
    _killed: JobAborted | None = None
    _retired = False
    _pooled: Any = None
    _driver: Any = None
    _last_driver: Any = None

    def __init__(self, session: AsyncSession, claimed: Claimed, token: AbortToken, setting: Setting) -> None:
        self.session = session
        self._claimed = claimed
        self._token = token
        self._setting = setting
        if isinstance(session, LazySession):
            session.on_made = self.guard
        else:
            self.guard(session.sync_session)

    def guard(self, sync: Session) -> None:
        """Stand between a session and its database."""
        self._sync = sync
        self._fence = fencing.fence(self._claimed.job.id, self._setting.worker_id, self._claimed.claim_no)
        sync.info[HELD_JOB] = (self._claimed.unique_key, self._fence)
        sync.info[GUARD] = self
        self._get_bind = sync.get_bind
        sync.get_bind = self._gated_bind  # type: ignore[method-assign]
        for closing in ("close", "reset", "invalidate"):
            setattr(sync, closing, partial(self._close, getattr(sync, closing)))
        if not isinstance(sync, FencedSession):
            listen(sync)

    @property
    def made(self) -> bool:
        """Whether there is a session at all: most handlers never ask for theirs."""
        return self._sync is not None

    @property
    def used(self) -> bool:
        """Whether there is something to commit."""
        return self._sync is not None and self._sync.in_transaction()

    @property
    def holds(self) -> bool:
        """Whether there is something to give back: a transaction, or a place at the gate without one."""
        return self.used or self._held_since is not None

    def broke(self, error: BaseException) -> bool:
        """Whether the handler failed since this session's connection broke or could not be made, or since its database
        could serve nobody."""
        asked = self._held_since is not None or self._last_driver is not None
        if asked and any(map(is_server_trouble, chain(error))):
            if self._driver is not None:
                self._renew_when_next_taken()  # which may find a better server
            return True
        if self._setting.embedded:
            return False
        if self._held_since is not None and not self._connected.is_set():
            return any(map(is_connection_lost, chain(error)))
        # A timeout alone may be the handler's own: the driver closes a connection whose statement was cancelled.
        closed = self._last_driver is not None and self._last_driver.is_closed()
        return closed and any(is_connection_lost(each) for each in chain(error) if not isinstance(each, TimeoutError))

    async def commit(self, ending: Callable[[Connection | Session], None]) -> None:
        """Commit the handler's writes together with the job's ending, which `ending` writes and fences in the
        transaction that it is given."""
        self._ending = ending
        await self.session.commit()

    async def rollback_and_close(self) -> None:
        """Undo what is not committed and give the connection back."""
        self._closing = True
        try:
            await self.session.close()
        finally:
            self._release()

    def _close(self, close: Callable[[], None]) -> None:
        """Refuse to close the session for its handler: what it wrote would be lost, and the job completed without."""
        if not self._closing:
            raise InvalidRequestError(
                "a handler's session is closed by its worker: leave out close() and `async with session`; commit() "
                "keeps what is done so far, rollback() undoes it"
            )
        close()

    @property
    def busy(self) -> bool:
        """Whether a task that the handler left behind is inside a statement. On PostgreSQL a rollback beside it would
        end the transaction under it, and what it writes would commit by itself. (SQLite's driver takes turns.)"""
        mutex = getattr(self._pooled.dbapi_connection, "_execute_mutex", None) if self._driver is not None else None
        return mutex is not None and mutex.locked()

    def retire(self) -> None:
        """Refuse what a task that the handler left behind still asks of the session: nobody would end it."""
        self._retired = True
        if isinstance(self.session, LazySession):
            self.session.retire(self._killed)

    async def quiesce(self) -> None:
        """Let SQLite's statement in flight fail by itself, so that the cancellation that follows finds none.

        Nothing to do on PostgreSQL, where the driver turns a cancellation into a cancel request. From here on
        `_refuse_when_aborted` lets no new statement begin.
        """
        if not self._setting.embedded or self._held_since is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIESCE_SECONDS):
                await self._connected.wait()
                while not self._quiet.is_set():
                    self._interrupt()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(INTERRUPT_EVERY):
                            await self._quiet.wait()

    def kill(self) -> Coroutine[Any, Any, None] | None:
        """Cut the connection of a handler that refuses to end, so that its locks are freed and nothing commits; it gets
        no other one. Returns what is left to be awaited."""
        self._killed = self._token.reason or ShuttingDown("the worker gave this run up")
        if self._driver is None:
            return None
        closing = None
        self._renew_when_next_taken()  # or SQLite's pool would hand it out again
        if self._setting.embedded:
            self._interrupt()
            closing = self._driver.close()
        else:
            self._driver.terminate()
        self._release()
        return closing

    def _renew_when_next_taken(self) -> None:
        if self._pooled.is_valid:
            self._pooled.invalidate(soft=True)

    def _interrupt(self) -> None:
        if self._driver is not None:
            self._driver._conn.interrupt()  # noqa: SLF001 - its own interrupt() would queue behind the statement

    # --- the gate -----------------------------------------------------------------------------------------------------

    def _gated_bind(self, *args: Any, **kw: Any) -> Any:
        """Every statement asks for its bind before it connects: the one place to wait before a connection is taken."""
        self._enter()
        return self._get_bind(*args, **kw)

    def _enter(self) -> None:
        """Wait for a place at the gate, unless there is one already."""
        self._refuse_when_over()
        if self._entering:  # it would wait for a place that this same session is about to get
            raise InvalidRequestError("a handler's session is used by several tasks at once; give each one of its own")
        if self._held_since is None and self._acquire():
            self._held_since = time.monotonic()
            self._connected, self._quiet = asyncio.Event(), asyncio.Event()
            self._quiet.set()
            try:
                self._refuse_when_aborted()
            except JobAborted:
                self._release()  # no transaction began, so none will end
                raise

    def _acquire(self) -> bool:
        self._entering = True
        try:
            util.await_only(self._setting.gate.acquire())
        except MissingGreenlet:  # somebody asks for the bind outside of a statement
            return False
        finally:
            self._entering = False
        return True

    def _release(self) -> None:
        if self._held_since is not None:
            held = time.monotonic() - self._held_since
            self._held_since = None
            self._setting.gate.release()
            if self._setting.embedded and held > LONG_HOLD:
                job = self._claimed.job
                _logger.warning(
                    "job %s %s kept SQLite's write lock for %.1f s; other jobs waited",
                    job.id,
                    printable(job.name),
                    held,
                    extra=log_fields(job),
                )

    # --- the transaction ----------------------------------------------------------------------------------------------

    def begun(self, connection: Connection) -> None:
        """A transaction began, or a savepoint in it."""
        if self._driver is not None:  # a savepoint in the same transaction
            return
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            raise UnfencedCommit("a handler's session does not run in AUTOCOMMIT, where nothing checks the lease")
        self._pooled = connection.connection
        self._driver = self._last_driver = self._pooled.driver_connection
        if self._killed is not None or self._retired:  # while it connected
            self._pooled.invalidate()
            self._refuse_when_over()
        if not self._setting.embedded:
            self._statement_timeout = self._time_left()
            begin(
                connection,
                isolation=self._setting.isolation,
                statement_timeout=self._statement_timeout,
                commits=self._setting.commits,
                may_commit=self._may_commit,
            )
        self._connection = connection
        if self._setting.embedded:
            self._setting.commits.watch(connection, self._may_commit)
            if not self._setting.joined:  # there, to roll back to the savepoint is a statement as well
                event.listen(connection, "before_cursor_execute", self._refuse_when_aborted)
            self._driver._execute = self._watched(self._driver._execute)  # noqa: SLF001 - all its calls pass here
        self._connected.set()

    def _watched(self, execute: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def watched(call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
            # A task that the handler left behind may be between two steps of a statement. Beside the transaction's end
            # it would be executed when that is over, and commit by itself. (A savepoint ends by a statement.)
            ends = (self._committing or self._closing) and not self._setting.joined
            if ends and call.__name__ not in _ENDS:
                raise run_is_over()
            self._quiet.clear()
            try:
                return await execute(call, *args, **kw)
            finally:
                self._quiet.set()

        return watched

    def _refuse_when_over(self) -> None:
        if self._killed is not None:
            raise self._killed.with_traceback(None)
        if self._retired:
            raise run_is_over()

    def _refuse_when_aborted(self, *_: Any) -> None:
        self._refuse_when_over()
        if self._setting.embedded:
            self._token.raise_if_aborted()

    def before_commit(self, session: Session) -> None:
        """Check the fence, and write the job's ending when this is the last commit."""
        if session.in_nested_transaction():  # a savepoint is released: nothing is committed yet
            return
        self._token.raise_if_aborted()
        if self._ending is not None:
            self._limit_by_budget()
            session.flush()  # or an error of what is flushed would pass for one of the ending's
            # On the connection itself, where a session has only one: the session's own execute takes 60 us more.
            connection = self._connection if isinstance(session, FencedSession) else None
            self._ending(session if connection is None else connection)
        else:
            session.flush()  # or its statements would come after, and under the fence's budget
            if not (self._setting.embedded or self._setting.joined):
                session.execute(database.limit_lock_wait(), {"milliseconds": str(self._budget)})
            self.require(session.execute(fencing.checkpoint_one(), {**self._fence, "lease": self._setting.lease}))
        self._committing = True

    def _limit_by_budget(self) -> None:
        """Give the statements of the ending their own time: the handler's may be over."""
        if self._statement_timeout is not None and self._statement_timeout < self._budget:
            assert self._connection is not None
            self._connection.execute(database.limit_statements(), {"milliseconds": str(self._budget)})

    def _time_left(self) -> int | None:
        """The milliseconds that a statement has which begins now; `None`: as many as the database gives it."""
        left = self._token.deadline
        if left is not None and self._ending is not None:
            left = max(left, settling_seconds(self._setting.lease))
        if left is None or self._setting.joined or left * 1000 >= min(self._setting.statement_timeout, LONGEST_TIMEOUT):
            return None
        return max(math.ceil(left * 1000), 1)  # 0 would be for ever

    @property
    def _budget(self) -> int:
        return round(settling_seconds(self._setting.lease) * 1000)

    def require(self, result: Any) -> None:
        """Refuse the commit unless the fenced statement found the job still ours."""
        if result.rowcount != 1:
            lost = LeaseLost(f"job {self._claimed.job.id} is not ours any more: another worker may run it")
            self._token.abort(lost)
            raise lost

    def _may_commit(self) -> bool:
        """Whether the connection's commit is the session's own."""
        return self._committing or self._driver is None

    def ended(self) -> None:
        """The transaction is over, one way or the other."""
        self._committing = False
        if self._setting.embedded and self._driver is not None:
            vars(self._driver).pop("_execute", None)  # the connection goes back to its pool as it came
        self._driver = self._connection = None
        if self._held_since is not None:
            self._connected.set()
        self._release()
