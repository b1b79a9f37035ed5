"""Prometheus metrics of one process, from the records that hooks are given. With a real worker: tests/database."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry

from queue_kit import (
    ConfigurationError,
    Enqueued,
    Handlers,
    Job,
    NewJob,
    Outcome,
    Settled,
    Started,
    Verdict,
    WorkerState,
)
from queue_kit.telemetry._labels import OTHER
from queue_kit.telemetry.metrics import PrometheusMetrics

FIRST, SECOND = UUID(int=1), UUID(int=2)
NOW = datetime.now(UTC)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def job(job_id: int) -> Job:
    return Job(id=job_id, name="a", data={}, priority=5, scheduled_at=NOW, created_at=NOW)


def started(worker: UUID = FIRST, *, due: datetime = NOW, job_id: int = 1) -> Started:
    return Started(worker, job(job_id), None, due)


def settled(*, verdict: Verdict = Verdict.completed, job_id: int = 1) -> Settled:
    return Settled(FIRST, job(job_id), Outcome(verdict), 1.0, None)


def states(registry: CollectorRegistry) -> dict[str, float]:
    conditions = ("running", "listening", "polling", "database_down", "unhealthy")
    found = {each: registry.get_sample_value(f"queue_kit_workers_{each}") for each in conditions}
    return {condition: count for condition, count in found.items() if count}


def test_the_states_of_workers_are_counted_and_may_overlap(registry):
    metrics = PrometheusMetrics(registry)
    for worker, state, expected in [
        (FIRST, "started", {"running": 1}),
        (FIRST, "listening", {"running": 1, "listening": 1}),
        (SECOND, "started", {"running": 2, "listening": 1}),
        (SECOND, "polling", {"running": 2, "listening": 1, "polling": 1}),
        (SECOND, "database_down", {"running": 2, "listening": 1, "polling": 1, "database_down": 1}),
        (FIRST, "polling", {"running": 2, "polling": 2, "database_down": 1}),
        (FIRST, "unhealthy", {"running": 2, "polling": 2, "database_down": 1, "unhealthy": 1}),
        (SECOND, "database_up", {"running": 2, "polling": 2, "unhealthy": 1}),
        (SECOND, "listening", {"running": 2, "listening": 1, "polling": 1, "unhealthy": 1}),
        (FIRST, "healthy", {"running": 2, "listening": 1, "polling": 1}),
        (FIRST, "stopping", {"running": 2, "listening": 1, "polling": 1}),
        (FIRST, "stopped", {"running": 1, "listening": 1}),
        (SECOND, "stopped", {}),
    ]:
        metrics.on_worker_state(WorkerState(worker, state))
        assert states(registry) == expected, (worker, state)


def test_what_a_stopped_worker_could_not_give_back_runs_no_more(registry):
    metrics = PrometheusMetrics(registry)
    for record in (started(), started(job_id=2), started(SECOND)):
        metrics.on_started(record)
    assert registry.get_sample_value("queue_kit_jobs_running", {"name": "a"}) == 3
    metrics.on_settled(settled())
    metrics.on_worker_state(WorkerState(FIRST, "stopped"))
    assert registry.get_sample_value("queue_kit_jobs_running", {"name": "a"}) == 1
    metrics.on_settled(settled(job_id=2))  # it could be, after all
    assert registry.get_sample_value("queue_kit_jobs_running", {"name": "a"}) == 1


def test_a_job_that_ends_without_a_start_was_not_running(registry):
    metrics = PrometheusMetrics(registry)
    metrics.on_settled(settled(verdict=Verdict.cancelled))
    assert registry.get_sample_value("queue_kit_jobs_running", {"name": "a"}) == 0
    assert registry.get_sample_value("queue_kit_jobs_settled_total", {"name": "a", "outcome": "cancelled"}) == 1


def test_a_wait_is_counted_from_when_the_job_was_due_and_never_below_nothing(registry):
    metrics = PrometheusMetrics(registry, wait_buckets=[1, 100])
    metrics.on_started(started(due=datetime.now(UTC) - timedelta(seconds=50)))
    metrics.on_started(started(job_id=2, due=datetime.now(UTC) + timedelta(seconds=50)))  # clocks differ
    assert registry.get_sample_value("queue_kit_job_wait_seconds_bucket", {"name": "a", "le": "1.0"}) == 1
    assert registry.get_sample_value("queue_kit_job_wait_seconds_bucket", {"name": "a", "le": "100.0"}) == 2
    assert 50 <= (registry.get_sample_value("queue_kit_job_wait_seconds_sum", {"name": "a"}) or 0) < 60


def test_known_names_are_there_before_anything_happens(registry):
    handlers = Handlers()

    @handlers.handler("a")
    async def a(event, session, job): ...

    PrometheusMetrics(registry, names=handlers)
    for verdict in Verdict:
        assert registry.get_sample_value("queue_kit_jobs_settled_total", {"name": "a", "outcome": verdict.value}) == 0
    assert registry.get_sample_value("queue_kit_leases_lost_total", {"name": "a"}) == 0


def test_names_beyond_the_bound_share_one_series(registry):
    metrics = PrometheusMetrics(registry, names=["a"], most_names=2)
    for name in ("b", "c", "d", "a", "c"):
        metrics.on_enqueued(Enqueued(1, NewJob(name)))
    counts = {
        name: registry.get_sample_value("queue_kit_jobs_enqueued_total", {"name": name}) for name in ("a", "b", OTHER)
    }
    assert counts == {"a": 1, "b": 1, OTHER: 3}
    assert registry.get_sample_value("queue_kit_jobs_enqueued_total", {"name": "c"}) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": "email.send"}, "names"),
        ({"most_names": 0}, "most_names"),
        ({"most_names": True}, "most_names"),
        ({"run_buckets": [2, 1]}, "sorted"),
    ],
)
def test_what_cannot_be_is_refused(registry, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        PrometheusMetrics(registry, **arguments)


def test_a_registry_takes_one(registry):
    PrometheusMetrics(registry)
    with pytest.raises(ConfigurationError, match="is already"):
        PrometheusMetrics(registry)
