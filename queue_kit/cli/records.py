"""A job as `show` and `--json` have it, from columns that are text: what plain SQL wrote and Python cannot read is
told, and spoils nothing else."""

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from queue_kit._dialect.columns import LONG_AGO, as_instant
from queue_kit.cli.output import plain
from queue_kit.operate import unreadable

_TIMES = ("scheduled_at", "created_at", "updated_at", "cron_tick", "lease_until")
_COLUMNS = (
    *("id", "name", "state", "priority", "scheduled_at", "created_at", "updated_at", "cron_tick", "cron_name"),
    *("unique_key", "retry_count", "lost", "max_retry_count", "handler_timeout", "cancel_requested"),
    *("worker_id", "lease_until", "data", "errors"),
)


def record(row: Row[Any]) -> dict[str, Any]:
    """A job of `job_texts`. Times that Python cannot hold stay text; JSON that it cannot read is None. `unreadable` has
    the columns that are so, and why."""
    problems = unreadable(row)
    values: dict[str, Any] = {column: getattr(row, column) for column in _COLUMNS}
    for column in _TIMES:
        values[column] = time(values[column])
    for column in ("data", "errors"):
        text, values[column] = values[column], None
        if column not in problems and text is not None:
            try:
                values[column] = _printable(json.loads(text))
            except RecursionError as error:
                problems[column] = str(error)
    if values["lease_until"] == LONG_AGO:
        values["lease_until"] = None
    values["worker_id"] = _worker(values["worker_id"])
    return values | {"unreadable": problems}


def time(text: str | None) -> datetime | str | None:
    """A time column; as the database wrote it when Python has no such time."""
    try:
        return None if text is None else as_instant(text)
    except ValueError:
        return text


def _printable(value: Any) -> Any:
    """A value that can be printed as part of a list, too: what can be read may be too deep for that."""
    json.dumps(plain([[[[value]]]]), indent=2)
    return value


def _worker(text: str | None) -> str | None:
    try:
        return None if text is None else str(UUID(text))
    except ValueError:
        return text
