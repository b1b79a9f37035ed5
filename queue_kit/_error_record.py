"""What the error of a try leaves in its job's row: when, in which try, the exception's class, message and traceback.

Nothing that a handler raises may fail the failure path, so every text of others is guarded, cut and made storable here.
`_timings` adds how long the try ran.
"""

import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from queue_kit.job import Claimed

MAX_MESSAGE = 2_000
MAX_TRACEBACK = 8_000
_CUT = "\n[...]\n"


def error_record(claimed: Claimed, error: BaseException | None, reason: str | None = None) -> dict[str, Any]:
    """The record of one error, or of a `reason` alone: JSON that any database stores."""
    record: dict[str, Any] = {"at": datetime.now(UTC).isoformat(), "try": claimed.job.attempt}
    if error is not None:
        hide_values(error)
        record["class"] = storable(type(error).__qualname__, MAX_MESSAGE)
        record["message"] = storable(text_of(error), MAX_MESSAGE)
        record["traceback"] = storable(_traceback_of(error), MAX_TRACEBACK)
    if reason is not None:
        record["reason"] = storable(reason, MAX_MESSAGE)
    return record


def hide_values(error: BaseException) -> None:
    """Keep out of the log and of the job's errors what was in the payload: SQLAlchemy shows a failed statement with its
    parameters, and PostgreSQL a row that it refused."""
    each: Any
    for each in chain(error):
        if hasattr(each, "hide_parameters"):
            each.hide_parameters = True
        if type(each).__module__.startswith(("sqlalchemy.", "asyncpg.")):
            # SQLAlchemy 2.0 quotes asyncpg's words, which has them from a field of its own.
            each.args = tuple(_without_detail(said) for said in each.args)
            if isinstance(getattr(each, "detail", None), str):
                each.detail = None


def _without_detail(said: Any) -> Any:
    return said.partition("\nDETAIL:")[0] if isinstance(said, str) else said


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, what it was raised from, and the members of the groups among these."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting.append(each.__cause__ or each.__context__)
            if isinstance(each, BaseExceptionGroup):
                waiting.extend(each.exceptions)


def text_of(value: object) -> str:
    """An exception's text, or that of a span's name."""
    try:
        return str(value)
    except BaseException as broken:  # noqa: BLE001
        return f"<str() of it raised {type(broken).__name__}>"


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException as broken:  # noqa: BLE001
        return f"<the traceback cannot be shown: {type(broken).__name__}>"


def storable(text: str, longest: int) -> str:
    """Text that any database stores, with its middle left out when it is too long."""
    head, tail = longest // 4, longest - longest // 4 - len(_CUT)
    if len(text) > longest:  # or escaping, which lengthens, would go through all of 50 MB
        return _escaped(text[:head])[:head] + _CUT + _escaped(text[-tail:])[-tail:]
    text = _escaped(text)
    return text if len(text) <= longest else text[:head] + _CUT + text[-tail:]


def _escaped(text: str) -> str:
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
