"""What runs came to, minute by minute: workers add to it, and whoever draws a chart reads it."""

from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Executable, Float, Integer, Text, bindparam, case, delete, func, or_, select
from sqlalchemy.dialects.postgresql import insert as insert_or_skip

from queue_kit._dialect.batches import json_batch
from queue_kit._dialect.clock import clock_time
from queue_kit._dialect.columns import UtcDateTime
from queue_kit._dialect.plans import flushed_later
from queue_kit._statements.vocabulary import PAST, text_parameter
from queue_kit.job import Verdict
from queue_kit.models import HISTORY


@cache
def add_history() -> Executable:
    """Add what runs came to. Parameters: `batch` of `minute, name`, a count for each verdict (or none), `run_seconds,
    longest_run, wait_seconds, longest_wait`."""
    sums = [*Verdict, "run_seconds", "wait_seconds"]
    counts = {verdict.value: Integer() for verdict in Verdict}
    seconds = dict.fromkeys(("run_seconds", "longest_run", "wait_seconds", "longest_wait"), Float(53))
    batch = json_batch(text_parameter("batch"), minute=UtcDateTime(), name=Text(), **counts, **seconds).c
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
    of_name = text_parameter("of_name")
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
