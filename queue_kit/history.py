"""Throughput over time, as the workers have written it down minute by minute."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit._database import Database
from queue_kit._history import KEPT_DAYS, MINUTE, SPREAD
from queue_kit._reach import check_words, is_name, session_on
from queue_kit._statements import database, history
from queue_kit.job import Seconds, Verdict, in_seconds

MOST_POINTS = 120

_WIDTHS = (1, 5, 15, 60, 180, 360)
"""Minutes that a point may stand for: the first that needs no more than `MOST_POINTS`."""

_SETTLED_BY = 2 * SPREAD
"""Seconds after a minute by which its workers have written it."""


@dataclass(frozen=True, slots=True)
class ThroughputPoint:
    """What runs came to from `at` on for `seconds`: how many ended in which way, and how long they ran and had waited
    since they were due, in seconds. A mean is `None` where nothing ran.

    `retried` counts tries that failed and were followed by another, `failed` those after which their job is failed; a
    job that fails twice and then completes counts two `retried` and one `completed`. `lost` counts runs whose lease
    lapsed, so that another worker has the job.
    """

    at: datetime
    seconds: float
    completed: int = 0
    retried: int = 0
    failed: int = 0
    snoozed: int = 0
    cancelled: int = 0
    released: int = 0
    lost: int = 0
    mean_run: float | None = None
    longest_run: float = 0.0
    mean_wait: float | None = None
    longest_wait: float = 0.0

    @property
    def runs(self) -> int:
        """How many runs ended, in whichever way."""
        return sum(getattr(self, verdict) for verdict in Verdict)

    @property
    def per_second(self) -> float:
        """How many jobs were completed in a second."""
        return self.completed / self.seconds


async def throughput(
    db: Database, *, last: Seconds = timedelta(hours=1), name: str | None = None
) -> list[ThroughputPoint]:
    """What the workers did during the `last` seconds (a minute to 14 days), of all names or of one: points at equal
    distances, oldest first, at most 120; a minute without a run is a point of zeros.

    A point stands for a minute, for 15 of them when a day is asked for. The last one ends with the last whole minute:
    workers write a minute down within ten seconds of its end, and keep 14 days. Raises `ValueError` for other times,
    `TypeError` for a name that is no text.

    >>> async def busiest(engine):
    ...     return max(await throughput(engine), key=lambda point: point.completed)
    """
    minutes = _minutes(last)
    check_words(name, "name")
    width = next((width for width in _WIDTHS if minutes <= width * MOST_POINTS), _WIDTHS[-1])
    count = math.ceil(minutes / width)
    async with session_on(db, reading=True) as session:
        end = await _last_end(session)
        first = end - count * width
        span = {"since": _at(first), "until": _at(end), "of_name": name}
        rows = (await session.execute(history.history(), span)).all() if name is None or is_name(name) else []
    buckets: list[list[Row[Any]]] = [[] for _ in range(count)]
    for row in rows:
        buckets[(int(row.minute.timestamp() // MINUTE) - first) // width].append(row)
    return [_point(bucket, first + number * width, width) for number, bucket in enumerate(buckets)]


async def throughput_by_name(db: Database, *, last: Seconds = timedelta(hours=1)) -> dict[str, ThroughputPoint]:
    """What the workers did during the `last` seconds, name by name: one point each, which ends with the last whole
    minute. A name that nothing ran under is not there. Raises `ValueError` for times that `throughput` refuses.

    >>> async def busiest(engine):
    ...     points = await throughput_by_name(engine)
    ...     return max(points, key=lambda name: points[name].runs, default=None)
    """
    minutes = _minutes(last)
    async with session_on(db, reading=True) as session:
        end = await _last_end(session)
        span = {"since": _at(end - minutes), "until": _at(end)}
        rows = (await session.execute(history.history_by_name(), span)).all()
    return {row.name: _point([row], end - minutes, minutes) for row in rows}


async def _last_end(session: AsyncSession) -> int:
    now: datetime = (await session.execute(database.database_time())).scalar_one()
    return int((now.timestamp() - _SETTLED_BY) // MINUTE)


def _minutes(last: Seconds) -> int:
    seconds = in_seconds(last)
    if seconds is None or not 60 <= seconds <= KEPT_DAYS * 86_400:
        raise ValueError(f"last is from 60 seconds to {KEPT_DAYS:g} days, not {last!r}")
    return math.ceil(seconds / MINUTE)


def _at(minute: int) -> datetime:
    return datetime.fromtimestamp(minute * MINUTE, UTC)


def _point(rows: Sequence[Row[Any]], first: int, minutes: int) -> ThroughputPoint:
    ends = {verdict.value: sum(getattr(row, verdict) for row in rows) for verdict in Verdict}
    runs = sum(ends.values())
    return ThroughputPoint(
        _at(first),
        minutes * MINUTE,
        **ends,
        mean_run=sum(row.run_seconds for row in rows) / runs if runs else None,
        longest_run=max((row.longest_run for row in rows), default=0.0),
        mean_wait=sum(row.wait_seconds for row in rows) / runs if runs else None,
        longest_wait=max((row.longest_wait for row in rows), default=0.0),
    )
