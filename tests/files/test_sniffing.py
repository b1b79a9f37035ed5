"""Content types: found from the bytes; what a client says is at most a finer word for the same."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_kit.contrib.files import InvalidFile
from queue_kit.contrib.files._sniff import decide, sniff
from tests.files.content import HTML, JPEG, PDF, PNG, SVG, ZIP

FTYP = b"\0\0\0\x20ftyp"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (PNG, "image/png"),
        (JPEG, "image/jpeg"),
        (b"GIF89a......", "image/gif"),
        (b"GIF87a......", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
        (b"RIFF\0\0\0\0????", None),
        (FTYP + b"avif", "image/avif"),
        (FTYP + b"heic", "image/heic"),
        (FTYP + b"isom", "video/mp4"),
        (b"BM\x46\0\0\0\0\0\0\0", "image/bmp"),
        (b"II*\0", "image/tiff"),
        (PDF, "application/pdf"),
        (ZIP, "application/zip"),
        (b"\x7fELF\x02", "application/x-executable"),
        (SVG, "image/svg+xml"),
        (b"\xef\xbb\xbf<svg >", "image/svg+xml"),
        (b"<!DOCTYPE svg PUBLIC '-//W3C' [<!ENTITY a 'b'>]><svg/>", "image/svg+xml"),
        (b"<s:svg xmlns:s='http://www.w3.org/2000/svg'>", "image/svg+xml"),
        (HTML, "text/html"),
        (b"  <!-- x --><script>", "text/html"),
        (b"<?xml version='1.0'?><note/>", "text/xml"),
        (b"BM is a shop; MZ and ID3 are words", "text/plain"),
        ("Füße".encode(), "text/plain"),
        ("Füße".encode("latin-1"), None),
        (b"a\0b", None),
        (b"", None),
    ],
)
def test_the_first_bytes_tell(head, expected):
    assert sniff(head) == expected


def test_a_character_that_is_cut_off_is_still_text():
    assert sniff("ü".encode() * 5_000) == "text/plain"
    assert sniff(b"a" + "ü".encode() * 5_000) == "text/plain"


@pytest.mark.parametrize(
    "text",
    [b"<!---->" * 600, b"<?a>" * 1_000, b"<!--" * 1_000, b"<!doctype a [" * 300, b" " * 4_096, b"<!doctype a[]>" * 290],
)
def test_no_text_is_slow_to_look_at(text):
    began = time.thread_time()
    sniff(text)
    assert time.thread_time() - began < 1.0


@given(st.binary(max_size=200))
def test_any_bytes_can_be_looked_at(head):
    assert sniff(head) is None or "/" in str(sniff(head))


@pytest.mark.parametrize(
    ("head", "said", "expected"),
    [
        (PNG, None, "image/png"),
        (PNG, "image/png", "image/png"),
        (PNG, "application/octet-stream", "image/png"),
        (JPEG, "IMAGE/JPG", "image/jpeg"),
        (b"a,b", "text/csv; charset=utf-8", "text/csv"),
        (b"{}", "application/json", "application/json"),
        (ZIP, "application/vnd.oasis.opendocument.text", "application/vnd.oasis.opendocument.text"),
        (FTYP + b"isom", "audio/mp4", "audio/mp4"),
        ("Füße".encode("latin-1"), "text/plain", "text/plain"),
        (b"\0\1", None, "application/octet-stream"),
        (b"", None, "application/octet-stream"),
        (b"", "text/plain", "text/plain"),
        (b"\0\1", "application/x-own", "application/x-own"),
        (b"\0\1", "image/x-own", "application/octet-stream"),
        (FTYP + b"3gp4", "video/3gpp", "video/3gpp"),
    ],
)
def test_what_is_said_may_be_finer(head, said, expected):
    assert decide(head, said, None) == expected


@pytest.mark.parametrize(
    ("head", "said"),
    [(HTML, "image/png"), (HTML, "text/plain"), (SVG, "text/xml"), (b"plain", "image/svg+xml"), (b"\0", "image/gif"),
     (PNG, "text/csv"), (ZIP, "application/pdf"), (b"", "image/png")],
)  # fmt: skip
def test_what_is_said_may_not_contradict_the_bytes(head, said):
    with pytest.raises(InvalidFile, match=r"^content_type: the bytes are not "):
        decide(head, said, None)


XHTML = b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><script>alert(1)</script></html>'


@pytest.mark.parametrize("kind", ["image", "audio", "video", "font"])
@pytest.mark.parametrize("subtype", ["x+xml", "xhtml+xml", "svg", "svg+xml", "x-own"])
@pytest.mark.parametrize("head", [XHTML, b"text", ZIP])
def test_no_document_passes_for_what_is_seen_or_heard(head, kind, subtype):
    with pytest.raises(InvalidFile, match="the bytes are not"):
        decide(head, f"{kind}/{subtype}", [f"{kind}/*"])


@pytest.mark.parametrize("said", ["", "png", "image/", "image/png\r\nX: y", "a b/c", 3, "image/*"])
def test_what_is_no_type_is_refused(said):
    with pytest.raises(InvalidFile, match=r"^content_type: is a type such as"):
        decide(PNG, said, None)


def test_allowed_are_types_and_groups():
    assert decide(PNG, None, ["image/*"]) == "image/png"
    assert decide(PNG, None, ["image/png", "application/pdf"]) == "image/png"
    with pytest.raises(
        InvalidFile, match=r"^content_type: text/html is not allowed; allowed are application/pdf, image/\*$"
    ):
        decide(HTML, None, ["image/*", "application/pdf"])
    with pytest.raises(InvalidFile, match=r"not allowed"):
        decide(PNG, None, [])


@pytest.mark.parametrize("allowed", ["image/png", 3, ["*/*"], ["png"]])
def test_a_list_that_allows_nothing_sensible_is_refused(allowed):
    with pytest.raises(InvalidFile):
        decide(PNG, None, allowed)
