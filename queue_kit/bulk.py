"""Changing the fate of many jobs at once: by their ids, or by what they have in common."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Executable
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit._database import Database
from queue_kit._reach import check_limit, check_words, is_id, is_name, notify, session_on
from queue_kit._statements import changing
from queue_kit._statements.vocabulary import as_batch
from queue_kit._wakeup import CANCEL_CHANNEL, JOB_CHANNEL
from queue_kit.failures import matching, newest_failures
from queue_kit.job import JobState
from queue_kit.models import READY
from queue_kit.operate import retried

MAX_JOBS = 1_000
"""Jobs that one call changes at most: one transaction, which others wait for."""


@dataclass(frozen=True, slots=True)
class BulkChange:
    """What a call came to: how many jobs it changed, of these how many run and were asked to end, how many it skipped
    (gone, in another state, or with a unique key that a live job holds), and whether more jobs fit the filter.

    `older` tells that there are older failed jobs than those that the filter looked at: whether they fit nobody knows.
    """

    changed: int = 0
    asked: int = 0
    skipped: int = 0
    more: bool = False
    older: bool = False


async def retry_jobs(
    db: Database,
    ids: Collection[int] | None = None,
    *,
    state: JobState | None = None,
    name: str | None = None,
    error_class: str | None = None,
    message: str | None = None,
    limit: int = MAX_JOBS,
    dry_run: bool = False,
) -> BulkChange:
    """Queue many failed or cancelled jobs again, as `retry_job` does with one; what is in conflict is skipped.

    Either `ids`, or a filter: a `state` (`failed`, which is the default, or `cancelled`), a `name`, and of failed jobs
    the `error_class` and `message` of a `FailureGroup`. A filter looks at the 2,000 jobs that failed last, with a
    `name` at the 2,000 newest failed ones of that name, or at the newest cancelled ones. At most `limit` (1 to 1,000)
    are changed: `more` tells whether to call again, `older` that there are failed jobs which were not looked at. With
    `dry_run` nothing is changed, and `changed` is how many jobs fit.

    Raises `ValueError` for too many ids, a limit out of bounds, no filter at all and one that cannot be, and
    `TypeError` for an id that is no integer; else as `cancel_job`.

    >>> async def after_the_outage(engine):
    ...     return (await retry_jobs(engine, name="email.send", error_class="ConnectionRefusedError")).changed
    """
    check_limit(limit, MAX_JOBS)
    words = {"name": name, "error_class": error_class, "message": message}
    for argument, value in words.items():
        check_words(value, argument)
    _one_way(ids, {"state": state, **words})
    wanted = JobState.failed if state is None else JobState(state)
    if wanted not in (JobState.failed, JobState.cancelled):
        raise ValueError(f"only failed and cancelled jobs can be retried, not {wanted} ones")
    if wanted is JobState.cancelled and (error_class is not None or message is not None):
        raise ValueError("error_class and message choose among failed jobs, not among cancelled ones")
    older = False
    async with session_on(db, reading=dry_run) as session:
        if ids is not None:
            found = _checked(ids)
        elif wanted is JobState.failed:
            rows, older = await newest_failures(session, name)
            found = matching(rows, error_class=error_class, message=message)
        else:
            found = await _ids(session, changing.cancelled_ids(), of_name=name, limit=limit + 1)
        chosen, more = found[:limit] if ids is None else found, ids is None and len(found) > limit
        if dry_run:
            return BulkChange(len(chosen), more=more, older=older)
        changed = await _retry(session, chosen)
        if changed:
            await notify(session, JOB_CHANNEL)
    return BulkChange(changed, skipped=len(chosen) - changed, more=more, older=older)


async def _retry(session: AsyncSession, ids: Collection[int]) -> int:
    """Retry all in one statement, or one by one when two of them share a key."""
    try:
        async with session.begin_nested():
            return len((await session.execute(changing.retry_many(), {"job_ids": as_batch(ids)})).all())
    except IntegrityError:
        return sum([await retried(session, job_id) for job_id in ids])


async def cancel_jobs(
    db: Database,
    ids: Collection[int] | None = None,
    *,
    state: JobState | None = None,
    name: str | None = None,
    limit: int = MAX_JOBS,
    dry_run: bool = False,
) -> BulkChange:
    """Cancel many jobs, as `cancel_job` does with one: those that wait at once, those that run are asked to end.

    Either `ids`, or a filter: a `state` (`scheduled`, `ready` or `running`) and a `name`; the oldest first. The rest is
    as with `retry_jobs`.

    >>> async def stop_sending(engine):
    ...     while (await cancel_jobs(engine, name="email.send")).more:
    ...         pass
    """
    check_limit(limit, MAX_JOBS)
    check_words(name, "name")
    _one_way(ids, {"state": state, "name": name})
    if state is not None and JobState(state) not in (JobState.scheduled, JobState.ready, JobState.running):
        raise ValueError(f"only scheduled, ready and running jobs can be cancelled, not {state} ones")
    async with session_on(db, reading=dry_run) as session:
        if ids is None:
            statement = changing.live_ids(None if state is None else JobState(state))
            found = await _ids(session, statement, of_name=name, limit=limit + 1)
        else:
            found = _checked(ids)
        chosen, more = found[:limit] if ids is None else found, ids is None and len(found) > limit
        if dry_run:
            return BulkChange(len(chosen), more=more)
        statuses = (await session.scalars(changing.cancel_many(), {"job_ids": as_batch(chosen)})).all()
        asked = statuses.count(READY)
        if asked:
            await notify(session, CANCEL_CHANNEL)
    return BulkChange(len(statuses), asked, len(chosen) - len(statuses), more)


def _one_way(ids: object, filters: Mapping[str, object]) -> None:
    given = [name for name, value in filters.items() if value is not None]
    if ids is not None and given:
        raise ValueError(f"give ids or a filter ({', '.join(given)}), not both")
    if ids is None and not given:
        raise ValueError(f"give ids, or at least one of {', '.join(filters)}: all jobs are never meant")


def _checked(ids: Collection[int]) -> list[int]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Collection):
        raise TypeError(f"ids is a list of integers, not {type(ids).__name__}")
    if len(ids) > MAX_JOBS:
        raise ValueError(f"{len(ids)} ids are too many for one call, at most {MAX_JOBS} are allowed")
    return list(dict.fromkeys(job_id for job_id in ids if is_id(job_id, "ids")))


async def _ids(session: AsyncSession, statement: Executable, *, of_name: str | None, limit: int) -> list[int]:
    if of_name is not None and not is_name(of_name):
        return []
    return [row.id for row in await session.execute(statement, {"of_name": of_name, "limit": limit})]
