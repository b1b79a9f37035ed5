"""What statements are made of: the tables' columns, the conditions on a job's status in words that the planners match
with partial indexes, and parameters. The files of statements have their words from here and hardly know each other.
"""

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Float, SQLColumnExpression, Text, and_, bindparam, literal_column

from queue_kit._dialect.clock import clock_time, never, statement_time
from queue_kit.job import JobState
from queue_kit.models import CANCELLED, COMPLETED, CRON_ENTRIES, FAILED, HISTORY, JOBS, READY, SCHEDULED, WORKERS

JOB = JOBS.c
CRON = CRON_ENTRIES.c
WORKER = WORKERS.c
PAST = HISTORY.c


# Written out, not bound: neither planner matches a parameter with the condition of a partial index.
IS_READY = JOB.status == literal_column(str(READY))


IS_SCHEDULED = JOB.status == literal_column(str(SCHEDULED))


IS_FAILED = JOB.status == literal_column(str(FAILED))


def is_live(status: SQLColumnExpression[int]) -> ColumnElement[bool]:
    """Whether a job with this status is not complete."""
    return status < literal_column(str(COMPLETED))


IS_LIVE = is_live(JOB.status)


def in_state(state: JobState) -> ColumnElement[bool]:
    """Whether a job is in a state, in words that the partial indexes are found by."""
    match state:
        case JobState.running:
            return and_(IS_READY, JOB.lease_until >= statement_time())
        case JobState.ready:
            return and_(IS_READY, JOB.lease_until < statement_time())
        case _:
            numbers = {
                JobState.scheduled: SCHEDULED,
                JobState.completed: COMPLETED,
                JobState.failed: FAILED,
                JobState.cancelled: CANCELLED,
            }
            return JOB.status == literal_column(str(numbers[state]))


COMPLETION = {"status": COMPLETED, "updated_at": clock_time(), "lease_until": never()}
"""What the row of a job becomes that has succeeded."""


_JSON_PARAMETERS = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def as_batch(rows: Iterable[Any]) -> str:
    """Rows (or plain values) as the one JSON parameter that a statement takes."""
    return _JSON_PARAMETERS.encode(list(rows))


def text_parameter(name: str) -> ColumnElement[str]:
    """A parameter that is text."""
    return bindparam(name, type_=Text())


def number_parameter(name: str) -> ColumnElement[float]:
    """A parameter that is a number, whole or not."""
    return bindparam(name, type_=Float(53))
