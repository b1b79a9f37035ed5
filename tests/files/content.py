"""Small contents with the beginnings of real files and a long one, and ways to look at what became of them."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

from queue_kit.contrib.files import FileStore
from queue_kit.contrib.files.images import MIB

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 100
PDF = b"%PDF-1.7\n" + b"x" * 100
SVG = b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg xmlns="http://www.w3.org/2000/svg"/>'
HTML = b"<!DOCTYPE html><title>x</title>"
ZIP = b"PK\x03\x04" + b"\0" * 100
LONG = os.urandom(MIB) * 12


async def pieces_of(data: bytes) -> AsyncIterator[bytes]:
    """Content that comes little by little."""
    size = 300_000
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def keys(store: FileStore) -> set[str]:
    """The keys of all of a store's objects."""
    return {key async for page in store.pages() for key in page}


async def content(store: FileStore, object_key: str) -> bytes:
    """A whole object."""
    return await store.read(object_key, max_bytes=10**9)


def folder(store: FileStore) -> Path:
    """Where a local store lies."""
    return Path(str(store.objects.prefix))
