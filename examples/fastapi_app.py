"""FastAPI: an order and its confirmation job in the one session of the request; the worker in the lifespan.

    pip install uvicorn
    uvicorn --app-dir examples --factory fastapi_app:create_app

    curl -X POST localhost:8000/orders -H 'content-type: application/json' -d '{"email": "ada@example.org"}'
    curl localhost:8000/orders/1

Runs on an SQLite file, `orders.db`, unless DATABASE_URL says otherwise (postgresql+asyncpg://user@host/name).
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy import DateTime
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from queue_kit import Event, Handlers, Job, QueueWorker, engine_from_url, migrate


class Base(DeclarativeBase):
    """The application's tables."""


class Order(Base):
    """An order, and when it was confirmed."""

    __tablename__ = "fastapi_order"

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


class NewOrder(BaseModel):
    """What a client sends."""

    email: str


class OrderState(BaseModel):
    """What a client gets."""

    id: int
    email: str
    confirmed: bool


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """The session of one request."""
    async with AsyncSession(request.app.state.engine) as session:
        yield session


RequestSession = Annotated[AsyncSession, Depends(get_session)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Prepare the database, then work for as long as the application runs."""
    app.state.engine = engine = engine_from_url(os.environ.get("DATABASE_URL", "sqlite:///orders.db"))
    await migrate.upgrade(engine)  # in production a deploy does this, once
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with QueueWorker(engine, jobs, parallel_count=10):
        yield
    await engine.dispose()


def create_app() -> FastAPI:
    """The application."""
    app = FastAPI(title="orders", lifespan=lifespan)

    @app.post("/orders", status_code=201)
    async def add_order(new: NewOrder, session: RequestSession) -> OrderState:
        order = Order(email=new.email)
        session.add(order)
        await session.flush()  # gives the order its id
        answer = OrderState(id=order.id, email=order.email, confirmed=False)
        await confirm_order.add(session, Confirmation(order_id=order.id))
        await session.commit()  # now there are both, an order and its job; before, neither
        return answer

    @app.get("/orders/{order_id}")
    async def show_order(order_id: int, session: RequestSession) -> OrderState:
        order = await session.get(Order, order_id)
        if order is None:
            raise HTTPException(404, "there is no such order")
        return OrderState(id=order.id, email=order.email, confirmed=order.confirmed_at is not None)

    return app
