"""The storage of files' contents: an obstore store, a prefix in it, and limits. It knows no database.

Every object has a key of its own: the prefix, and 32 random hex digits, in which nothing of a user's has a part. No
other key is ever read, written, listed or deleted. An object is written once and never changed.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterable, AsyncIterator, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, ObjectStore

from queue_kit.contrib.files._incoming import Incoming, Source
from queue_kit.contrib.files.errors import InvalidFile
from queue_kit.contrib.files.images import MIB, Images
from queue_kit.errors import ConfigurationError

MOST_KEYS = 1_000
"""Objects that are listed at once, and the most that S3 deletes in one request."""

PIECE_BYTES = 256 * 1024
"""How much of an object is handed on at once when it is sent."""

_PREFIX = re.compile(r"(?:(?!\.+/)[A-Za-z0-9._-]+/)+")
_UNFINISHED = re.compile(r"[0-9a-f]{32}#\d+")
"""How obstore calls a local file until it is whole. It lists none of these."""

_AT_ONCE = 16


class Limits(TypedDict, total=False):
    """The keyword arguments of `FileStore`."""

    prefix: str
    max_file_bytes: int | None
    part_bytes: int
    parallel_parts: int
    images: Images | None


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that was written: its key, its length in bytes, and the SHA-256 of its content in hex."""

    object_key: str
    content_length: int
    sha256: str


class FileStore:
    """Where the contents of files lie: an obstore store (`S3Store`, `GCSStore`, `AzureStore`, ...) and its limits.

    `prefix` is the folder of all objects; it ends in `/` and belongs to one database. A file has at most
    `max_file_bytes` (`None`: no limit). What is longer than `part_bytes` is uploaded in parts of this size,
    `parallel_parts` at once; however long it is, that takes two to three times their product of memory (8 MiB by 4:
    some 80 MiB). `images` works on images; it has limits of its own. Raises `ConfigurationError` for what cannot work.

    >>> store = FileStore.memory(max_file_bytes=10_000_000)
    >>> store.prefix
    'files/'
    """

    def __init__(
        self,
        objects: ObjectStore,
        *,
        prefix: str = "files/",
        max_file_bytes: int | None = 1024 * MIB,
        part_bytes: int = 8 * MIB,
        parallel_parts: int = 4,
        images: Images | None = None,
    ) -> None:
        if not isinstance(objects, ObjectStore):
            raise ConfigurationError(f"FileStore takes a store of obstore, not {type(objects).__name__}")
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"prefix is folders of letters, digits and ._- and ends in a slash, such as 'files/', not {prefix!r}"
            )
        self.objects: ObjectStore = objects
        self.prefix: str = prefix
        self.max_file_bytes: int | None = (
            None if max_file_bytes is None else _positive(max_file_bytes, "max_file_bytes")
        )
        self.part_bytes: int = _positive(part_bytes, "part_bytes", at_least=5 * MIB)
        self.parallel_parts: int = _positive(parallel_parts, "parallel_parts")
        self.images: Images = Images() if images is None else images
        self._key = re.compile(f"{re.escape(prefix)}[0-9a-f]{{32}}")

    @classmethod
    def local(cls, path: str | Path, **limits: Unpack[Limits]) -> Self:
        """A store in a folder of this machine, which is made if need be: for one machine, with no server.

        `limits` are the keyword arguments of `FileStore`.

        >>> store = FileStore.local("uploads")
        """
        folder = Path(path).absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(LocalStore(folder), **limits)

    @classmethod
    def memory(cls, **limits: Unpack[Limits]) -> Self:
        """A store in this process's memory, for tests. `limits` are the keyword arguments of `FileStore`.

        >>> store = FileStore.memory()
        """
        return cls(MemoryStore(), **limits)

    def __repr__(self) -> str:
        # Not the store's own text: it may hold an endpoint with credentials.
        return f"<FileStore on {type(self.objects).__name__}, prefix {self.prefix!r}>"

    def incoming(self, source: Source) -> Incoming:
        """Content that is to be written, within this store's limits. Raises `InvalidFile` for what is no source.

        >>> content = FileStore.memory().incoming(b"...")
        """
        return Incoming(source, part_bytes=self.part_bytes, max_bytes=self.max_file_bytes)

    async def write(self, source: Source | Incoming) -> Stored:
        """Write an object under a new key. It is there whole, or not at all. No row points to it yet.

        Raises `InvalidFile` when it is too long, what the source raises, and obstore's errors.

        >>> async def keep(store):
        ...     return (await store.write(b"...")).object_key
        """
        content = source if isinstance(source, Incoming) else self.incoming(source)
        key = f"{self.prefix}{uuid4().hex}"
        try:
            await self._put(key, content)
        except Exception:
            if content.error is not None:
                raise content.error from None
            raise
        finally:
            await content.close()
        return Stored(key, content.length, content.sha256)

    async def _put(self, key: str, content: Incoming) -> None:
        first = await content.first()
        if len(first) < self.part_bytes:
            await obstore.put_async(self.objects, key, first)
        else:
            await obstore.put_async(
                self.objects, key, content, chunk_size=self.part_bytes, max_concurrency=self.parallel_parts
            )

    async def read(self, object_key: str, *, max_bytes: int) -> bytes:
        """A whole object in memory. Raises `InvalidFile` when it is longer than `max_bytes` and for a key that is none
        of this store's, `FileNotFoundError` when it is gone.

        >>> async def first_line(store, file):
        ...     return (await store.read(file.object_key, max_bytes=1_000_000)).split(b"\\n")[0]
        """
        found = await obstore.get_async(self.objects, self._own(object_key))
        if found.meta["size"] > max_bytes:
            raise InvalidFile("object_key", f"has {found.meta['size']:,} bytes, more than {max_bytes:,}")
        return bytes(await found.bytes_async())

    async def open(self, object_key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """An object's bytes from `start` up to and without `end`, in pieces. Raises `FileNotFoundError` here, before
        the first of them, when it is gone, and `InvalidFile` for a key that is none of this store's.

        >>> async def copy(store, file, target):
        ...     async for piece in await store.open(file.object_key):
        ...         target.write(piece)
        """
        key = self._own(object_key)
        if end is None:
            found = await obstore.get_async(self.objects, key, options={"range": {"offset": start}} if start else {})
        else:
            found = await obstore.get_async(self.objects, key, options={"range": (start, end)})
        return _as_bytes(found.stream(min_chunk_size=PIECE_BYTES))

    async def pages(self) -> AsyncIterator[dict[str, datetime]]:
        """The keys of all objects with the time each was written, by the storage's clock, up to 1,000 at once.

        >>> async def count(store):
        ...     return sum([len(page) async for page in store.pages()])
        """
        async for page in obstore.list(self.objects, prefix=self.prefix, chunk_size=MOST_KEYS):
            yield {each["path"]: each["last_modified"] for each in page if self._key.fullmatch(each["path"])}

    async def delete(self, object_keys: Collection[str]) -> dict[str, str]:
        """Delete objects, up to 1,000 in a request; what is gone already is no error. Returns the keys that could not
        be deleted, with the reason. Raises `InvalidFile` for a key that is none of this store's; none is deleted then.

        >>> async def forget(store, keys):
        ...     assert await store.delete(keys) == {}
        """
        keys = iter([self._own(key) for key in object_keys])
        failed: dict[str, str] = {}
        while batch := list(islice(keys, MOST_KEYS)):
            try:
                await obstore.delete_async(self.objects, batch)
            except (BaseError, OSError):
                failed |= await self._delete_each(batch)
        return failed

    async def _delete_each(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete one by one, to learn which of them it is that fails."""
        turns = asyncio.Semaphore(_AT_ONCE)

        async def delete(key: str) -> str | None:
            async with turns:
                try:
                    await obstore.delete_async(self.objects, key)
                except FileNotFoundError:
                    return None
                except (BaseError, OSError) as error:
                    return f"{type(error).__name__}: {error}"[:500]
            return None

        reasons = await asyncio.gather(*map(delete, keys))
        return {key: reason for key, reason in zip(keys, reasons, strict=True) if reason is not None}

    async def delete_unfinished(self, before: datetime) -> int:
        """Delete what uploads of killed processes left in a local folder, last written to before this time; how many
        there were. Other kinds of storage keep such parts out of sight, and can be told to let them expire.

        >>> async def tidy(store):
        ...     await store.delete_unfinished(datetime.now(UTC) - timedelta(days=1))
        """
        if not isinstance(self.objects, LocalStore):
            return 0
        folder = Path(self.objects.prefix or "/") / self.prefix
        return await asyncio.to_thread(_delete_unfinished, folder, before.timestamp())

    def _own(self, object_key: str) -> str:
        if not self._key.fullmatch(object_key):
            raise InvalidFile("object_key", f"{object_key!r} is no key of this store, whose prefix is {self.prefix!r}")
        return object_key


def _delete_unfinished(folder: Path, before: float) -> int:
    deleted = 0
    if not folder.exists():  # nothing was ever written
        return deleted
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _UNFINISHED.fullmatch(entry.name):
                continue
            with suppress(FileNotFoundError):  # it is whole by now, under its own name
                if entry.stat(follow_symlinks=False).st_mtime < before:
                    Path(entry.path).unlink()
                    deleted += 1
    return deleted


async def _as_bytes(stream: AsyncIterable[Any]) -> AsyncIterator[bytes]:
    async for piece in stream:
        yield bytes(piece)


def _positive(value: object, argument: str, *, at_least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigurationError(f"{argument} is an integer, at least {at_least:,}, not {value!r}")
    return value
