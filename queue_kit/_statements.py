"""Every SQL statement of the queue, once, as a function that returns an executable. None knows a connection.

Parameters are named in each docstring; a batch is one JSON text (`as_batch`), so a statement's text never depends on
how many rows it moves. The functions are cached: a statement is built once and then only bound.
"""

# A parameter never has the name of a column: SQLAlchemy would take it for a value to set.

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    Boolean,
    ColumnElement,
    Executable,
    Float,
    Integer,
    SmallInteger,
    SQLColumnExpression,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    false,
    func,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert as insert_or_skip
from sqlalchemy.orm import aliased

from queue_kit._dialect import (
    BIGINT,
    JSON_TYPE,
    UtcDateTime,
    any_row,
    as_utc_text,
    beginning_of,
    clock_time,
    flushed_later,
    json_batch,
    json_text,
    last_element,
    member_of,
    never,
    row_pointer,
    seconds_until,
    sorted_by,
    statement_time,
    text_size,
    time_from_now,
    time_text,
    with_error,
)
from queue_kit.job import JobState, NewJob, Verdict
from queue_kit.models import (
    CANCELLED,
    COMPLETED,
    CRON_ENTRIES,
    FAILED,
    HISTORY,
    JOBS,
    READY,
    SCHEDULED,
    WORKERS,
    JobRow,
    SchemaRow,
)

JOB = JOBS.c
CRON = CRON_ENTRIES.c
WORKER = WORKERS.c
PAST = HISTORY.c

# Written out, not bound: neither planner matches a parameter with the condition of a partial index.
_READY = JOB.status == literal_column(str(READY))
_SCHEDULED = JOB.status == literal_column(str(SCHEDULED))
_FAILED = JOB.status == literal_column(str(FAILED))


def _is_live(status: SQLColumnExpression[int]) -> ColumnElement[bool]:
    return status < literal_column(str(COMPLETED))


_LIVE = _is_live(JOB.status)

ALIVE_SECONDS = 45.0
"""A worker that was not seen for longer than this is not counted as alive; it writes its row every 10 seconds."""

_JSON_PARAMETERS = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def as_batch(rows: Iterable[Any]) -> str:
    """Rows (or plain values) as the one JSON parameter that a statement takes."""
    return _JSON_PARAMETERS.encode(list(rows))


def _text(name: str) -> ColumnElement[str]:
    return bindparam(name, type_=Text())


def _number(name: str) -> ColumnElement[float]:
    return bindparam(name, type_=Float(53))


# --- enqueue ----------------------------------------------------------------------------------------------------------


@cache
def insert_jobs() -> Executable:
    """Insert jobs, skipping those whose unique key is taken; returns `id, unique_key`. Parameters: `jobs`, which is
    `jobs_batch`."""
    return _insert_jobs(_text("jobs"))


def insert_these_jobs(batch: str) -> Executable:
    """The same, with its `jobs_batch` in it: slower, since it is built anew each time."""
    return _insert_jobs(bindparam("jobs", batch, type_=Text()))


def jobs_batch(jobs: Iterable[tuple[NewJob[Any], Mapping[str, Any] | None]]) -> str:
    """Jobs with their trace contexts, as the parameter of `insert_jobs`."""
    return as_batch(_as_row(*job) | {"position": at} for at, job in enumerate(jobs))


def _insert_jobs(jobs: ColumnElement[str]) -> Executable:
    batch = json_batch(
        jobs,
        name=Text(),
        data=JSON_TYPE,
        priority=SmallInteger(),
        scheduled_at=UtcDateTime(),
        position=Integer(),
        delay=Float(53),
        handler_timeout=Float(53),
        max_retry_count=Integer(),
        unique_key=Text(),
        trace_context=JSON_TYPE,
    ).c
    due = func.coalesce(batch.scheduled_at, time_from_now(func.coalesce(batch.delay, 0.0)), type_=UtcDateTime())
    columns: dict[str, ColumnElement[Any]] = {
        "name": batch.name,
        "data": batch.data,
        "priority": batch.priority,
        "scheduled_at": due,
        "handler_timeout": batch.handler_timeout,
        "max_retry_count": batch.max_retry_count,
        "unique_key": batch.unique_key,
        "trace_context": batch.trace_context,
    }
    # Ordered by key, so that writers who insert the same keys never deadlock, and within that as given.
    rows = select(*columns.values()).order_by(batch.unique_key.is_not(None), batch.unique_key, batch.position)
    return (
        insert_or_skip(JOBS)
        .from_select(list(columns), rows, include_defaults=False)
        .on_conflict_do_nothing()
        .returning(JOB.id, JOB.unique_key)
    )


def _as_row(job: NewJob[Any], trace: Mapping[str, Any] | None) -> dict[str, Any]:
    timeout = job.handler_timeout
    optional = {
        "scheduled_at": None if job.scheduled_at is None else as_utc_text(job.scheduled_at),
        "delay": job.delay,
        "handler_timeout": "Infinity" if timeout == math.inf else timeout,
        "max_retry_count": job.max_retry_count,
        "unique_key": job.unique_key,
        "trace_context": trace,
    }
    row = {"name": job.name, "data": job.payload, "priority": job.priority}
    return row | {key: value for key, value in optional.items() if value is not None}


@cache
def hand_over_key() -> Executable:
    """Give up the unique key of a job that we run. Parameters: the fence."""
    return update(JOBS).where(*_fence()).values(unique_key=null())


# --- claim ------------------------------------------------------------------------------------------------------------


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
    candidates = (
        _claimable(
            select(row_pointer().label("pointer"), suspicion.label("suspicion"), text_size(JOB.data).label("size")),
            suspicion >= bindparam("suspects_from", type_=Integer()),
            suspicion < bindparam("suspects_below", type_=Integer()),
            not_(member_of(JOB.id, _text("running_ids"))),
            # A row that nobody holds is not compared with the long list: it would double the cost of a claim.
            or_(JOB.worker_id.is_(None), not_(member_of(JOB.id, _text("held_ids")))),
        )
        .limit(wanted + bindparam("ahead", type_=Integer()))
        .with_for_update(key_share=True, skip_locked=True)
    )
    candidate = candidates.subquery("candidate").c
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
            lease_until=time_from_now(_number("lease")),
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
            time_text(JOB.created_at).label("created_at"),
            time_text(JOB.cron_tick).label("cron_tick"),
            json_text(JOB.data).label("data"),
            json_text(JOB.trace_context).label("trace_context"),
            _of_entry(CRON.expression).label("cron_expression"),
            time_text(_of_entry(CRON.last_completed_at)).label("cron_last_completed_at"),
        )
    )


def _of_entry(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column of the cron definition that a job is an occurrence of."""
    return select(column).where(CRON.name == JOB.cron_name).correlate(JOBS).scalar_subquery()


def _claimable(found: Any, *conditions: ColumnElement[bool]) -> Any:  # a Select, of which 2.0 and 2.1 differ in type
    """Jobs that are due and free, in order, behind a place.

    The conditions stand in a CASE: added up one by one, PostgreSQL takes them for so selective that it reads and sorts
    the whole table (200 ms for 1).
    """
    after = tuple_(
        bindparam("after_priority", type_=SmallInteger()),
        bindparam("after_due", type_=UtcDateTime()),
        bindparam("after_id", type_=BIGINT),
    )
    free = and_(
        JOB.lease_until < statement_time(),
        JOB.scheduled_at <= statement_time(),
        member_of(JOB.name, _text("names")),
        *conditions,
    )
    return (
        found.select_from(JOBS)
        .where(_READY, tuple_(JOB.priority, JOB.scheduled_at, JOB.id) > after, case((free, true()), else_=false()))
        .order_by(JOB.priority, JOB.scheduled_at, JOB.id)
    )


# --- settle -----------------------------------------------------------------------------------------------------------


def _fence() -> tuple[ColumnElement[bool], ...]:
    return (
        JOB.id == bindparam("job_id", type_=BIGINT),
        JOB.worker_id == bindparam("worker", type_=Uuid()),
        JOB.claim_no == bindparam("claim", type_=Integer()),
        _READY,
    )


def _ours(batch: Any) -> ColumnElement[bool]:
    """The rows of a batch that we still hold, but not those that somebody else has locked: they settle later."""
    worker_id = bindparam("worker", type_=Uuid())
    held = (
        select(row_pointer())
        .select_from(JOBS)
        .where(JOB.id == batch.id, JOB.claim_no == batch.claim_no, JOB.worker_id == worker_id, _READY)
        .with_for_update(key_share=True, skip_locked=True, of=JOBS)
    )
    return any_row(held)


def _held_batch(**fields: Any) -> Any:
    return json_batch(_text("batch"), id=BIGINT, claim_no=Integer(), **fields).c


_COMPLETED = {"status": COMPLETED, "updated_at": clock_time(), "lease_until": never()}


@cache
def complete() -> Executable:
    """Finish jobs that succeeded. Parameters: `batch` of `id, claim_no`, `worker`. Returns the ids settled."""
    return update(JOBS).where(_ours(_held_batch())).values(_COMPLETED).returning(JOB.id)


@cache
def remove() -> Executable:
    """Delete jobs that ended. Parameters and result as `complete`."""
    return delete(JOBS).where(_ours(_held_batch())).returning(JOB.id)


@cache
def close() -> Executable:
    """Finish jobs that did not succeed. Parameters: `batch` of `id, claim_no, status, failed, error`, `worker`."""
    batch = _held_batch(status=SmallInteger(), failed=Integer(), error=JSON_TYPE)
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
    batch = _held_batch(failed=Integer(), lapsed=Integer(), forgiven=Boolean(), delay=Float(53), error=JSON_TYPE)
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
    batch = _held_batch()
    return select(JOB.id, JOB.status).where(
        JOB.id == batch.id,
        JOB.claim_no == batch.claim_no,
        JOB.worker_id == bindparam("worker", type_=Uuid()),
    )


@cache
def stored() -> Executable:
    """Whether there is a job, whoever holds it. Parameters: `job_id`. Returns its id."""
    return select(JOB.id).where(JOB.id == bindparam("job_id", type_=BIGINT))


@cache
def renew() -> Executable:
    """Extend leases. Parameters: `batch` of `id, claim_no`, `worker`, `lease`. Returns `id, cancel_requested`."""
    return (
        update(JOBS)
        .where(_ours(_held_batch()))
        .values(lease_until=time_from_now(_number("lease")))
        .returning(JOB.id, JOB.cancel_requested)
    )


# The same endings inside a handler's own transaction: these wait for a locked row instead of leaving it for later.


@cache
def checkpoint_one() -> Executable:
    """Renew the lease of one job inside its handler's transaction. Parameters: the fence, `lease`."""
    return update(JOBS).where(*_fence()).values(lease_until=time_from_now(_number("lease")))


@cache
def limit_lock_wait() -> Executable:
    """Bound the wait for a lock in this transaction (PostgreSQL). Parameters: `milliseconds`, as text."""
    return _set_locally("lock_timeout")


@cache
def limit_statements() -> Executable:
    """Bound each statement of this transaction from here on (PostgreSQL). Parameters: `milliseconds`, as text."""
    return _set_locally("statement_timeout")


def _set_locally(setting: str) -> Executable:
    return select(func.set_config(setting, bindparam("milliseconds", type_=Text()), literal_column("true")))


@cache
def statement_timeout() -> Executable:
    """The milliseconds that a session gives each statement (PostgreSQL); 0 is for ever."""
    return text("SELECT setting::integer FROM pg_settings WHERE name = 'statement_timeout'")


@cache
def complete_one() -> Executable:
    """Finish one job inside its handler's transaction. Parameters: the fence."""
    return update(JOBS).where(*_fence()).values(_COMPLETED)


@cache
def remove_one() -> Executable:
    """Delete one job inside its handler's transaction. Parameters: the fence."""
    return delete(JOBS).where(*_fence())


# --- sweep ------------------------------------------------------------------------------------------------------------


@cache
def look() -> Executable:
    """What there is to do. Parameters: `names`, and the place to begin behind, as in `claim`. Returns `claimable`,
    `due_in` (seconds to the first scheduled job), `cron_missing` (whether a definition has no live occurrence)."""
    due_in = select(seconds_until(func.min(JOB.scheduled_at))).where(_SCHEDULED).scalar_subquery()
    return select(
        # Not EXISTS, for which the order would not count, nor the index that has it.
        _claimable(select(JOB.id)).limit(1).scalar_subquery().is_not(None).label("claimable"),
        due_in.label("due_in"),
        exists(select(CRON.name).where(_without_occurrence())).label("cron_missing"),
    )


@cache
def promote() -> Executable:
    """Make scheduled jobs ready that are due. Parameters: `limit`. Returns their ids."""
    due = (
        select(row_pointer())
        .select_from(JOBS)
        .where(_SCHEDULED, JOB.scheduled_at <= statement_time())
        .order_by(JOB.scheduled_at)
        .limit(bindparam("limit", type_=Integer()))
        .with_for_update(key_share=True, skip_locked=True)
    )
    return update(JOBS).where(any_row(due)).values(status=READY).returning(JOB.id)


# --- cron -------------------------------------------------------------------------------------------------------------

CRON_LOCK = 0x71_6B_63_72_6F_6E  # an arbitrary number, the same in every process: "qkcron"


@cache
def database_time() -> Executable:
    """The database's clock."""
    return select(clock_time())


@cache
def lock_cron() -> Executable:
    """Let one registration run at a time, until its transaction ends (PostgreSQL)."""
    return select(func.pg_advisory_xact_lock(CRON_LOCK))


@cache
def cron_definitions() -> Executable:
    """All definitions, locked for this transaction."""
    return select(*CRON).order_by(CRON.name).with_for_update()


@cache
def cron_names() -> Executable:
    """The names of all definitions."""
    return select(CRON.name)


@cache
def cron_occurrences() -> Executable:
    """The live occurrences that do not run now, locked, and whether each is overdue."""
    return (
        select(JOB.id, JOB.cron_name, (JOB.scheduled_at <= statement_time()).label("overdue"))
        .where(JOB.cron_name.is_not(None), _LIVE, JOB.lease_until < statement_time())
        .with_for_update(skip_locked=True)
    )


def _without_occurrence() -> ColumnElement[bool]:
    live = exists(select(JOB.id).where(JOB.cron_name == CRON.name, _LIVE))
    return and_(not_(CRON.paused), not_(live))


@cache
def cron_missing() -> Executable:
    """Definitions without a live occurrence, locked; one that somebody else has locked is left for the next sweep."""
    return (
        select(*CRON, clock_time().label("now"))
        .where(_without_occurrence())
        .with_for_update(skip_locked=True, key_share=True, of=CRON_ENTRIES)
    )


@cache
def cron_successor() -> Executable:
    """The definition that an ending occurrence goes on from. Parameters: `entry`. No row: no successor now."""
    return (
        select(*CRON, clock_time().label("now"))
        .where(CRON.name == bindparam("entry", type_=Text()))
        .with_for_update(skip_locked=True, key_share=True)
    )


@cache
def insert_occurrence() -> Executable:
    """Store an occurrence unless one is live. Parameters: `job_name, job_priority, job_data, job_timeout, tick`."""
    tick = bindparam("tick", type_=UtcDateTime())
    name = bindparam("job_name", type_=Text())
    return (
        insert_or_skip(JOBS)
        .values(
            name=name,
            cron_name=name,
            priority=bindparam("job_priority", type_=SmallInteger()),
            data=bindparam("job_data", type_=JSON_TYPE),
            handler_timeout=bindparam("job_timeout", type_=Float(53)),
            scheduled_at=tick,
            cron_tick=tick,
        )
        .on_conflict_do_nothing()
        .returning(JOB.id)
    )


@cache
def advance_cron() -> Executable:
    """Note the tick of the occurrence just stored, if one was, and with `completed` that one succeeded. Parameters:
    `entry`, `tick` (or None), `completed`."""
    completed = bindparam("completed", type_=Boolean())
    return (
        update(CRON_ENTRIES)
        .where(CRON.name == bindparam("entry", type_=Text()))
        .values(
            next_at=func.coalesce(bindparam("tick", type_=UtcDateTime()), CRON.next_at),
            last_completed_at=case((completed, clock_time()), else_=CRON.last_completed_at),
        )
    )


@cache
def lock_cron_entry() -> Executable:
    """A definition, locked for this transaction as by `cron_successor`, but waited for. Parameters: `entry`."""
    return select(*CRON).where(CRON.name == _text("entry")).with_for_update(key_share=True)


@cache
def pause_cron() -> Executable:
    """Pause a definition. Parameters: `entry`."""
    return update(CRON_ENTRIES).where(CRON.name == _text("entry")).values(paused=True)


@cache
def resume_cron() -> Executable:
    """Resume a definition; a tick that was cancelled by the pause and lies ahead comes back. Parameters: `entry`."""
    next_at = case((CRON.next_at > statement_time(), clock_time()), else_=CRON.next_at)
    return update(CRON_ENTRIES).where(CRON.name == _text("entry")).values(paused=False, next_at=next_at)


def _waiting_occurrence() -> tuple[ColumnElement[bool], ...]:
    return JOB.cron_name == _text("entry"), _LIVE, JOB.lease_until < statement_time()


@cache
def cancel_occurrence() -> Executable:
    """Cancel the live occurrence of a definition unless it runs. Parameters: `entry`."""
    return (
        update(JOBS)
        .where(*_waiting_occurrence())
        .values(cancel_requested=True, status=CANCELLED, worker_id=null(), updated_at=clock_time())
    )


@cache
def hasten_occurrence() -> Executable:
    """Make the live occurrence of a definition due now, unless it runs; a tick that lies ahead becomes now. Parameters:
    `entry`. Returns `id, cron_tick`."""

    def now_at_the_latest(time: Any) -> ColumnElement[Any]:
        # The clock would be read twice, and the two columns differ by a microsecond.
        return case((time > statement_time(), statement_time()), else_=time)

    return (
        update(JOBS)
        .where(*_waiting_occurrence())
        .values(
            status=READY,
            scheduled_at=now_at_the_latest(JOB.scheduled_at),
            cron_tick=now_at_the_latest(JOB.cron_tick),
        )
        .returning(JOB.id, JOB.cron_tick)
    )


@cache
def live_occurrence() -> Executable:
    """The live occurrence of a definition, running or not. Parameters: `entry`. Returns its id."""
    return select(JOB.id).where(JOB.cron_name == _text("entry"), _LIVE)


@cache
def cron_overview() -> Executable:
    """Every definition with its live occurrence, and the one that ended last."""
    live, last, ended = (aliased(JobRow, name=name) for name in ("live", "last", "ended"))
    last_id = (
        select(ended.id)
        .where(ended.cron_name == CRON.name, not_(_is_live(ended.status)))
        .order_by(ended.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    return (
        select(
            *(column for column in CRON if column is not CRON.next_at),
            live.scheduled_at.label("next_at"),
            live.id.label("job_id"),
            live.state.label("job_state"),
            last.id.label("last_job_id"),
            last.state.label("last_state"),
            last.updated_at.label("last_ended_at"),
        )
        .select_from(CRON_ENTRIES)
        .outerjoin(live, and_(live.cron_name == CRON.name, _is_live(live.status)))
        .outerjoin(last, last.id == last_id)
        .order_by(CRON.name)
    )


# --- workers and schema -----------------------------------------------------------------------------------------------


@cache
def greet() -> Executable:
    """Write a worker's row, unless it is there. Parameters: `id, label, host, pid, names`. Returns `seen_at`, now."""
    return insert_or_skip(WORKERS).on_conflict_do_nothing().returning(WORKER.seen_at)


@cache
def seen() -> Executable:
    """Note that a worker is alive, and for how long it asks to be notified, unless somebody has its row locked.
    Parameters: `worker`, `jobs_running`, `asleep_for` (seconds, or None). Returns `seen_at`, now."""
    free = select(WORKER.id).where(WORKER.id == bindparam("worker", type_=Uuid())).with_for_update(skip_locked=True)
    asleep_for = _number("asleep_for")
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
    head = (
        select(*order, JOB.name, JOB.retry_count, JOB.worker_id, JOB.lease_until)
        .where(_READY)
        .order_by(*order)
        .limit(bindparam("limit", type_=Integer()))
        .subquery("head")
        .c
    )
    return (
        select(head.id, head.name, head.retry_count, head.worker_id)
        .where(head.lease_until >= statement_time(), head.worker_id.is_not(None))
        .order_by(head.priority, head.scheduled_at, head.id)
    )


@cache
def schema_version() -> Executable:
    """The schema's version and the oldest one it is compatible with."""
    return select(SchemaRow.version, SchemaRow.compatible_from).order_by(SchemaRow.version.desc()).limit(1)


# --- history ----------------------------------------------------------------------------------------------------------


@cache
def add_history() -> Executable:
    """Add what runs came to. Parameters: `batch` of `minute, name`, a count for each verdict (or none), `run_seconds,
    longest_run, wait_seconds, longest_wait`."""
    sums = [*Verdict, "run_seconds", "wait_seconds"]
    counts = {verdict.value: Integer() for verdict in Verdict}
    seconds = dict.fromkeys(("run_seconds", "longest_run", "wait_seconds", "longest_wait"), Float(53))
    batch = json_batch(_text("batch"), minute=UtcDateTime(), name=Text(), **counts, **seconds).c
    given = {column.key: column for column in batch} | {key: func.coalesce(batch[key], 0) for key in counts}
    # Ordered, so that workers that add to the same rows never deadlock.
    rows = select(*given.values()).where(flushed_later()).order_by(batch.minute, batch.name)
    new = insert_or_skip(HISTORY).from_select(list(given), rows, include_defaults=False)
    added = {column: PAST[column] + new.excluded[column] for column in sums}
    longest = {
        column: case((PAST[column] > new.excluded[column], PAST[column]), else_=new.excluded[column])
        for column in ("longest_run", "longest_wait")
    }
    return new.on_conflict_do_update(index_elements=[PAST.minute, PAST.name], set_=added | longest)


@cache
def oldest_history() -> Executable:
    """The first minute of the history, and the database's clock."""
    return select(func.min(PAST.minute).label("minute"), clock_time().label("now"))


@cache
def prune_history() -> Executable:
    """Delete what is older than a minute of the history. Parameters: `before`."""
    return delete(HISTORY).where(PAST.minute < bindparam("before", type_=UtcDateTime()))


@cache
def history() -> Executable:
    """What runs came to, minute by minute. Parameters: `since`, `until`, `of_name` (or None: all together)."""
    of_name = _text("of_name")
    statement: Executable = _past(PAST.minute).where(or_(of_name.is_(None), PAST.name == of_name))
    return statement


@cache
def history_by_name() -> Executable:
    """What runs came to, name by name. Parameters: `since`, `until`."""
    statement: Executable = _past(PAST.name)
    return statement


def _past(by: ColumnElement[Any]) -> Any:
    sums = [func.sum(PAST[column]).label(column) for column in (*Verdict, "run_seconds", "wait_seconds")]
    longest = [func.max(PAST[column]).label(column) for column in ("longest_run", "longest_wait")]
    since, until = (bindparam(name, type_=UtcDateTime()) for name in ("since", "until"))
    return select(by, *sums, *longest).where(PAST.minute >= since, PAST.minute < until).group_by(by).order_by(by)


# --- operate ----------------------------------------------------------------------------------------------------------


def in_state(state: JobState) -> ColumnElement[bool]:
    """Whether a job is in a state, in words that the partial indexes are found by."""
    match state:
        case JobState.running:
            return and_(_READY, JOB.lease_until >= statement_time())
        case JobState.ready:
            return and_(_READY, JOB.lease_until < statement_time())
        case _:
            numbers = {
                JobState.scheduled: SCHEDULED,
                JobState.completed: COMPLETED,
                JobState.failed: FAILED,
                JobState.cancelled: CANCELLED,
            }
            return JOB.status == literal_column(str(numbers[state]))


def newest_first(state: JobState | None) -> ColumnElement[int]:
    """The order of a page of jobs, all or in one state: those of a state that has an index of its own are sorted."""
    has_index = state in (JobState.scheduled, JobState.ready, JobState.running, JobState.failed)
    return (sorted_by(JOB.id) if has_index else JOB.id).desc()


_ONE = JOB.id == bindparam("job_id", type_=BIGINT)


def _many() -> ColumnElement[bool]:
    return member_of(JOB.id, _text("job_ids"))


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
        .where(chosen, _LIVE)
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
    live = _is_live(other.c.status)
    key_taken = exists(select(other.c.id).where(other.c.unique_key == JOB.unique_key, live))
    succeeded = exists(select(other.c.id).where(other.c.cron_name == JOB.cron_name, live))
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
            cron_name=case((succeeded, null()), else_=JOB.cron_name),
        )
        .returning(JOB.id)
    )


@cache
def run_now() -> Executable:
    """Make a job due that waits. Parameters: `job_id`. Returns its id; no row: it runs, or is complete."""
    due = case((JOB.scheduled_at > statement_time(), clock_time()), else_=JOB.scheduled_at)
    waits = and_(_LIVE, JOB.lease_until < statement_time())
    return update(JOBS).where(_ONE, waits).values(status=READY, scheduled_at=due).returning(JOB.id)


_TEXTS = {"error_class": "class", "message": "message", "reason": "reason"}
"""What a record of an error says, by the labels that statements give it."""


def job_heads() -> list[ColumnElement[Any]]:
    """What a list shows of a job, in types that no row can spoil, with the beginnings of its last error's texts."""
    return [
        *(JOB.id, JOB.name, JOB.priority, JOB.retry_count, JOB.max_retry_count, JOB.unique_key),
        JobRow.state.label("state"),
        *(time_text(column).label(column.name) for column in (JOB.scheduled_at, JOB.updated_at)),
        *(beginning_of(last_element(JOB.errors), key).label(label) for label, key in _TEXTS.items()),
    ]


def job_texts() -> list[ColumnElement[Any]]:
    """All of a job, and its state: times, JSON and the worker as text, in which no row can spoil them."""
    return [JobRow.state.label("state"), *(_as_text(column).label(column.name) for column in JOBS.columns)]


def _as_text(column: ColumnElement[Any]) -> ColumnElement[Any]:
    match column.type:
        case UtcDateTime():
            return time_text(column)
        case JSON():
            return json_text(column)
        case Uuid():
            return cast(column, Text())
        case _:
            return column


@cache
def created_behind() -> Executable:
    """The first job from an id on. Parameters: `first`. Returns `id, created_at` (as text)."""
    first = bindparam("first", type_=BIGINT)
    return (
        select(JOB.id, time_text(JOB.created_at).label("created_at")).where(JOB.id >= first).order_by(JOB.id).limit(1)
    )


@cache
def failed_lately() -> Executable:
    """The jobs that failed last, the latest first, with the beginnings of their last error's texts. Parameters:
    `limit`. Returns `id, name, updated_at` (as text), `error_class, message, reason`."""
    return _failures(_FAILED, JOB.updated_at.desc())


@cache
def failed_of_name() -> Executable:
    """The same of the newest failed jobs of one name. Parameters: `of_name`, `limit`."""
    return _failures(and_(_FAILED, JOB.name == _text("of_name")), JOB.id.desc())


def _failures(chosen: ColumnElement[bool], newest_first: ColumnElement[Any]) -> Executable:
    lately = (
        select(JOB.id, JOB.name, JOB.updated_at, last_element(JOB.errors).label("error"))
        .where(chosen)
        .order_by(newest_first)
        .limit(bindparam("limit", type_=Integer()))
        .subquery("lately")
        .c
    )
    return select(
        lately.id,
        lately.name,
        time_text(lately.updated_at).label("updated_at"),
        *(beginning_of(lately.error, key).label(label) for label, key in _TEXTS.items()),
    ).order_by(lately.updated_at.desc())


@cache
def cancelled_ids() -> Executable:
    """The newest cancelled jobs. Parameters: `of_name` (or None), `limit`."""
    return _ids_of(in_state(JobState.cancelled), order=(JOB.id.desc(),))


@cache
def live_ids(state: JobState | None) -> Executable:
    """Jobs that are not complete, or those in one state, in no order. Parameters: `of_name` (or None), `limit`."""
    return _ids_of(or_(_SCHEDULED, _READY) if state is None else in_state(state))


def _ids_of(condition: ColumnElement[bool], order: Iterable[ColumnElement[int]] = ()) -> Executable:
    of_name = _text("of_name")
    named = or_(of_name.is_(None), JOB.name == of_name)
    return select(JOB.id).where(condition, named).order_by(*order).limit(bindparam("limit", type_=Integer()))


@cache
def key_holder() -> Executable:
    """The live job that holds the same unique key as this one. Parameters: `job_id`."""
    other = JOBS.alias("other")
    same_key = and_(other.c.unique_key == JOB.unique_key, _is_live(other.c.status), other.c.id != JOB.id)
    return select(other.c.id).where(JOB.id == bindparam("job_id", type_=BIGINT), same_key)


@cache
def counts() -> Executable:
    """How many live and failed jobs there are by name and state, and for how long the first due one waits."""
    waiting_since = func.min(case((_is_due(), JOB.scheduled_at)))
    group = case((_is_due(), literal("pending")), else_=JobRow.state)
    live = (
        select(
            JOB.name, group.label("state"), func.count().label("count"), seconds_until(waiting_since).label("due_in")
        )
        .where(or_(_SCHEDULED, _READY))
        .group_by(JOB.name, group)
    )
    # Apart, since an index alone answers it: failed jobs lie all over the table.
    failed = select(JOB.name, literal(JobState.failed.value), func.count(), cast(null(), Float(53)))
    return union_all(live, failed.where(_FAILED).group_by(JOB.name))


def _is_due() -> ColumnElement[bool]:
    return and_(_LIVE, JOB.scheduled_at <= statement_time(), JOB.lease_until < statement_time())


@cache
def notify() -> Executable:
    """Wake workers when this transaction commits (PostgreSQL). Parameters: `channel`."""
    return select(func.pg_notify(bindparam("channel", type_=Text()), ""))


@cache
def prune() -> Executable:
    """Delete old complete jobs in a page of ids. Parameters: `first, last, days, failed_days`."""
    age = -seconds_until(JOB.updated_at) / 86_400.0
    kept_for = case((_FAILED, _number("failed_days")), else_=_number("days"))
    return delete(JOBS).where(
        JOB.id.between(bindparam("first", type_=BIGINT), bindparam("last", type_=BIGINT)),
        JOB.status > READY,
        age > kept_for,
    )


@cache
def id_range() -> Executable:
    """The smallest id above `after`, and the largest. Parameters: `after`."""
    return select(func.min(JOB.id), func.max(JOB.id)).where(JOB.id > bindparam("after", type_=BIGINT))


def fence(job_id: int, worker_id: UUID, claim_no: int) -> dict[str, Any]:
    """The parameters that name one run of one job."""
    return {"job_id": job_id, "worker": worker_id, "claim": claim_no}
