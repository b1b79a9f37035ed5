"""Sending files from aiohttp: what `_answer` decides, with the bytes of the store."""

from aiohttp import web

from queue_kit._database import Database
from queue_kit.contrib.files._answer import CACHE_CONTROL, NOT_FOUND_HEADERS, answer
from queue_kit.contrib.files.models import File
from queue_kit.contrib.files.store import FileStore
from queue_kit.contrib.files.transforms import SentFormat, choose_to_send


async def send_file(
    request: web.BaseRequest,
    store: FileStore,
    file: File,
    *,
    cache_control: str = CACHE_CONTROL,
    download: bool = False,
) -> web.StreamResponse:
    """The response to a GET or HEAD request for a file: whole, a range, 304, 412 or 416; 404 when its object is gone.

    The arguments are those of `queue_kit.contrib.files.starlette.send_file`.

    >>> @routes.get("/files/{file_id}")  # doctest: +SKIP
    ... async def show(request: web.Request) -> web.StreamResponse:
    ...     return await send_file(request, store, await get_file(engine, UUID(request.match_info["file_id"])))
    """
    return await _respond(request, store, file, cache_control=cache_control, download=download)


async def send_transformed_image(
    request: web.BaseRequest,
    db: Database,
    store: FileStore,
    file: File,
    *,
    width: int | None = None,
    quality: int | None = None,
    format: SentFormat = "auto",
    cache_control: str = CACHE_CONTROL,
) -> web.StreamResponse:
    """`send_file` for an image: at most `width` pixels wide, with a `quality` from 1 to 100, and as AVIF or WebP where
    the browser takes them.

    All of it is as for `queue_kit.contrib.files.starlette.send_transformed_image`.

    >>> @routes.get("/images/{file_id}")  # doctest: +SKIP
    ... async def show(request: web.Request) -> web.StreamResponse:
    ...     file = await get_file(engine, UUID(request.match_info["file_id"]))
    ...     return await send_transformed_image(request, engine, store, file, width=640)
    """
    sent = await choose_to_send(
        db,
        store,
        file,
        accept=request.headers.get("Accept"),
        width=width,
        quality=quality,
        format=format,
        cache_control=cache_control,
    )
    return await _respond(request, store, sent.file, cache_control=sent.cache_control, vary=sent.vary)


async def _respond(
    request: web.BaseRequest,
    store: FileStore,
    file: File,
    *,
    cache_control: str,
    download: bool = False,
    vary: str | None = None,
) -> web.StreamResponse:
    """`send_file`, for a response that depends on a header of the request: `vary` names it."""
    found = answer(request.method, request.headers, file, cache_control=cache_control, download=download, vary=vary)
    if not found.has_body:
        return web.Response(status=found.status, headers=found.headers)
    try:
        pieces = await store.open(file.object_key, found.start, found.end)
    except FileNotFoundError:
        return web.Response(status=404, text="The file is gone.\n", headers=NOT_FOUND_HEADERS)
    response = web.StreamResponse(status=found.status, headers=found.headers)
    await response.prepare(request)
    async for piece in pieces:
        await response.write(piece)
    await response.write_eof()
    return response
