"""The plans of the statements that run all day, on a table of realistic size and with the texts and types that a worker
sends: what a planner may choose wrongly costs a factor of ten and more, and shows in no other test."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import JobRow, JobState, sqlite_engine
from queue_kit._scan import Place
from queue_kit._statements import changing, looking, recurring, workers
from queue_kit._statements.vocabulary import as_batch, in_state
from tests.database.plans import (
    BATCH,
    CLAIMS,
    HISTORY,
    LEASED_ID,
    LOOK,
    ONE_BY_ONE,
    PLAN_MODES,
    PROMOTE,
    READY_THEN_POINTERS,
    SETTLING,
    SORTS,
    WORKER,
    Call,
    as_sent,
    by_name,
    claim,
    explain,
    kinds,
    nodes,
    on_jobs,
    seeded,
)
from tests.support import until

PRIORITIES = 20
LEASED = 2_000
DEAD = 20_000

# First the history, as in a table that has been in use. Then, at the head of the order, what is leased, and what has
# ended since the last vacuum. The statistics are of all rows: of a sample, the failed jobs are now and then so many
# that to walk back to them looks cheaper than to sort them.
POSTGRESQL = f"""
ALTER TABLE queue_kit_job SET (autovacuum_enabled = false);
INSERT INTO queue_kit_job (name, priority, status, updated_at)
    SELECT 'name.' || n % 5, 1 + n % {PRIORITIES}, CASE WHEN n % 50 = 0 THEN 3 ELSE 2 END, now() - n * interval '1 s'
    FROM generate_series(1, {HISTORY}) AS n;
INSERT INTO queue_kit_job (name, priority, scheduled_at, lease_until, worker_id, claim_no)
    SELECT 'name.' || n % 5, 0, now() - interval '2 hours' + n * interval '1 ms',
           now() + interval '1 hour', '{WORKER}', 1
    FROM generate_series(1, {LEASED}) AS n;
INSERT INTO queue_kit_job (name, priority, scheduled_at)
    SELECT 'name.' || n % 5, 0, now() - interval '1 hour' + n * interval '1 ms' FROM generate_series(1, {DEAD}) AS n;
UPDATE queue_kit_job SET status = 2 WHERE worker_id IS NULL AND status = 1;
INSERT INTO queue_kit_job (name, priority, scheduled_at)
    SELECT 'name.' || n % 5, 1 + n % {PRIORITIES}, now() - interval '30 minutes' + n * interval '1 ms'
    FROM generate_series(1, 200000) AS n;
INSERT INTO queue_kit_job (name, priority, scheduled_at)
    SELECT 'name.' || n % 5, n % {PRIORITIES}, now() + n * interval '1 s' FROM generate_series(1, 49000) AS n;
INSERT INTO queue_kit_job (name, priority, status, scheduled_at)
    SELECT 'name.' || n % 5, n % {PRIORITIES}, 0, now() - n * interval '1 ms' FROM generate_series(1, 1000) AS n;
INSERT INTO queue_kit_cron (name, expression, timezone, priority, next_at)
    SELECT 'cron.' || n, '* * * * *', 'UTC', 5, now() FROM generate_series(1, 20) AS n;
INSERT INTO queue_kit_job (name, status) SELECT 'name.' || n % 5, 4 FROM generate_series(1, 200) AS n;
INSERT INTO queue_kit_job (name, status, unique_key)
    SELECT 'name.1', 2, 'key.' || n % 20 FROM generate_series(1, 200) AS n;
INSERT INTO queue_kit_job (name, status, cron_name)
    SELECT 'cron.3', 2, 'cron.' || n % 20 FROM generate_series(1, 400) AS n;
ALTER TABLE queue_kit_job ALTER COLUMN status SET STATISTICS 10000;
ANALYZE queue_kit_job;
ANALYZE queue_kit_cron;
"""

NUMBERS = "WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {count})"
SQLITE = (
    f"""INSERT INTO queue_kit_job (name, priority, scheduled_at, lease_until, worker_id, claim_no)
    {NUMBERS.format(count=500)}
    SELECT 'name.' || n % 5, 0, '2020-01-01 00:00:00.000', '2120-01-01 00:00:00.000', '{WORKER.hex}', 1 FROM series""",
    f"""INSERT INTO queue_kit_job (name, priority, scheduled_at) {NUMBERS.format(count=20_000)}
    SELECT 'name.' || n % 5, 1 + n % {PRIORITIES}, '2020-01-02 00:00:00.000' FROM series""",
    f"""INSERT INTO queue_kit_job (name, priority, status) {NUMBERS.format(count=10_000)}
    SELECT 'name.' || n % 5, 1 + n % {PRIORITIES}, 2 FROM series""",
    f"""INSERT INTO queue_kit_job (name, status, unique_key, cron_name) {NUMBERS.format(count=400)}
    SELECT 'name.1', 2 + n % 2 * 2, 'key.' || n % 20, 'cron.' || n % 20 FROM series""",
    f"""INSERT INTO queue_kit_job (name, priority, scheduled_at) {NUMBERS.format(count=5_000)}
    SELECT 'name.' || n % 5, n % {PRIORITIES}, '2120-01-01 00:00:00.000' FROM series""",
    "ANALYZE",
)


PRUNE = Call(changing.prune(), {"first": 1, "last": 10_000, "days": 30.0, "failed_days": 30.0})


OPERATING = {
    "failed lately": Call(looking.failed_lately(), {"limit": 500}),
    "failed of a name": Call(looking.failed_of_name(), {"of_name": "name.1", "limit": 500}),
    "cancelled": Call(changing.cancelled_ids(), {"of_name": "name.1", "limit": 100}),
    "cancel many": Call(changing.cancel_many(), {"job_ids": as_batch([LEASED_ID, LEASED_ID + 1])}),
    "retry many": Call(changing.retry_many(), {"job_ids": as_batch([50, 100])}),
    "run now": Call(changing.run_now(), {"job_id": LEASED_ID}),
    "created behind": Call(looking.created_behind(), {"first": 500}),
    "held jobs": Call(workers.held_jobs(), {"limit": 3_000}),
    "cron overview": Call(recurring.cron_overview(), {}),
    "hasten": Call(recurring.hasten_occurrence(), {"entry": "cron.1"}),
    "cancel occurrence": Call(recurring.cancel_occurrence(), {"entry": "cron.1"}),
}
"""What operators ask for: none of it reads the whole history."""


def page(**filters: Any) -> Call:
    """The query of a page of `list_jobs`."""
    state = filters.pop("state", None)
    query = select(JobRow).order_by(looking.newest_first(state)).limit(100)
    if state is not None:
        query = query.where(in_state(state))
    return Call(query.filter_by(**filters), {})


WALKS = {"newest": page(), "completed": page(state=JobState.completed)}
"""They read back from the end until the page is full."""
PAGES = {
    "failed": page(state=JobState.failed),
    "failed of a name": page(state=JobState.failed, name="name.0"),
    "cancelled": page(state=JobState.cancelled),
    "scheduled": page(state=JobState.scheduled),
    "by key": page(unique_key="key.7"),
    "of a cron entry": page(cron_name="cron.3"),
}


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seeded_url(server) -> AsyncIterator[str]:
    """A large table; whoever changes it rolls back."""
    async with seeded(server, POSTGRESQL) as url:
        yield url


@pytest.fixture
async def large(seeded_url) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(seeded_url)
    yield engine
    await engine.dispose()


def buffers(plan: dict[str, Any]) -> int:
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


@pytest.mark.parametrize("mode", PLAN_MODES)
@by_name(CLAIMS)
async def test_a_claim_walks_the_ready_index_and_sorts_nothing(large, call, mode):
    plan = await explain(large, call, mode=mode)
    assert on_jobs(plan) == READY_THEN_POINTERS
    assert not {*SORTS, "Hash Join", "Merge Join"} & kinds(plan)


@pytest.mark.parametrize("mode", PLAN_MODES)
@by_name(SETTLING)
async def test_endings_and_renewals_go_by_the_primary_key(large, call, mode):
    plan = await explain(large, call, mode=mode)
    reached = on_jobs(plan)
    assert reached <= {("Index Scan", "queue_kit_job_pkey"), ("Tid Scan", None)}
    assert ("Index Scan", "queue_kit_job_pkey") in reached


@pytest.mark.parametrize("mode", PLAN_MODES)
@by_name(ONE_BY_ONE)
async def test_what_changes_one_job_goes_by_the_primary_key(large, call, mode):
    reached = on_jobs(await explain(large, call, mode=mode))
    assert ("Index Scan", "queue_kit_job_pkey") in reached
    assert "Seq Scan" not in {kind for kind, _ in reached}


@pytest.mark.parametrize("mode", PLAN_MODES)
async def test_a_look_reads_neither_backlog_nor_history(large, mode):
    plan = await explain(large, LOOK, mode=mode, analyze=True)
    reached = on_jobs(plan)
    assert "Seq Scan" not in {kind for kind, _ in reached}
    indexes = {index for _, index in reached}
    assert {"queue_kit_job_ready", "queue_kit_job_scheduled", "queue_kit_job_cron_live"} == indexes
    assert buffers(plan) < 1_000


@pytest.mark.parametrize("mode", PLAN_MODES)
async def test_promoting_walks_the_index_of_scheduled_jobs(large, mode):
    plan = await explain(large, PROMOTE, mode=mode)
    assert on_jobs(plan) == {("Index Scan", "queue_kit_job_scheduled"), ("Tid Scan", None)}
    assert "Sort" not in kinds(plan)


@pytest.mark.parametrize("mode", PLAN_MODES)
async def test_pruning_a_page_goes_by_the_primary_key(large, mode):
    reached = on_jobs(await explain(large, PRUNE, mode=mode))
    assert reached <= {
        ("Index Scan", "queue_kit_job_pkey"),
        ("Bitmap Index Scan", "queue_kit_job_pkey"),
        ("Bitmap Heap Scan", None),
    }


async def last_place_before_the_backlog(engine: AsyncEngine) -> Place:
    """Where a worker's mark stands that has done all of the best priority."""
    query = "SELECT priority, scheduled_at, id FROM queue_kit_job WHERE priority = 0 AND status = 2"
    async with engine.connect() as connection:
        row = (await connection.execute(text(f"{query} ORDER BY scheduled_at DESC LIMIT 1"))).one()
    return tuple(row)


@pytest.mark.parametrize("mode", PLAN_MODES)
async def test_behind_its_mark_a_claim_touches_no_leased_or_dead_rows(large, mode):
    mark = await last_place_before_the_backlog(large)
    plan = await explain(large, claim(after=mark), mode=mode, analyze=True)
    (taken,) = [node for node in nodes(plan) if node["Node Type"] == "Tid Scan"]
    assert taken["Actual Rows"] == 50
    assert buffers(plan) < 1_000
    at_the_head = await explain(large, claim(), mode=mode, analyze=True)
    assert buffers(at_the_head) > buffers(plan)


@pytest.mark.parametrize("mode", PLAN_MODES)
async def test_settling_touches_a_few_pages_a_job(large, mode):
    plan = await explain(large, SETTLING["complete"], mode=mode, analyze=True)
    assert plan["Actual Rows"] == BATCH
    assert buffers(plan) < 30 * BATCH


@pytest.mark.parametrize("mode", PLAN_MODES)
@by_name(OPERATING)
async def test_what_operators_ask_for_reads_no_history(large, call, mode):
    plan = await explain(large, call, mode=mode, analyze=True)
    assert "Seq Scan" not in {kind for kind, _ in on_jobs(plan)}
    assert buffers(plan) < 6_000


async def test_failed_jobs_are_counted_in_an_index(pg_engine):
    """They lie all over the table: to read each would cost a page."""
    async with pg_engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.execute("SET synchronous_commit = on")  # or vacuum may come before it is known for committed
        insert = "INSERT INTO queue_kit_job (name, status) SELECT 'a', CASE WHEN n % 50 = 0 THEN 3 ELSE 2 END"
        await driver.execute(f"{insert} FROM generate_series(1, 20000) AS n")

        async def seen_by_all() -> bool:  # not while autovacuum's transaction may look at an older state
            await driver.execute("VACUUM ANALYZE queue_kit_job")
            in_map = "SELECT relallvisible = relpages FROM pg_class WHERE oid = 'queue_kit_job'::regclass"
            return bool(await driver.fetchval(in_map))

        await until(seen_by_all)
    plan = await explain(pg_engine, Call(looking.counts(), {}), mode="force_custom_plan")
    assert ("Index Only Scan", "queue_kit_job_failed_name") in on_jobs(plan)


@by_name(WALKS | PAGES)
async def test_a_page_of_jobs_reads_no_history(large, call):
    plan = await explain(large, call, mode="force_custom_plan", analyze=True)
    assert "Seq Scan" not in {kind for kind, _ in on_jobs(plan)}
    assert buffers(plan) < 6_000


# --- SQLite -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeded_file(sqlite_template, tmp_path_factory) -> Path:
    path = Path(shutil.copy(sqlite_template, tmp_path_factory.mktemp("plans") / "large.db"))

    async def seed() -> None:
        engine = sqlite_engine(path)
        async with engine.begin() as connection:
            for statement in SQLITE:
                await connection.execute(text(statement))
        await engine.dispose()

    asyncio.run(seed())
    return path


@pytest.fixture
async def large_file(seeded_file) -> AsyncIterator[AsyncEngine]:
    engine = sqlite_engine(seeded_file)
    yield engine
    await engine.dispose()


async def query_plan(engine: AsyncEngine, call: Call) -> list[str]:
    statement, arguments = await as_sent(engine, call)

    def plan(connection: Connection) -> list[str]:
        return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", arguments)]

    async with engine.connect() as connection:
        return await connection.run_sync(plan)


TABLE = ("queue_kit_job", "other", "live", "last", "ended")
"""How a plan names the jobs: where a statement has given them another name, by that one alone."""


def scans(plan: list[str]) -> list[str]:
    """Where it reads the whole table."""
    return [step for step in plan if step in {f"SCAN {name}" for name in TABLE}]


@by_name(CLAIMS)
async def test_on_sqlite_a_claim_walks_the_ready_index_and_sorts_nothing(large_file, call):
    plan = await query_plan(large_file, call)
    assert scans(plan) == []
    assert any("queue_kit_job USING INDEX queue_kit_job_ready" in step for step in plan), plan
    assert not any("ORDER BY" in step for step in plan), plan


@by_name(SETTLING | ONE_BY_ONE | OPERATING | PAGES | {"look": LOOK, "promote": PROMOTE, "prune": PRUNE})
async def test_on_sqlite_nothing_else_reads_the_whole_table(large_file, call):
    plan = await query_plan(large_file, call)
    assert scans(plan) == []
