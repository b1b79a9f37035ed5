"""Jobs that are due: a worker leases them, looks whether there are any, and makes those ready whose time has come. What
becomes of a job that is leased is in `settling` and `fencing`.
"""

from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Integer,
    SmallInteger,
    Uuid,
    and_,
    bindparam,
    case,
    exists,
    func,
    not_,
    or_,
    select,
    tuple_,
    update,
)

from queue_kit._dialect.batches import member_of
from queue_kit._dialect.clock import seconds_until, statement_time, time_from_now, time_text
from queue_kit._dialect.columns import BIGINT, UtcDateTime
from queue_kit._dialect.documents import json_text, text_size
from queue_kit._dialect.plans import any_row, first_of, flushed_later, row_pointer, where_also
from queue_kit._statements.recurring import without_occurrence
from queue_kit._statements.vocabulary import CRON, IS_READY, IS_SCHEDULED, JOB, number_parameter, text_parameter
from queue_kit.models import JOBS, READY


@cache
def claim() -> Executable:
    """Lease due jobs. Parameters: `names`, `running_ids`, `held_ids` (batches), where to begin (`after_priority`,
    `after_due`, `after_id`), `suspects_from`, `suspects_below`, `wanted`, `ahead`, `bytes_ahead`, `worker`, `lease`.

    Up to `wanted` jobs for free pullers, and up to `ahead` more that never lost a lease, of at most `bytes_ahead` bytes
    of payload together with the others. A job's suspicion is how often its lease has lapsed, this claim included.
    Returned unordered; times and JSON come raw, so that a row nobody can read does not spoil the batch.
    """
    suspicion = JOB.lost + case((JOB.worker_id.is_not(None), 1), else_=0)
    wanted = bindparam("wanted", type_=Integer())
    claimable = _claimable(
        select(row_pointer().label("pointer"), suspicion.label("suspicion"), text_size(JOB.data).label("size")),
        suspicion >= bindparam("suspects_from", type_=Integer()),
        suspicion < bindparam("suspects_below", type_=Integer()),
        not_(member_of(JOB.id, text_parameter("running_ids"))),
        # A row that nobody holds is not compared with the long list: it would double the cost of a claim.
        or_(JOB.worker_id.is_(None), not_(member_of(JOB.id, text_parameter("held_ids")))),
    ).with_for_update(key_share=True, skip_locked=True)
    candidate = first_of(claimable, wanted + bindparam("ahead", type_=Integer())).subquery("candidate").c
    counted = (
        select(
            candidate.pointer,
            candidate.suspicion,
            func.row_number().over(rows=(None, 0)).label("position"),
            func.sum(candidate.size).over(rows=(None, 0)).label("size"),
        )
        .subquery("counted")
        .c
    )
    picked = select(counted.pointer).where(
        or_(
            counted.position <= wanted,
            and_(counted.suspicion == 0, counted.size <= bindparam("bytes_ahead", type_=Integer())),
        ),
        flushed_later(),
    )
    return (
        update(JOBS)
        .where(any_row(picked))
        .values(
            claim_no=JOB.claim_no + 1,
            lost=suspicion,
            worker_id=bindparam("worker", type_=Uuid()),
            lease_until=time_from_now(number_parameter("lease")),
        )
        .returning(
            JOB.id,
            JOB.claim_no,
            JOB.name,
            JOB.priority,
            JOB.retry_count,
            JOB.lost,
            JOB.max_retry_count,
            JOB.handler_timeout,
            JOB.unique_key,
            JOB.cron_name,
            JOB.cancel_requested,
            time_text(JOB.scheduled_at).label("scheduled_at"),
            # Most jobs are due when they are added, and to write a time as text takes a twentieth of a claim.
            time_text(func.nullif(JOB.created_at, JOB.scheduled_at, type_=UtcDateTime())).label("created_at"),
            time_text(JOB.cron_tick).label("cron_tick"),
            json_text(JOB.data).label("data"),
            json_text(JOB.trace_context).label("trace_context"),
            _of_entry(CRON.expression).label("cron_expression"),
            time_text(_of_entry(CRON.last_completed_at)).label("cron_last_completed_at"),
        )
    )


def _of_entry(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column of the cron definition that a job is an occurrence of. It is looked for only if there is one: beside
    twenty definitions that took a third of a claim."""
    entry = select(column).where(CRON.name == JOB.cron_name).correlate(JOBS).scalar_subquery()
    return case((JOB.cron_name.is_not(None), entry))


def _claimable(found: Any, *conditions: ColumnElement[bool]) -> Any:  # a Select, of which 2.0 and 2.1 differ in type
    """Jobs that are due and free, in order, behind a place.

    Added up one by one, PostgreSQL would take the conditions for so selective that it reads and sorts the whole table
    (200 ms for 1).
    """
    after = tuple_(
        bindparam("after_priority", type_=SmallInteger()),
        bindparam("after_due", type_=UtcDateTime()),
        bindparam("after_id", type_=BIGINT),
    )
    free = where_also(
        JOB.lease_until < statement_time(),
        JOB.scheduled_at <= statement_time(),
        member_of(JOB.name, text_parameter("names")),
        *conditions,
    )
    return (
        found.select_from(JOBS)
        .where(IS_READY, tuple_(JOB.priority, JOB.scheduled_at, JOB.id) > after, free)
        .order_by(JOB.priority, JOB.scheduled_at, JOB.id)
    )


@cache
def look() -> Executable:
    """What there is to do. Parameters: `names`, and the place to begin behind, as in `claim`. Returns `claimable`,
    `due_in` (seconds to the first scheduled job), `cron_missing` (whether a definition has no live occurrence)."""
    due_in = select(seconds_until(func.min(JOB.scheduled_at))).where(IS_SCHEDULED).scalar_subquery()
    return select(
        # Not EXISTS, for which the order would not count, nor the index that has it.
        _claimable(select(JOB.id)).limit(1).scalar_subquery().is_not(None).label("claimable"),
        due_in.label("due_in"),
        exists(select(CRON.name).where(without_occurrence())).label("cron_missing"),
    )


@cache
def promote() -> Executable:
    """Make scheduled jobs ready that are due. Parameters: `limit`. Returns their ids."""
    due = (
        select(row_pointer().label("pointer"))
        .select_from(JOBS)
        .where(IS_SCHEDULED, JOB.scheduled_at <= statement_time())
        .order_by(JOB.scheduled_at)
        .with_for_update(key_share=True, skip_locked=True)
    )
    first = first_of(due, bindparam("limit", type_=Integer()))
    return update(JOBS).where(any_row(first)).values(status=READY).returning(JOB.id)
