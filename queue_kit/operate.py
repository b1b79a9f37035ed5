"""Looking at jobs and changing their fate, in the caller's transaction or in one of its own."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from queue_kit import _statements
from queue_kit._database import Database, check_database, own_commit
from queue_kit._wakeup import CANCEL_CHANNEL, JOB_CHANNEL
from queue_kit.errors import InvalidJob, JobConflict, JobNotFound
from queue_kit.job import JobState, check_name
from queue_kit.models import READY, JobRow

MAX_PAGE = 1_000
MAX_ID = 2**63 - 1


@asynccontextmanager
async def _session(db: Database) -> AsyncIterator[AsyncSession]:
    if isinstance(db, AsyncSession):
        yield db
    elif isinstance(db, AsyncConnection):
        if not db.in_transaction():
            await db.begin()  # the caller's, as with any statement of theirs: they end it
        async with AsyncSession(db, expire_on_commit=False, join_transaction_mode="create_savepoint") as session:
            yield session
            await session.commit()
    else:
        async with AsyncSession(db, expire_on_commit=False) as session:
            yield session
            with own_commit("the change"):
                await session.commit()


def _check_id(job_id: object, argument: str = "job_id") -> bool:
    """Whether this can be the id of a job at all; a `TypeError` for what is no integer."""
    if not isinstance(job_id, int) or isinstance(job_id, bool):
        raise TypeError(f"{argument} must be an integer, not {type(job_id).__name__}")
    return 0 < job_id <= MAX_ID


async def cancel_job(db: Database, job_id: int) -> JobState:
    """Cancel a job that waits, at once; ask a running one to end.

    Returns `cancelled`, `running` when the run has been asked (its token aborts with `Cancelled`; a handler that
    completes first stays completed), or the final state when it was complete already. Raises `JobNotFound`, `TypeError`
    for an id that is no integer, and `AmbiguousCommit` when an engine's connection breaks at COMMIT.

    >>> async def withdraw(session, job_id):
    ...     return await cancel_job(session, job_id)
    """
    check_database(db)
    if not _check_id(job_id):
        raise JobNotFound(job_id)
    async with _session(db) as session:
        status = (await session.execute(_statements.cancel(), {"job_id": job_id})).scalar_one_or_none()
        if status is None:
            row = await _get(session, job_id)
            if row is None:
                raise JobNotFound(job_id)
            return row.state
        if status != READY:
            return JobState.cancelled
        await _notify(session, CANCEL_CHANNEL)
        return JobState.running


async def retry_job(db: Database, job_id: int) -> None:
    """Queue a failed or cancelled job again: due now, with all its tries; its errors are kept.

    Raises `JobNotFound`, and `JobConflict` for a job in any other state, or when a live job holds its unique key
    (then with that job's id); else as `cancel_job`. A cron occurrence whose successor waits already runs again as an
    ordinary job.

    >>> async def again(engine, job_id):
    ...     await retry_job(engine, job_id)
    """
    check_database(db)
    if not _check_id(job_id):
        raise JobNotFound(job_id)
    async with _session(db) as session:
        try:
            async with session.begin_nested():  # a key taken a moment ago must not spoil the caller's transaction
                done = (await session.execute(_statements.retry(), {"job_id": job_id})).scalar_one_or_none()
        except IntegrityError:
            done = None
        if done is None:
            raise await _conflict(session, job_id)
        await _notify(session, JOB_CHANNEL)


async def _conflict(session: AsyncSession, job_id: int) -> JobConflict | JobNotFound:
    row = await _get(session, job_id)
    if row is None:
        return JobNotFound(job_id)
    if row.state not in (JobState.failed, JobState.cancelled):
        return JobConflict(job_id, f"is {row.state}; only failed and cancelled jobs can be retried")
    holder = (await session.execute(_statements.key_holder(), {"job_id": job_id})).scalars().first()
    if holder is None:
        return JobConflict(job_id, "it was changed at the same time; try again")
    return JobConflict(job_id, f"its unique key is held by job {holder}", holder_id=holder)


async def _notify(session: AsyncSession, channel: str) -> None:
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(_statements.notify(), {"channel": channel})


async def get_job(db: Database, job_id: int) -> JobRow | None:
    """The job's row as it is now; `None` when there is none. Raises `TypeError` for an id that is no integer.

    >>> async def state_of(engine, job_id):
    ...     job = await get_job(engine, job_id)
    ...     return job and job.state
    """
    check_database(db)
    if not _check_id(job_id):
        return None
    async with _session(db) as session:
        return await _get(session, job_id)


async def _get(session: AsyncSession, job_id: int) -> JobRow | None:
    return await session.get(JobRow, job_id, populate_existing=True)


async def list_jobs(
    db: Database,
    *,
    state: JobState | None = None,
    name: str | None = None,
    limit: int = 100,
    after: int | None = None,
) -> list[JobRow]:
    """Jobs, newest id first, at most `limit` (1 to 1,000); `after` is the last id of the page before.

    Raises `ValueError` for a limit out of bounds and a state that there is not, `TypeError` for a name that is no text
    and an id that is no integer.

    >>> async def failures(engine):
    ...     return await list_jobs(engine, state=JobState.failed, limit=20)
    """
    check_database(db)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit is from 1 to {MAX_PAGE}, not {limit!r}")
    query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
    if state is not None:
        query = query.where(JobRow.state == JobState(state).value)
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"name must be text, not {type(name).__name__}")
        try:
            check_name(name)
        except InvalidJob:
            return []  # no job has such a name, and some no database would take
        query = query.where(JobRow.name == name)
    if after is not None:
        _check_id(after, "after")
        query = query.where(JobRow.id < min(max(after, 0), MAX_ID))
    async with _session(db) as session:
        return list((await session.scalars(query, execution_options={"populate_existing": True})).all())


@dataclass(frozen=True, slots=True)
class NameInsights:
    """The counts of one job name: `pending` is due and waiting, `oldest_due_seconds` how long the first one waits."""

    pending: int = 0
    scheduled: int = 0
    running: int = 0
    failed: int = 0
    oldest_due_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Insights(NameInsights):
    """The queue's counts, in total and `by_name`, and the names of waiting jobs that no live worker runs."""

    by_name: Mapping[str, NameInsights] = field(default_factory=dict)
    unhandled_names: tuple[str, ...] = ()


async def queue_insights(db: Database) -> Insights:
    """What waits, runs and has failed. Reads only live and failed jobs, so its cost does not grow with history.

    >>> async def backlog(engine):
    ...     return (await queue_insights(engine)).pending
    """
    check_database(db)
    async with _session(db) as session:
        rows = (await session.execute(_statements.counts())).all()
        alive = {name for names in await session.scalars(_statements.names_alive()) for name in names}
    counts: dict[str, dict[str, Any]] = {}
    for row in rows:
        of_name = counts.setdefault(row.name, {})
        state = "scheduled" if row.state == JobState.ready else row.state
        of_name[state] = of_name.get(state, 0) + row.count
        if row.due_in is not None:
            of_name["oldest_due_seconds"] = max(-row.due_in, 0.0)
    by_name = {name: NameInsights(**counts[name]) for name in sorted(counts)}
    waits = [each.oldest_due_seconds for each in by_name.values() if each.oldest_due_seconds is not None]
    return Insights(
        pending=sum(each.pending for each in by_name.values()),
        scheduled=sum(each.scheduled for each in by_name.values()),
        running=sum(each.running for each in by_name.values()),
        failed=sum(each.failed for each in by_name.values()),
        oldest_due_seconds=max(waits, default=None),
        by_name=by_name,
        unhandled_names=tuple(
            name for name, each in by_name.items() if name not in alive and each.pending + each.scheduled
        ),
    )
