"""The order flow inside of a transaction that is rolled back, and the pages on a database of their own."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from alembic import command
from sqlalchemy import func, inspect, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import Handlers, QueueWorker
from queue_kit.contrib.files import FileStore
from queue_kit.contrib.sessions import SessionStore, SigningKey
from queue_kit.testing import assert_enqueued, drain, enqueued, run_handler
from shop import prepare
from shop.app import create_app
from shop.jobs import Confirmation, confirm_order, make_jobs, report_sales
from shop.login import Login
from shop.models import Customer, Order, Product, Report, Sale
from shop.orders import SoldOut, place_order
from shop.settings import Settings

PASSWORD = "a password of the staff"  # noqa: S105 # pragma: allowlist secret
TEA, _CUP, TEAPOT = 1, 2, 3
ADA = {"email": "ada@example.org", "password": "analytical engine"}  # pragma: allowlist secret


@pytest.fixture(scope="session")
def queue_kit_prepare() -> Callable[[AsyncEngine], Awaitable[None]]:
    """The template of the databases: the shop's history, and what it sells."""

    async def prepare_database(engine: AsyncEngine) -> None:
        await prepare.upgrade(engine)
        assert await prepare.fill(engine, PASSWORD)
        assert not await prepare.fill(engine, PASSWORD)

    return prepare_database


@pytest.fixture
def jobs(tmp_path: Path) -> Handlers:
    """All that the worker runs, with a folder for the mail."""
    logins = SessionStore(Login, keys=[SigningKey("1", "a key that is long enough for this")], issuer="shop")
    return make_jobs(FileStore.memory(), logins, tmp_path)


async def count(session: AsyncSession, table: type[object]) -> int:
    """How many rows a table has."""
    return await session.scalar(select(func.count()).select_from(table)) or 0


def sent(outbox: Path) -> list[EmailMessage]:
    """The mail that went out."""
    return [message_from_bytes(file.read_bytes(), policy=default) for file in outbox.glob("*.eml")]


# --- the order flow ---------------------------------------------------------------------------------------------------


async def test_an_order_is_confirmed(queue_kit_session: AsyncSession, jobs: Handlers, tmp_path: Path) -> None:
    """The order, its job, the sale and the mail."""
    order_id = await place_order(queue_kit_session, uuid4(), 1, TEA, 2)
    await assert_enqueued(queue_kit_session, confirm_order, Confirmation(order_id))

    assert (await drain(queue_kit_session, jobs))["completed"] == 2

    order = await queue_kit_session.get_one(Order, order_id, populate_existing=True)
    assert order.confirmed_at is not None
    assert await count(queue_kit_session, Sale) == 1
    (mail,) = sent(tmp_path)
    assert (mail["To"], "2 x Tea, 100 g, € 17.00" in mail.get_content()) == (prepare.STAFF, True)


async def test_a_form_that_is_sent_twice_is_one_order(queue_kit_session: AsyncSession) -> None:
    """The second one finds the first."""
    key = uuid4()
    first = await place_order(queue_kit_session, key, 1, TEAPOT, 1)
    assert await place_order(queue_kit_session, key, 1, TEAPOT, 1) == first
    assert len(await enqueued(queue_kit_session, confirm_order)) == 1


async def test_what_is_sold_out_is_no_order(queue_kit_session: AsyncSession) -> None:
    """Nothing is left of it, and of another customer's order nothing is told."""
    key = uuid4()
    await place_order(queue_kit_session, key, 1, TEAPOT, 1)
    for again in (uuid4(), key):
        with pytest.raises(SoldOut):
            await place_order(queue_kit_session, again, 2, TEAPOT, 1)
    assert await count(queue_kit_session, Order) == len(await enqueued(queue_kit_session)) == 1


async def test_of_many_at_once_as_many_get_one_as_there_are(queue_kit_engine: AsyncEngine) -> None:
    """Real commits, next to each other."""

    async def buy(key: UUID) -> bool:
        async with AsyncSession(queue_kit_engine) as session:
            try:
                await place_order(session, key, 1, 2, 7)
            except SoldOut:
                return False
            return True

    assert sum(await asyncio.gather(*(buy(uuid4()) for _ in range(12)))) == 5
    async with AsyncSession(queue_kit_engine) as session:
        assert (await session.get_one(Product, 2)).stock == 40 - 5 * 7
        assert await count(session, Order) == 5


async def test_the_report_adds_up_the_day_before(queue_kit_session: AsyncSession) -> None:
    """However often it runs."""
    order_id = await place_order(queue_kit_session, uuid4(), 1, TEA, 1)
    tick = datetime(2026, 3, 2, 1, tzinfo=UTC)
    for hours in (-26, -25, -1.5, -1):  # two of them on the day
        queue_kit_session.add(Sale(order_id=order_id, cents=100, sold_at=tick + timedelta(hours=hours)))
    for _ in range(2):
        await run_handler(report_sales, {}, session=queue_kit_session, scheduled_at=tick)
    report = await queue_kit_session.get_one(Report, date(2026, 3, 1))
    assert (report.sales, report.cents) == (2, 200)
    assert len(await enqueued(queue_kit_session, "email.send", {"to": prepare.STAFF})) == 2


async def test_the_history_makes_what_the_models_say(queue_kit_engine: AsyncEngine) -> None:
    """The queue's tables with it; and all of it can be taken back."""
    async with queue_kit_engine.begin() as connection:
        await connection.run_sync(lambda sync: command.check(prepare.history(sync)))
        await connection.run_sync(lambda sync: command.downgrade(prepare.history(sync), "base"))
        assert set(await connection.run_sync(lambda sync: inspect(sync).get_table_names())) == {"alembic_version"}


# --- the pages --------------------------------------------------------------------------------------------------------


async def test_the_pages(queue_kit_database_url: str, queue_kit_engine: AsyncEngine, tmp_path: Path) -> None:
    """Who may do what, and an order. `ASGITransport` runs no lifespan, so no worker."""
    app = create_app(Settings(tmp_path, queue_kit_database_url, "a key that is long enough for this", "scraper"))

    def browser() -> httpx.AsyncClient:
        headers = {"Origin": "http://shop"}
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop", headers=headers)

    async with browser() as ada, browser() as staff, browser() as stranger:
        assert (await ada.post("/log-in", data=ADA)).status_code == 401
        assert (await ada.post("/sign-up", data={"email": ADA["email"]})).status_code == 422
        assert (await ada.post("/sign-up", data=ADA)).headers["location"] == "/"
        assert (await stranger.post("/sign-up", data=ADA)).status_code == 409
        assert (await staff.post("/log-in", data={"email": prepare.STAFF, "password": PASSWORD})).status_code == 303

        for page in ("/orders", "/orders/1", "/queue/", "/metrics"):
            assert (await stranger.get(page)).headers["location"] == "/log-in"
        assert (await stranger.get("/metrics", headers={"Authorization": "Bearer scraper"})).status_code == 200
        for page, forbidden in (("/queue/", 403), ("/metrics", 403), ("/orders", 200)):
            assert (await ada.get(page)).status_code == forbidden
        assert "order.confirm" in (await staff.get("/metrics")).text

        key = re.findall(r'name="key" value="([^"]+)"', (await ada.get("/")).text)[TEAPOT - 1]
        form = {"product_id": TEAPOT, "quantity": 1, "key": key}
        for elsewhere in ({"Origin": "http://evil"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            assert (await ada.post("/orders", data=form, headers=elsewhere)).status_code == 403
        assert (await stranger.post("/orders", data=form)).headers["location"] == "/log-in"
        order = (await ada.post("/orders", data=form)).headers["location"]
        assert (await ada.post("/orders", data=form)).headers["location"] == order
        assert (await ada.post("/orders", data=form | {"key": str(uuid4())})).headers["location"].endswith("sold-out")
        assert 'http-equiv="refresh"' in (await ada.get(order)).text
        missing = await staff.get(order)
        assert (missing.status_code, "<h1>There is no such order.</h1>" in missing.text) == (404, True)

        async with AsyncSession(queue_kit_engine) as session:
            assert await count(session, Customer) == 2
        assert (await QueueWorker(queue_kit_engine, {"order.confirm": confirm_order}).drain())["completed"] == 1
        assert "Confirmed." in (await ada.get(order)).text

        for page in ("/queue/", "/orders"):  # the first one brings a cookie of the dashboard's own
            staff.cookies.delete("session-access")  # as when it has expired
            assert (await staff.get(page)).status_code == 200
            assert "session-access" in staff.cookies

        ada.cookies.delete("session-access")
        assert "Order 1" in (await ada.get("/orders")).text
        assert "session-access" in ada.cookies
        kept = dict(ada.cookies)
        ada.cookies.delete("session-access")  # what is refreshed for the log-out is not given to the browser
        await ada.post("/log-out")
        assert not ada.cookies
        stranger.cookies.update(kept)
        assert (await stranger.get("/orders")).headers["location"] == "/log-in"
    await app.state.engine.dispose()
