"""The aiohttp application: its routes on the test's connection, without its worker."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp_app import ROUTES, SESSIONS, Confirmation, confirm_order, jobs
from sqlalchemy.ext.asyncio import AsyncConnection, async_sessionmaker

from queue_kit.testing import assert_enqueued, drain

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client(queue_kit_connection: AsyncConnection) -> AsyncIterator[Client]:
    """A client of a server that makes its sessions on the test's connection."""
    app = web.Application()
    app[SESSIONS] = async_sessionmaker(queue_kit_connection)
    app.add_routes(ROUTES)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_an_order_is_confirmed(client: Client, queue_kit_connection: AsyncConnection) -> None:
    """The request adds the job; the job confirms the order."""
    order = await (await client.post("/orders", json={"email": "ada@example.org"})).json()
    assert order["confirmed"] is False

    await assert_enqueued(queue_kit_connection, confirm_order, Confirmation(order_id=order["id"]))
    assert (await drain(queue_kit_connection, jobs))["completed"] == 1

    assert (await (await client.get(f"/orders/{order['id']}")).json())["confirmed"] is True
