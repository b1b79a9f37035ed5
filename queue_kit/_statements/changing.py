"""What an operator does to jobs, one or many: cancel, retry, run now, prune; and which jobs it is to be done to."""

from collections.abc import Iterable
from functools import cache

from sqlalchemy import (
    ColumnElement,
    Executable,
    Integer,
    and_,
    bindparam,
    case,
    delete,
    exists,
    not_,
    null,
    or_,
    select,
    update,
)

from queue_kit._dialect.batches import member_of
from queue_kit._dialect.clock import clock_time, never, seconds_until, statement_time
from queue_kit._dialect.columns import BIGINT
from queue_kit._statements.vocabulary import (
    IS_FAILED,
    IS_LIVE,
    IS_READY,
    IS_SCHEDULED,
    JOB,
    in_state,
    is_live,
    number_parameter,
    text_parameter,
)
from queue_kit.job import JobState
from queue_kit.models import CANCELLED, FAILED, JOBS, READY

_ONE = JOB.id == bindparam("job_id", type_=BIGINT)


def _many() -> ColumnElement[bool]:
    return member_of(JOB.id, text_parameter("job_ids"))


@cache
def cancel() -> Executable:
    """Cancel a job that waits; ask a running one to end. Parameters: `job_id`. Returns its status; no row: complete."""
    return _cancel(_ONE)


@cache
def cancel_many() -> Executable:
    """The same with many. Parameters: `job_ids` (a batch). Returns the status of each that was not complete."""
    return _cancel(_many())


def _cancel(chosen: ColumnElement[bool]) -> Executable:
    running = in_state(JobState.running)
    return (
        update(JOBS)
        .where(chosen, IS_LIVE)
        .values(
            cancel_requested=True,
            status=case((running, JOB.status), else_=CANCELLED),
            # Or the worker that had it until its lease lapsed would take this ending for its own.
            worker_id=case((running, JOB.worker_id), else_=null()),
            updated_at=case((running, JOB.updated_at), else_=clock_time()),
        )
        .returning(JOB.status)
    )


@cache
def retry() -> Executable:
    """Queue a failed or cancelled job again. Parameters: `job_id`. No row: it is neither, or its unique key is taken.

    A cron occurrence whose successor is live runs again as an ordinary job: an entry has one live occurrence.
    """
    return _retry(_ONE)


@cache
def retry_many() -> Executable:
    """The same with many, unless two of them share a key: then it fails. Parameters: `job_ids` (a batch)."""
    return _retry(_many())


def _retry(chosen: ColumnElement[bool]) -> Executable:
    other = JOBS.alias("other")
    live = is_live(other.c.status)
    key_taken = exists(select(other.c.id).where(other.c.unique_key == JOB.unique_key, live))
    has_successor = exists(select(other.c.id).where(other.c.cron_name == JOB.cron_name, live))
    return (
        update(JOBS)
        .where(chosen, JOB.status.in_((FAILED, CANCELLED)), not_(key_taken))
        .values(
            status=READY,
            scheduled_at=clock_time(),
            updated_at=clock_time(),
            lease_until=never(),
            worker_id=null(),
            retry_count=0,
            lost=0,
            cancel_requested=False,
            cron_name=case((has_successor, null()), else_=JOB.cron_name),
        )
        .returning(JOB.id)
    )


@cache
def run_now() -> Executable:
    """Make a job due that waits. Parameters: `job_id`. Returns its id; no row: it runs, or is complete."""
    due = case((JOB.scheduled_at > statement_time(), clock_time()), else_=JOB.scheduled_at)
    waits = and_(IS_LIVE, JOB.lease_until < statement_time())
    return update(JOBS).where(_ONE, waits).values(status=READY, scheduled_at=due).returning(JOB.id)


@cache
def key_holder() -> Executable:
    """The live job that holds the same unique key as this one. Parameters: `job_id`."""
    other = JOBS.alias("other")
    same_key = and_(other.c.unique_key == JOB.unique_key, is_live(other.c.status), other.c.id != JOB.id)
    return select(other.c.id).where(_ONE, same_key)


@cache
def cancelled_ids() -> Executable:
    """The newest cancelled jobs. Parameters: `of_name` (or None), `limit`."""
    return _ids_of(in_state(JobState.cancelled), order=(JOB.id.desc(),))


@cache
def live_ids(state: JobState | None) -> Executable:
    """Jobs that are not complete, or those in one state, in no order. Parameters: `of_name` (or None), `limit`."""
    return _ids_of(or_(IS_SCHEDULED, IS_READY) if state is None else in_state(state))


def _ids_of(condition: ColumnElement[bool], order: Iterable[ColumnElement[int]] = ()) -> Executable:
    of_name = text_parameter("of_name")
    named = or_(of_name.is_(None), JOB.name == of_name)
    return select(JOB.id).where(condition, named).order_by(*order).limit(bindparam("limit", type_=Integer()))


@cache
def prune() -> Executable:
    """Delete old complete jobs in a page of ids. Parameters: `first, last, days, failed_days`."""
    age = -seconds_until(JOB.updated_at) / 86_400.0
    kept_for = case((IS_FAILED, number_parameter("failed_days")), else_=number_parameter("days"))
    return delete(JOBS).where(
        JOB.id.between(bindparam("first", type_=BIGINT), bindparam("last", type_=BIGINT)),
        JOB.status > READY,
        age > kept_for,
    )
