"""Sending files through Starlette and aiohttp, by real requests: both answer alike."""

from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import pytest

from queue_kit.contrib.files import File, FileStore, create_or_update_file, get_file
from queue_kit.contrib.files import aiohttp as on_aiohttp
from queue_kit.contrib.files import starlette as on_starlette
from queue_kit.contrib.files.uploads import content_columns
from tests.files.asking import Get, with_aiohttp, with_starlette
from tests.files.content import PNG, SVG

DATA = PNG + bytes(range(256)) * 8_000


@pytest.fixture(params=[(with_starlette, on_starlette), (with_aiohttp, on_aiohttp)], ids=["starlette", "aiohttp"])
def serving(request: pytest.FixtureRequest) -> Any:
    """Serve one file from either framework: `async with serving(store, file, **options) as get`."""
    framework, door = request.param

    def serve(store: FileStore, file: File, **options: Any) -> AbstractAsyncContextManager[Get]:
        async def show(request: Any) -> Any:
            return await door.send_file(request, store, file, **options)

        return framework(show)

    return serve


async def test_a_file_is_sent_from_the_row_to_the_last_byte(files, local, serving):
    created = await create_or_update_file(files, local, name="Füße.png", source=DATA)
    async with serving(local, await get_file(files, created.id)) as get:
        whole = await get()
        assert (whole.status, whole.content) == (200, DATA)
        assert whole.headers["content-type"] == "image/png"
        assert whole.headers["content-length"] == f"{len(DATA)}"
        assert whole.headers["content-disposition"].endswith("filename*=UTF-8''F%C3%BC%C3%9Fe.png")
        head = await get(method="HEAD")
        assert (head.status, head.content, head.headers["content-length"]) == (200, b"", f"{len(DATA)}")
        part = await get(range="bytes=1000000-1000999")
        assert (part.status, part.content) == (206, DATA[1_000_000:1_001_000])
        assert part.headers["content-range"] == f"bytes 1000000-1000999/{len(DATA)}"
        assert (await get(range="bytes=-7")).content == DATA[-7:]
        beyond = await get(range=f"bytes={len(DATA)}-")
        assert (beyond.status, beyond.content, beyond.headers["content-range"]) == (416, b"", f"bytes */{len(DATA)}")
        again = await get(**{"if-none-match": whole.headers["etag"]})
        assert (again.status, again.content, again.headers["etag"]) == (304, b"", whole.headers["etag"])
        assert (await get(**{"if-modified-since": whole.headers["last-modified"]})).status == 304
        assert (await get(**{"if-match": '"x"'})).status == 412


async def a_stored_row(store: FileStore, data: bytes, *, content_type: str = "image/png") -> File:
    """The row of a stored file, which no database has."""
    stored = await store.write(data)
    return File(name="x", updated_at=datetime.now(UTC), **content_columns(stored, content_type))


async def test_an_empty_file_is_sent(local, serving):
    async with serving(local, await a_stored_row(local, b"")) as get:
        reply = await get()
        assert (reply.status, reply.content, reply.headers["content-length"]) == (200, b"", "0")


async def test_an_object_that_is_gone_is_404_and_is_not_kept(local, serving):
    file = await a_stored_row(local, PNG)
    await local.delete([file.object_key])
    async with serving(local, file) as get:
        reply = await get()
        assert (reply.status, reply.headers["cache-control"]) == (404, "no-store")
        assert b"PNG" not in reply.content


async def test_svg_is_a_download_that_runs_nothing(local, serving):
    async with serving(local, await a_stored_row(local, SVG, content_type="image/svg+xml")) as get:
        reply = await get()
        assert reply.headers["content-type"] == "image/svg+xml"
        assert reply.headers["content-disposition"].startswith("attachment")
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"] == "default-src 'none'; sandbox"


async def test_the_caller_says_who_may_keep_it(local, serving):
    file = await a_stored_row(local, PNG)
    async with serving(local, file, cache_control="public, max-age=9", download=True) as get:
        reply = await get()
        assert reply.headers["cache-control"] == "public, max-age=9"
        assert reply.headers["content-disposition"].startswith("attachment")
