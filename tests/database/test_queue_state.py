"""The state of the queue as Prometheus metrics, on both databases: what is shown, how often it is read, and what a
scrape sees when it cannot be."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import (
    ConfigurationError,
    NewJob,
    QueueWorker,
    add_job,
    add_jobs,
    migrate,
    pause_cron_job,
    run_cron_job,
)
from queue_kit.telemetry._labels import OTHER
from queue_kit.telemetry.queue_state import QueueStateMetrics
from tests.conftest import engine_for
from tests.database.running import job_in, nothing, raw, waits_for_a_lock
from tests.support import move, until

FAST = {"interval": 0.001}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def value(registry):
    """The value of a series as a scrape would show it now."""
    return lambda metric, /, **labels: registry.get_sample_value(f"queue_kit_queue_{metric}", labels)


@pytest.fixture
def looks(engine) -> Iterator[list[str]]:
    """The statements that count the queue."""
    sent = []

    def sending(_connection, _cursor, statement, *_):
        if "GROUP BY" in statement:
            sent.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", sending)
    yield sent
    event.remove(engine.sync_engine, "before_cursor_execute", sending)


async def refreshed(state: QueueStateMetrics) -> None:
    """Wait until the next look may be, and look."""
    await asyncio.sleep(max(0.0, state._earliest - time.monotonic()))
    await state.refresh()


# --- what is shown ----------------------------------------------------------------------------------------------------


async def test_the_backlog_is_shown_by_name_and_state(engine, registry, value):
    for state in ("scheduled", "ready", "lapsed", "running", "completed", "failed", "cancelled"):
        await job_in(engine, state)
    await move(engine, await add_job(engine, "b"), scheduled_at=-100)
    await QueueStateMetrics(engine, registry).refresh()
    states = ("pending", "scheduled", "running", "failed")
    assert [value("jobs", name="a", state=state) for state in states] == [2, 1, 1, 1]
    assert [value("jobs", name="b", state=state) for state in states] == [1, 0, 0, 0]
    assert 100 <= value("oldest_due_seconds", name="b") < 200
    assert value("up") == 1
    assert abs(value("refreshed_timestamp_seconds") - time.time()) < 20
    assert 0 < value("look_seconds") < 5


async def test_names_that_no_live_worker_runs_are_shown_until_one_does(engine, registry, value):
    await add_jobs(engine, [NewJob("nobody"), NewJob("nobody", delay=600), NewJob("somebody", delay=600)])
    state = QueueStateMetrics(engine, registry, **FAST)
    async with QueueWorker(engine, {"somebody": nothing}):
        await state.refresh()
        assert (value("unhandled_jobs", name="nobody"), value("unhandled_jobs", name="somebody")) == (2, None)
    await refreshed(state)
    assert value("unhandled_jobs", name="somebody") == 1


async def test_cron_entries_that_do_not_go_on_are_shown(engine, registry, value):
    state = QueueStateMetrics(engine, registry, **FAST)
    await refreshed(state)
    assert (value("cron_paused"), value("cron_overdue_seconds")) == (0, 0)
    for name in ("late", "paused", "runs"):
        await raw(
            engine,
            "INSERT INTO queue_kit_cron (name, expression, timezone, priority, next_at) "
            f"VALUES ('{name}', '0 0 1 1 *', 'UTC', 5, '2020-01-01 00:00:00.000')",
        )
        await run_cron_job(engine, name)
    await raw(engine, "UPDATE queue_kit_job SET lease_until = '2999-01-01 00:00:00.000' WHERE name = 'runs'")
    (late,) = await raw(engine, "SELECT id FROM queue_kit_job WHERE name = 'late'")
    await move(engine, late.id, scheduled_at=-100)
    await pause_cron_job(engine, "paused")
    await refreshed(state)
    assert value("cron_paused") == 1
    assert 100 <= value("cron_overdue_seconds") < 200
    await raw(engine, "DELETE FROM queue_kit_job WHERE name = 'late'")  # without a job, its tick counts
    await raw(engine, "UPDATE queue_kit_cron SET next_at = '2020-01-01 00:00:00.000'")
    await refreshed(state)
    assert value("cron_overdue_seconds") > 86_400


async def test_a_backlog_that_is_gone_is_shown_no_more(engine, registry, value):
    await add_job(engine, "a")
    state = QueueStateMetrics(engine, registry, **FAST)
    await state.refresh()
    assert value("jobs", name="a", state="pending") == 1
    await raw(engine, "DELETE FROM queue_kit_job")
    await refreshed(state)
    assert value("jobs", name="a", state="pending") is None


async def test_the_names_with_most_jobs_have_series_of_their_own(engine, registry, value):
    await add_jobs(engine, [NewJob(name) for name in ("a", "b", "b", "c", "d", "d", "d")])
    await QueueStateMetrics(engine, registry, most_names=4).refresh()
    counts = {name: value("jobs", name=name, state="pending") for name in ("a", "b", "c", "d", OTHER)}
    assert counts == {"a": None, "b": 2, "c": None, "d": 3, OTHER: 2}
    assert value("oldest_due_seconds", name=OTHER) > 0
    assert value("unhandled_jobs", name=OTHER) == 2


async def test_names_that_workers_run_have_series_before_all_others(engine, registry, value):
    await add_jobs(engine, [NewJob(f"stray {n}", delay=600) for n in range(5)] * 2)
    state = QueueStateMetrics(engine, registry, most_names=4, **FAST)
    await state.refresh()
    await add_jobs(engine, [NewJob("ours", delay=600), NewJob("ours, too", delay=600)])
    async with QueueWorker(engine, {"ours": nothing, "ours, too": nothing}):
        await refreshed(state)
    assert value("jobs", name="ours", state="scheduled") == value("jobs", name="ours, too", state="scheduled") == 1
    assert value("jobs", name=OTHER, state="scheduled") == 6


async def test_series_are_bounded_however_names_come_and_go(engine, registry, value):
    state = QueueStateMetrics(engine, registry, most_names=4, **FAST)
    shown = set()
    for look in range(4):
        await raw(engine, "DELETE FROM queue_kit_job WHERE name <> 'stays'")
        await add_jobs(
            engine, [NewJob(f"{look}-{n}") for n in range(9)] * 2 + [NewJob("stays")] * (3 if not look else 0)
        )
        await refreshed(state)
        shown |= {sample.labels["name"] for metric in registry.collect() for sample in metric.samples if sample.labels}
        assert value("jobs", name="stays", state="pending") == 3
    assert len(shown - {OTHER}) <= 4


# --- how often it is read ---------------------------------------------------------------------------------------------


async def test_many_scrapes_share_one_look(engine, registry, looks, value):
    state = QueueStateMetrics(engine, registry, interval=600)
    await asyncio.gather(*(state.refresh() for _ in range(20)))
    for _ in range(3):
        await state.refresh()
        generate_latest(registry)
    assert len(looks) == 1
    assert value("up") == 1


async def test_a_scrape_that_is_cancelled_spoils_no_other(engine, registry, value):
    state = QueueStateMetrics(engine, registry)
    scrapes = [asyncio.create_task(state.refresh()) for _ in range(2)]
    await asyncio.sleep(0)
    scrapes[0].cancel()
    await scrapes[1]
    assert value("up") == 1


async def test_looks_are_paced_by_what_they_cost(engine, registry, looks, value):
    state = QueueStateMetrics(engine, registry, **FAST)
    began = time.monotonic()
    await state.refresh()
    took = time.monotonic() - began
    await state.refresh()
    assert len(looks) == 1
    rest = 9 * value("look_seconds")
    assert rest <= state._earliest - began <= took + rest


async def test_the_timer_looks_by_itself_and_forgets_at_the_end(engine, registry, value):
    async with QueueStateMetrics(engine, registry, interval=0.01):
        await until(lambda: value("up") == 1)
        await add_job(engine, "late")
        await until(lambda: value("jobs", name="late", state="pending") == 1)
    assert value("up") is value("jobs", name="late", state="pending") is None


# --- when it cannot be read -------------------------------------------------------------------------------------------


async def test_while_the_queue_cannot_be_read_only_that_is_shown(empty_database_url, registry, value, caplog):
    engine = engine_for(empty_database_url)
    state = QueueStateMetrics(engine, registry, **FAST)
    assert value("up") is None
    for _ in range(2):
        await refreshed(state)
        assert (value("up"), value("refreshed_timestamp_seconds")) == (0, None)
    await migrate.upgrade(engine)
    await add_job(engine, "a")
    await refreshed(state)
    assert (value("up"), value("jobs", name="a", state="pending")) == (1, 1)
    await raw(engine, "ALTER TABLE queue_kit_worker RENAME TO hidden")
    await refreshed(state)
    assert (value("up"), value("jobs", name="a", state="pending")) == (0, None)
    warnings = [record.message for record in caplog.records if record.name == "queue_kit.telemetry"]
    assert [warning.split(":")[0] for warning in warnings] == ["the state of the queue cannot be read"] * 2
    await engine.dispose()


async def test_a_look_that_takes_too_long_is_given_up_also_by_the_server(pg_engine: AsyncEngine, registry, value):
    state = QueueStateMetrics(pg_engine, registry, timeout=0.2)
    async with pg_engine.begin() as holding:
        await holding.execute(text("LOCK TABLE queue_kit_job IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        await state.refresh()
        assert time.monotonic() - began < 10
        assert value("up") == 0
        assert not await waits_for_a_lock(pg_engine)


async def test_a_connection_that_may_only_read_is_enough(postgres_url, registry, value):
    engine = engine_for(postgres_url, connect_args={"server_settings": {"default_transaction_read_only": "on"}})
    await QueueStateMetrics(engine, registry).refresh()
    assert value("up") == 1
    await engine.dispose()


async def test_a_writer_holds_up_no_look(engine, registry, value):
    async with engine.begin() as holding:
        await holding.execute(text("UPDATE queue_kit_job SET name = name"))  # on SQLite, the one write lock
        async with asyncio.timeout(5):
            await QueueStateMetrics(engine, registry).refresh()
    assert value("up") == 1


async def test_what_cannot_be_is_refused(engine, registry):
    for arguments, message in [
        ({"interval": 0}, "interval"),
        ({"timeout": float("inf")}, "timeout"),
        ({"most_names": 0}, "most_names"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            QueueStateMetrics(engine, registry, **arguments)
    QueueStateMetrics(engine, registry)
    with pytest.raises(ConfigurationError, match="is already"):
        QueueStateMetrics(engine, registry)
    with pytest.raises(ConfigurationError, match="AsyncEngine, not NoneType"):
        QueueStateMetrics(None, registry)
    with pytest.raises(ConfigurationError, match="CollectorRegistry, not str"):
        QueueStateMetrics(engine, "registry")


async def test_it_leaves_its_registry_in_the_end_so_that_an_application_may_start_again(engine, registry, value):
    for _ in range(2):
        async with QueueStateMetrics(engine, registry) as state:
            await state.refresh()
            assert value("up") == 1
    async with state:
        await state.refresh()
        assert value("up") == 1
    assert value("up") is None
