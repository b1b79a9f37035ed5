"""What this process does, for Prometheus: jobs enqueued, started and settled, how long they waited and ran, and how its
workers are. `queue_state.py` beside it tells what is in the database.

Nothing here has a worker or a job as a label: ids are new with every start, and would grow without end.
"""

import time
from collections.abc import Iterable, Sequence
from uuid import UUID

from queue_kit.errors import ConfigurationError
from queue_kit.hooks import Enqueued, Settled, Started, WorkerState
from queue_kit.job import Verdict
from queue_kit.telemetry._labels import MOST_NAMES, OTHER, check_most_names, check_registry

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as _missing:
    raise ImportError("these metrics need prometheus-client: pip install 'queue-kit[metrics]'") from _missing

RUN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
WAIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)

_BEGINS = {
    "started": "running",
    "database_down": "database_down",
    "listening": "listening",
    "polling": "polling",
    "unhealthy": "unhealthy",
}
_ENDS = {"database_up": "database_down", "healthy": "unhealthy", "listening": "polling", "polling": "listening"}


class PrometheusMetrics:
    """A hook that counts for Prometheus. Make one a process, and install it before workers start.

    `names` (a `Handlers`, or any names) have their series from the start, at 0, so that `increase()` sees a first
    failure; others get theirs when they are first heard of, up to `most_names`. `run_buckets` and `wait_buckets` are
    seconds. Raises `ConfigurationError` for what cannot be registered, such as a second one in the same `registry`.

    >>> from prometheus_client import CollectorRegistry
    >>> uninstall = install_hooks(PrometheusMetrics(CollectorRegistry(), names=["email.send"]))
    >>> uninstall()
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        *,
        names: Iterable[str] = (),
        most_names: int = MOST_NAMES,
        run_buckets: Sequence[float] = RUN_BUCKETS,
        wait_buckets: Sequence[float] = WAIT_BUCKETS,
    ) -> None:
        if isinstance(names, str):
            raise ConfigurationError(f"names is a Handlers or a list of names, not {names!r}")
        self._most_names = check_most_names(most_names)
        check_registry(registry)
        try:
            self._jobs = _JobMetrics(registry, run_buckets, wait_buckets)
            self._workers = _WorkerMetrics(registry)
        except ValueError as error:
            raise ConfigurationError(f"PrometheusMetrics cannot be registered, or is already: {error}") from error
        self._by_name: dict[str, _NameMetrics] = {}
        self._running: dict[tuple[UUID, int], _NameMetrics] = {}
        for name in names:
            self._named(name)

    def on_enqueued(self, record: Enqueued) -> None:
        """Count a job whose insert was sent."""
        self._named(record.new_job.name).enqueued.inc()

    def on_started(self, record: Started) -> None:
        """Count a run, and how long its job waited since it was due."""
        named = self._named(record.job.name)
        named.started.inc()
        # The due time is the database's and now is this host's: the two clocks must agree.
        named.wait_seconds.observe(max(0.0, time.time() - record.due.timestamp()))
        self._running[record.worker_id, record.job.id] = named
        named.running.inc()

    def on_settled(self, record: Settled) -> None:
        """Count how a run ended, and how long it took."""
        named = self._named(record.job.name)
        named.settled[record.outcome.verdict].inc()
        named.run_seconds.observe(record.seconds)
        if record.outcome.verdict is Verdict.lost:
            named.lost.inc()
        running = self._running.pop((record.worker_id, record.job.id), None)
        if running is not None:  # a job that is refused ends without a start
            running.running.dec()

    def on_worker_state(self, record: WorkerState) -> None:
        """Follow the states of this process's workers."""
        self._workers.changed(record)
        if record.state == "stopped":  # what it could not give back is never settled
            for key in [key for key in self._running if key[0] == record.worker_id]:
                self._running.pop(key).running.dec()

    def _named(self, name: str) -> "_NameMetrics":
        named = self._by_name.get(name)
        if named is None and len(self._by_name) >= self._most_names:
            name, named = OTHER, self._by_name.get(OTHER)
        if named is None:
            named = self._by_name[name] = _NameMetrics(self._jobs, name)
        return named


class _JobMetrics:
    """The metrics that have a job's name as a label."""

    def __init__(
        self, registry: CollectorRegistry, run_buckets: Sequence[float], wait_buckets: Sequence[float]
    ) -> None:
        def counter(what: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"queue_kit_{what}", meaning, ("name", *labels), registry=registry)

        def histogram(what: str, meaning: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"queue_kit_{what}", meaning, ("name",), registry=registry, buckets=buckets)

        self.enqueued = counter("jobs_enqueued", "Jobs whose insert was sent; its transaction may still roll back.")
        self.started = counter("jobs_started", "Runs that began.")
        self.settled = counter("jobs_settled", "Runs whose outcome is stored.", "outcome")
        self.lost = counter("leases_lost", "Runs whose job was not their worker's any more when they ended.")
        self.run_seconds = histogram("job_run_seconds", "How long runs took.", run_buckets)
        self.wait_seconds = histogram("job_wait_seconds", "From when a job was due to its start.", wait_buckets)
        self.running = Gauge(
            "queue_kit_jobs_running",
            "Runs that began in this process and are not settled yet.",
            ("name",),
            registry=registry,
            multiprocess_mode="livesum",
        )


class _NameMetrics:
    """The same for one name, looked up once: that is most of what an observation costs."""

    __slots__ = ("enqueued", "lost", "run_seconds", "running", "settled", "started", "wait_seconds")

    def __init__(self, metrics: _JobMetrics, name: str) -> None:
        self.enqueued = metrics.enqueued.labels(name)
        self.started = metrics.started.labels(name)
        self.settled = {verdict: metrics.settled.labels(name, verdict.value) for verdict in Verdict}
        self.lost = metrics.lost.labels(name)
        self.run_seconds = metrics.run_seconds.labels(name)
        self.wait_seconds = metrics.wait_seconds.labels(name)
        self.running = metrics.running.labels(name)


class _WorkerMetrics:
    """How many workers of this process are in which condition; a worker can be in several at once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(condition: str, meaning: str) -> Gauge:
            name = f"queue_kit_workers_{condition}"
            return Gauge(name, meaning, registry=registry, multiprocess_mode="livesum")

        self._gauges = {
            "running": gauge("running", "Workers of this process that run."),
            "listening": gauge("listening", "Workers that the database notifies of new jobs."),
            "polling": gauge("polling", "Workers that should be notified, but only poll."),
            "database_down": gauge("database_down", "Workers that cannot reach their database."),
            "unhealthy": gauge("unhealthy", "Workers whose slots are used up by handlers that refuse to end."),
        }
        self._conditions: dict[UUID, set[str]] = {}

    def changed(self, record: WorkerState) -> None:
        """Note a worker's new state."""
        conditions = self._conditions.setdefault(record.worker_id, {"running"})
        conditions.discard(_ENDS.get(record.state, ""))
        if record.state in _BEGINS:
            conditions.add(_BEGINS[record.state])
        if record.state == "stopped":
            del self._conditions[record.worker_id]
        for condition, gauge in self._gauges.items():
            gauge.set(sum(condition in each for each in self._conditions.values()))
