"""The spine for one job: run it, then settle it, in the handler's own transaction or in a batch with others.

Endings are never dropped: while the database is away they are kept and written when it is back, wherever the fence
still matches.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from typing import Any, TypeVar

from queue_kit._deadlines import Deadlines
from queue_kit._endings import Ending, Endings
from queue_kit._handler import Handler
from queue_kit._leases import Leases
from queue_kit._link import Link
from queue_kit._log import BackgroundLog
from queue_kit._pace import Pace
from queue_kit._patience import Patience
from queue_kit._run import SUCCESS, Limits, Run, without_running
from queue_kit._session import HandlerSession, settling_seconds
from queue_kit._sessions import Sessions
from queue_kit._store import Store
from queue_kit._transient import is_connection_lost, is_transient
from queue_kit.errors import JobAborted, LeaseLost, ShuttingDown
from queue_kit.hooks import Observers, Settled, Started
from queue_kit.job import Claimed, Outcome, Verdict, log_fields, printable

_logger = BackgroundLog("queue_kit.worker")

T = TypeVar("T")

_WORTH_A_WARNING = (Verdict.failed, Verdict.retried, Verdict.lost)

REFUSED_PAUSE = 1.0
"""Seconds until a statement that the database refused is tried again."""


def _nothing() -> None:
    pass


class Spine:
    """Runs and settles claimed jobs."""

    def __init__(
        self,
        handlers: Mapping[str, Handler[Any]],
        limits: Limits,
        *,
        store: Store,
        leases: Leases,
        link: Link,
        pace: Pace,
        sessions: Sessions,
        observers: Observers,
        on_settled: Callable[[Sequence[Ending]], None],
        on_returned: Callable[[], None],
        on_wedged: Callable[[], None],
    ) -> None:
        self._handlers = handlers
        self._usual_limits = {name: _limits_of_handler(handler, limits) for name, handler in handlers.items()}
        self._store = store
        self._leases = leases
        self._link = link
        self._pace = pace
        self._sessions = sessions
        self._observers = observers
        self._on_settled = on_settled
        self._on_returned = on_returned
        self._on_wedged = on_wedged
        self._endings = Endings(lambda batch: self.persist(lambda: store.settle(batch)), self._settled)
        self._deadlines = Deadlines()
        self._unwritten: set[object] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self.all_written = asyncio.Event()
        self.all_written.set()
        self.wedged: dict[int, Run] = {}
        self.counts: Counter[str] = Counter()

    async def work(self, claimed: Claimed) -> bool:
        """Run one claimed job and have its ending written; whether others had their turn meanwhile."""
        limits = self._limits_of(claimed)
        run = None
        outcome = without_running(claimed, limits)
        written = False
        if outcome is None:
            run = Run(claimed, limits, self._deadlines)
            session = self._sessions.open(claimed, run.token)
            outcome = self._begin(run, session)
            if outcome is None or session.made:
                outcome, written = await self._end(run, session, outcome)
            else:
                session.retire()
        self._leases.detach(claimed)
        ended = time.monotonic()
        began = ended if run is None else run.started
        self._pace.ended(claimed.job.name, ended - began, ended)
        untold = outcome is SUCCESS and not _logger.isEnabledFor(logging.INFO) and not self._observers
        spans = None if run is None or untold else run.event.spans
        ending = Ending(claimed, outcome, ended - began, spans, began=began)
        if run is not None and outcome.verdict is Verdict.released:
            ending.why = run.token.reason
        if written:
            self._settled([ending])
        elif self._pace.strict:
            await self._endings.write(ending)
        else:
            self._endings.put(ending)
            if self._endings.full:
                await self._endings.room()
        return run is not None and run.waited

    def _limits_of(self, claimed: Claimed) -> Limits:
        usual = self._usual_limits[claimed.job.name]
        timeout, tries = claimed.job.handler_timeout, claimed.max_retry_count
        if timeout is None and tries is None:
            return usual
        return replace(
            usual,
            timeout=usual.timeout if timeout is None else timeout,
            max_retry_count=usual.max_retry_count if tries is None else tries,
        )

    def _begin(self, run: Run, session: HandlerSession) -> Outcome | None:
        """How the run ended, or `None` for one that was suspended."""
        self._leases.attach(run)
        if self._observers:
            self._tell_started(run)
        handler = self._handlers[run.claimed.job.name]
        return run.begin(handler, session.session, before_cancel=session.quiesce)

    async def _end(self, run: Run, session: HandlerSession, outcome: Outcome | None) -> tuple[Outcome, bool]:
        """How a run ended that was suspended or used its session, and whether that is already written."""
        if outcome is None:
            try:
                outcome = await run.end()
            except asyncio.CancelledError:
                self._kill(session)
                run.abort(ShuttingDown("nobody waits for this run any more"))
                raise
            if run.wedged:
                self._set_aside(run, session)
                return outcome, False
        written = False
        if session.made:
            outcome, written = await self._end_session(run, session, outcome)
        session.retire()
        return outcome, written

    def _tell_started(self, run: Run) -> None:
        job = run.claimed.job
        due = job.scheduled_at if run.claimed.due is None else run.claimed.due
        record = Started(self._store.worker_id, job, run.claimed.trace_context, due)
        run.context.run(self._observers.started, record)

    # --- the handler's own transaction --------------------------------------------------------------------------------

    async def _end_session(self, run: Run, session: HandlerSession, outcome: Outcome) -> tuple[Outcome, bool]:
        """How the run ends with what became of its session, and whether that is already written."""
        written = False
        if run.error is not None and session.broke(run.error):
            outcome = run.broken_off(run.error)
        if session.used and outcome.verdict is Verdict.completed:
            outcome, written = await self._commit(run, session)
        if session.holds:
            await self._close(session)
        return outcome, written

    async def _commit(self, run: Run, session: HandlerSession) -> tuple[Outcome, bool]:
        """Commit the handler's writes with its completion. What the database refuses is a failure of the job."""
        claimed = run.claimed

        async def attempt() -> BaseException | None:
            # Returned, not raised: asyncio would let a SystemExit of the application's flush hooks end the host.
            try:
                await session.commit(lambda within: session.require(self._store.complete_in(within, claimed)))
            except BaseException as error:  # noqa: BLE001
                return error
            return None

        commit = self._spawn(attempt(), "commit", context=run.context)
        # On SQLite a cancelled statement would run on, with its lock; there the busy timeout bounds the wait.
        budget = None if self._store.embedded else settling_seconds(self._store.lease)
        try:
            with suppress(TimeoutError):
                async with Patience(budget):
                    await asyncio.shield(commit)
        except asyncio.CancelledError:  # a stop is over, and the commit may still end by itself
            commit.add_done_callback(lambda _commit: self._kill(session))  # else its place at the gate stays taken
            raise
        if not commit.done():
            self._kill(session)
            commit.cancel()
            await asyncio.wait({commit}, timeout=1.0)
            return await self._reread(
                run, session, TimeoutError(f"the commit took over {budget:g} s; is its row locked?")
            )
        error = commit.result()
        if error is None:
            return SUCCESS, True
        if isinstance(error, LeaseLost):
            return Outcome(Verdict.lost), True
        if isinstance(error, JobAborted):
            return Outcome(Verdict.released), False
        if is_connection_lost(error):
            return await self._reread(run, session, error)
        return _refused(run, session, error), False

    async def _reread(self, run: Run, session: HandlerSession, error: BaseException) -> tuple[Outcome, bool]:
        """A commit without a reply: look what became of it. An outage fails nobody; a commit over its budget does."""
        try:
            committed = await self.persist(lambda: self._store.was_committed(run.claimed))
        except asyncio.CancelledError:
            self._kill(session)
            raise
        if committed is None:
            return Outcome(Verdict.lost), True
        if committed:
            return SUCCESS, True
        return _refused(run, session, error), False

    async def _close(self, session: HandlerSession) -> None:
        if session.busy:
            self._kill(session)
        closing = self._spawn(session.rollback_and_close(), "close a session")
        await asyncio.wait({closing}, timeout=None if self._store.embedded else 5.0)
        if not closing.done() or closing.exception() is not None:  # a task that the handler left may be using it
            self._kill(session)
            closing.cancel()

    def _kill(self, session: HandlerSession) -> None:
        closing = session.kill()
        if closing is not None:
            self._spawn(closing, "close a connection")

    def _set_aside(self, run: Run, session: HandlerSession) -> None:
        """A handler that refuses to end keeps its task, but neither its connection nor its puller."""
        self._kill(session)
        job, task = run.claimed.job, run.task
        assert task is not None
        assert run.aborted_at is not None
        self.wedged[job.id] = run
        _logger.error(
            "job %s %s did not end %.1f s after it was cancelled (%r); its slot goes to a replacement",
            job.id,
            printable(job.name),
            time.monotonic() - run.aborted_at,
            run.token.reason,
            extra=log_fields(job),
        )

        def ended(_task: object) -> None:
            self.wedged.pop(job.id, None)
            self._spawn(session.rollback_and_close(), "close a session")
            self._on_wedged()

        task.add_done_callback(ended)
        self._on_wedged()

    # --- endings ------------------------------------------------------------------------------------------------------

    def give_back(self, claimed: Claimed) -> None:
        """Return a job that was not started; nothing is counted."""
        self._leases.detach(claimed)
        self._endings.put(Ending(claimed, Outcome(Verdict.released)))

    async def flushed(self) -> None:
        """Wait until every ending is written."""
        await self._endings.room(0)

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat an ending's statement until the database has answered it. Nothing is claimed while one waits."""
        ending = object()

        def waits() -> None:
            self._unwritten.add(ending)
            self.all_written.clear()

        try:
            return await self.insist(attempt, on_trouble=waits)
        finally:
            self._unwritten.discard(ending)
            if not self._unwritten:
                self.all_written.set()

    async def insist(self, attempt: Callable[[], Awaitable[T]], *, on_trouble: Callable[[], None] = _nothing) -> T:
        """Repeat a statement until the database has answered it."""
        while True:
            if not self._link.is_up:
                on_trouble()
            await self._link.wait_up()
            try:
                return await attempt()
            except Exception as error:
                on_trouble()
                if not is_transient(error):
                    _logger.exception("a statement of the queue failed; it is tried again")
                    await asyncio.sleep(REFUSED_PAUSE)
                self._link.failed(error)

    def _settled(self, endings: Sequence[Ending]) -> None:
        """Endings are stored: their jobs are not held any more, and what ran is reported."""
        self._leases.drop([ending.claimed for ending in endings])
        runs = [ending for ending in endings if ending.seconds is not None]
        if len(runs) < len(endings):
            self._on_returned()
        self.counts.update([ending.outcome.verdict for ending in runs])
        self._on_settled(runs)
        for ending in runs:
            if ending.outcome is not SUCCESS or ending.spans is not None:  # else nobody asked when it ended
                self._tell_settled(ending)

    def _tell_settled(self, ending: Ending) -> None:
        seconds = ending.seconds or 0.0
        worth_a_warning = ending.outcome.verdict in _WORTH_A_WARNING or isinstance(ending.why, LeaseLost)
        level = logging.WARNING if worth_a_warning else logging.INFO
        if _logger.isEnabledFor(level):
            self._log(level, ending, seconds)
        if self._observers:
            self._observers.settled(
                Settled(self._store.worker_id, ending.claimed.job, ending.outcome, seconds, ending.spans)
            )

    def _log(self, level: int, ending: Ending, seconds: float) -> None:
        job, error = ending.claimed.job, ending.outcome.error or {}
        of_error = f"{error['class']}: {error['message']}" if "class" in error else ending.why or ""
        why = printable(error.get("reason") or str(of_error))
        about = {
            "job_outcome": ending.outcome.verdict.value,
            "job_seconds": seconds,
            "job_error": error.get("class"),
            "job_spans": ending.spans,
            "worker_id": str(self._store.worker_id),
        }
        _logger.log(
            level,
            "job %s %s %s after %.3f s%s",
            job.id,
            printable(job.name),
            ending.outcome.verdict,
            seconds,
            f": {why}" if why else "",
            extra=log_fields(job) | about,
        )

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, T], what: str, *, context: Context | None = None) -> "asyncio.Task[T]":
        task = asyncio.create_task(work, name=f"queue_kit: {what}", context=context)
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # who awaits it has seen it; who does not, has killed the connection

    async def close(self) -> None:
        """Give up what is still under way, after a second in which it may end by itself."""
        await self._endings.close()
        if self._background:
            await asyncio.wait(set(self._background), timeout=1.0)
        if not self._store.embedded:  # on SQLite a cancelled statement would run on, with its lock
            for task in self._background:
                task.cancel()


def _refused(run: Run, session: HandlerSession, error: BaseException) -> Outcome:
    """What a commit leads to that was not made."""
    return run.broken_off(error) if session.broke(error) else run.failure(error)


def _limits_of_handler(handler: Handler[Any], worker: Limits) -> Limits:
    return Limits(
        timeout=worker.timeout if handler.timeout is None else handler.timeout,
        max_retry_count=worker.max_retry_count if handler.max_retry_count is None else handler.max_retry_count,
        retry_delay=worker.retry_delay if handler.retry_delay is None else handler.retry_delay,
        cancel_grace=worker.cancel_grace,
    )
