"""An application of each framework that answers by one function, and a client that asks it by real requests."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from starlette.applications import Starlette
from starlette.routing import Route


@dataclass
class Reply:
    """What a client got; the names of headers have no case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


Show: TypeAlias = Callable[[Any], Awaitable[Any]]
Get: TypeAlias = Callable[..., Awaitable[Reply]]


@asynccontextmanager
async def with_starlette(show: Show) -> AsyncIterator[Get]:
    """Ask Starlette."""
    transport = httpx.ASGITransport(Starlette(routes=[Route("/", show)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def get(url: str = "/", method: str = "GET", **headers: str) -> Reply:
            answer = await client.request(method, url, headers=headers)
            return Reply(answer.status_code, answer.headers, answer.content)

        yield get


@asynccontextmanager
async def with_aiohttp(show: Show) -> AsyncIterator[Get]:
    """Ask aiohttp."""
    app = web.Application()
    app.router.add_get("/", show)
    async with TestClient(TestServer(app)) as client:

        async def get(url: str = "/", method: str = "GET", **headers: str) -> Reply:
            async with client.request(method, url, headers=headers) as answer:
                return Reply(answer.status, answer.headers, await answer.read())

        yield get
