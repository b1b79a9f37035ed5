"""Cron entries and their occurrences: registering, the next occurrence, and what an operator does to an entry."""

from functools import cache
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Executable,
    Float,
    SmallInteger,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    not_,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as insert_or_skip
from sqlalchemy.orm import aliased

from queue_kit._dialect.clock import clock_time, seconds_until, statement_time
from queue_kit._dialect.columns import JSON_TYPE, UtcDateTime
from queue_kit._statements.vocabulary import CRON, IS_LIVE, JOB, is_live, text_parameter
from queue_kit.models import CANCELLED, CRON_ENTRIES, JOBS, READY, JobRow

CRON_LOCK = 0x71_6B_63_72_6F_6E  # an arbitrary number, the same in every process: "qkcron"


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
        .where(JOB.cron_name.is_not(None), IS_LIVE, JOB.lease_until < statement_time())
        .with_for_update(skip_locked=True)
    )


def without_occurrence() -> ColumnElement[bool]:
    """Whether a definition lacks the live occurrence that it should have."""
    live = exists(select(JOB.id).where(JOB.cron_name == CRON.name, IS_LIVE))
    return and_(not_(CRON.paused), not_(live))


@cache
def cron_missing() -> Executable:
    """Definitions without a live occurrence, locked; one that somebody else has locked is left for the next sweep."""
    return (
        select(*CRON, clock_time().label("now"))
        .where(without_occurrence())
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
    return select(*CRON).where(CRON.name == text_parameter("entry")).with_for_update(key_share=True)


@cache
def pause_cron() -> Executable:
    """Pause a definition. Parameters: `entry`."""
    return update(CRON_ENTRIES).where(CRON.name == text_parameter("entry")).values(paused=True)


@cache
def resume_cron() -> Executable:
    """Resume a definition; a tick that was cancelled by the pause and lies ahead comes back. Parameters: `entry`."""
    next_at = case((CRON.next_at > statement_time(), clock_time()), else_=CRON.next_at)
    return update(CRON_ENTRIES).where(CRON.name == text_parameter("entry")).values(paused=False, next_at=next_at)


def _waiting_occurrence() -> tuple[ColumnElement[bool], ...]:
    return JOB.cron_name == text_parameter("entry"), IS_LIVE, JOB.lease_until < statement_time()


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
    return select(JOB.id).where(JOB.cron_name == text_parameter("entry"), IS_LIVE)


@cache
def cron_overview() -> Executable:
    """Every definition with its live occurrence, and the one that ended last."""
    live, last, ended = (aliased(JobRow, name=name) for name in ("live", "last", "ended"))
    last_id = (
        select(ended.id)
        .where(ended.cron_name == CRON.name, not_(is_live(ended.status)))
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
        .outerjoin(live, and_(live.cron_name == CRON.name, is_live(live.status)))
        .outerjoin(last, last.id == last_id)
        .order_by(CRON.name)
    )


@cache
def cron_standing() -> Executable:
    """How many definitions are paused, and for how long the most overdue of the others is due without running:
    `paused`, `overdue` (seconds; negative or None when none is)."""
    live = aliased(JobRow, name="live")
    waits = and_(not_(CRON.paused), func.coalesce(live.lease_until < statement_time(), True))
    overdue = -seconds_until(func.coalesce(live.scheduled_at, CRON.next_at))
    return (
        select(func.count(case((CRON.paused, 1))).label("paused"), func.max(case((waits, overdue))).label("overdue"))
        .select_from(CRON_ENTRIES)
        .outerjoin(live, and_(live.cron_name == CRON.name, is_live(live.status)))
    )
