"""The rows in which workers say that they are alive, and what the live ones hold."""

from functools import cache

from sqlalchemy import Executable, Integer, Uuid, bindparam, case, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_skip

from queue_kit._dialect.clock import clock_time, seconds_until, statement_time, time_from_now
from queue_kit._dialect.plans import first_of
from queue_kit._statements.vocabulary import IS_READY, JOB, WORKER, number_parameter
from queue_kit.models import WORKERS

ALIVE_SECONDS = 45.0
"""A worker that was not seen for longer than this is not counted as alive; it writes its row every 10 seconds."""


@cache
def greet() -> Executable:
    """Write a worker's row, unless it is there. Parameters: `id, label, host, pid, names`. Returns `seen_at`, now."""
    return insert_or_skip(WORKERS).on_conflict_do_nothing().returning(WORKER.seen_at)


@cache
def seen() -> Executable:
    """Note that a worker is alive, and for how long it asks to be notified, unless somebody has its row locked.
    Parameters: `worker`, `jobs_running`, `asleep_for` (seconds, or None). Returns `seen_at`, now."""
    free = select(WORKER.id).where(WORKER.id == bindparam("worker", type_=Uuid())).with_for_update(skip_locked=True)
    asleep_for = number_parameter("asleep_for")
    return (
        update(WORKERS)
        .where(WORKER.id.in_(free))
        .values(
            seen_at=clock_time(),
            running=bindparam("jobs_running", type_=Integer()),
            idle_until=case((asleep_for.is_not(None), time_from_now(func.coalesce(asleep_for, 0.0)))),
        )
        .returning(WORKER.seen_at)
    )


@cache
def worker_exists() -> Executable:
    """Whether a worker's row is visible. Parameters: `worker`."""
    return select(WORKER.id).where(WORKER.id == bindparam("worker", type_=Uuid()))


@cache
def depart() -> Executable:
    """Delete a worker's row. Parameters: `worker`."""
    return delete(WORKERS).where(WORKER.id == bindparam("worker", type_=Uuid()))


@cache
def forget_dead_workers() -> Executable:
    """Delete the rows of workers that were not seen for a day."""
    return delete(WORKERS).where(seconds_until(WORKER.seen_at) < -86_400.0)


@cache
def names_alive() -> Executable:
    """The names that each live worker runs."""
    return select(WORKER.names).where(seconds_until(WORKER.seen_at) > -ALIVE_SECONDS)


@cache
def workers_alive() -> Executable:
    """The workers that are alive, the oldest first."""
    ago = -seconds_until(WORKER.seen_at)
    return (
        select(*WORKER, ago.label("seen_seconds_ago")).where(ago < ALIVE_SECONDS).order_by(WORKER.started_at, WORKER.id)
    )


@cache
def held_jobs() -> Executable:
    """The jobs with a live lease among the first of the order. Parameters: `limit`. Returns `id, name, retry_count,
    worker_id`."""
    order = (JOB.priority, JOB.scheduled_at, JOB.id)
    ready = select(*order, JOB.name, JOB.retry_count, JOB.worker_id, JOB.lease_until).where(IS_READY).order_by(*order)
    head = first_of(ready, bindparam("limit", type_=Integer())).subquery("head").c
    return (
        select(head.id, head.name, head.retry_count, head.worker_id)
        .where(head.lease_until >= statement_time(), head.worker_id.is_not(None))
        .order_by(head.priority, head.scheduled_at, head.id)
    )
