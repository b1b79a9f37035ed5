"""Looking at jobs and changing their fate, in the caller's transaction or in one of its own."""

import heapq
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Row, Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit import cron
from queue_kit._database import Database, check_database
from queue_kit._dialect.columns import nearest_instant
from queue_kit._reach import MAX_ID, UNREADABLE, check_limit, check_words, is_id, is_name, notify, session_on
from queue_kit._records import unreadable
from queue_kit._statements import changing, looking, recurring, workers
from queue_kit._statements.vocabulary import in_state
from queue_kit._wakeup import CANCEL_CHANNEL, JOB_CHANNEL
from queue_kit.errors import JobConflict, JobNotFound
from queue_kit.job import JobState
from queue_kit.models import READY, JobRow

T = TypeVar("T")

MAX_PAGE = 1_000

OUT_OF_ORDER = 1_000
"""Ids by which a job may have been given one before another that was created earlier."""


async def cancel_job(db: Database, job_id: int) -> JobState:
    """Cancel a job that waits, at once; ask a running one to end.

    Returns `cancelled`, `running` when the run has been asked (its token aborts with `Cancelled`; a handler that
    completes first stays completed), or the final state when it was complete already. Raises `JobNotFound`, `TypeError`
    for an id that is no integer, and `AmbiguousCommit` when an engine's connection breaks at COMMIT.

    >>> async def withdraw(session, job_id):
    ...     return await cancel_job(session, job_id)
    """
    if not is_id(job_id):
        raise JobNotFound(job_id)
    async with session_on(db) as session:
        status = (await session.execute(changing.cancel(), {"job_id": job_id})).scalar_one_or_none()
        if status is None:
            return (await _standing(session, job_id))[0]
        if status != READY:
            return JobState.cancelled
        await notify(session, CANCEL_CHANNEL)
        return JobState.running


async def retry_job(db: Database, job_id: int) -> None:
    """Queue a failed or cancelled job again: due now, with all its tries; its errors are kept.

    Raises `JobNotFound`, and `JobConflict` for a job in any other state, or when a live job holds its unique key
    (then with that job's id); else as `cancel_job`. A cron occurrence whose successor waits already runs again as an
    ordinary job.

    >>> async def again(engine, job_id):
    ...     await retry_job(engine, job_id)
    """
    if not is_id(job_id):
        raise JobNotFound(job_id)
    async with session_on(db) as session:
        if not await retried(session, job_id):
            raise await _conflict(session, job_id)
        await notify(session, JOB_CHANNEL)


async def retried(session: AsyncSession, job_id: int) -> bool:
    """Queue a job again, unless something is in the way. In a savepoint: a key taken a moment ago must not spoil the
    caller's transaction."""
    try:
        async with session.begin_nested():
            return (await session.execute(changing.retry(), {"job_id": job_id})).first() is not None
    except IntegrityError:
        return False


async def _conflict(session: AsyncSession, job_id: int) -> JobConflict:
    state, _ = await _standing(session, job_id)
    if state not in (JobState.failed, JobState.cancelled):
        return JobConflict(job_id, f"is {state}; only failed and cancelled jobs can be retried")
    holder = (await session.execute(changing.key_holder(), {"job_id": job_id})).scalars().first()
    if holder is None:
        return JobConflict(job_id, "it was changed at the same time; try again")
    return JobConflict(job_id, f"its unique key is held by job {holder}", holder_id=holder)


async def get_job(db: Database, job_id: int) -> JobRow | None:
    """The job's row as it is now; `None` when there is none. Raises `TypeError` for an id that is no integer, and
    `ValueError` for a row that Python cannot read, as `list_jobs`.

    >>> async def state_of(engine, job_id):
    ...     job = await get_job(engine, job_id)
    ...     return job and job.state
    """
    check_database(db)
    if not is_id(job_id):
        return None
    async with session_on(db, reading=True) as session:
        return await _get(session, job_id)


async def _standing(session: AsyncSession, job_id: int) -> tuple[JobState, str | None]:
    """The state of a job and its cron entry, whatever else in its row cannot be read. Raises `JobNotFound`."""
    query = select(JobRow.state.label("state"), JobRow.cron_name).where(JobRow.id == job_id)
    row = (await session.execute(query)).first()
    if row is None:
        raise JobNotFound(job_id)
    return JobState(row.state), row.cron_name


async def _get(session: AsyncSession, job_id: int) -> JobRow | None:
    return next(iter(await _rows(session, select(JobRow).where(JobRow.id == job_id))), None)


async def run_job_now(db: Database, job_id: int) -> None:
    """Make a job due now that is scheduled for later, or waits for its retry; harmless when it is due already.

    A cron occurrence is run as by `run_cron_job`: its tick still comes. Raises `JobNotFound`, and `JobConflict` for a
    job that runs or is complete; else as `cancel_job`.

    >>> async def at_once(engine, job_id):
    ...     await run_job_now(engine, job_id)
    """
    check_database(db)
    if not is_id(job_id):
        raise JobNotFound(job_id)
    async with session_on(db) as session:
        state, entry = await _standing(session, job_id)
        if entry is not None and not state.is_complete:
            defined = (await session.execute(recurring.lock_cron_entry(), {"entry": entry})).first()
            if defined is not None:
                await session.run_sync(lambda sync: cron.hasten(sync.execute, entry))
        if (await session.execute(changing.run_now(), {"job_id": job_id})).first() is None:
            state, _ = await _standing(session, job_id)
            raise JobConflict(job_id, f"is {state}; only a job that waits can be run now")
        await notify(session, JOB_CHANNEL)


async def list_jobs(
    db: Database,
    *,
    state: JobState | None = None,
    name: str | None = None,
    unique_key: str | None = None,
    cron_name: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    limit: int = 100,
    after: int | None = None,
) -> list[JobRow]:
    """Jobs, newest id first, at most `limit` (1 to 1,000); `after` is the last id of the page before.

    `cron_name` picks the occurrences of a cron entry, `unique_key` the jobs that held a key. Looking for a rare `name`
    reads back through history until the page is full; `created_after` says how far (ids are taken to grow with time).
    Raises `ValueError` for a limit out of bounds, a state that there is not and a time without a zone, `TypeError` for
    a filter that is no text or time and an id that is no integer. Also `ValueError` when a row holds what only plain
    SQL can have written, as a time beyond the year 9999 or JSON too deep: it names the job and the column.

    >>> async def failures(engine):
    ...     return await list_jobs(engine, state=JobState.failed, limit=20)
    """
    filters = {"unique_key": unique_key, "cron_name": cron_name}
    created = (created_after, created_before)
    return await _listed(db, _rows, state, {"name": name, **filters}, created, limit, after)


async def list_job_texts(
    db: Database,
    columns: list[ColumnElement[Any]],
    *,
    state: JobState | None = None,
    words: Mapping[str, str | None],
    created: tuple[datetime | None, datetime | None] = (None, None),
    limit: int = 100,
    after: int | None = None,
    back_to: int = 0,
) -> list[Row[Any]]:
    """The same jobs, as columns that are text where a row may hold what Python cannot: none spoils the list. Of a name
    that is rare, none before the id `back_to` are looked for."""

    async def texts(session: AsyncSession, query: Select[Any]) -> list[Row[Any]]:
        bounded = query.where(JobRow.id >= back_to) if back_to else query
        return list((await session.execute(bounded.with_only_columns(*columns))).all())

    return await _listed(db, texts, state, words, created, limit, after)


async def get_job_text(db: Database, job_id: int) -> Row[Any] | None:
    """All of a job, as such columns."""
    if not is_id(job_id):
        return None
    async with session_on(db, reading=True) as session:
        return (await session.execute(select(*looking.job_texts()).where(JobRow.id == job_id))).first()


async def _listed(
    db: Database,
    found: Callable[[AsyncSession, Select[Any]], Awaitable[list[T]]],
    state: JobState | None,
    words: Mapping[str, str | None],
    created: tuple[datetime | None, datetime | None],
    limit: int,
    after: int | None,
) -> list[T]:
    check_database(db)
    check_limit(limit, MAX_PAGE)
    state = None if state is None else JobState(state)
    query = select(JobRow).order_by(looking.newest_first(state)).limit(limit)
    if state is not None:
        query = query.where(in_state(state))
    for column, word in words.items():
        check_words(word, column)
        if word is not None:
            if not is_name(word):
                return []
            query = query.where(getattr(JobRow, column) == word)
    if after is not None:
        is_id(after, "after")
        query = query.where(JobRow.id < min(max(after, 0), MAX_ID))
    _check_time(created[0], "created_after")
    _check_time(created[1], "created_before")
    async with session_on(db, reading=True) as session:
        query = query.where(*await _created(session, *created))
        return await found(session, query)


async def _rows(session: AsyncSession, query: Select[Any]) -> list[JobRow]:
    try:
        return list(await session.scalars(query, execution_options={"populate_existing": True}))
    except UNREADABLE as error:
        texts = await session.execute(query.with_only_columns(*looking.job_texts()))
        spoiled = [f"job {row.id}: {name} ({why})" for row in texts for name, why in unreadable(row).items()]
        raise ValueError(f"Python cannot read what plain SQL wrote: {'; '.join(spoiled[:10]) or error}") from error


def _check_time(value: object, argument: str) -> None:
    if value is None:
        return
    if not isinstance(value, datetime):
        raise TypeError(f"{argument} must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise ValueError(f"{argument} has no time zone; use datetime.now(UTC)")


async def _created(session: AsyncSession, after: datetime | None, before: datetime | None) -> list[ColumnElement[bool]]:
    """Conditions for times of creation. No index has the times, so the ids bound what is read."""
    conditions: list[ColumnElement[bool]] = []
    if after is not None:
        conditions += [JobRow.created_at >= after, JobRow.id >= await _id_at(session, after) - OUT_OF_ORDER]
    if before is not None:
        conditions += [JobRow.created_at < before, JobRow.id < await _id_at(session, before) + OUT_OF_ORDER]
    return conditions


async def _id_at(session: AsyncSession, instant: datetime) -> int:
    """The first id of the jobs created from a time on, by halving: twenty looks at the primary key for a million."""
    first, last = (await session.execute(looking.id_range(), {"after": -1})).one()
    if first is None:
        return 0
    behind = last + 1
    while first < behind:
        middle = (first + behind) // 2
        found = (await session.execute(looking.created_behind(), {"first": middle})).first()
        if found is None or nearest_instant(found.created_at) >= instant:
            behind = middle
        else:
            first = found.id + 1
    return int(first)


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


def foremost(names: Iterable[str], by_name: Mapping[str, NameInsights], most: int) -> list[str]:
    """The names that matter most, sorted: those with failed jobs, the longest waits, the most jobs."""

    def weight(name: str) -> tuple[bool, float, int]:
        of = by_name.get(name, NameInsights())
        return of.failed > 0, of.oldest_due_seconds or 0.0, of.pending + of.scheduled + of.running + of.failed

    return sorted(heapq.nlargest(most, names, key=weight))


async def queue_insights(db: Database) -> Insights:
    """What waits, runs and has failed. Reads only live and failed jobs, so its cost does not grow with history.

    >>> async def backlog(engine):
    ...     return (await queue_insights(engine)).pending
    """
    async with session_on(db, reading=True) as session:
        rows = (await session.execute(looking.counts())).all()
        alive = {name for names in await session.scalars(workers.names_alive()) for name in names}
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
