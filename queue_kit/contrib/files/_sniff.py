"""What content is, told by its first bytes: what a client says of it is at most a finer word for the same.

A signature shows what a browser will make of the bytes, not that they are well formed; whoever needs that decodes them.
A type that is found here is never given to content without its signature.
"""

import codecs
import re
from collections.abc import Callable, Collection

from queue_kit.contrib.files.errors import InvalidFile

UNKNOWN, TEXT, ZIP = "application/octet-stream", "text/plain", "application/zip"

LOOKED_AT = 4096
"""Bytes of the beginning that decide, where there are as many."""

_STARTS: dict[bytes, str] = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
    b"\x00\x00\x01\x00": "image/x-icon",
    b"%PDF-": "application/pdf",
    b"PK\x03\x04": ZIP,
    b"PK\x05\x06": ZIP,
    b"\x1f\x8b\x08": "application/gzip",
    b"7z\xbc\xaf\x27\x1c": "application/x-7z-compressed",
    b"\x7fELF": "application/x-executable",
    b"MZ\x90\x00": "application/x-msdownload",
    b"\x1a\x45\xdf\xa3": "video/webm",
    b"OggS": "audio/ogg",
    b"fLaC": "audio/flac",
    b"ID3\x02": "audio/mpeg",
    b"ID3\x03": "audio/mpeg",
    b"ID3\x04": "audio/mpeg",
    b"wOFF": "font/woff",
    b"wOF2": "font/woff2",
    b"\xff\xf1": "audio/aac",
    b"\xff\xf9": "audio/aac",
    b"\xff\xfb": "audio/mpeg",
    b"\xff\xf3": "audio/mpeg",
    b"\xff\xf2": "audio/mpeg",
}
_IN_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
    b"qt  ": "video/quicktime",
    b"M4A ": "audio/mp4",
}
_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/vnd.microsoft.icon": "image/x-icon",
    "audio/x-wav": "audio/wav",
    "audio/mp3": "audio/mpeg",
    "application/x-zip-compressed": ZIP,
    "application/x-gzip": "application/gzip",
}
_FINER = {
    "video/mp4": {"audio/mp4", "video/3gpp"},
    "video/webm": {"audio/webm", "video/x-matroska"},
    "audio/ogg": {"video/ogg", "application/ogg"},
}
"""Types that look like another from outside."""

# Atomic, or a text made for it would be parsed in exponentially many ways.
_PROLOG = r"(?>\s+|<\?[^>]*>|<!--.*?-->|<!doctype[^>\[]*(?:\[.*?\]\s*)?>)*+"
_HTML = re.compile(
    r"(?>\s+|<!--.*?-->)*+<(?:!doctype\s+html|html|head|body|script|iframe|style|title|meta|table|div|h1|a|p|br|b)[\s>/]",
    re.IGNORECASE | re.DOTALL,
)
_SVG = re.compile(rf"{_PROLOG}<(?:\w+:)?svg[\s>/]", re.IGNORECASE | re.DOTALL)
_XML = re.compile(r"\s*<\?xml\s", re.IGNORECASE)
_CONTENT_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,99}/[a-z0-9][a-z0-9!#$&^_.+-]{0,99}")


def sniff(head: bytes) -> str | None:
    """The content type that the first bytes show; `None` when they show nothing.

    >>> sniff(b"GIF89a...")
    'image/gif'
    """
    for start, content_type in _STARTS.items():
        if head.startswith(start):
            return content_type
    if head[:4] == b"RIFF":
        return _IN_RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "image/bmp"
    return _of_text(head[:LOOKED_AT])


def _of_text(head: bytes) -> str | None:
    if not head or b"\0" in head:
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # which may end inside of a character
    except UnicodeDecodeError:
        return None
    kinds: dict[str, Callable[[str], object]] = {
        "text/html": _HTML.match,
        "image/svg+xml": _SVG.match,
        "text/xml": _XML.match,
    }
    return next((kind for kind, matches in kinds.items() if matches(text)), TEXT)


_COARSE = (None, TEXT, ZIP, "text/xml")
"""What is found where the bytes cannot tell more."""

_SEEN = ("image/", "audio/", "video/", "font/")
"""What is never believed without a signature, so a browser is shown nothing else under such a name."""

_FOUND = {*_STARTS.values(), *_IN_RIFF.values(), *_BRANDS.values(), "image/bmp", "image/svg+xml", "text/html"}


def decide(head: bytes, given: str | None, allowed: Collection[str] | None) -> str:
    """The content type to store: the one that the bytes show, or `given` where it says more of the same.

    `allowed` holds types, or groups of them as `image/*`. Raises `InvalidFile` when `given` contradicts the bytes, and
    when what comes out is not allowed.

    >>> decide(b"a,b", "text/csv", None)
    'text/csv'
    """
    allowed = None if allowed is None else check_allowed(allowed)
    content_type = _agree(sniff(head), None if given is None else check_content_type(given))
    if allowed is not None and not {content_type, f"{content_type.split('/')[0]}/*"} & allowed:
        raise InvalidFile("content_type", f"{content_type} is not allowed; allowed are {', '.join(sorted(allowed))}")
    return content_type


def _agree(found: str | None, given: str | None) -> str:
    if given in (None, UNKNOWN, found):
        return found or UNKNOWN
    assert given is not None
    if given in _FINER.get(found or "", ()):
        return given
    if given.startswith(_SEEN) and found is None and given not in _FOUND:
        return UNKNOWN
    if found in _COARSE and given not in _FOUND and not given.startswith(_SEEN):
        return given
    raise InvalidFile("content_type", f"the bytes are not {given}" + (f" but {found}" if found else ""))


def check_allowed(allowed: object) -> frozenset[str]:
    """A list of allowed content types; else an `InvalidFile`."""
    if not isinstance(allowed, Collection) or isinstance(allowed, str | bytes):
        raise InvalidFile("allowed_content_types", f"is a list such as ['image/*'], not {allowed!r}")
    return frozenset(each if str(each).endswith("/*") else check_content_type(each) for each in allowed)


def check_content_type(value: object) -> str:
    """A content type in its usual form, without parameters; else an `InvalidFile`."""
    name = value.split(";")[0].strip().lower() if isinstance(value, str) else ""
    if not _CONTENT_TYPE.fullmatch(name):
        raise InvalidFile("content_type", f"is a type such as 'image/png', not {ascii(value)[:60]}")
    return _ALIASES.get(name, name)
