"""aiohttp: the dashboard under /queue, through a bridge of a page, since aiohttp speaks no ASGI.

    pip install 'queue-kit[sqlite,dashboard]' aiohttp
    python examples/aiohttp_dashboard.py

then open http://localhost:8080/queue/ and give the password of DASHBOARD_PASSWORD (any user name).

Runs on an SQLite file, `orders.db`, unless DATABASE_URL says otherwise (postgresql+asyncpg://user@host/name).
"""

import asyncio
import base64
import hmac
import os
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from aiohttp import web
from starlette.exceptions import HTTPException
from starlette.requests import Request

from queue_kit import engine_from_url, migrate
from queue_kit.dashboard import Access, dashboard

Message = MutableMapping[str, Any]
AsgiApp = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

MAX_BODY = 64 * 1024


def asgi_handler(app: AsgiApp, prefix: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """An aiohttp handler that passes requests on to an ASGI application under a prefix. For pages, not for streams."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if (request.content_length or 0) > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, request.content_length or 0)
        messages: list[Message] = [{"type": "http.request", "body": await request.read(), "more_body": False}]
        response = web.Response()

        async def receive() -> Message:
            if not messages:
                await asyncio.Event().wait()  # for the end of the connection, which cancels this
            return messages.pop()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                response.set_status(message["status"])
                response.headers.clear()
                for name, value in message["headers"]:
                    response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
            else:
                part: bytes = message.get("body", b"")
                response.body = (response.body or b"") + part if isinstance(response.body, bytes) else part

        scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.scheme,
            "path": request.path,
            "raw_path": request.raw_path.partition("?")[0].encode(),
            "query_string": request.rel_url.raw_query_string.encode(),
            "root_path": prefix,
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "server": None,
            "client": None,
        }
        await app(scope, receive, send)
        response.headers.pop("Content-Length", None)  # aiohttp counts itself, and refuses two
        return response

    return handle


async def authorize(request: Request) -> Access:
    """HTTP Basic authentication. Serve it over TLS, or in front of nobody else."""
    password = os.environ.get("DASHBOARD_PASSWORD", "").encode()
    _, _, encoded = request.headers.get("authorization", "").partition("Basic ")
    try:
        who, _, given = base64.b64decode(encoded, validate=True).partition(b":")
    except ValueError:
        who, given = b"", b""
    if not password or not hmac.compare_digest(given, password):
        raise HTTPException(401, "Sign in.", {"WWW-Authenticate": 'Basic realm="queue"'})
    return Access(who.decode(errors="replace") or "somebody", act=True)


def create_app() -> web.Application:
    """The application."""
    engine = engine_from_url(os.environ.get("DATABASE_URL", "sqlite:///orders.db"))

    async def database(_app: web.Application) -> AsyncIterator[None]:
        await migrate.upgrade(engine)  # in production a deploy does this, once
        yield
        await engine.dispose()

    app = web.Application()
    app.cleanup_ctx.append(database)
    app.router.add_route("*", "/queue{path:.*}", asgi_handler(dashboard(engine, authorize=authorize), "/queue"))
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1")
