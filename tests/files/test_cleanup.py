"""The cleanup: what no row names goes, everything else stays, whatever the storage does meanwhile."""

import asyncio
import os
import signal
import sys
from datetime import timedelta

import pytest
from sqlalchemy import delete, text

from queue_kit import ConfigurationError, Handlers, JobState, QueueWorker, ShuttingDown, add_job
from queue_kit.contrib.files import (
    Cleaned,
    File,
    FilesNotDeleted,
    FileStore,
    create_or_update_file,
    delete_file,
    file_jobs,
    job_file_cleanup,
)
from queue_kit.contrib.files.store import MOST_KEYS
from tests.files.content import PNG, content, folder, keys
from tests.files.storing import a_transform, an_event, clean, count, upload
from tests.support import row_of

DAY = 86_400


def age(store, object_key, *, days):
    """Let an object of a local store have been written some days ago."""
    path = folder(store) / object_key
    written = path.stat().st_mtime - days * DAY
    os.utime(path, (written, written))


async def test_what_no_row_names_goes_and_what_one_names_stays(files, local):
    kept = [await upload(files, local) for _ in range(3)]
    gone = await upload(files, local)
    await delete_file(files, gone.id)
    await local.write(b"rolled back")
    assert await clean(files, local) == Cleaned(objects=5, deleted=2)
    assert await keys(local) == {file.object_key for file in kept}
    assert await clean(files, local) == Cleaned(objects=3)


async def test_replaced_content_goes(files, local):
    file = await upload(files, local)
    before = file.object_key
    after = (await upload(files, local, file_id=file.id)).object_key
    await clean(files, local)
    assert await keys(local) == {after} != {before}


async def test_what_is_younger_than_the_minimum_age_stays(files, local):
    young, old = [(await local.write(b"x")).object_key for _ in range(2)]
    age(local, old, days=2)
    assert await clean(files, local, minimum_age=timedelta(days=1)) == Cleaned(objects=2, deleted=1)
    assert await keys(local) == {young}


async def test_an_upload_whose_row_is_not_committed_yet_stays(files, session, local):
    file = await create_or_update_file(session, local, name="x", source=PNG)
    if files.dialect.name == "sqlite":  # where a cleanup waits for the one writer
        await session.commit()
    assert (await clean(files, local, minimum_age=60)).deleted == 0
    await session.commit()
    await clean(files, local)
    assert await keys(local) == {file.object_key}


async def test_an_upload_in_progress_goes_on(files, local):
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def slow():
        yield PNG + bytes(20_000_000)
        begun.set()
        await cleaned.wait()
        yield b"end"

    upload_ = asyncio.create_task(create_or_update_file(files, local, name="x", source=slow()))
    await begun.wait()
    assert await clean(files, local, minimum_age=60) == Cleaned()
    cleaned.set()
    file = await upload_
    assert (await content(local, file.object_key)).endswith(b"end")
    assert file.content_length == len(PNG) + 20_000_003


async def test_a_dry_run_only_counts(files, local):
    await local.write(b"x")
    assert await clean(files, local, dry_run=True) == Cleaned(objects=1, deleted=1)
    assert len(await keys(local)) == 1


async def test_objects_outside_of_the_prefix_stay(files, local):
    other = FileStore(local.objects, prefix="files/other/")
    foreign = (await other.write(b"x")).object_key
    (folder(local) / "files" / "readme.txt").write_text("not ours")
    await local.write(b"x")
    assert await clean(files, local) == Cleaned(objects=1, deleted=1)
    assert await keys(other) == {foreign}
    assert (folder(local) / "files" / "readme.txt").exists()


async def test_transforms_whose_original_is_gone_go(files, session, local):
    file, kept = await upload(session, local), await upload(session, local)
    await a_transform(session, file)
    await a_transform(session, kept)
    await session.commit()
    async with files.connect() as connection:  # as a program does that does not look at foreign keys
        if files.dialect.name == "sqlite":
            await connection.exec_driver_sql("COMMIT")
            await connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        else:
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
        await connection.execute(delete(File).where(File.id == file.id))
        await connection.commit()
        if files.dialect.name == "sqlite":
            await connection.invalidate()
    assert await count(files) == 3
    assert (await clean(files, local)).transforms == 1
    assert await count(files) == 2


class Refusing(FileStore):
    """A local store that cannot delete one of its objects: as soon as that is listed, a folder stands in its place."""

    refused = ""

    async def pages(self):
        async for page in super().pages():
            path = folder(self) / self.refused
            path.unlink()
            (path / "not empty").mkdir(parents=True)
            yield page


async def test_a_storage_that_refuses_some_is_told_of_and_the_others_go(files, local):
    store = Refusing(local.objects)
    store.refused, *_ = [(await local.write(b"x")).object_key for _ in range(3)]
    with pytest.raises(
        FilesNotDeleted, match=rf"^1 objects could not be deleted, among them {store.refused}: "
    ) as caught:
        await clean(files, store)
    assert set(caught.value.reasons) == {store.refused}
    assert await keys(local) == set()
    assert (folder(local) / store.refused).is_dir()


async def test_what_a_killed_upload_left_in_a_folder_goes(files, local):
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(folder(local)))
    assert await process.wait() == -signal.SIGKILL
    (left,) = (folder(local) / "files").iterdir()
    assert await keys(local) == set()
    assert await clean(files, local, minimum_age=60) == Cleaned()
    assert left.exists()
    assert await clean(files, local, dry_run=True) == Cleaned()
    assert left.exists()
    await clean(files, local)
    assert not left.exists()


KILLED = """
import asyncio, os, signal, sys
from queue_kit.contrib.files import FileStore

async def dying():
    yield bytes(20_000_000)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(FileStore.local(sys.argv[1]).write(dying()))
"""


async def test_of_what_is_unfinished_one_that_is_finished_meanwhile_saves_no_other(files, local, monkeypatch):
    parts = [folder(local) / local.prefix / f"{digit * 32}#1" for digit in "ab"]
    parts[0].parent.mkdir(parents=True)
    for part in parts:
        part.write_bytes(b"x")

    class Finishing:
        def fullmatch(self, name):
            """The first one that is looked at is renamed by its upload, before anything else is asked of it."""
            if all(part.exists() for part in parts):
                (parts[0].parent / name).unlink()
            return True

    monkeypatch.setattr("queue_kit.contrib.files.store._UNFINISHED", Finishing())
    await clean(files, local)
    assert not any(part.exists() for part in parts)


async def test_a_page_is_no_longer_than_one_request_takes(files):
    store = FileStore.memory()
    for _ in range(2 * MOST_KEYS + 1):
        await store.write(b"")
    assert [len(page) async for page in store.pages()] == [MOST_KEYS, MOST_KEYS, 1]
    assert await clean(files, store) == Cleaned(objects=2 * MOST_KEYS + 1, deleted=2 * MOST_KEYS + 1)


async def test_a_run_that_is_aborted_stops_before_the_next_page(files, local):
    await local.write(b"x")
    event = an_event()
    event.signal.abort(ShuttingDown("the worker stops"))
    with pytest.raises(ShuttingDown):
        await clean(files, local, event=event)
    assert len(await keys(local)) == 1


async def test_a_worker_runs_it_from_one_line(files, local):
    await local.write(b"young")
    jobs = Handlers()
    jobs.include(file_jobs(local))
    job_id = await add_job(files, "queue_kit.file.cleanup")
    await QueueWorker(files, jobs).drain()
    assert (await row_of(files, job_id)).state is JobState.completed
    assert len(await keys(local)) == 1


@pytest.mark.parametrize("minimum_age", [-1, float("nan"), float("inf"), "1", True, None])
def test_an_age_that_is_none_is_refused(minimum_age):
    with pytest.raises(ConfigurationError, match="minimum_age"):
        job_file_cleanup(FileStore.memory(), minimum_age=minimum_age)
