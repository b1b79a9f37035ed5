"""The plans for a burst that PostgreSQL's statistics know nothing of: those of a new table, or of a queue that was
idle when they were taken, as it is on most days. Autovacuum takes new ones a minute later, or much later where the
history is long."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit._statements import workers
from tests.database.plans import (
    CLAIMS,
    HISTORY,
    LEASED_ID,
    ONE_BY_ONE,
    PLAN_MODES,
    PROMOTE,
    READY_THEN_POINTERS,
    SETTLING,
    SORTS,
    WORKER,
    Call,
    by_name,
    explain,
    kinds,
    on_jobs,
    seeded,
)

ALONE = "ALTER TABLE queue_kit_job SET (autovacuum_enabled = false)"
PAST = f"INSERT INTO queue_kit_job (name, status) SELECT 'name.' || n % 5, 2 FROM generate_series(1, {HISTORY}) AS n"
LEARN = "VACUUM ANALYZE queue_kit_job"
BURST = f"""
ALTER SEQUENCE queue_kit_job_id_seq RESTART {LEASED_ID};
INSERT INTO queue_kit_job (name, priority, scheduled_at, lease_until, worker_id, claim_no)
    SELECT 'name.' || n % 5, 0, now() - interval '1 hour', now() + interval '1 hour', '{WORKER}', 1
    FROM generate_series(1, 2000) AS n;
INSERT INTO queue_kit_job (name, priority, scheduled_at)
    SELECT 'name.' || n % 5, 1 + n % 20, now() - interval '30 minutes' + n * interval '1 ms'
    FROM generate_series(1, 30000) AS n;
INSERT INTO queue_kit_job (name, status, scheduled_at)
    SELECT 'name.' || n % 5, 0, now() - n * interval '1 ms' FROM generate_series(1, 10000) AS n;
"""
STATISTICS = {
    "none": (ALONE, BURST),
    "none, long history": (ALONE, PAST, BURST),
    "of an empty table": (ALONE, LEARN, BURST),
    "of an idle queue": (ALONE, PAST, LEARN, BURST),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STATISTICS.values(), ids=STATISTICS.keys())
async def seeded_url(request, server) -> AsyncIterator[str]:
    async with seeded(server, *request.param) as url:
        yield url


@pytest.fixture
async def burst(seeded_url) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(seeded_url)
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("mode", PLAN_MODES)
@by_name(CLAIMS)
async def test_a_claim_walks_the_ready_index_and_sorts_nothing(burst, call, mode):
    plan = await explain(burst, call, mode=mode)
    assert on_jobs(plan) == READY_THEN_POINTERS
    assert not SORTS & kinds(plan)


@pytest.mark.parametrize("mode", PLAN_MODES)
@by_name(SETTLING | ONE_BY_ONE)
async def test_what_is_held_is_found_by_its_id(burst, call, mode):
    reached = on_jobs(await explain(burst, call, mode=mode))
    assert ("Index Scan", "queue_kit_job_pkey") in reached
    assert "queue_kit_job_ready" not in {index for _, index in reached}
    assert "Seq Scan" not in {kind for kind, _ in reached}


@pytest.mark.parametrize("mode", PLAN_MODES)
async def test_promoting_walks_the_index_of_scheduled_jobs(burst, mode):
    plan = await explain(burst, PROMOTE, mode=mode)
    assert on_jobs(plan) == {("Index Scan", "queue_kit_job_scheduled"), ("Tid Scan", None)}
    assert not SORTS & kinds(plan)


@pytest.mark.parametrize("mode", PLAN_MODES)
async def test_what_is_held_is_listed_in_the_order_of_the_ready_index(burst, mode):
    plan = await explain(burst, Call(workers.held_jobs(), {"limit": 3_000}), mode=mode)
    assert on_jobs(plan) == {("Index Scan", "queue_kit_job_ready")}
