"""A job as `show` and `--json` have it."""

import json
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from queue_kit import _records
from queue_kit._dialect.columns import LONG_AGO
from queue_kit.cli.output import plain

_COLUMNS = (
    *("id", "name", "state", "priority", "scheduled_at", "created_at", "updated_at", "cron_tick", "cron_name"),
    *("unique_key", "retry_count", "lost", "max_retry_count", "handler_timeout", "cancel_requested"),
    *("worker_id", "lease_until", "data", "errors"),
)


def record(row: Row[Any]) -> dict[str, Any]:
    """A job of `job_texts`. Times that Python cannot hold stay text; JSON that it cannot read is None. `unreadable` has
    the columns that are so, and why."""
    read, problems = _records.read(row)
    values = {column: read[column] for column in _COLUMNS}
    for column in ("data", "errors"):
        try:  # what can be read may be too deep to be printed as part of a list
            json.dumps(plain([[[[values[column]]]]]), indent=2)
        except RecursionError as error:
            values[column], problems[column] = None, str(error)
    if values["lease_until"] == LONG_AGO:
        values["lease_until"] = None
    values["worker_id"] = _worker(values["worker_id"])
    return values | {"unreadable": problems}


def _worker(text: str | None) -> str | None:
    try:
        return None if text is None else str(UUID(text))
    except ValueError:
        return text
