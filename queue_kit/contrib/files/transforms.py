"""What is sent for an image, and an image changed for good. The jobs in `image_jobs.py` do the work of the first."""

from functools import partial
from typing import Literal, NamedTuple, TypeAlias
from uuid import UUID

from queue_kit._database import Database
from queue_kit._reach import session_on
from queue_kit.contrib.files import _originals
from queue_kit.contrib.files.errors import FileNotFound, ImageRefused, InvalidFile
from queue_kit.contrib.files.image_jobs import add_transform_job
from queue_kit.contrib.files.images import Rotation
from queue_kit.contrib.files.models import REFUSED, File
from queue_kit.contrib.files.store import FileStore
from queue_kit.contrib.files.uploads import content_columns, get_file, schedule_placeholder, update_row
from queue_kit.contrib.files.variants import ImageFormat

WHILE_IT_IS_MADE = 5
"""Seconds for which the original is cached in place of a variant that is being made."""


SentFormat: TypeAlias = Literal["auto", "avif", "webp", "original"]
"""What an image is sent as; `auto` is the best that the browser names in its `Accept` header."""


class Chosen(NamedTuple):
    """The file to send for an image, and whether that is for good: `False` while its variant is being made."""

    file: File
    final: bool


async def choose_image(
    db: Database,
    store: FileStore,
    file: File,
    *,
    width: int | None = None,
    quality: int | None = None,
    format: ImageFormat = "original",
) -> Chosen:
    """The variant of an image if there is one, else the image itself, and a job that makes the variant.

    Of a file that is no image, moves, or could not be worked on, there are no variants. With a session or a connection
    as `db` the job is added in its transaction, so commit it. Raises `ValueError` for what is no width, quality or
    format.

    >>> async def thumbnail(engine, store, file):
    ...     return (await choose_image(engine, store, file, width=128, format="webp")).file
    """
    variant = store.images.variant(width, quality, format)
    if not _originals.is_transformable(file):
        return Chosen(file, final=True)
    async with session_on(db, reading=True) as session:
        made = await _originals.variant_of(session, file.id, variant)
    if made is not None:
        return Chosen(made, final=True)
    await add_transform_job(db, file, variant)
    return Chosen(file, final=False)


class ToSend(NamedTuple):
    """What a framework sends for an image: a file, its `Cache-Control`, and the header of the request it depends on."""

    file: File
    cache_control: str
    vary: str | None


async def choose_to_send(
    db: Database,
    store: FileStore,
    file: File,
    *,
    accept: str | None,
    width: int | None,
    quality: int | None,
    format: SentFormat,
    cache_control: str,
) -> ToSend:
    """What to send to a browser that sent this `Accept` header."""
    negotiated = format == "auto"
    taken = store.images.accepted(accept) if format == "auto" else format
    chosen = await choose_image(db, store, file, width=width, quality=quality, format=taken)
    return ToSend(
        chosen.file, cache_control if chosen.final else _brief(cache_control), "Accept" if negotiated else None
    )


def _brief(cache_control: str) -> str:
    """The same for as long as a variant may take to be made."""
    words = cache_control.lower()
    if "no-store" in words:
        return cache_control
    return f"{'public' if 'public' in words else 'private'}, max-age={WHILE_IT_IS_MADE}"


async def transform_file_in_place(
    db: Database,
    store: FileStore,
    file_id: UUID,
    *,
    rotate: Rotation = 0,
    width: int | None = None,
    quality: int = 90,
) -> File:
    """Replace an image by itself: upright, turned clockwise by `rotate` degrees, at most `width` pixels wide, in sRGB,
    and without its metadata (where and with what it was taken, an embedded preview).

    It keeps its id, its name and what the application wrote into `meta`. Its variants go, and a placeholder that it had
    is made anew by a job. `quality` is from 1 to 100, for formats that have one; a GIF becomes a PNG. Whoever reads the
    old content reads it to the end.

    Raises `FileNotFound`, `ImageRefused` for what is not worked on, `InvalidFile` when the file was changed while this
    worked on it, and `ValueError` for arguments that make no sense.

    >>> async def forget_the_place(engine, store, file_id):
    ...     await transform_file_in_place(engine, store, file_id)
    """
    file = await get_file(db, file_id)
    if file is None:
        raise FileNotFound(file_id)
    if REFUSED in file.meta:
        raise ImageRefused(str(file.meta[REFUSED]), "it was tried before")
    if not _originals.is_transformable(file):
        raise ImageRefused("format", f"{file.content_type} is not worked on")
    original = _originals.Original(file.id, file.object_key, file.name)
    content = partial(_originals.content_of, store, original)
    made = await store.images.clean(content, rotate=rotate, width=width, quality=quality)
    stored = await store.write(made.content)
    async with session_on(db) as session:
        row = await _originals.lock(session, original)
        if row is None:
            raise InvalidFile("file_id", "the file was changed or deleted meanwhile; try again")
        had_placeholder = "placeholder" in row.meta
        await update_row(session, row, content_columns(stored, made.content_type))
        if had_placeholder:
            await schedule_placeholder(session, row)
    return row
