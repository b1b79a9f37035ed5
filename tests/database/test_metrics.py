"""Prometheus metrics of a real worker, on both databases: what it enqueues, runs and settles, and how it is."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from queue_kit import Discard, Handlers, NewJob, QueueWorker, Snooze, add_job, add_jobs, install_hooks
from queue_kit.telemetry.metrics import PrometheusMetrics
from tests.database.running import Gate, steal
from tests.support import Recorder, move, until


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry) -> Iterator[PrometheusMetrics]:
    """Installed for the process, as an application does it."""
    made = PrometheusMetrics(registry)
    uninstall = install_hooks(made)
    yield made
    uninstall()


@pytest.fixture
def value(registry, metrics):
    """The value of a series now."""
    return lambda metric, /, **labels: registry.get_sample_value(f"queue_kit_{metric}", labels)


async def test_each_outcome_is_counted_by_name(engine, value):
    jobs = Handlers()

    @jobs.handler("act", retry_delay=0)
    async def act(event, session, job):
        match job.data.get("do"):
            case "fail":
                raise ValueError("no")
            case "discard":
                raise Discard("no")
            case "snooze":
                raise Snooze(600)

    @jobs.handler("other")
    async def other(event, session, job): ...

    new = [NewJob("act", {"do": each}) for each in ("fine", "fail", "discard", "snooze")]
    await add_jobs(engine, [*new, NewJob("other")])
    await QueueWorker(engine, jobs).drain()
    assert (value("jobs_enqueued_total", name="act"), value("jobs_enqueued_total", name="other")) == (4, 1)
    assert (value("jobs_started_total", name="act"), value("jobs_started_total", name="other")) == (5, 1)
    expected = {"completed": 1, "retried": 1, "failed": 2, "snoozed": 1, "cancelled": 0, "released": 0, "lost": 0}
    assert {each: value("jobs_settled_total", name="act", outcome=each) for each in expected} == expected
    assert value("jobs_settled_total", name="other", outcome="completed") == 1
    assert value("job_run_seconds_count", name="act") == value("job_wait_seconds_count", name="act") == 5
    assert value("leases_lost_total", name="act") == 0


async def test_how_long_jobs_waited_and_ran(engine, value):
    gate, hook = Gate(), Recorder()
    job_id = await add_job(engine, "gate")
    await move(engine, job_id, scheduled_at=-100)
    async with QueueWorker(engine, {"gate": gate}, hooks=[hook]):
        await until(lambda: gate.running)
        gate.open.set()
        await until(lambda: hook.settled)
    assert value("job_run_seconds_sum", name="gate") == hook.settled[0].seconds > 0
    assert 100 <= value("job_wait_seconds_sum", name="gate") < 160


async def test_running_jobs_are_counted_while_they_run_and_workers_while_they_are_started(engine, value):
    gate, hook = Gate(), Recorder()
    await add_jobs(engine, [NewJob("gate")] * 3)
    async with QueueWorker(engine, {"gate": gate}, parallel_count=3, hooks=[hook]):
        await until(lambda: len(gate.running) == 3)
        assert value("jobs_running", name="gate") == 3
        assert value("workers_running") == 1
        gate.open.set()
        await until(lambda: len(hook.settled) == 3)
        assert value("jobs_running", name="gate") == 0
    assert value("workers_running") == 0


async def test_a_lease_that_is_lost_is_counted(engine, value):
    gate, hook = Gate(), Recorder()
    job_id = await add_job(engine, "gate")
    async with QueueWorker(engine, {"gate": gate}, hooks=[hook], listen=False):
        await until(lambda: gate.running)
        await steal(engine, job_id)
        gate.open.set()
        await until(lambda: hook.settled)
    assert value("leases_lost_total", name="gate") == value("jobs_settled_total", name="gate", outcome="lost") == 1


async def test_a_worker_that_listens_says_so(pg_engine, value):
    async with QueueWorker(pg_engine, {}):
        await until(lambda: value("workers_listening") == 1)
        assert value("workers_polling") == 0
    assert value("workers_listening") == 0


async def test_a_worker_that_need_not_listen_counts_as_neither(engine, value):
    async with QueueWorker(engine, {}, listen=False):
        assert (value("workers_listening"), value("workers_polling"), value("workers_running")) == (0, 0, 1)
