"""The handlers by themselves, and what time does to them."""

from datetime import timedelta

import pytest
from fastapi_app import Confirmation, Order, confirm_order, jobs
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import CronJob, Handlers, JobState, QueueWorker, get_job, job_queue_cleanup, register_cron_jobs
from queue_kit.testing import drain, enqueued, move_clock, run_handler


async def test_the_handler_confirms(queue_kit_session: AsyncSession) -> None:
    """One handler, without a queue."""
    order = Order(email="ada@example.org")
    queue_kit_session.add(order)
    await queue_kit_session.flush()

    await run_handler(confirm_order, Confirmation(order_id=order.id), session=queue_kit_session)

    assert order.confirmed_at is not None


async def test_the_handler_needs_an_order(queue_kit_session: AsyncSession) -> None:
    """What it raises is raised."""
    with pytest.raises(NoResultFound):
        await run_handler(confirm_order, Confirmation(order_id=7), session=queue_kit_session)


async def test_an_order_that_comes_late_is_confirmed_in_the_next_try(queue_kit_session: AsyncSession) -> None:
    """A failure, its retry an hour later, and the end."""
    job_id = await confirm_order.add(queue_kit_session, Confirmation(order_id=7))
    assert (await drain(queue_kit_session, jobs))["retried"] == 1

    queue_kit_session.add(Order(id=7, email="ada@example.org"))
    await move_clock(queue_kit_session, timedelta(hours=1))
    assert (await drain(queue_kit_session, jobs))["completed"] == 1

    job = await get_job(queue_kit_session, job_id)
    assert job is not None
    assert job.errors is not None
    assert (job.state, job.errors[0]["class"]) == (JobState.completed, "NoResultFound")


async def test_the_queue_is_cleaned_every_night(queue_kit_engine: AsyncEngine) -> None:
    """A real worker, with real commits, on a database of the test's own."""
    nightly = Handlers()
    nightly.add("queue_kit.queue.cleanup", job_queue_cleanup())
    await register_cron_jobs(queue_kit_engine, [CronJob("queue_kit.queue.cleanup", "0 1 * * *")])
    async with AsyncSession(queue_kit_engine) as session:
        await move_clock(session, timedelta(days=1))
        await session.commit()

    assert (await QueueWorker(queue_kit_engine, nightly).drain())["completed"] == 1

    (tomorrow,) = await enqueued(queue_kit_engine, "queue_kit.queue.cleanup")
    assert tomorrow.state == JobState.scheduled
