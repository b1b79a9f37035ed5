"""New jobs: one statement for any number of them, with the batch that it takes."""

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Float,
    Integer,
    SmallInteger,
    Text,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import insert as insert_or_skip

from queue_kit._dialect.batches import json_batch
from queue_kit._dialect.clock import time_from_now
from queue_kit._dialect.columns import JSON_TYPE, UtcDateTime, as_utc_text
from queue_kit._statements.vocabulary import JOB, text_parameter
from queue_kit.job import NewJob, as_json
from queue_kit.models import JOBS


@cache
def insert_jobs() -> Executable:
    """Insert jobs, skipping those whose unique key is taken; returns `id, unique_key`. Parameters: `jobs`, which is
    `jobs_batch`."""
    return _insert_jobs(text_parameter("jobs"))


def insert_these_jobs(batch: str) -> Executable:
    """The same, with its `jobs_batch` in it: slower, since it is built anew each time."""
    return _insert_jobs(bindparam("jobs", batch, type_=Text()))


def jobs_batch(jobs: Iterable[tuple[NewJob[Any], Mapping[str, Any] | None]]) -> str:
    """Jobs with their trace contexts, as the parameter of `insert_jobs`."""
    rows = [_as_row(at, job, trace) for at, (job, trace) in enumerate(jobs)]
    return f"[{','.join(rows)}]"


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
    due = func.coalesce(
        batch.scheduled_at, time_from_now(func.coalesce(batch.delay, literal_column("0.0"))), type_=UtcDateTime()
    )
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


def _as_row(position: int, job: NewJob[Any], trace: Mapping[str, Any] | None) -> str:
    """A row as JSON text. Most have nothing but this, and to encode them as objects would take twice as long."""
    name, priority = as_json(job.name), int(job.priority)
    row = f'{{"position":{position},"name":{name},"priority":{priority},"data":{job.payload_text}'
    more = _more(job, trace)
    return f"{row},{as_json(more)[1:]}" if more else f"{row}}}"


def _more(job: NewJob[Any], trace: Mapping[str, Any] | None) -> dict[str, Any]:
    timeout = job.handler_timeout
    optional = {
        "scheduled_at": None if job.scheduled_at is None else as_utc_text(job.scheduled_at),
        "delay": job.delay,
        "handler_timeout": "Infinity" if timeout == math.inf else timeout,
        "max_retry_count": job.max_retry_count,
        "unique_key": job.unique_key,
        "trace_context": trace,
    }
    return {key: value for key, value in optional.items() if value is not None}
