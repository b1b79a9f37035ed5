"""Placeholders and variants, from the upload to what a browser gets, on both databases and from both frameworks."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from yarl import URL

from queue_kit import QueueWorker, add_job, list_jobs
from queue_kit.contrib.files import (
    File,
    FileNotFound,
    FileStore,
    ImageRefused,
    Images,
    InvalidFile,
    choose_image,
    create_or_update_file,
    delete_file,
    file_jobs,
    get_file,
    job_file_cleanup,
    transform_file_in_place,
)
from queue_kit.contrib.files import aiohttp as from_aiohttp
from queue_kit.contrib.files import starlette as from_starlette
from queue_kit.testing import run_handler
from tests.files import corpus
from tests.files.asking import Get, with_aiohttp, with_starlette
from tests.files.content import PDF, SVG, content, keys
from tests.files.corpus import picture, read, written
from tests.support import count_jobs, until

PHOTO = written(picture(200, 120))
BROWSER = {"Accept": "image/avif,image/webp,*/*;q=0.8"}
ANIMATED, DAMAGED = {"image_refused": "animated"}, {"image_refused": "damaged"}
PLACEHOLDER = "queue_kit.file.generate_placeholder_image"
TRANSFORM = "queue_kit.file.transform_image"

Change: TypeAlias = Callable[[], Awaitable[object]]

upload = partial(create_or_update_file, name="photo.jpg")


@pytest.fixture
def store(tmp_path) -> FileStore:
    """A folder, and images with few variants."""
    return FileStore.local(tmp_path / "uploads", images=Images(widths=(64, 128), qualities=(75,), formats=("webp",)))


async def work(engine: AsyncEngine, store: FileStore) -> dict[str, int]:
    """Run the jobs that are due."""
    counts = await QueueWorker(engine, file_jobs(store), parallel_count=4, retry_delay=600).drain()
    return {verdict: count for verdict, count in counts.items() if count}


async def again(engine: AsyncEngine, file: File) -> File:
    found = await get_file(engine, file.id)
    assert found is not None
    return found


async def variants(engine: AsyncEngine) -> list[File]:
    async with AsyncSession(engine) as session:
        return list(await session.scalars(select(File).where(File.original_id.is_not(None)).order_by(File.variant)))


async def transform(engine: AsyncEngine, store: FileStore, file: File, width: int = 64) -> None:
    """Run one job as a worker does."""
    await choose_image(engine, store, file, width=width, format="webp")
    assert await work(engine, store) == {"completed": 1}


# --- placeholders -----------------------------------------------------------------------------------------------------


async def test_an_upload_gets_its_size_and_placeholder(files, store):
    photo = corpus.turned(6)
    meta = {"alt_text": "a wall"}
    file = await upload(files, store, source=photo, meta=meta, schedule_placeholder_image_job=True)
    assert await work(files, store) == {"completed": 1}
    found = (await again(files, file)).meta
    assert found.pop("placeholder").startswith("data:image/jpeg;base64,")
    assert found == {"alt_text": "a wall", "width": 96, "height": 64}


@pytest.mark.parametrize(
    ("source", "meta"),
    [
        (SVG, {}),
        (PDF, {}),
        (corpus.moving("GIF"), ANIMATED),
        (PHOTO[:300], DAMAGED),
    ],
    ids=["SVG", "PDF", "animation", "broken"],
)
async def test_what_gets_no_placeholder_is_left_as_it_is(files, store, source, meta):
    file = await upload(files, store, source=source)
    await add_job(files, PLACEHOLDER, {"file_id": str(file.id)})
    await add_job(files, PLACEHOLDER, {"file_id": str(uuid4())})
    assert await work(files, store) == {"completed": 2}
    assert (await again(files, file)).meta == meta


async def test_a_placeholder_of_content_that_was_changed_meanwhile_is_not_kept(files, store, monkeypatch):
    file = await upload(files, store, source=PHOTO)
    happens_meanwhile(monkeypatch, store, lambda: upload(files, store, source=PDF, file_id=file.id))
    await add_job(files, PLACEHOLDER, {"file_id": str(file.id)})
    assert await work(files, store) == {"completed": 1}
    assert (await again(files, file)).meta == {}


# --- variants ---------------------------------------------------------------------------------------------------------


async def test_a_variant_is_a_file_of_its_own(files, store):
    file = await upload(files, store, source=PHOTO)
    await transform(files, store, file)
    (made,) = await variants(files)
    assert (made.original_id, made.variant, made.name) == (file.id, "w64-q75-webp", "photo.webp")
    assert (made.content_type, made.meta) == ("image/webp", {"width": 64, "height": 38})
    assert read(await content(store, made.object_key)).size == (64, 38)


async def test_however_many_ask_there_is_one_job_for_a_variant(files, store):
    file = await upload(files, store, source=PHOTO)
    asked = [choose_image(files, store, file, width=width, format="webp") for width in (10, 40, 64) for _ in range(5)]
    assert {(each.file.id, each.final) for each in await asyncio.gather(*asked)} == {(file.id, False)}
    assert await count_jobs(files) == 1
    assert await work(files, store) == {"completed": 1}
    assert len(await variants(files)) == 1
    assert (await choose_image(files, store, file, width=64, format="webp")).final
    assert await count_jobs(files) == 1


async def test_a_job_that_comes_twice_makes_one_variant(files, store):
    file = await upload(files, store, source=PHOTO)
    for _ in range(2):
        await add_job(files, TRANSFORM, {"file_id": str(file.id), "width": 64, "quality": 75, "format": "webp"})
    await QueueWorker(files, file_jobs(store)).drain()
    assert len(await variants(files)) == 1
    assert len(await keys(store)) == 2


async def test_a_variant_that_somebody_else_has_made_meanwhile_is_kept(files, store, monkeypatch):
    file = await upload(files, store, source=PHOTO)

    async def made_by_another() -> None:
        async with AsyncSession(files) as session:
            asked = {"file_id": str(file.id), "width": 64, "quality": 75, "format": "webp"}
            await run_handler(file_jobs(store)[TRANSFORM], asked, session=session)
            await session.commit()

    happens_meanwhile(monkeypatch, store, made_by_another)
    await transform(files, store, file)
    assert len(await variants(files)) == 1


async def test_a_job_makes_only_what_is_allowed(files, store):
    file = await upload(files, store, source=PHOTO)
    asked = {"file_id": str(file.id), "quality": 1, "format": "webp"}
    await add_job(files, TRANSFORM, {**asked, "width": 9_999})
    assert await work(files, store) == {"completed": 1}
    assert [each.variant for each in await variants(files)] == ["w128-q75-webp"]
    for wrong in ({"width": 64, "format": "avif"}, {"width": 0}, {"width": "64px"}):
        await add_job(files, TRANSFORM, {**asked, **wrong}, max_retry_count=1)
    assert await work(files, store) == {"failed": 3}
    assert len(await variants(files)) == 1


async def test_there_are_no_variants_of_variants(files, store):
    file = await upload(files, store, source=PHOTO)
    await transform(files, store, file)
    (made,) = await variants(files)
    assert await choose_image(files, store, made, width=128, format="webp") == (made, True)
    await add_job(files, TRANSFORM, {"file_id": str(made.id), "width": 128, "quality": 75, "format": "webp"})
    assert await work(files, store) == {"completed": 1}
    assert len(await variants(files)) == 1
    with pytest.raises(ImageRefused):
        await transform_file_in_place(files, store, made.id)


async def test_what_is_refused_is_tried_once(files, store):
    file = await upload(files, store, source=corpus.scan_bomb(scans=10))
    store.images = Images(max_pixels=1_000_000)
    assert not (await choose_image(files, store, file, width=64, format="webp")).final
    assert await work(files, store) == {"completed": 1}
    file = await again(files, file)
    assert file.meta == {"image_refused": "pixels"}
    assert (await choose_image(files, store, file, width=128, format="webp")).final
    assert await count_jobs(files) == 1
    # Other content is tried again.
    file = await upload(files, store, source=PHOTO, file_id=file.id)
    assert file.meta == {}
    await transform(files, store, file)
    assert len(await variants(files)) == 1


async def test_a_file_that_is_too_long_is_not_even_read(files, store):
    file = await upload(files, store, source=PHOTO)
    store.images = Images(max_bytes=100)
    await choose_image(files, store, file, width=64)
    assert await work(files, store) == {"completed": 1}
    assert (await again(files, file)).meta == {"image_refused": "bytes"}


async def test_trouble_of_the_machine_is_no_refusal(files, store):
    file = await upload(files, store, source=corpus.scan_bomb())
    store.images = Images(timeout=0.05)
    await choose_image(files, store, file, width=64)
    assert await work(files, store) == {"retried": 1}
    assert (await again(files, file)).meta == {}


def happens_meanwhile(monkeypatch: pytest.MonkeyPatch, store: FileStore, change: Change) -> None:
    """Let something happen while the next image is worked on."""
    ask = store.images._ask

    async def changed_and_asked(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(store.images, "_ask", ask)
        answer = await ask(*arguments, **options)
        await change()
        return answer

    monkeypatch.setattr(store.images, "_ask", changed_and_asked)


async def test_a_file_that_is_deleted_while_its_variant_is_made_leaves_nothing_behind(files, store, monkeypatch):
    file = await upload(files, store, source=PHOTO)
    happens_meanwhile(monkeypatch, store, lambda: delete_file(files, file.id))
    await transform(files, store, file)
    assert await variants(files) == []
    assert len(await keys(store)) == 2
    async with AsyncSession(files) as session:
        await run_handler(job_file_cleanup(store, minimum_age=0), {}, session=session)
    assert await keys(store) == set()


async def test_a_variant_of_content_that_was_changed_meanwhile_is_not_kept(files, store, monkeypatch):
    file = await upload(files, store, source=PHOTO)
    green = written(picture(50, 50), "PNG")
    happens_meanwhile(monkeypatch, store, lambda: upload(files, store, source=green, file_id=file.id))
    await transform(files, store, file)
    assert await variants(files) == []
    await transform(files, store, await again(files, file))
    (made,) = await variants(files)
    assert made.meta == {"width": 50, "height": 50}


async def test_an_update_while_the_variant_is_written_waits_and_drops_it(files, store):
    """The other order: the variant's row is written, not yet committed, when the content is changed."""
    file = await upload(files, store, source=PHOTO)

    async def new_object_is_written() -> bool:
        return len(await keys(store)) == 3

    async with AsyncSession(files) as session:
        asked = {"file_id": str(file.id), "width": 64, "quality": 75, "format": "webp"}
        await run_handler(file_jobs(store)[TRANSFORM], asked, session=session)
        await session.flush()
        updating = asyncio.create_task(upload(files, store, source=PDF, file_id=file.id))
        await until(new_object_is_written)
        assert not updating.done()
        await session.commit()
        await updating
    assert await variants(files) == []


# --- in place ---------------------------------------------------------------------------------------------------------


async def test_an_image_is_changed_in_place(files, store):
    file = await upload(
        files, store, source=corpus.annotated("JPEG"), meta={"alt_text": "x"}, schedule_placeholder_image_job=True
    )
    await choose_image(files, store, file, width=64)
    assert await work(files, store) == {"completed": 2}
    changed = await transform_file_in_place(files, store, file.id, rotate=90)
    assert (changed.id, changed.name, changed.content_type) == (file.id, "photo.jpg", "image/jpeg")
    assert changed.meta == {"alt_text": "x"}
    cleaned = await content(store, changed.object_key)
    assert read(cleaned).size == (64, 96)
    assert corpus.SECRET.encode() not in cleaned
    assert await variants(files) == []
    assert await work(files, store) == {"completed": 1}
    assert ((await again(files, file)).meta["width"], (await again(files, file)).meta["height"]) == (64, 96)
    assert corpus.SECRET.encode() in await content(store, file.object_key), "whoever reads it reads it to the end"


async def test_a_change_in_place_that_is_rolled_back_is_none(files, store):
    file = await upload(files, store, source=PHOTO)
    async with AsyncSession(files) as session:
        await transform_file_in_place(session, store, file.id, rotate=180)
        await session.rollback()
    assert (await again(files, file)).object_key == file.object_key


async def test_while_a_change_in_place_is_uploaded_nobody_waits_for_it(files, store, monkeypatch):
    """The storage may be slow, and SQLite has one writer. Who writes meanwhile has the last word."""
    file = await upload(files, store, source=PHOTO)
    write = store.write

    async def deleted_and_written(source: Any) -> Any:
        async with asyncio.timeout(5):
            assert await delete_file(files, file.id)
        return await write(source)

    monkeypatch.setattr(store, "write", deleted_and_written)
    with pytest.raises(InvalidFile, match="changed or deleted meanwhile"):
        await transform_file_in_place(files, store, file.id)


async def test_what_cannot_be_changed_in_place_says_why(files, store, monkeypatch):
    with pytest.raises(FileNotFound):
        await transform_file_in_place(files, store, uuid4())
    for source, reason in ((SVG, "format"), (corpus.moving("WEBP"), "animated")):
        file = await upload(files, store, source=source)
        with pytest.raises(ImageRefused) as refused:
            await transform_file_in_place(files, store, file.id)
        assert refused.value.reason == reason
    file = await upload(files, store, source=PHOTO)
    happens_meanwhile(monkeypatch, store, lambda: upload(files, store, source=PDF, file_id=file.id))
    with pytest.raises(InvalidFile, match="changed or deleted meanwhile"):
        await transform_file_in_place(files, store, file.id)
    assert (await again(files, file)).content_type == "application/pdf"


# --- what is sent -----------------------------------------------------------------------------------------------------


@pytest.fixture
def serving(request: pytest.FixtureRequest, files: AsyncEngine, store: FileStore) -> Any:
    """Serve one file: `async with serving(file, **options) as get`."""
    framework, door = getattr(request, "param", (with_starlette, from_starlette))

    def serve(file: File, **options: Any) -> AbstractAsyncContextManager[Get]:
        async def show(request: Any) -> Any:
            width = int(URL(str(request.url)).query.get("w", 64))
            return await door.send_transformed_image(
                request, files, store, await again(files, file), width=width, **options
            )

        return framework(show)

    return serve


@pytest.mark.parametrize(
    "serving",
    [(with_starlette, from_starlette), (with_aiohttp, from_aiohttp)],
    ids=["starlette", "aiohttp"],
    indirect=True,
)
async def test_the_image_is_sent_until_there_is_its_variant(files, store, serving):
    file = await upload(files, store, source=PHOTO)
    async with serving(file, cache_control="public, max-age=3600") as get:
        first = await get(**BROWSER)
        assert (first.status, first.content) == (200, PHOTO)
        assert first.headers["Cache-Control"] == "public, max-age=5"
        assert first.headers["Vary"] == "Accept"
        assert await work(files, store) == {"completed": 1}

        second = await get(**BROWSER)
        assert (second.status, second.headers["Content-Type"]) == (200, "image/webp")
        assert read(second.content).size == (64, 38)
        assert second.headers["Cache-Control"] == "public, max-age=3600"
        assert second.headers["Vary"] == "Accept"
        assert second.headers["ETag"] != first.headers["ETag"]
        assert await count_jobs(files) == 1

        fresh = {**BROWSER, "If-None-Match": second.headers["ETag"]}
        assert ((await get(**fresh)).status, (await get(**fresh)).content) == (304, b"")
        part = await get(**BROWSER, Range="bytes=0-3")
        assert (part.status, part.content) == (206, b"RIFF")
        head = await get(method="HEAD", **BROWSER)
        assert (head.status, head.content) == (200, b"")

        # One that takes no WebP gets its own variant.
        plain = await get(Accept="image/*")
        assert plain.content == PHOTO
        assert await work(files, store) == {"completed": 1}
        assert (await get(Accept="image/*")).headers["Content-Type"] == "image/jpeg"
    assert [each.variant for each in await variants(files)] == ["w64-q75-original", "w64-q75-webp"]


@pytest.mark.parametrize("source", [SVG, PDF], ids=["SVG", "PDF"])
async def test_what_has_no_variants_is_sent_as_a_file_is(files, store, serving, source):
    file = await upload(files, store, source=source)
    async with serving(file) as get:
        answer = await get(**BROWSER)
    assert (answer.status, answer.content) == (200, source)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "max-age=120" in answer.headers["Cache-Control"]
    if source == SVG:
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert await count_jobs(files) == 0


async def test_an_animation_goes_on_moving(files, store, serving):
    moving = corpus.moving("WEBP")
    file = await upload(files, store, source=moving)
    async with serving(file) as get:
        await get(**BROWSER)
        assert await work(files, store) == {"completed": 1}
        answer = await get(**BROWSER)
    assert answer.content == moving
    assert "max-age=120" in answer.headers["Cache-Control"]
    assert await count_jobs(files) == 1


async def test_what_is_private_or_not_to_be_stored_stays_so_meanwhile(files, store, serving):
    file = await upload(files, store, source=PHOTO)
    async with serving(file, cache_control="no-store", format="webp") as get:
        answer = await get()
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Vary" not in answer.headers
    async with serving(file, cache_control="private, max-age=60") as get:
        assert (await get()).headers["Cache-Control"] == "private, max-age=5"


async def test_nobody_makes_more_variants_than_are_allowed(files, store, serving):
    file = await upload(files, store, source=PHOTO)
    async with serving(file) as get:
        for width in (*range(1, 200, 9), 10**9):
            assert (await get(f"/?w={width}", **BROWSER)).status == 200
    assert await count_jobs(files) == 2
    assert {job.data["width"] for job in await list_jobs(files)} == {64, 128}


async def test_a_session_adds_the_job_in_its_own_transaction(files, store, session):
    file = await upload(files, store, source=PHOTO)
    await choose_image(session, store, file, width=64)
    await session.rollback()
    assert await count_jobs(files) == 0
    await choose_image(session, store, file, width=64)
    await session.commit()
    assert await count_jobs(files) == 1
    assert await session.scalar(select(func.count()).select_from(File)) == 1
