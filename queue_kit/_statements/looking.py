"""What an operator sees of jobs: pages of them, one job in types that no row can spoil, the latest failures, counts."""

from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Executable,
    Float,
    Integer,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    null,
    or_,
    select,
    union_all,
)

from queue_kit._dialect.clock import seconds_until, statement_time, time_text
from queue_kit._dialect.columns import BIGINT, UtcDateTime
from queue_kit._dialect.documents import beginning_of, json_text, last_element
from queue_kit._dialect.plans import sorted_by
from queue_kit._statements.vocabulary import IS_FAILED, IS_LIVE, IS_READY, IS_SCHEDULED, JOB, text_parameter
from queue_kit.job import JobState
from queue_kit.models import JOBS, JobRow


def newest_first(state: JobState | None) -> ColumnElement[int]:
    """The order of a page of jobs, all or in one state: those of a state that has an index of its own are sorted."""
    has_index = state in (JobState.scheduled, JobState.ready, JobState.running, JobState.failed)
    return (sorted_by(JOB.id) if has_index else JOB.id).desc()


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
def id_range() -> Executable:
    """The smallest id above `after`, and the largest. Parameters: `after`."""
    return select(func.min(JOB.id), func.max(JOB.id)).where(JOB.id > bindparam("after", type_=BIGINT))


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
    return _failures(IS_FAILED, JOB.updated_at.desc())


@cache
def failed_of_name() -> Executable:
    """The same of the newest failed jobs of one name. Parameters: `of_name`, `limit`."""
    return _failures(and_(IS_FAILED, JOB.name == text_parameter("of_name")), JOB.id.desc())


def _failures(chosen: ColumnElement[bool], order: ColumnElement[Any]) -> Executable:
    lately = (
        select(JOB.id, JOB.name, JOB.updated_at, last_element(JOB.errors).label("error"))
        .where(chosen)
        .order_by(order)
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
def counts() -> Executable:
    """How many live and failed jobs there are by name and state, and for how long the first due one waits."""
    waiting_since = func.min(case((_is_due(), JOB.scheduled_at)))
    group = case((_is_due(), literal("pending")), else_=JobRow.state)
    live = (
        select(
            JOB.name, group.label("state"), func.count().label("count"), seconds_until(waiting_since).label("due_in")
        )
        .where(or_(IS_SCHEDULED, IS_READY))
        .group_by(JOB.name, group)
    )
    # Apart, since an index alone answers it: failed jobs lie all over the table.
    failed = select(JOB.name, literal(JobState.failed.value), func.count(), cast(null(), Float(53)))
    return union_all(live, failed.where(IS_FAILED).group_by(JOB.name))


def _is_due() -> ColumnElement[bool]:
    return and_(IS_LIVE, JOB.scheduled_at <= statement_time(), JOB.lease_until < statement_time())
