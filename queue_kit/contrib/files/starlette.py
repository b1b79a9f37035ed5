"""Sending files from Starlette and FastAPI: what `_answer` decides, with the bytes of the store."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from queue_kit._database import Database
from queue_kit.contrib.files._answer import CACHE_CONTROL, NOT_FOUND_HEADERS, answer
from queue_kit.contrib.files.models import File
from queue_kit.contrib.files.store import FileStore
from queue_kit.contrib.files.transforms import SentFormat, choose_to_send


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
    return await _respond(request, store, file, cache_control=cache_control, download=download)


async def send_transformed_image(
    request: Request,
    db: Database,
    store: FileStore,
    file: File,
    *,
    width: int | None = None,
    quality: int | None = None,
    format: SentFormat = "auto",
    cache_control: str = CACHE_CONTROL,
) -> Response:
    """`send_file` for an image: at most `width` pixels wide, with a `quality` from 1 to 100, and as AVIF or WebP where
    the browser takes them.

    What is asked for is rounded up to what `store.images` allows. A variant that there is not yet is made by a job,
    one for all who ask, and the image itself is sent meanwhile, to be kept for 5 seconds. So it is for ever where there
    are no variants: of an animation, of an SVG, of what is no image.

    `db` is best an `AsyncEngine`: with a session or a connection, commit, or the job is not there. Raises `ValueError`
    for what is no width, quality or format.

    >>> @app.get("/images/{file_id}")  # doctest: +SKIP
    ... async def show(request: Request, file_id: UUID, w: int = 640):
    ...     return await send_transformed_image(request, engine, store, await get_file(engine, file_id), width=w)
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
