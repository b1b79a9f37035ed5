"""The two jobs on images: a placeholder for a new one, and one variant of one image. Ordinary handler factories, which
`file_jobs` registers.

jobs.add("queue_kit.file.generate_placeholder_image", job_file_generate_placeholder_image(store))
jobs.add("queue_kit.file.transform_image", job_file_transform_image(store))

What cannot be worked on is noted on the file, so that nobody tries it again; a job that finds nothing to do completes.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit._database import Database
from queue_kit._handler import HandlerFunction
from queue_kit.contrib.files import _originals
from queue_kit.contrib.files._originals import Original
from queue_kit.contrib.files.errors import ImageRefused
from queue_kit.contrib.files.models import REFUSED, File, content_id
from queue_kit.contrib.files.store import FileStore
from queue_kit.contrib.files.uploads import content_columns
from queue_kit.contrib.files.variants import ImageFormat, Variant
from queue_kit.enqueue import add_job
from queue_kit.event import Event
from queue_kit.job import Job

TRANSFORM_JOB = "queue_kit.file.transform_image"


@dataclass(frozen=True, slots=True)
class PlaceholderJob:
    """The payload of `queue_kit.file.generate_placeholder_image`."""

    file_id: UUID


@dataclass(frozen=True, slots=True)
class TransformJob:
    """The payload of `queue_kit.file.transform_image`: of which file, and what to make."""

    file_id: UUID
    width: int
    quality: int
    format: ImageFormat


async def add_transform_job(db: Database, file: File, variant: Variant) -> None:
    """Have a variant made; nothing happens when it is being made already."""
    data = {"file_id": str(file.id), "width": variant.width, "quality": variant.quality, "format": variant.format}
    await add_job(db, TRANSFORM_JOB, data, unique_key=f"{TRANSFORM_JOB}:{content_id(file.object_key)}:{variant}")


def job_file_generate_placeholder_image(store: FileStore) -> HandlerFunction[PlaceholderJob]:
    """A handler that writes `width`, `height` (pixels, as the image is shown) and `placeholder` (a data URI of less
    than 500 characters) into the `meta` of an image. Other files, animations and files that are gone are left alone.

    Register it as `queue_kit.file.generate_placeholder_image`; it runs when a file is stored with
    `schedule_placeholder_image_job=True`.

    >>> handler = job_file_generate_placeholder_image(FileStore.memory())
    """

    async def generate(event: Event, session: AsyncSession, job: Job[PlaceholderJob]) -> None:
        original = await _originals.find(session, job.data.file_id)
        if original is None:
            return
        try:
            with event.span("image.placeholder"):
                found = await store.images.placeholder(partial(_originals.content_of, store, original))
        except ImageRefused as refused:
            await _refuse(event, session, original, refused)
        else:
            about = {"width": found.width, "height": found.height, "placeholder": found.uri}
            await _originals.note(session, original, **about)

    return generate


def job_file_transform_image(store: FileStore) -> HandlerFunction[TransformJob]:
    """A handler that makes one variant of an image and stores it as a file of its own, which `send_transformed_image`
    sends from then on.

    Register it as `queue_kit.file.transform_image`; `send_transformed_image` adds its jobs. What is asked for is
    rounded to what `store.images` allows, also here. An image that was changed or deleted meanwhile gets no variant,
    and cleanup removes what was stored for it.

    >>> handler = job_file_transform_image(FileStore.memory())
    """

    async def transform(event: Event, session: AsyncSession, job: Job[TransformJob]) -> None:
        variant = store.images.variant(job.data.width, job.data.quality, job.data.format)
        if await _originals.variant_of(session, job.data.file_id, variant) is not None:
            return
        original = await _originals.find(session, job.data.file_id)
        if original is None:
            return
        try:
            with event.span("image.transform"):
                made = await store.images.make(partial(_originals.content_of, store, original), variant)
        except ImageRefused as refused:
            await _refuse(event, session, original, refused)
            return
        stored = await store.write(made.content)
        if await _originals.lock(session, original) is None:
            event.log.info("file %s was changed or deleted meanwhile", original.id)
            return
        if await _originals.variant_of(session, original.id, variant) is not None:
            return
        session.add(
            File(
                **content_columns(stored, made.content_type),
                name=f"{PurePath(original.name).stem}.{made.content_type.removeprefix('image/')}",
                meta={"width": made.width, "height": made.height},
                original_id=original.id,
                variant=str(variant),
            )
        )

    return transform


async def _refuse(event: Event, session: AsyncSession, original: Original, refused: ImageRefused) -> None:
    event.log.info("file %s: %s", original.id, refused)
    await _originals.note(session, original, **{REFUSED: refused.reason})
