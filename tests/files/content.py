"""Small contents with the beginnings of real files, and ways to look at what became of them."""

from pathlib import Path

from queue_kit.contrib.files import FileStore

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 100
PDF = b"%PDF-1.7\n" + b"x" * 100
SVG = b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg xmlns="http://www.w3.org/2000/svg"/>'
HTML = b"<!DOCTYPE html><title>x</title>"
ZIP = b"PK\x03\x04" + b"\0" * 100


async def keys(store: FileStore) -> set[str]:
    """The keys of all of a store's objects."""
    return {key async for page in store.pages() for key in page}


async def content(store: FileStore, object_key: str) -> bytes:
    """A whole object."""
    return await store.read(object_key, max_bytes=10**9)


def folder(store: FileStore) -> Path:
    """Where a local store lies."""
    return Path(str(store.objects.prefix))
