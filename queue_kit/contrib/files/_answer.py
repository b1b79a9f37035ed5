"""What HTTP answers a request for a file: status, headers, and which bytes. It knows no framework and no storage.

Conditions and ranges are those of RFC 9110, sections 13 and 14. What a browser would run (HTML, SVG, XML) is always a
download, and nothing is ever sniffed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import quote

from queue_kit.contrib.files.models import File

CACHE_CONTROL = "private, max-age=120, must-revalidate"
"""Two minutes without asking, then a question that a 304 answers; by nobody but the user's own browser."""

NOT_FOUND_HEADERS = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}

# One by one: whatever ends in +xml is a document to a browser, which it runs.
_SHOWN_INLINE = frozenset(
    {"application/pdf", "text/plain"}
    | {f"image/{kind}" for kind in ["avif", "bmp", "gif", "heic", "heif", "jpeg", "png", "tiff", "webp", "x-icon"]}
    | {f"audio/{kind}" for kind in ["aac", "flac", "mp4", "mpeg", "ogg", "wav", "webm"]}
    | {f"video/{kind}" for kind in ["mp4", "ogg", "quicktime", "webm"]}
)
# Nor is a page or a service worker to load an uploaded script, or a style, from the application's own origin.
_LOADED_BY_PAGES = re.compile(r"(application|text)/((x-)?(java|ecma|live|j)script[0-9.]*|css)")
_CONTENT_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
_RANGE = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII | re.IGNORECASE)
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_FAR = 2**62
"""Beyond the end of every file; longer numbers are not even read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response without its body, which is the file's bytes from `start` up to and without `end`."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    start: int = 0
    end: int = 0

    @property
    def has_body(self) -> bool:
        """Whether there is anything to read."""
        return self.end > self.start


def answer(
    method: str,
    headers: Mapping[str, str],
    file: File,
    *,
    cache_control: str = CACHE_CONTROL,
    download: bool = False,
    vary: str | None = None,
) -> Answer:
    """What a GET or HEAD request for a file is answered. `headers` are the request's, whatever the case of their names.

    >>> answer("GET", {"Range": "bytes=0-99"}, file).status  # doctest: +SKIP
    206
    """
    asked = {name.lower(): value for name, value in headers.items()}
    about = {
        "ETag": file.etag,
        "Last-Modified": format_datetime(file.updated_at.astimezone(UTC), usegmt=True),
        "Cache-Control": cache_control,
    }
    if vary is not None:
        about["Vary"] = vary
    if (status := _refused(asked, file)) is not None:
        return Answer(status, about)
    about |= _described(file, download=download)
    span = _asked_span(asked, file) if method == "GET" else None
    if span is None:
        end = file.content_length if method == "GET" else 0
        return Answer(200, about | {"Content-Length": f"{file.content_length}"}, 0, end)
    start, end = span
    if start >= end:
        return Answer(416, {"Content-Range": f"bytes */{file.content_length}", "Cache-Control": "no-store"})
    partial = {"Content-Range": f"bytes {start}-{end - 1}/{file.content_length}", "Content-Length": f"{end - start}"}
    return Answer(206, about | partial, start, end)


def _refused(asked: Mapping[str, str], file: File) -> int | None:
    """304 or 412, as the conditions of the request say, in the order in which they count."""
    if (match := asked.get("if-match")) is not None:
        if not _names(match, file.etag, weak=False):
            return 412
    elif (since := _date(asked.get("if-unmodified-since"))) is not None and _modified(file) > since:
        return 412
    if (none_match := asked.get("if-none-match")) is not None:
        return 304 if _names(none_match, file.etag, weak=True) else None
    since = _date(asked.get("if-modified-since"))
    return 304 if since is not None and _modified(file) <= since else None


def _names(condition: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags has this one; a weak one counts only where that is enough."""
    if condition.strip() == "*":
        return True
    return any((tag.removeprefix("W/") if weak else tag) == etag for tag in _ETAG.findall(condition))


def _asked_span(asked: Mapping[str, str], file: File) -> tuple[int, int] | None:
    """The one range that was asked for, empty when it lies outside; `None` for the whole file, also for several ranges
    and for what is no range."""
    found = _RANGE.fullmatch(asked.get("range", "").strip())
    if found is None or not _range_applies(asked.get("if-range"), file):
        return None
    first, last = found.groups()
    length = file.content_length
    if not first:
        if not last or length == 0:
            return None
        return max(length - _number(last), 0), length
    if last and _number(last) < _number(first):
        return None
    return _number(first), min(_number(last) + 1 if last else length, length)


def _range_applies(condition: str | None, file: File) -> bool:
    if condition is None:
        return True
    if (since := _date(condition)) is not None:
        return _modified(file) == since
    return condition.strip() == file.etag


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < 19 else _FAR


def _modified(file: File) -> datetime:
    return file.updated_at.replace(microsecond=0)


def _date(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        found = parsedate_to_datetime(value)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _described(file: File, *, download: bool) -> dict[str, str]:
    """The headers about the content. A row may be written by hand, so nothing of it is taken as it is."""
    content_type = file.content_type
    if not _CONTENT_TYPE.fullmatch(content_type) or _LOADED_BY_PAGES.fullmatch(content_type):
        content_type = "application/octet-stream"
    inline = not download and content_type in _SHOWN_INLINE
    headers = {
        "Content-Type": f"{content_type}; charset=utf-8" if content_type.startswith("text/") else content_type,
        "Content-Disposition": content_disposition(file.name, inline=inline),
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
    }
    if not inline:
        headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    return headers


def content_disposition(name: str, *, inline: bool) -> str:
    """The header with a file's name, in ASCII for old browsers and whole for all others.

    >>> content_disposition("Füße.pdf", inline=True)
    "inline; filename=\\"F__e.pdf\\"; filename*=UTF-8''F%C3%BC%C3%9Fe.pdf"
    """
    kind = "inline" if inline else "attachment"
    plain = re.sub(r"[^A-Za-z0-9 ._()+@=-]", "_", name)
    if plain == name:
        return f'{kind}; filename="{plain}"'
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
