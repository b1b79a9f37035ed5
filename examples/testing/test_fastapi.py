"""The FastAPI application. Nearly all tests stay inside of one transaction, which is rolled back; one goes all the way.

`ASGITransport` runs no lifespan, so no worker: `drain` runs the jobs when the test says so.
"""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi_app import Confirmation, confirm_order, create_app, get_session, jobs
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from queue_kit.testing import assert_enqueued, drain, enqueued


@pytest.fixture
async def client(queue_kit_connection: AsyncConnection) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, each of whose requests has a session of its own on the test's connection."""

    async def session_of_a_request() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(queue_kit_connection) as session:
            yield session

    app = create_app()
    app.dependency_overrides[get_session] = session_of_a_request
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def test_an_order_is_confirmed(client: httpx.AsyncClient, queue_kit_connection: AsyncConnection) -> None:
    """The request adds the job; the job confirms the order."""
    order = (await client.post("/orders", json={"email": "ada@example.org"})).json()
    assert order["confirmed"] is False

    await assert_enqueued(queue_kit_connection, confirm_order, Confirmation(order_id=order["id"]))
    assert (await drain(queue_kit_connection, jobs))["completed"] == 1

    assert (await client.get(f"/orders/{order['id']}")).json()["confirmed"] is True


async def test_a_refused_order_adds_no_job(client: httpx.AsyncClient, queue_kit_connection: AsyncConnection) -> None:
    """Nothing is left of the test before, either."""
    assert (await client.post("/orders", json={})).status_code == 422
    assert await enqueued(queue_kit_connection) == []


async def test_the_worker_of_the_lifespan(queue_kit_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All the way once, with the application's own engine and worker: on a database of the test's own."""
    monkeypatch.setenv("DATABASE_URL", queue_kit_database_url)
    app = create_app()
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        asyncio.timeout(10),
    ):
        order = (await client.post("/orders", json={"email": "ada@example.org"})).json()
        while not (await client.get(f"/orders/{order['id']}")).json()["confirmed"]:  # noqa: ASYNC110 - the worker's doing
            await asyncio.sleep(0.02)
