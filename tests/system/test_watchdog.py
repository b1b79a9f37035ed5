"""A process that stood still is not taken for one whose event loop a job blocks."""

import asyncio

from queue_kit import add_job
from tests.crowd import SHARING, crowd
from tests.support import make_effects, until

LEASE = 0.9


async def test_a_process_that_was_frozen_blames_no_job(pg_engine, postgres_url, tmp_path):
    await make_effects(pg_engine)
    end = tmp_path / "end"
    async with crowd(SHARING, postgres_url) as workers:
        worker = await workers.start(lease=LEASE)
        job_id = await add_job(pg_engine, "wait", {"until": str(end), "write": False}, max_retry_count=9)
        await worker.says(f"running {job_id}")
        await worker.freeze()
        await asyncio.sleep(2 * LEASE)  # the fault itself
        worker.thaw()
        await until(lambda: any("nothing ran in this process for" in line for line in worker.log))
        end.touch()
        await until(lambda: f"completed {job_id}" in worker.lines)
        await worker.stop()
    assert not [line for line in worker.log if "blocks the event loop" in line]
