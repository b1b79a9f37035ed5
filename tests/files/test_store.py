"""The storage: objects are written whole or not at all, under keys of their own, and no other key is ever touched."""

import asyncio
import io
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from queue_kit import ConfigurationError
from queue_kit.contrib.files import FileStore, InvalidFile
from queue_kit.contrib.files.images import MIB
from tests.files.content import LONG, PNG, content, folder, keys, pieces_of
from tests.support import until

PART = 5 * MIB
ZEROS = "0" * 32
KEY = f"files/{ZEROS}"


class Reader:
    """What has an async `read`, as an upload of Starlette's."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)

    async def read(self, size: int) -> bytes:
        piece, self.data = self.data[: size // 3], self.data[size // 3 :]
        return bytes(piece)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest) -> FileStore:
    """A store that needs no server."""
    return request.getfixturevalue("local") if request.param == "local" else FileStore.memory(part_bytes=PART)


@pytest.mark.parametrize("data", [b"", b"x", PNG, LONG, LONG[:PART], LONG[: PART + 1]], ids=lambda data: f"{len(data)}")
async def test_what_was_written_is_read_from_every_kind_of_source(store, tmp_path, data):
    path = tmp_path / "source"
    path.write_bytes(data)
    sources = [data, bytearray(data), memoryview(data), path, pieces_of(data), Reader(data)]
    stored = [await store.write(source) for source in sources]
    assert {each.content_length for each in stored} == {len(data)}
    assert len({each.sha256 for each in stored}) == 1
    assert await keys(store) == {each.object_key for each in stored}
    for each in stored:
        assert await content(store, each.object_key) == data


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 1), (5, None), (MIB, 2 * MIB), (len(LONG) - 1, len(LONG))])
async def test_a_part_of_an_object_comes_in_pieces(store, start, end):
    key = (await store.write(LONG)).object_key
    pieces = [piece async for piece in await store.open(key, start, end)]
    assert b"".join(pieces) == LONG[start:end]


async def test_the_pieces_are_small(local):
    key = (await local.write(LONG)).object_key
    assert max([len(piece) async for piece in await local.open(key)]) < MIB


@pytest.mark.parametrize(
    "source", ["text", None, 3, ["x"], io.BytesIO(b"x"), object()], ids=lambda source: type(source).__name__
)
async def test_what_is_no_source_is_refused(store, source):
    with pytest.raises(InvalidFile, match=r"^source: must be bytes, a Path, or"):
        await store.write(source)


async def test_what_yields_no_bytes_is_refused(store):
    async def texts():
        yield "text"

    with pytest.raises(InvalidFile, match=r"^source: yields str, not bytes"):
        await store.write(texts())


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo], ids=["folder", "fifo"])
async def test_a_path_that_is_no_file_is_refused(store, tmp_path, make):
    make(tmp_path / "odd")
    with pytest.raises((InvalidFile, IsADirectoryError)):
        await store.write(tmp_path / "odd")


@pytest.mark.parametrize("length", [100, 3 * PART], ids=["short", "in parts"])
async def test_a_source_that_breaks_off_leaves_nothing(local, length):
    async def breaking():
        yield LONG[:length]
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError, match="went away"):
        await local.write(breaking())
    assert [path for path in folder(local).rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("limit", [10, 2 * PART + 1], ids=["short", "in parts"])
async def test_what_is_too_long_is_refused_and_leaves_nothing(limit):
    store = FileStore.memory(part_bytes=PART, max_file_bytes=limit)
    assert (await store.write(LONG[:limit])).content_length == limit
    written = await keys(store)
    with pytest.raises(InvalidFile, match=rf"more than the {limit:,} bytes"):
        await store.write(pieces_of(LONG[: limit + 1]))
    assert await keys(store) == written


async def test_an_upload_that_is_cancelled_leaves_nothing(local):
    begun = asyncio.Event()

    async def endless():
        yield LONG[: 2 * PART]
        begun.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(local.write(endless()))
    await begun.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    await until(lambda: not [path for path in folder(local).rglob("*") if path.is_file()])
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_storage_that_fails_at_the_end_says_so_itself(local):
    async def pieces():
        yield LONG
        shutil.rmtree(folder(local) / "files")

    with pytest.raises((BaseError, OSError)):
        await local.write(pieces())


@pytest.mark.parametrize("limit", [5, PART], ids=["in its first part", "in a later one"])
async def test_a_source_is_closed_when_it_is_left(limit):
    closed = []

    async def held():
        try:
            while True:
                yield LONG[:MIB]
        finally:
            closed.append(True)

    with pytest.raises(InvalidFile, match=f"more than the {limit:,} bytes"):
        await FileStore.memory(part_bytes=PART, max_file_bytes=limit).write(held())
    assert closed == [True]


async def test_a_long_upload_takes_little_memory(local):
    ahead = most = 0

    async def counted():
        nonlocal ahead, most
        for _ in range(200):
            ahead += 1
            done = sum(path.stat().st_size for path in (folder(local) / "files").glob("*")) // MIB
            most = max(most, ahead - done)
            yield bytes(MIB)

    await local.write(counted())
    assert 0 < most <= (local.parallel_parts + 3) * local.part_bytes // MIB


async def test_reading_is_bounded(store):
    key = (await store.write(b"four")).object_key
    assert await store.read(key, max_bytes=4) == b"four"
    with pytest.raises(InvalidFile, match="has 4 bytes, more than 3"):
        await store.read(key, max_bytes=3)


async def test_what_is_gone_is_said_before_the_first_byte(store):
    with pytest.raises(FileNotFoundError):
        await store.open(KEY)
    with pytest.raises(FileNotFoundError):
        await store.read(KEY, max_bytes=1)


async def test_deleting_what_is_gone_is_no_error(store):
    stored = [(await store.write(b"x")).object_key for _ in range(3)]
    assert await store.delete([stored[0], KEY, stored[1]]) == {}
    assert await keys(store) == {stored[2]}
    assert await store.delete([]) == {}


async def test_whoever_reads_an_object_that_is_deleted_reads_it_to_the_end(local):
    key = (await local.write(LONG)).object_key
    pieces = await local.open(key)
    first = await anext(pieces)
    assert await local.delete([key]) == {}
    assert first + b"".join([piece async for piece in pieces]) == LONG


# --- keys -------------------------------------------------------------------------------------------------------------


BAD_KEYS = [
    "", "files", "files/", "/etc/passwd", "../secret", "files/../secret", f"files/../{KEY}", f"/{KEY}", f"{KEY}/",
    f"{KEY}\0", f"{KEY}\n", f"{KEY}.png", KEY.replace("/", "\\"), KEY.replace("/", "//"), KEY.upper(),
    f"other/{ZEROS}", f"files/x/{ZEROS}", f"files/{ZEROS[1:]}", "files/" + "\u0660" * 32,
]  # fmt: skip


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
async def test_i9_a_key_that_is_not_the_stores_own_is_refused(local, key):
    for refused in (local.open(key), local.read(key, max_bytes=1), local.delete([key])):
        with pytest.raises(InvalidFile, match="is no key of this store"):
            await refused


@given(st.text() | st.text("0123456789abcdef/.files", max_size=40))
def test_i9_only_the_prefix_and_32_hex_digits_are_a_key(key):
    if (key[:6], len(key)) != ("files/", 38) or not set(key[6:]) <= set("0123456789abcdef"):
        with pytest.raises(InvalidFile):
            FileStore.memory()._own(key)


async def test_no_foreign_object_is_listed(local):
    own = (await local.write(b"x")).object_key
    for foreign in (
        "readme.txt",
        "files/readme.txt",
        f"files/sub/{ZEROS}",
        f"files2/{ZEROS}",
        f"files/{'A' * 32}",
    ):
        path = folder(local) / foreign
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not ours")
    assert await keys(local) == {own}


# --- setting up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "/", "files", "/files/", "../", "a/../b/", "./", "a//b/", "a\\b/", "ü/", "a\0/", " a/", None, 3]
)
def test_i9_a_prefix_that_could_escape_is_refused(prefix):
    with pytest.raises(ConfigurationError, match="prefix is folders"):
        FileStore.memory(prefix=prefix)


@pytest.mark.parametrize("prefix", ["files/", "a/b/", "my-app_1.0/files/", "..a/"])
async def test_a_prefix_may_have_folders(prefix):
    store = FileStore.memory(prefix=prefix)
    key = (await store.write(b"x")).object_key
    assert key.startswith(prefix)
    assert await keys(store) == {key}


@pytest.mark.parametrize(
    "limits",
    [
        {"max_file_bytes": 0},
        {"max_file_bytes": 1.5},
        {"part_bytes": 1},
        {"parallel_parts": 0},
        {"parallel_parts": True},
    ],
    ids=str,
)
def test_a_limit_that_is_none_is_refused(limits):
    with pytest.raises(ConfigurationError, match=next(iter(limits))):
        FileStore.memory(**limits)


def test_what_is_no_storage_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="a store of obstore, not PosixPath"):
        FileStore(tmp_path)


def test_a_folder_is_made_for_its_owner_alone(tmp_path):
    FileStore.local(tmp_path / "new" / "uploads")
    assert (tmp_path / "new" / "uploads").stat().st_mode & 0o777 == 0o700


def test_a_store_shows_no_secret(tmp_path):
    assert repr(FileStore(LocalStore(tmp_path), prefix="a/")) == "<FileStore on LocalStore, prefix 'a/'>"
