"""What a client is told of a file, as JSON."""

from typing import Any
from urllib.parse import urlsplit

from queue_kit.contrib.files.models import File
from queue_kit.contrib.files.tokens import SigningKey, sign_file_access_token
from queue_kit.job import Seconds


def format_file_metadata(
    file: File, *, url: str, signing_key: SigningKey | None = None, max_age: Seconds = 300.0
) -> dict[str, Any]:
    """A file as JSON for a client: `id`, `name`, `content_type`, `content_length` (bytes), `url`, and of an image
    `width` and `height` (pixels), `placeholder` (a data URI) and `alt_text`, each `None` as long as there is none.

    `url` is where your application sends the file. With a `signing_key` it gets an `access_token` that is valid for
    `max_age` seconds, or raises as `sign_file_access_token`. Where the content lies in storage is not told.

    >>> async def show(session, file_id):
    ...     return format_file_metadata(await get_file(session, file_id), url=f"/files/{file_id}")
    """
    if signing_key is not None:
        token = sign_file_access_token(file.id, signing_key=signing_key, max_age=max_age)
        url = _with_query(url, f"access_token={token}")
    image = {key: file.meta.get(key) for key in ("width", "height", "placeholder", "alt_text")}
    return {
        "id": str(file.id),
        "name": file.name,
        "content_type": file.content_type,
        "content_length": file.content_length,
        "url": url,
        **image,
    }


def _with_query(url: str, parameter: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=f"{parts.query}&{parameter}" if parts.query else parameter).geturl()
