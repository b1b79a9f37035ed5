"""The session store behind HTTP: FastAPI, Starlette and aiohttp, each asked over its own transport."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, NamedTuple

import fastapi
import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from queue_kit.contrib.sessions import Session, SessionStore, Unauthorized
from queue_kit.contrib.sessions import aiohttp as aiohttp_door
from queue_kit.contrib.sessions import starlette as starlette_door
from queue_kit.contrib.sessions._bearer import bearer_token
from queue_kit.contrib.sessions.errors import InvalidToken
from queue_kit.contrib.sessions.fastapi import SessionBearer
from tests.database.session_stores import Cart, cart_store, forged, make_tables, move_back

Headers = list[tuple[str, str]]
Ask = Callable[..., Awaitable["Answer"]]


class Answer(NamedTuple):
    status: int
    challenge: str | None
    body: Any


class Door(NamedTuple):
    """An application with the routes `/cart` (needs a session) and `/refresh` (gives the next pair)."""

    name: str
    serve: Callable[[AsyncEngine, SessionStore[Cart]], contextlib.AbstractAsyncContextManager[Ask]]


@contextlib.asynccontextmanager
async def asked_over_asgi(app: Any) -> AsyncIterator[Ask]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:

        async def ask(path: str, headers: Headers | None = None) -> Answer:
            answer = await client.get(path, headers=headers)
            return Answer(answer.status_code, answer.headers.get("www-authenticate"), answer.json())

        yield ask


def fastapi_app(engine: AsyncEngine, store: SessionStore[Cart]) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    current = Annotated[Session[Cart], fastapi.Depends(SessionBearer(store, lambda request: request.app.state.engine))]
    app.state.engine = engine

    async def show_cart(session: current) -> Cart:  # type: ignore[valid-type]
        return session.data

    async def refresh(token: str) -> dict[str, str]:
        try:
            pair = await store.refresh_tokens(engine, token)
        except Unauthorized as error:
            raise starlette_door.unauthorized(store, error) from None
        return {"access_token": pair.access_token}

    app.get("/cart")(show_cart)
    app.get("/refresh")(refresh)
    return app


def starlette_app(engine: AsyncEngine, store: SessionStore[Cart]) -> Starlette:
    async def show_cart(request: Request) -> JSONResponse:
        session = await starlette_door.load_session(request, store, engine)
        return JSONResponse({"items": session.data.items, "user_id": session.data.user_id})

    async def refresh(request: Request) -> JSONResponse:
        try:
            pair = await store.refresh_tokens(engine, request.query_params["token"])
        except Unauthorized as error:
            raise starlette_door.unauthorized(store, error) from None
        return JSONResponse({"access_token": pair.access_token})

    async def refused(_request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    routes = [Route("/cart", show_cart), Route("/refresh", refresh)]
    return Starlette(routes=routes, exception_handlers={401: refused})


@contextlib.asynccontextmanager
async def aiohttp_app(engine: AsyncEngine, store: SessionStore[Cart]) -> AsyncIterator[Ask]:
    async def show_cart(request: web.Request) -> web.Response:
        cart = aiohttp_door.session_of(request, store).data
        return web.json_response({"items": cart.items, "user_id": cart.user_id})

    async def refresh(request: web.Request) -> web.Response:
        with pytest.raises(LookupError, match="its handler is public"):
            aiohttp_door.session_of(request, store)
        try:
            pair = await store.refresh_tokens(engine, request.query["token"])
        except Unauthorized as error:
            raise aiohttp_door.unauthorized(store, error) from None
        return web.json_response({"access_token": pair.access_token})

    app = web.Application(middlewares=[aiohttp_door.session_middleware(store, lambda _: engine, public=[refresh])])
    app.add_routes([web.get("/cart", show_cart), web.get("/refresh", refresh)])
    async with TestClient(TestServer(app)) as client:

        async def ask(path: str, headers: Headers | None = None) -> Answer:
            answer = await client.get(path, headers=headers or [])
            return Answer(answer.status, answer.headers.get("www-authenticate"), await answer.json())

        yield ask


DOORS = [
    Door("fastapi", lambda engine, store: asked_over_asgi(fastapi_app(engine, store))),
    Door("starlette", lambda engine, store: asked_over_asgi(starlette_app(engine, store))),
    Door("aiohttp", aiohttp_app),
]


def bearer(token: str) -> Headers:
    return [("Authorization", f"Bearer {token}")]


INVALID = 'Bearer realm="shop", error="invalid_token", error_description="{}"'


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
async def test_a_session_is_loaded_or_the_answer_says_why_not(engine, door):
    await make_tables(engine)
    store = cart_store()
    pair = await store.create(engine, Cart(["tea"], 7))
    async with door.serve(engine, store) as ask:
        cart = Answer(200, None, {"items": ["tea"], "user_id": 7})
        assert await ask("/cart", bearer(pair.access_token)) == cart
        assert await ask("/cart", [("authorization", f"bEARER  {pair.access_token}")]) == cart

        nothing = Answer(401, 'Bearer realm="shop"', {"detail": "a bearer token is needed"})
        for headers in ([], [("Authorization", "Bearer")], [("Authorization", "Basic YTpi")], bearer("")):
            assert await ask("/cart", headers) == nothing

        invalid = Answer(401, INVALID.format("the token is not valid"), {"detail": "the token is not valid"})
        for headers in (
            bearer("x"),
            bearer(pair.refresh_token),
            bearer(f"{pair.access_token} {pair.access_token}"),
            bearer(forged(pair.access_token, iss="bank")),
            bearer(pair.access_token) * 2,
        ):
            assert await ask("/cart", headers) == invalid

        answer = await ask(f"/refresh?token={pair.refresh_token}")
        assert answer.status == 200
        assert await ask("/cart", bearer(answer.body["access_token"])) == cart
        replaced = "the token was replaced by a refresh"
        assert await ask("/cart", bearer(pair.access_token)) == Answer(
            401, INVALID.format(replaced), {"detail": replaced}
        )

        # Somebody who uses a copy learns no more than anybody whose session is over.
        await move_back(engine, rotated_at=60)
        ended = Answer(401, INVALID.format("the session has ended"), {"detail": "the session has ended"})
        for _ in range(2):
            assert await ask(f"/refresh?token={pair.refresh_token}") == ended
        assert await ask("/cart", bearer(answer.body["access_token"])) == ended


def test_fastapi_documents_the_token():
    app = fastapi_app(None, cart_store())  # type: ignore[arg-type]
    document = app.openapi()
    scheme = {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The access token of a session.",
    }
    assert document["components"]["securitySchemes"] == {"session": scheme}
    assert document["paths"]["/cart"]["get"]["security"] == [{"session": []}]
    assert "security" not in document["paths"]["/refresh"]["get"]


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([], None),
        ([""], None),
        (["Bearer"], None),
        (["Bearer "], None),
        (["Basic a"], None),
        (["Bearerx"], None),
        (["bearer x"], "x"),
        (["  Bearer   x "], "x"),
        (["Bearer x y"], "x y"),
    ],
)
def test_a_token_is_what_follows_the_word_bearer(headers, token):
    assert bearer_token(headers) == token


def test_two_headers_are_none():
    with pytest.raises(InvalidToken):
        bearer_token(["Bearer a", "Bearer a"])
