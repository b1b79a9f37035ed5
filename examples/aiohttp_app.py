"""aiohttp: an order and its confirmation job in one session; the worker in `cleanup_ctx`.

    python examples/aiohttp_app.py

    curl -X POST localhost:8080/orders -d '{"email": "ada@example.org"}'
    curl localhost:8080/orders/1

Runs on an SQLite file, `orders.db`, unless DATABASE_URL says otherwise (postgresql+asyncpg://user@host/name).
"""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web
from pydantic import BaseModel, ValidationError
from sqlalchemy import DateTime
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from queue_kit import Event, Handlers, Job, QueueWorker, engine_from_url, migrate


class Base(DeclarativeBase):
    """The application's tables."""


class Order(Base):
    """An order, and when it was confirmed."""

    __tablename__ = "aiohttp_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    confirmed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


# --- the job ----------------------------------------------------------------------------------------------------------

jobs = Handlers()


@dataclass
class Confirmation:
    """The payload: checked when it is added and again when it runs."""

    order_id: int


@jobs.handler("order.confirm", timeout=30, max_retry_count=5)
async def confirm_order(event: Event, session: AsyncSession, job: Job[Confirmation]) -> None:
    """Confirm an order. The order's new state and the job's completion are one commit."""
    event.log.info("a real one sends an e-mail here, with job.id as its idempotency key")
    order = await session.get_one(Order, job.data.order_id)
    order.confirmed_at = datetime.now(UTC)


# --- the application --------------------------------------------------------------------------------------------------

ENGINE = web.AppKey("ENGINE", AsyncEngine)
SESSIONS = web.AppKey("SESSIONS", async_sessionmaker[AsyncSession])


class NewOrder(BaseModel):
    """What a client sends."""

    email: str


async def add_order(request: web.Request) -> web.Response:
    """POST /orders"""
    try:
        new = NewOrder.model_validate_json(await request.read())
    except ValidationError as error:
        raise web.HTTPBadRequest(text=str(error)) from None
    async with request.app[SESSIONS]() as session:
        order = Order(email=new.email)
        session.add(order)
        await session.flush()  # gives the order its id
        answer = {"id": order.id, "email": order.email, "confirmed": False}
        await confirm_order.add(session, Confirmation(order_id=order.id))
        await session.commit()  # now there are both, an order and its job; before, neither
    return web.json_response(answer, status=201)


async def show_order(request: web.Request) -> web.Response:
    """GET /orders/{id}"""
    async with request.app[SESSIONS]() as session:
        order = await session.get(Order, int(request.match_info["id"]))
        if order is None:
            raise web.HTTPNotFound(text="there is no such order")
        return web.json_response({"id": order.id, "email": order.email, "confirmed": order.confirmed_at is not None})


async def database(app: web.Application) -> AsyncIterator[None]:
    """Open the database for as long as the application runs."""
    app[ENGINE] = engine = engine_from_url(os.environ.get("DATABASE_URL", "sqlite:///orders.db"))
    app[SESSIONS] = async_sessionmaker(engine)
    await migrate.upgrade(engine)  # in production a deploy does this, once
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


async def worker(app: web.Application) -> AsyncIterator[None]:
    """Work for as long as the application runs; it stops before the database does."""
    async with QueueWorker(app[ENGINE], jobs, parallel_count=10):
        yield


ROUTES = [web.post("/orders", add_order), web.get(r"/orders/{id:\d{1,9}}", show_order)]


def create_app() -> web.Application:
    """The application."""
    app = web.Application()
    app.cleanup_ctx.extend([database, worker])
    app.add_routes(ROUTES)
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1")
