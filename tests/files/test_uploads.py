"""Storing, updating and deleting files: the row in the caller's transaction, the object before it."""

import asyncio
from uuid import uuid4

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from queue_kit import SchemaMismatch
from queue_kit.contrib.files import File, FileStore, InvalidFile, create_or_update_file, delete_file, get_file
from queue_kit.testing import enqueued
from tests.files.content import HTML, JPEG, PDF, PNG, SVG, content, keys
from tests.files.storing import a_transform, count, upload

PLACEHOLDER = "queue_kit.file.generate_placeholder_image"


@pytest.fixture
def store():
    """A store."""
    return FileStore.memory()


# --- creating ---------------------------------------------------------------------------------------------------------


async def test_a_file_is_what_its_bytes_are(files, store):
    file = await upload(files, store, name="Füße.png", meta={"alt_text": "feet", "n": [1.5, None]})
    again = await get_file(files, file.id)
    assert again is not None
    assert (again.name, again.content_type, again.content_length) == ("Füße.png", "image/png", len(PNG))
    assert again.meta == {"alt_text": "feet", "n": [1.5, None]}
    assert (again.original_id, again.variant) == (None, None)
    assert again.created_at.tzinfo is not None
    assert again.etag == f'"{again.sha256[:32]}"'
    assert await keys(store) == {again.object_key}
    assert await content(store, again.object_key) == PNG


async def test_two_files_with_one_content_have_an_object_each_and_one_etag(files, store):
    first, second = await upload(files, store), await upload(files, store)
    assert first.object_key != second.object_key
    assert first.etag == second.etag


@pytest.mark.parametrize("through", ["session", "connection"])
async def test_a_file_is_the_callers_until_they_commit(files, store, through):
    async with files.connect() as connection:
        db = AsyncSession(connection) if through == "session" else connection
        file_id = (await upload(db, store)).id
        await db.rollback()
        await db.close()
    assert await get_file(files, file_id) is None
    async with files.connect() as connection:
        db = AsyncSession(connection) if through == "session" else connection
        file_id = (await upload(db, store)).id
        await db.commit()
        await db.close()
    assert await get_file(files, file_id) is not None


async def test_a_content_type_that_a_form_left_empty_says_nothing(files, store):
    assert (await upload(files, store, HTML, content_type="")).content_type == "text/html"


async def test_what_is_not_allowed_is_refused_before_anything_is_stored(files, store):
    with pytest.raises(InvalidFile, match="text/html is not allowed"):
        await upload(files, store, HTML, allowed_content_types=["image/png"])
    with pytest.raises(InvalidFile, match="the bytes are not image/png but text/html"):
        await upload(files, store, HTML, content_type="image/png")
    assert await keys(store) == set()
    assert await count(files) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name: has 0 characters"),
        ({"name": "x" * 256}, "name: has 256 characters"),
        ({"name": "a\r\nb"}, "name: holds control characters"),
        ({"name": "a\0b"}, "name: holds control characters"),
        ({"name": "\ud800"}, "name: holds control characters"),
        ({"name": None}, "name: must be text"),
        ({"source": "text"}, "source: must be bytes"),
        ({"meta": []}, "meta: must be a mapping"),
        ({"meta": {"a": float("nan")}}, r"^meta: at \$\.a: nan is not JSON"),
        ({"meta": {"a": "\0"}}, "meta: .*NUL"),
        ({"file_id": "7"}, "file_id: must be a UUID"),
        ({"content_type": "png"}, "content_type: is a type such as"),
        ({"allowed_content_types": "image/png"}, "allowed_content_types: is a list"),
        ({"allowed_content_types": [None]}, "content_type: is a type such as"),
    ],
)
async def test_what_cannot_be_right_is_refused_before_anything_is_read(store, options, message):
    nowhere = create_async_engine("sqlite+aiosqlite://")

    async def never():
        pytest.fail("was read")
        yield b""

    with pytest.raises(InvalidFile, match=message):
        await create_or_update_file(nowhere, store, **{"name": "x", "source": never()} | options)
    assert await keys(store) == set()


async def test_what_is_no_database_is_refused(store):
    with pytest.raises(TypeError, match="db must be"):
        await upload(None, store)


async def test_a_row_that_cannot_be_written_leaves_an_object_for_the_cleanup_and_no_file(files, store):
    async with files.begin() as connection:
        await connection.execute(text("ALTER TABLE queue_kit_file RENAME TO elsewhere"))
    with pytest.raises(SchemaMismatch, match="queue_kit_file"):
        await upload(files, store)
    async with files.begin() as connection:
        await connection.execute(text("ALTER TABLE elsewhere RENAME TO queue_kit_file"))
    assert await count(files) == 0
    assert len(await keys(store)) == 1


# --- updating ---------------------------------------------------------------------------------------------------------


async def test_an_update_changes_the_row_and_leaves_the_old_object(session, store):
    file = await upload(session, store, meta={"alt_text": "a cat", "width": 1, "height": 2, "placeholder": "data:"})
    await session.commit()
    file_id, before, created_at = file.id, file.object_key, file.created_at
    updated = await upload(session, store, JPEG, name="cat.jpg", file_id=file.id)
    assert updated is file
    assert (updated.name, updated.content_type, updated.content_length) == ("cat.jpg", "image/jpeg", len(JPEG))
    assert updated.meta == {"alt_text": "a cat"}
    assert (updated.created_at, updated.updated_at > created_at) == (created_at, True)
    assert await content(store, updated.object_key) == JPEG
    assert await content(store, before) == PNG
    await session.rollback()
    found = await get_file(session, file_id)
    assert found is not None
    assert (found.object_key, found.content_type) == (before, "image/png")


async def test_an_update_may_replace_what_the_application_keeps(session, store):
    file = await upload(session, store, meta={"alt_text": "a cat"})
    assert (await upload(session, store, file_id=file.id, meta={})).meta == {}


async def test_an_id_that_no_file_has_is_given_to_the_new_one(session, store):
    chosen = uuid4()
    assert (await upload(session, store, file_id=chosen)).id == chosen


async def test_an_update_drops_the_transforms_of_the_old_content(session, store):
    file, other = await upload(session, store), await upload(session, store)
    await a_transform(session, file)
    kept = await a_transform(session, other)
    await session.commit()
    await upload(session, store, JPEG, file_id=file.id)
    await session.commit()
    found = (await session.scalars(select(File).where(File.original_id.is_not(None)))).all()
    assert found == [kept]


async def test_a_transform_cannot_be_updated_by_itself(session, store):
    transform = await a_transform(session, await upload(session, store))
    with pytest.raises(InvalidFile, match=r"file_id: .* is a transform of"):
        await upload(session, store, file_id=transform.id)


async def test_uploads_at_once_under_one_id_give_one_file_with_the_content_of_one(files, store):
    chosen = uuid4()
    sources = [PNG + bytes([number]) for number in range(8)]
    await asyncio.gather(*(upload(files, store, source, file_id=chosen) for source in sources))
    file = await get_file(files, chosen)
    assert file is not None
    assert await content(store, file.object_key) in sources
    assert await count(files) == 1
    assert len(await keys(store)) == 8


# --- deleting ---------------------------------------------------------------------------------------------------------


async def test_a_file_goes_with_its_transforms_and_the_objects_stay_for_the_cleanup(files, session, store):
    file = await upload(session, store)
    file_id, object_key = file.id, file.object_key
    await a_transform(session, file)
    await session.commit()
    assert await delete_file(session, file_id) is True
    await session.rollback()
    assert await count(files) == 2
    assert await delete_file(session, file_id) is True
    await session.commit()
    assert await count(files) == 0
    assert await keys(store) == {object_key}
    assert await delete_file(files, file_id) is False


# --- the placeholder's job --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "wanted", "jobs"), [(PNG, True, 1), (PNG, False, 0), (PDF, True, 0), (SVG, True, 1)]
)
async def test_an_image_gets_a_job_for_its_placeholder(session, store, source, wanted, jobs):
    file = await upload(session, store, source, schedule_placeholder_image_job=wanted)
    found = await enqueued(session, PLACEHOLDER)
    assert [job.data for job in found] == [{"file_id": str(file.id)}] * jobs
    await session.rollback()
    assert await enqueued(session, PLACEHOLDER) == []


async def test_new_content_gets_a_job_of_its_own(session, store):
    file = await upload(session, store, schedule_placeholder_image_job=True)
    await upload(session, store, file_id=file.id, schedule_placeholder_image_job=True)
    assert len(await enqueued(session, PLACEHOLDER)) == 2


# --- what the database itself holds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"variant": "w1"},
        {"original_id": uuid4()},
        {"original_id": uuid4(), "variant": "w1"},
        {"content_length": -1},
        {"object_key": "taken"},
    ],
    ids=lambda columns: "+".join(columns),
)
async def test_the_table_refuses_rows_that_cannot_be(files, columns):
    row = {"id": uuid4(), "object_key": "free", "name": "x", "content_type": "a/b", "content_length": 0, "sha256": ""}
    async with files.begin() as connection:
        await connection.execute(insert(File), row | {"id": uuid4(), "object_key": "taken"})
    async with files.connect() as connection:
        with pytest.raises(IntegrityError):
            await connection.execute(insert(File), row | columns)


async def test_a_file_has_one_transform_of_a_kind(session, store):
    file = await upload(session, store)
    await a_transform(session, file)
    with pytest.raises(IntegrityError):
        await a_transform(session, file)
