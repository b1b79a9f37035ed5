"""The content of an upload on its way in: in parts of a bounded size, counted, hashed, looked at before it is stored.

Whatever the source, never more of it is in memory than the part at hand and those that the storage is busy with.
"""

import asyncio
import hashlib
import inspect
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, runtime_checkable

from queue_kit.contrib.files.errors import InvalidFile


@runtime_checkable
class AsyncReader(Protocol):
    """What has an `async def read(size)`: Starlette's `UploadFile`, aiohttp's `StreamReader`, a file of aiofiles."""

    def read(self, size: int, /) -> Awaitable[bytes]: ...


Source: TypeAlias = bytes | bytearray | memoryview | Path | AsyncReader | AsyncIterable[bytes]
"""Where content comes from: bytes, a path, what can be read asynchronously, or what yields pieces asynchronously."""


class Incoming:
    """One upload's content, as an iterator of its parts. `length` and `sha256` are of what was taken so far: of all of
    it, once it is stored."""

    def __init__(self, source: Source, *, part_bytes: int, max_bytes: int | None) -> None:
        self._parts = _parts(source, part_bytes)
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self._first: bytes | None = None
        self._first_taken = False
        self._reading: asyncio.Task[Any] | None = None
        self.length: int = 0
        self.error: Exception | None = None
        """What the source raised, since the storage would show it as an error of its own."""

    @property
    def sha256(self) -> str:
        """The hash in hex."""
        return self._digest.hexdigest()

    async def first(self) -> bytes:
        """The first part, however often it is asked for; all of it when it is shorter than a part."""
        if self._first is None:
            self._first = await anext(self._parts, b"")
            await self._count(self._first)
        return self._first

    def __aiter__(self) -> "Incoming":
        return self

    async def __anext__(self) -> bytes:
        self._reading = asyncio.current_task()  # one of the storage's, which goes on when the upload is cancelled
        try:
            return await self._next()
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            raise
        finally:
            self._reading = None

    async def _next(self) -> bytes:
        if not self._first_taken:
            self._first_taken = True
            return await self.first()
        part = await anext(self._parts)
        await self._count(part)
        return part

    async def close(self) -> None:
        """Leave the source alone, also when it is being read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        await self._parts.aclose()

    async def _count(self, part: bytes) -> None:
        self.length += len(part)
        if self._max_bytes is not None and self.length > self._max_bytes:
            raise InvalidFile("source", f"has more than the {self._max_bytes:,} bytes that are allowed")
        await asyncio.to_thread(self._digest.update, part)


def _parts(source: Source, size: int) -> AsyncGenerator[bytes, None]:
    match source:
        case bytes() | bytearray() | memoryview():
            return _slices(memoryview(source).cast("B"), size)
        case Path():
            return _read_path(source, size)
        case AsyncReader() if inspect.iscoroutinefunction(source.read):
            return _gather(_read_from(source, size), size)
        case AsyncIterable():
            return _gather(source, size)
    raise InvalidFile(
        "source", f"must be bytes, a Path, or something to read from asynchronously, not {type(source).__name__}"
    )


async def _slices(content: memoryview, size: int) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(content), size):
        yield bytes(content[start : start + size])


async def _read_path(path: Path, size: int) -> AsyncGenerator[bytes, None]:
    file = await asyncio.to_thread(_open, path)
    try:
        while part := await asyncio.to_thread(file.read, size):
            yield part
    finally:
        await asyncio.to_thread(file.close)


def _open(path: Path) -> IO[bytes]:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return os.fdopen(file, "rb")
    os.close(file)
    raise InvalidFile("source", f"{path.name!r} is no regular file")


async def _read_from(reader: AsyncReader, size: int) -> AsyncGenerator[bytes, None]:
    while piece := await reader.read(size):
        yield piece


async def _gather(pieces: AsyncIterable[bytes], size: int) -> AsyncGenerator[bytes, None]:
    """The same bytes in parts of this size, but for the last."""
    waiting = bytearray()
    try:
        async for piece in pieces:
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise InvalidFile("source", f"yields {type(piece).__name__}, not bytes")
            waiting += piece
            while len(waiting) >= size:
                yield bytes(waiting[:size])
                del waiting[:size]
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()  # it may hold what others wait for
    if waiting:
        yield bytes(waiting)
