"""Sending files from Starlette and FastAPI: what `_answer` decides, with the bytes of the store."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from queue_kit.contrib.files._answer import CACHE_CONTROL, NOT_FOUND_HEADERS, answer
from queue_kit.contrib.files.models import File
from queue_kit.contrib.files.store import FileStore


async def send_file(
    request: Request,
    store: FileStore,
    file: File,
    *,
    cache_control: str = CACHE_CONTROL,
    download: bool = False,
) -> Response:
    """The response to a GET or HEAD request for a file: whole, a range, 304, 412 or 416; 404 when its object is gone.

    `cache_control` is the header for who may keep it, and how long; by default the user's own browser, for two minutes.
    `download` makes the browser save it; what a browser would run, such as HTML and SVG, is always saved. Who may see
    the file is for the caller to decide, before.

    >>> @app.get("/files/{file_id}")  # doctest: +SKIP
    ... async def show(request: Request, file_id: UUID):
    ...     return await send_file(request, store, await get_file(engine, file_id))
    """
    return await respond(request, store, file, cache_control=cache_control, download=download)


async def respond(
    request: Request,
    store: FileStore,
    file: File,
    *,
    cache_control: str,
    download: bool = False,
    vary: str | None = None,
) -> Response:
    """`send_file`, for a response that depends on a header of the request: `vary` names it."""
    found = answer(request.method, request.headers, file, cache_control=cache_control, download=download, vary=vary)
    if not found.has_body:
        return Response(status_code=found.status, headers=found.headers)
    try:
        pieces = await store.open(file.object_key, found.start, found.end)
    except FileNotFoundError:
        return PlainTextResponse("The file is gone.\n", 404, NOT_FOUND_HEADERS)
    return StreamingResponse(pieces, found.status, found.headers)
