"""What jobs carry and how they failed, in the parts that a page shows. Rows may have been written by hand, so nothing
is taken to have a form.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from queue_kit._reach import UNREADABLE
from queue_kit._timings import UNKNOWN, Timings, timings_of
from queue_kit.dashboard._bars import Bar, bars_of
from queue_kit.dashboard._reading import BROKEN

MAX_SHOWN = 64 * 1024
"""Characters of a payload that are shown, and of a text of an error."""

MAX_FAILURES = 10
"""Errors of a job that are shown: workers keep no more, others may have written more."""

_TOKEN = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*")(?=:)|(?P<text>"(?:[^"\\]|\\.)*"?)|(?P<word>-?[0-9][0-9.eE+-]*|true|false|null)'
)


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload as indented JSON: `tokens` are its parts, each with what it is (`key`, `text`, `word` or nothing)."""

    size: int
    tokens: tuple[tuple[str, str], ...] = ()
    is_cut: bool = False
    is_hidden: bool = False
    is_broken: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A try that failed."""

    title: str
    attempt: str = ""
    at: datetime | None = None
    message: str = ""
    reason: str = ""
    traceback: str = ""
    timings: Timings = UNKNOWN
    bars: tuple[Bar, ...] = ()


def payload_of(data: Any, redacted: Callable[[Any, int], Any], *, is_hidden: bool) -> Payload:
    """A job's data, of which what `redacted` leaves is shown."""
    if data is BROKEN:
        return Payload(0, is_hidden=is_hidden, is_broken=True)
    try:
        size = len(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))
        if is_hidden:
            return Payload(size, is_hidden=True)
        text = json.dumps(redacted(data, MAX_SHOWN), indent=2, ensure_ascii=False)
    except UNREADABLE:  # it may be read, and be too deep for more
        return Payload(0, is_hidden=is_hidden, is_broken=True)
    return Payload(size, tuple(_tokens(text[:MAX_SHOWN])), is_cut=len(text) > MAX_SHOWN)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    for found in _TOKEN.finditer(text):
        if found.start() > at:
            yield "", text[at : found.start()]
        yield str(found.lastgroup), found[0]
        at = found.end()
    if at < len(text):
        yield "", text[at:]


def failures_of(errors: Any, *, is_hidden: bool) -> list[Failure]:
    """The errors that a job keeps, the last one first; of hidden ones only what they were, when and for how long."""
    if errors is BROKEN:
        return [Failure("What failed cannot be read")]
    records = errors[-MAX_FAILURES:] if isinstance(errors, list) else []
    return [_failure(each, is_hidden=is_hidden) for each in reversed(records) if isinstance(each, dict)]


_WORDS = ("class", "reason", "try")


def _failure(record: dict[str, Any], *, is_hidden: bool) -> Failure:
    words = {key: "" if record.get(key) is None else str(record[key])[:MAX_SHOWN] for key in _WORDS}
    title = words["class"] or ("Failed" if is_hidden else words["reason"]) or "Failed"
    at = _instant(record.get("at"))
    timings = timings_of(record)
    if is_hidden:
        return Failure(title, words["try"], at, timings=timings)
    reason = words["reason"] if words["class"] else ""
    message, traceback = (str(record.get(key) or "")[:MAX_SHOWN] for key in ("message", "traceback"))
    return Failure(title, words["try"], at, message, reason, traceback, timings, bars_of(timings))


def _instant(text: object) -> datetime | None:
    try:
        instant = datetime.fromisoformat(str(text))
        return instant.replace(tzinfo=UTC) if instant.utcoffset() is None else instant.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def trace_of(context: Any) -> str:
    """The id of the trace in which a job was added (W3C `traceparent`), if it is known."""
    parent = str(context.get("traceparent")) if isinstance(context, dict) else ""
    found = re.fullmatch(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-.*", parent)
    return found[1] if found else ""
