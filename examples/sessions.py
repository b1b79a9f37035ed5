"""Sessions: log in, use the access token, refresh it, and see what happens to a copy of a refresh token.

    pip install uvicorn
    SESSION_KEY=$(python -c 'import secrets; print(secrets.token_urlsafe(64))') \\
        uvicorn --app-dir examples --factory sessions:create_app

    curl -X POST localhost:8000/log-in -H 'content-type: application/json' -d '{"name": "ada", "passphrase": "engine"}'
    curl localhost:8000/cart -H 'authorization: Bearer ACCESS_TOKEN'
    curl -X POST localhost:8000/refresh -H 'content-type: application/json' -d '{"refresh_token": "REFRESH_TOKEN"}'

Send the same refresh token again within 15 seconds: the same pair comes back. Send it later: the session is over, and
the worker logs the report. Runs on an SQLite file, `sessions.db`, unless DATABASE_URL says otherwise
(postgresql+asyncpg://user@host/name).
"""

import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel

from queue_kit import CronJob, Handlers, QueueWorker, engine_from_url, migrate, register_cron_jobs
from queue_kit.contrib.sessions import (
    Session,
    SessionConflict,
    SessionStore,
    SigningKey,
    TokenPair,
    Unauthorized,
    session_jobs,
)
from queue_kit.contrib.sessions.fastapi import SessionBearer, unauthorized


@dataclass(frozen=True)
class Cart:
    """The data of a session: checked when it is stored and again when it is read."""

    user: str
    items: list[str] = field(default_factory=list)


USERS = {"ada": "engine"}  # yours: a table, and a hash made for passwords

CRON = [CronJob("queue_kit.session_store.cleanup", "0 2 * * *")]


class LogIn(BaseModel):
    """What a client sends once."""

    name: str
    passphrase: str


class Refresh(BaseModel):
    """What it sends when its access token has expired."""

    refresh_token: str


class Item(BaseModel):
    """What it puts into its cart."""

    name: str


class Tokens(BaseModel):
    """What it gets for the first two."""

    access_token: str
    refresh_token: str
    token_type: str = "Bearer"  # noqa: S105 - the name of a scheme

    @classmethod
    def of(cls, pair: TokenPair, response: Response) -> "Tokens":
        """Tokens are for the client alone, so nothing on the way may keep them."""
        response.headers["Cache-Control"] = "no-store"
        return cls(access_token=pair.access_token, refresh_token=pair.refresh_token)


def create_app() -> FastAPI:
    """The application."""
    store = SessionStore(Cart, keys=[SigningKey("2026-11", os.environ["SESSION_KEY"])], issuer="shop")
    jobs = Handlers()
    jobs.include(session_jobs(store))
    engine = engine_from_url(os.environ.get("DATABASE_URL", "sqlite:///sessions.db"))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await migrate.upgrade(engine, extras=["sessions"])  # in production a deploy does this, once
        await register_cron_jobs(engine, CRON)
        async with QueueWorker(engine, jobs):
            yield
        await engine.dispose()

    app = FastAPI(title="sessions", lifespan=lifespan)
    bearer = SessionBearer(store, lambda _request: engine)
    CurrentSession = Annotated[Session[Cart], Depends(bearer)]  # noqa: N806 - a type

    @app.post("/log-in")
    async def log_in(who: LogIn, response: Response) -> Tokens:
        expected = USERS.get(who.name)
        if expected is None or not hmac.compare_digest(expected.encode(), who.passphrase.encode()):
            raise HTTPException(401, "name or passphrase is wrong")
        return Tokens.of(await store.create(engine, Cart(who.name)), response)

    @app.post("/refresh")
    async def refresh(what: Refresh, response: Response) -> Tokens:
        try:
            pair = await store.refresh_tokens(engine, what.refresh_token)
        except Unauthorized as error:
            raise unauthorized(store, error) from None
        return Tokens.of(pair, response)

    @app.get("/cart")
    async def show_cart(session: CurrentSession) -> Cart:
        return session.data

    @app.post("/cart")
    async def put(item: Item, session: CurrentSession, request: Request) -> Cart:
        changed = replace(session.data, items=[*session.data.items, item.name])
        try:
            return (await store.update(engine, replace(session, data=changed))).data
        except SessionConflict:  # another request was first: read it again
            return await put(item, await bearer(request), request)

    @app.post("/log-out", status_code=204)
    async def log_out(session: CurrentSession) -> None:
        await store.invalidate(engine, session)

    return app
