"""Sending files through Starlette and aiohttp, by real requests: both answer alike, and both stream."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from queue_kit.contrib.files import File, FileStore, create_or_update_file, delete_file, get_file
from queue_kit.contrib.files import aiohttp as on_aiohttp
from queue_kit.contrib.files import starlette as on_starlette
from tests.files.content import PNG, SVG

DATA = PNG + bytes(range(256)) * 8_000


class Reply:
    """What a client got."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, {name.lower(): value for name, value in headers.items()}, body


@asynccontextmanager
async def with_starlette(find: Callable[[], Any], **options: Any) -> AsyncIterator[Any]:
    async def show(request: Request) -> Any:
        store, file = await find()
        return await on_starlette.send_file(request, store, file, **options)

    transport = httpx.ASGITransport(Starlette(routes=[Route("/", show)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def ask(method: str = "GET", **headers: str) -> Reply:
            found = await client.request(method, "/", headers={"accept-encoding": "identity"} | headers)
            return Reply(found.status_code, dict(found.headers), found.content)

        yield ask


@asynccontextmanager
async def with_aiohttp(find: Callable[[], Any], **options: Any) -> AsyncIterator[Any]:
    async def show(request: web.Request) -> web.StreamResponse:
        store, file = await find()
        return await on_aiohttp.send_file(request, store, file, **options)

    app = web.Application()
    app.router.add_get("/", show)
    async with TestServer(app) as server, aiohttp.ClientSession() as client:

        async def ask(method: str = "GET", **headers: str) -> Reply:
            async with client.request(method, server.make_url("/"), headers=headers) as found:
                return Reply(found.status, dict(found.headers), await found.read())

        yield ask


@pytest.fixture(params=[with_starlette, with_aiohttp], ids=["starlette", "aiohttp"])
def serving(request: pytest.FixtureRequest) -> Any:
    """A server of each framework."""
    return request.param


async def test_a_file_is_sent_from_the_row_to_the_last_byte(files, local, serving):
    file = await create_or_update_file(files, local, name="Füße.png", source=DATA)

    async def find():
        return local, await get_file(files, file.id)

    async with serving(find) as ask:
        whole = await ask()
        assert (whole.status, whole.body) == (200, DATA)
        assert whole.headers["content-type"] == "image/png"
        assert whole.headers["content-length"] == f"{len(DATA)}"
        assert whole.headers["content-disposition"].endswith("filename*=UTF-8''F%C3%BC%C3%9Fe.png")
        head = await ask("HEAD")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", f"{len(DATA)}")
        part = await ask(range="bytes=1000000-1000999")
        assert (part.status, part.body) == (206, DATA[1_000_000:1_001_000])
        assert part.headers["content-range"] == f"bytes 1000000-1000999/{len(DATA)}"
        assert (await ask(range="bytes=-7")).body == DATA[-7:]
        beyond = await ask(range=f"bytes={len(DATA)}-")
        assert (beyond.status, beyond.body, beyond.headers["content-range"]) == (416, b"", f"bytes */{len(DATA)}")
        again = await ask(**{"if-none-match": whole.headers["etag"]})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", whole.headers["etag"])
        assert (await ask(**{"if-modified-since": whole.headers["last-modified"]})).status == 304
        assert (await ask(**{"if-match": '"x"'})).status == 412


def found(store: FileStore, file: File) -> Callable[[], Any]:
    async def find() -> Any:
        return store, file

    return find


def a_row(**columns: Any) -> File:
    from datetime import UTC, datetime

    usual = {"name": "x", "content_type": "image/png", "content_length": 0, "sha256": "0" * 64, "object_key": "files/"}
    return File(**usual | {"updated_at": datetime.now(UTC)} | columns)


async def a_stored_row(store: FileStore, data: bytes, **columns: Any) -> File:
    stored = await store.write(data)
    return a_row(object_key=stored.object_key, content_length=len(data), sha256=stored.sha256, **columns)


async def test_an_empty_file_is_sent(local, serving):
    async with serving(found(local, await a_stored_row(local, b""))) as ask:
        reply = await ask()
        assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"", "0")


async def test_an_object_that_is_gone_is_404_and_is_not_kept(local, serving):
    file = await a_stored_row(local, PNG)
    await local.delete([file.object_key])
    async with serving(found(local, file)) as ask:
        reply = await ask()
        assert (reply.status, reply.headers["cache-control"]) == (404, "no-store")
        assert b"PNG" not in reply.body


async def test_svg_is_a_download_that_runs_nothing(local, serving):
    async with serving(found(local, await a_stored_row(local, SVG, content_type="image/svg+xml"))) as ask:
        reply = await ask()
        assert reply.headers["content-type"] == "image/svg+xml"
        assert reply.headers["content-disposition"].startswith("attachment")
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"] == "default-src 'none'; sandbox"


async def test_the_caller_says_who_may_keep_it(local, serving):
    file = await a_stored_row(local, PNG)
    async with serving(found(local, file), cache_control="public, max-age=9", download=True) as ask:
        reply = await ask()
        assert reply.headers["cache-control"] == "public, max-age=9"
        assert reply.headers["content-disposition"].startswith("attachment")


async def test_a_file_that_is_replaced_and_deleted_meanwhile_is_read_to_the_end(files, local):
    file = await create_or_update_file(files, local, name="x", source=DATA)
    pieces = await local.open(file.object_key)
    first = await anext(pieces)
    await create_or_update_file(files, local, name="x", source=PNG, file_id=file.id)
    await delete_file(files, file.id)
    assert await local.delete([file.object_key]) == {}
    assert first + b"".join([piece async for piece in pieces]) == DATA
