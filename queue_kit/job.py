"""The values of the queue: what is enqueued (`NewJob`), what a worker holds (`Claimed`), what its handler receives
(`Job`), what a run leaves (`Outcome`).

They know no database, and nobody changes one once it is made. `NewJob` checks itself, so every way into the table
passes the same rules; the checks stand here one by one because `models.JobRow` applies them to single columns as well.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import NoneType
from typing import Any, Generic, Self, TypeAlias, cast

from typing_extensions import TypeVar

from queue_kit.errors import InvalidJob

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True, default=dict[str, Any])

Seconds: TypeAlias = float | timedelta

DEFAULT_PRIORITY = 5
MAX_NAME_LENGTH = 200
MAX_PRIORITY = 32_767
MAX_PAYLOAD_BYTES = 1_048_576
MAX_PAYLOAD_DEPTH = 100
MAX_RETRY_COUNT = 2_147_483_647
_MAX_DELAY = timedelta(days=36_500).total_seconds()
_SHOWN = 60  # characters of a wrong value in a message
_SHOWN_OF_PATH = 200
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SCALARS = (str, int, float, NoneType)
as_json: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False).encode


class JobState(StrEnum):
    """Where a job stands. `running` is a ready job with a live lease; the last three are complete."""

    scheduled = "scheduled"
    ready = "ready"
    running = "running"
    completed = "completed"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def is_complete(self) -> bool:
        """Whether nothing will happen to the job by itself any more."""
        return self in (JobState.completed, JobState.failed, JobState.cancelled)


class Verdict(StrEnum):
    """How a run ended. `retried` and `failed` were failures; `released` and `lost` were not the handler's fault."""

    completed = "completed"
    retried = "retried"
    failed = "failed"
    snoozed = "snoozed"
    cancelled = "cancelled"
    released = "released"
    lost = "lost"


@dataclass(frozen=True, slots=True)
class Job(Generic[T_co]):
    """What a handler receives. `id` is the idempotency key for effects outside the database.

    `scheduled_at` is when the job was due; for a cron job its tick, also in a retry. `retry_count` counts failed runs,
    `attempt` is the number of this run. `handler_timeout` is the job's own, in seconds. `cron_expression` and
    `cron_last_completed_at` are `None` for jobs that no cron entry made.
    """

    id: int
    name: str
    data: T_co
    priority: int
    scheduled_at: datetime
    created_at: datetime
    retry_count: int = 0
    handler_timeout: float | None = None
    cron_expression: str | None = None
    cron_last_completed_at: datetime | None = None

    @property
    def attempt(self) -> int:
        """The number of this run, from 1."""
        return self.retry_count + 1


class _Draft(Generic[T]):
    """A `Job`, made in a third of the time: a frozen dataclass sets each field through a call (1.2 us), so this one is
    frozen when it is whole."""

    __slots__ = tuple(each.name for each in fields(Job))

    def __init__(
        self,
        id: int,  # noqa: A002
        name: str,
        data: T,
        priority: int,
        scheduled_at: datetime,
        created_at: datetime,
        retry_count: int,
        handler_timeout: float | None,
        cron_expression: str | None,
        cron_last_completed_at: datetime | None,
    ) -> None:
        self.id = id
        self.name = name
        self.data = data
        self.priority = priority
        self.scheduled_at = scheduled_at
        self.created_at = created_at
        self.retry_count = retry_count
        self.handler_timeout = handler_timeout
        self.cron_expression = cron_expression
        self.cron_last_completed_at = cron_last_completed_at
        whole: Any = self
        whole.__class__ = Job


claimed_job: Callable[..., Job[Any]] = cast("Callable[..., Job[Any]]", _Draft)
"""`Job(...)` of all its fields, in their order."""


def _no_data() -> Any:
    return {}


@dataclass(frozen=True, slots=True)
class NewJob(Generic[T_co]):
    """A job that is not inserted yet, for `add_jobs` and `insert_jobs`.

    `priority` 0 to 32,767, lower runs first. `scheduled_at` is time-zone aware; `delay` is seconds (or a timedelta)
    from the database's now; giving both is an error. `handler_timeout` is in seconds, `math.inf` for no limit;
    `max_retry_count` is the number of tries in total. At most one live job holds a `unique_key`.

    Raises `InvalidJob` naming the field, before any database is touched.

    >>> NewJob("email.send", {"to": "a@b.c"}, delay=60).priority
    5
    """

    name: str
    data: T_co = field(default_factory=_no_data)
    priority: int = DEFAULT_PRIORITY
    scheduled_at: datetime | None = None
    delay: Seconds | None = None
    handler_timeout: Seconds | None = None
    max_retry_count: int | None = None
    unique_key: str | None = None
    encode: Callable[[Any], Any] | None = field(default=None, kw_only=True, repr=False, compare=False)
    """Makes JSON of `data` where that is a typed value; the job of a handler has its own. Called for each copy anew."""
    payload: Any = field(init=False, repr=False)
    """`data` as JSON."""
    payload_text: str = field(init=False, repr=False, compare=False)
    """The payload as it was when it was checked: what is stored, whatever becomes of `data`."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_priority(self.priority)
        check_scheduled_at(self.scheduled_at)
        check_max_retry_count(self.max_retry_count)
        check_unique_key(self.unique_key)
        if self.scheduled_at is not None and self.delay is not None:
            raise InvalidJob("delay", "give scheduled_at or delay, not both")
        value: Any = {} if self.data is None else self.data
        object.__setattr__(self, "payload", value if self.encode is None else self.encode(value))
        object.__setattr__(self, "payload_text", payload_text(self.payload))
        object.__setattr__(self, "delay", check_delay(self.delay))
        object.__setattr__(self, "handler_timeout", check_timeout(self.handler_timeout))


@dataclass(slots=True)  # not frozen: that doubles what it takes to make one
class Claimed:
    """A job that a worker holds, with what the worker alone knows of it. `claim_no` and the worker's id are its fence.

    `lost` counts lapsed leases; `unreadable` says why the row could not be read. `due` is the row's own due time (a
    cron job's `scheduled_at` stays its tick), `size` the bytes of its payload.
    """

    job: Job[Any]
    claim_no: int
    lost: int = 0
    max_retry_count: int | None = None
    unique_key: str | None = None
    cron_name: str | None = None
    cancel_requested: bool = False
    trace_context: Mapping[str, Any] | None = None
    unreadable: str | None = None
    due: datetime | None = None
    size: int = 0

    @property
    def place(self) -> tuple[int, datetime, int]:
        """Where the job stands in the order of claims."""
        return self.job.priority, self.job.scheduled_at if self.due is None else self.due, self.job.id


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run leaves behind; settling writes it. `delay` is seconds until the next try, `error` the record kept.

    A `released` run with an error is one that the database's connection broke off: it counts as a lapsed lease.
    """

    verdict: Verdict
    delay: float = 0.0
    error: Mapping[str, Any] | None = None


def check_name(name: object, field: str = "name") -> str:
    """A job's name: text of 1 to 200 characters."""
    return _check_text(name, field)


def check_unique_key(key: object) -> str | None:
    """A unique key: `None`, or text like a name."""
    return None if key is None else _check_text(key, "unique_key")


def _check_text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidJob(field, f"must be text, not {type(value).__name__}")
    if not value.strip():
        raise InvalidJob(field, "must not be empty")
    if len(value) > MAX_NAME_LENGTH:
        raise InvalidJob(field, f"has {len(value)} characters, at most {MAX_NAME_LENGTH} are allowed")
    if _UNSTORABLE.search(value):
        raise InvalidJob(field, "holds a NUL or a lone surrogate, which no database text can store")
    return value


def check_priority(priority: object) -> int:
    """A priority: an integer from 0 to 32,767."""
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= MAX_PRIORITY:
        raise InvalidJob("priority", f"must be an integer from 0 to {MAX_PRIORITY}, not {_shown(priority)}")
    return priority


def check_max_retry_count(count: object) -> int | None:
    """The number of tries: `None`, or an integer from 1."""
    if count is None:
        return None
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_RETRY_COUNT:
        raise InvalidJob(
            "max_retry_count", f"is the number of tries in total: an integer, at least 1, not {_shown(count)}"
        )
    return count


def check_scheduled_at(instant: object) -> datetime | None:
    """A due time: `None` (now, by the database's clock), or an aware datetime."""
    if instant is None:
        return None
    if not isinstance(instant, datetime):
        raise InvalidJob("scheduled_at", f"must be a datetime, not {type(instant).__name__}")
    if instant.utcoffset() is None:
        raise InvalidJob("scheduled_at", "has no time zone; use datetime.now(UTC), or give delay= in seconds")
    try:
        instant.astimezone(UTC)
    except OverflowError:
        raise InvalidJob("scheduled_at", "lies outside the years 1 to 9999 in UTC") from None
    return instant


def check_delay(delay: object) -> float | None:
    """A delay: `None`, or seconds from 0 (a number or a timedelta), at most a hundred years."""
    if delay is None:
        return None
    seconds = _as_seconds(delay, "delay")
    if not 0 <= seconds <= _MAX_DELAY:
        raise InvalidJob("delay", f"must be from 0 to {_MAX_DELAY:g} seconds, not {_shown(delay)}")
    return seconds


def check_timeout(timeout: object, field: str = "handler_timeout") -> float | None:
    """A timeout: `None` (not set here), or seconds from 0; `math.inf` for no limit."""
    if timeout is None:
        return None
    seconds = _as_seconds(timeout, field)
    if math.isnan(seconds) or seconds < 0:
        raise InvalidJob(field, f"must be seconds, at least 0 (math.inf for no limit), not {_shown(timeout)}")
    return seconds


def in_seconds(value: object) -> float | None:
    """The seconds of a number or of a timedelta; `None` for what is neither. They may be negative, or not a number."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _as_seconds(value: object, field: str) -> float:
    seconds = in_seconds(value)
    if seconds is None:
        raise InvalidJob(field, f"must be seconds (a number or a timedelta), not {type(value).__name__}")
    try:
        return float(seconds)
    except OverflowError:
        raise InvalidJob(field, "is too large") from None


def check_payload(data: T) -> T:
    """A payload: JSON of at most 1 MiB and 100 levels, without NUL, NaN, infinities or lone surrogates."""
    payload_text(data)
    return data


def payload_text(data: object) -> str:
    """A payload as JSON text, checked as by `check_payload`."""
    if flaw := _flaw(data, 0):
        raise InvalidJob("data", flaw.problem, path=f"${flaw.path[:_SHOWN_OF_PATH]}")
    try:
        text = as_json(data)
    except ValueError as error:
        raise InvalidJob("data", str(error), path="$") from None
    size = len(text.encode())
    if size > MAX_PAYLOAD_BYTES:
        raise InvalidJob("data", f"is {size:,} bytes of JSON, at most {MAX_PAYLOAD_BYTES:,} are allowed; store a link")
    return text


@dataclass(slots=True)
class _Flaw:
    """What in a payload is not JSON. The path is written on the way out, so that a good payload pays for none: with it
    the check of twenty values took twice as long."""

    problem: str
    path: str = ""

    def inside(self, step: str) -> Self:
        """The same flaw, as its container sees it."""
        self.path = step + self.path
        return self


def _flaw(value: object, depth: int) -> _Flaw | None:
    if depth > MAX_PAYLOAD_DEPTH:
        return _Flaw(f"is nested deeper than {MAX_PAYLOAD_DEPTH} levels")
    match value:
        case str() if _UNSTORABLE.search(value):
            return _Flaw("holds a NUL or a lone surrogate, which no database can store")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    return _Flaw(f"has a key that is not text: {_shown(key)}")
                if flaw := _flaw(key, depth) or _flaw(item, depth + 1):
                    return flaw.inside(f".{printable(key[:_SHOWN])}")
        case list():
            for position, item in enumerate(value):
                if flaw := _flaw(item, depth + 1):
                    return flaw.inside(f"[{position}]")
        case float() if not math.isfinite(value):
            return _Flaw(f"{value} is not JSON")
        case _ if not isinstance(value, _SCALARS):
            return _Flaw(f"{type(value).__name__} is not JSON")
    return None


def printable(text: str) -> str:
    """Text for a line of the log, so that what others wrote passes for no line of it and reaches no terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def log_fields(job: Job[Any]) -> dict[str, object]:
    """What a line of the log about a job carries as its `extra`."""
    return {"job_id": job.id, "job_name": job.name, "job_attempt": job.attempt}


def _shown(value: object) -> str:
    try:
        return ascii(value)[:_SHOWN]
    except Exception:  # noqa: BLE001 - an integer of 5,000 digits has no repr, nor may an object of the caller's
        return f"this {type(value).__name__}"
