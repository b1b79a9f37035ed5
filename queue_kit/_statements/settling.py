"""Jobs that a worker holds: it renews their leases, and writes how they ended, many in one statement. A row that
somebody else has locked is left for later. How one job ends inside its handler's own transaction is in `fencing`.
"""

from functools import cache
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Executable,
    Float,
    Integer,
    SmallInteger,
    Uuid,
    bindparam,
    case,
    delete,
    null,
    select,
    update,
)

from queue_kit._dialect.batches import json_batch, json_rows
from queue_kit._dialect.clock import clock_time, never, time_from_now
from queue_kit._dialect.columns import BIGINT, JSON_TYPE
from queue_kit._dialect.documents import with_error
from queue_kit._dialect.plans import any_row, row_pointer, where_also
from queue_kit._statements.vocabulary import COMPLETION, IS_READY, JOB, number_parameter, text_parameter
from queue_kit.models import CANCELLED, JOBS


def _ours(batch: Any) -> ColumnElement[bool]:
    """The rows of a batch that we still hold, but not those that somebody else has locked: they settle later.

    Always by their ids: where the statistics are of an empty queue, PostgreSQL would take all that waits for a row or
    two, and compare each with the whole batch (300 ms for 5).
    """
    held = (
        select(row_pointer())
        .select_from(JOBS)
        .where(JOB.id == batch.id, where_also(IS_READY, *_claimed_as(batch)))
        .with_for_update(key_share=True, skip_locked=True, of=JOBS)
    )
    return any_row(held)


def _claimed_as(batch: Any) -> tuple[ColumnElement[bool], ...]:
    return JOB.claim_no == batch.claim_no, JOB.worker_id == bindparam("worker", type_=Uuid())


def _fences() -> Any:
    return json_rows(text_parameter("batch"), id=BIGINT, claim_no=Integer()).c


def _endings(**fields: Any) -> Any:
    return json_batch(text_parameter("batch"), id=BIGINT, claim_no=Integer(), **fields).c


@cache
def complete() -> Executable:
    """Finish jobs that succeeded. Parameters: `batch` of `[id, claim_no]`, `worker`. Returns the ids settled."""
    return update(JOBS).where(_ours(_fences())).values(COMPLETION).returning(JOB.id)


@cache
def remove() -> Executable:
    """Delete jobs that ended. Parameters and result as `complete`."""
    return delete(JOBS).where(_ours(_fences())).returning(JOB.id)


@cache
def close() -> Executable:
    """Finish jobs that did not succeed. Parameters: `batch` of `id, claim_no, status, failed, error`, `worker`."""
    batch = _endings(status=SmallInteger(), failed=Integer(), error=JSON_TYPE)
    return (
        update(JOBS)
        .where(_ours(batch), JOB.id == batch.id)
        .values(
            status=batch.status,
            retry_count=JOB.retry_count + batch.failed,
            errors=with_error(JOB.errors, batch.error),
            updated_at=clock_time(),
            lease_until=never(),
        )
        .returning(JOB.id)
    )


@cache
def put_back() -> Executable:
    """Give jobs back to the queue. Parameters: `batch` of `id, claim_no, failed, lapsed, forgiven, delay, error`,
    `worker`.

    Without `delay` the due time stays. `failed` and `lapsed` are counted, `forgiven` forgets lapsed leases. A job that
    is to be cancelled does not come back.
    """
    batch = _endings(failed=Integer(), lapsed=Integer(), forgiven=Boolean(), delay=Float(53), error=JSON_TYPE)
    due = case((batch.delay.is_(None), JOB.scheduled_at), else_=time_from_now(batch.delay))
    return (
        update(JOBS)
        .where(_ours(batch), JOB.id == batch.id)
        .values(
            status=case((JOB.cancel_requested, CANCELLED), else_=JOB.status),
            worker_id=null(),
            lease_until=never(),
            scheduled_at=due,
            retry_count=JOB.retry_count + batch.failed,
            lost=case((batch.forgiven, 0), else_=JOB.lost + batch.lapsed),
            errors=with_error(JOB.errors, batch.error),
            updated_at=clock_time(),
        )
        .returning(JOB.id)
    )


@cache
def still_ours() -> Executable:
    """Which jobs of a batch we hold, locked or not, and whether they are complete. Parameters as `complete`.

    Returns `id, status`: a status beyond ready means that the batch was settled by us before, and only its reply lost.
    """
    batch = _fences()
    return select(JOB.id, JOB.status).where(JOB.id == batch.id, where_also(*_claimed_as(batch)))


@cache
def stored() -> Executable:
    """Whether there is a job, whoever holds it. Parameters: `job_id`. Returns its id."""
    return select(JOB.id).where(JOB.id == bindparam("job_id", type_=BIGINT))


@cache
def renew() -> Executable:
    """Extend leases. Parameters: `batch` of `[id, claim_no]`, `worker`, `lease`. Returns `id, cancel_requested`."""
    return (
        update(JOBS)
        .where(_ours(_fences()))
        .values(lease_until=time_from_now(number_parameter("lease")))
        .returning(JOB.id, JOB.cancel_requested)
    )
