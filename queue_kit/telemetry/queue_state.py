"""What is in the queue, for Prometheus: the backlog by name, how old it is, names that no live worker runs, and cron
entries that do not go on.

The database is asked on a timer or when a scrape awaits it, never by the scrape itself: `collect()` only shows what was
seen last. A large backlog takes long to count, so looks are paced by what they cost.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit._handler import check_limits
from queue_kit._link import in_a_line
from queue_kit._statements import database, workers
from queue_kit.cron_jobs import CronStanding, cron_standing
from queue_kit.errors import ConfigurationError
from queue_kit.job import Seconds
from queue_kit.operate import Insights, NameInsights, queue_insights
from queue_kit.telemetry._labels import MOST_NAMES, OTHER, Chosen, check_most_names, check_registry

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as _missing:
    raise ImportError("these metrics need prometheus-client: pip install 'queue-kit[metrics]'") from _missing

_logger = logging.getLogger("queue_kit.telemetry")

PAUSES = 9
"""How many times as long as a look took is waited for until the next: a tenth of one connection's time at most."""

LATER = 1.0
"""Seconds after the server's timeout until ours: a statement that the server ends leaves its connection usable."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is in the queue, and the names that have series of their own."""

    insights: Insights
    cron: CronStanding
    chosen: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look at the queue saw; `None` when it failed."""

    seen: _Seen | None
    at: float
    seconds: float


class QueueStateMetrics(Collector):
    """The state of the queue as Prometheus metrics, read with `queue_insights` at most every `interval` seconds.

    Inside `async with` a timer reads it; without, `await refresh()` before each scrape. A look takes one connection of
    `engine`'s pool, for at most `timeout` seconds on PostgreSQL; while the last one failed, only `queue_kit_queue_up`,
    0, is exported. Every process that has one reads the whole queue: combine them with `max`, not with `sum`. At
    most `most_names` names ever have series of their own: first those that live workers run, then those with most jobs,
    in half of the places; a name that has them keeps them. It is in `registry` from the start, and until the
    `async with` ends. Raises `ConfigurationError` when `registry` has one.

    >>> from prometheus_client import CollectorRegistry
    >>> async def lifespan(app):
    ...     async with QueueStateMetrics(engine, CollectorRegistry(), interval=30):
    ...         yield
    """

    def __init__(
        self,
        engine: AsyncEngine,
        registry: CollectorRegistry = REGISTRY,
        *,
        interval: Seconds = 15.0,
        timeout: Seconds = 5.0,
        most_names: int = MOST_NAMES,
    ) -> None:
        if not isinstance(engine, AsyncEngine):
            raise ConfigurationError(f"engine must be an AsyncEngine, not {type(engine).__name__}")
        self._engine = engine.execution_options(queue_kit_readonly=True)
        self._interval = _positive(interval, "interval")
        self._timeout = _positive(timeout, "timeout")
        self._names = Chosen(check_most_names(most_names))
        self._last: _Look | None = None
        self._earliest = -math.inf
        self._looking: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self._registry = check_registry(registry)
        self._registered = False
        self._register()

    def _register(self) -> None:
        if self._registered:
            return
        try:
            self._registry.register(self)
        except ValueError as error:
            raise ConfigurationError(f"QueueStateMetrics cannot be registered, or is already: {error}") from error
        self._registered = True

    async def __aenter__(self) -> Self:
        self._register()
        if self._timer is None:
            self._timer = asyncio.create_task(self._keep_looking(), name="queue_kit: look at the queue now and then")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.wait({self._timer})
            self._timer = None
        if self._looking is not None:
            await asyncio.wait({self._looking})
        self._last, self._earliest = None, -math.inf  # old figures would pass for new ones
        if self._registered:
            self._registered = False
            self._registry.unregister(self)

    async def _keep_looking(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(self._earliest - time.monotonic())

    async def refresh(self) -> None:
        """Read the queue's state anew, unless the last look is too recent; raises nothing.

        >>> async def scrape(state):
        ...     await state.refresh()
        ...     return generate_latest()
        """
        if self._looking is None:
            if time.monotonic() < self._earliest:
                return
            self._looking = asyncio.create_task(self._look(), name="queue_kit: look at the queue")
        await asyncio.shield(self._looking)  # others may wait for it too, and SQLite suffers no cancelling

    async def _look(self) -> None:
        began = time.monotonic()
        seen = None
        try:
            # On SQLite a cancelled statement would run on and cost its connection; a reader there waits for nobody.
            async with asyncio.timeout(self._timeout + LATER if self._is_postgresql else None):
                seen = await self._read()
        except Exception as error:  # noqa: BLE001 - whatever it is, a scrape says that it failed
            if self._last is None or self._last.seen is not None:
                _logger.warning("the state of the queue cannot be read: %s", in_a_line(error))
        finally:
            seconds = time.monotonic() - began
            self._last = _Look(seen, time.time(), seconds)
            self._earliest = time.monotonic() + max(self._interval, PAUSES * seconds)
            self._looking = None

    async def _read(self) -> _Seen:
        async with AsyncSession(self._engine) as session:
            if self._is_postgresql:  # or it would go on there when nobody waits any more
                milliseconds = str(math.ceil(self._timeout * 1000))
                await session.execute(database.limit_statements(), {"milliseconds": milliseconds})
            insights = await queue_insights(session)
            cron = await cron_standing(session)
            registered = {name for names in await session.scalars(workers.names_alive()) for name in names}
        sizes = {name: _size(of_name) for name, of_name in insights.by_name.items()}
        return _Seen(insights, cron, self._names.choose(sizes, registered))

    @property
    def _is_postgresql(self) -> bool:
        return self._engine.dialect.name == "postgresql"

    # --- what Prometheus asks -----------------------------------------------------------------------------------------

    def describe(self) -> Iterable[Metric]:
        """The metrics without their figures."""
        return _Families().all

    def collect(self) -> Iterable[Metric]:
        """What was seen last."""
        families, last = _Families(), self._last
        if last is None:
            return families.all
        families.up.add_metric([], last.seen is not None)
        families.seconds.add_metric([], last.seconds)
        if last.seen is not None:
            families.refreshed.add_metric([], last.at)
            families.add(last.seen)
        return families.all


class _Families:
    """The metrics, to be filled."""

    def __init__(self) -> None:
        self.up = GaugeMetricFamily("queue_kit_queue_up", "Whether the last look at the queue went well.")
        self.seconds = GaugeMetricFamily("queue_kit_queue_look_seconds", "How long the last look took.")
        self.refreshed = GaugeMetricFamily(
            "queue_kit_queue_refreshed_timestamp_seconds", "When the figures beside this were read."
        )
        self.jobs = GaugeMetricFamily(
            "queue_kit_queue_jobs",
            "Jobs in the database: pending (due and waiting), scheduled, running, failed.",
            labels=("name", "state"),
        )
        self.oldest = GaugeMetricFamily(
            "queue_kit_queue_oldest_due_seconds",
            "For how long the first due job waits; 0 when none does.",
            labels=("name",),
        )
        self.unhandled = GaugeMetricFamily(
            "queue_kit_queue_unhandled_jobs", "Waiting jobs whose name no live worker runs.", labels=("name",)
        )
        self.paused = GaugeMetricFamily("queue_kit_queue_cron_paused", "Cron entries that are paused.")
        self.overdue = GaugeMetricFamily(
            "queue_kit_queue_cron_overdue_seconds",
            "For how long the most overdue cron entry is due that is neither paused nor runs; 0 when none is.",
        )

    @property
    def all(self) -> list[Metric]:
        by_name = [self.jobs, self.oldest, self.unhandled]
        return [self.up, self.seconds, self.refreshed, *by_name, self.paused, self.overdue]

    def add(self, seen: _Seen) -> None:
        by_name = seen.insights.by_name
        for name, of_name in _with_the_rest_as_one(by_name.items(), seen.chosen):
            for state in ("pending", "scheduled", "running", "failed"):
                self.jobs.add_metric([name, state], getattr(of_name, state))
            self.oldest.add_metric([name], of_name.oldest_due_seconds or 0.0)
        unhandled = ((name, by_name[name]) for name in seen.insights.unhandled_names)
        for name, of_name in _with_the_rest_as_one(unhandled, seen.chosen):
            self.unhandled.add_metric([name], of_name.pending + of_name.scheduled)
        self.paused.add_metric([], seen.cron.paused)
        self.overdue.add_metric([], seen.cron.overdue_seconds)


def _with_the_rest_as_one(
    by_name: Iterable[tuple[str, NameInsights]], chosen: frozenset[str]
) -> Iterator[tuple[str, NameInsights]]:
    rest = []
    for name, of_name in by_name:
        if name in chosen:
            yield name, of_name
        else:
            rest.append(of_name)
    if rest:
        yield (
            OTHER,
            NameInsights(
                pending=sum(each.pending for each in rest),
                scheduled=sum(each.scheduled for each in rest),
                running=sum(each.running for each in rest),
                failed=sum(each.failed for each in rest),
                oldest_due_seconds=max(each.oldest_due_seconds or 0.0 for each in rest),
            ),
        )


def _size(of_name: NameInsights) -> int:
    return of_name.pending + of_name.scheduled + of_name.running + of_name.failed


def _positive(value: Seconds, field: str) -> float:
    seconds, _ = check_limits(value, None, argument=field)
    if seconds is None or not 0 < seconds < math.inf:
        raise ConfigurationError(f"{field} is a finite number of seconds above 0, not {value!r}")
    return seconds
