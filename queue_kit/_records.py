"""Jobs read from columns that are text: what plain SQL wrote and Python cannot read is told, with a way to mend it, and
spoils nothing else. The commands and the dashboard show jobs so; `operate` names with it what it cannot return."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import JSON, Row
from sqlalchemy.types import TypeEngine

from queue_kit._dialect.columns import UtcDateTime, as_instant
from queue_kit._reach import UNREADABLE
from queue_kit.models import JOBS


def read(row: Row[Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The columns of a row of `job_texts`, and of those that Python cannot read, why. A time that it cannot hold stays
    text, JSON that it cannot read is None."""
    values: dict[str, Any] = {"state": row.state}
    problems: dict[str, str] = {}
    for column in JOBS.columns:
        text = getattr(row, column.name)
        try:
            values[column.name] = _read(column.type, text)
        except UNREADABLE as error:
            values[column.name] = text if isinstance(column.type, UtcDateTime) else None
            problems[column.name] = str(error)
    return values, problems


def _read(kind: TypeEngine[Any], text: Any) -> Any:
    match kind:
        case JSON() if text is not None:
            return json.loads(text)
        case UtcDateTime() if text not in (None, "infinity"):
            try:
                return as_instant(text)
            except ValueError:
                raise ValueError(f"Python has no such time: {text}") from None
        case _:
            return text


def unreadable(row: Row[Any]) -> dict[str, str]:
    """The columns of a row of `job_texts` that Python cannot read, and why."""
    return read(row)[1]


def time(text: str | None) -> Any:
    """A time column as a datetime; as the database wrote it when Python has no such time."""
    try:
        return None if text is None else as_instant(text)
    except ValueError:
        return text


def mends(job_id: int, problems: Mapping[str, str]) -> dict[str, str]:
    """For each column that cannot be read, the statement that makes it readable: for whoever may write the table."""
    # Shown to people and never sent; the names are those of columns.
    return {name: f"UPDATE {JOBS.name} SET {name} = {_instead(name)} WHERE id = {job_id};" for name in problems}  # noqa: S608


def _instead(name: str) -> str:
    column = JOBS.columns[name]
    if isinstance(column.type, UtcDateTime):
        return "CURRENT_TIMESTAMP"
    return "NULL" if column.nullable else "'{}'"
