"""What HTTP answers: ranges, conditions and headers, without a framework."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_kit.contrib.files._answer import answer, content_disposition
from queue_kit.contrib.files.models import File

CHANGED = datetime(2026, 5, 4, 3, 2, 1, 999_000, tzinfo=UTC)
ETAG = f'"{"ab" * 16}"'


def a_file(**columns):
    usual = {"name": "cat.jpg", "content_type": "image/jpeg", "content_length": 1_000, "sha256": "ab" * 32}
    return File(**usual | {"updated_at": CHANGED} | columns)


def ask(file=None, method="GET", **headers):
    return answer(method, {name.replace("_", "-"): value for name, value in headers.items()}, file or a_file())


def date(seconds=0):
    return format_datetime(CHANGED.replace(microsecond=0) + timedelta(seconds=seconds), usegmt=True)


def test_a_whole_file():
    found = ask()
    assert (found.status, found.start, found.end) == (200, 0, 1_000)
    assert found.headers == {
        "ETag": ETAG,
        "Last-Modified": "Mon, 04 May 2026 03:02:01 GMT",
        "Cache-Control": "private, max-age=120, must-revalidate",
        "Content-Type": "image/jpeg",
        "Content-Disposition": 'inline; filename="cat.jpg"',
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
        "Content-Length": "1000",
    }


def test_head_says_what_get_would_and_sends_nothing():
    found = ask(method="HEAD", Range="bytes=0-9")
    assert (found.status, found.headers["Content-Length"], found.has_body) == (200, "1000", False)


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-499", 0, 500),
        ("bytes=500-", 500, 1_000),
        ("bytes=999-", 999, 1_000),
        ("bytes=-1", 999, 1_000),
        ("bytes=-5000", 0, 1_000),
        ("bytes=900-5000", 900, 1_000),
        ("bytes=0-" + "9" * 5_000, 0, 1_000),
        ("bytes=" + "0" * 5_000 + "-9", 0, 10),
        ("BYTES= 0-9 ", 0, 10),
    ],
)
def test_a_range_is_sent(header, start, end):
    found = ask(Range=header)
    assert (found.status, found.start, found.end) == (206, start, end)
    assert found.headers["Content-Range"] == f"bytes {start}-{end - 1}/1000"
    assert found.headers["Content-Length"] == f"{end - start}"
    assert found.headers["ETag"] == ETAG


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=" + "9" * 5_000 + "-"])
def test_a_range_outside_of_the_file_is_416(header):
    found = ask(Range=header)
    assert (found.status, found.headers["Content-Range"], found.has_body) == (416, "bytes */1000", False)


@pytest.mark.parametrize(
    "header",
    ["", "bytes", "bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "bytes=0-1,5-6", "items=0-1", "bytes=0x1-2",
     "bytes=+1-2", "bytes=\u0661-\u0662"]
)  # fmt: skip
def test_what_is_no_single_range_gets_the_whole_file(header):
    assert ask(Range=header).status == 200


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0"])
def test_an_empty_file_has_no_first_byte(header):
    found = ask(a_file(content_length=0), Range=header)
    assert (found.status, found.headers["Content-Range"]) == (416, "bytes */0")


def test_the_end_of_an_empty_file_is_all_of_it():
    assert ask(a_file(content_length=0), Range="bytes=-5").status == 200
    assert not ask(a_file(content_length=0)).has_body


@given(st.integers(0, 2_000), st.none() | st.integers(0, 3_000), st.none() | st.integers(0, 3_000))
def test_a_range_never_leaves_the_file(length, first, last):
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    found = ask(a_file(content_length=length), Range=header)
    content = bytes(index % 251 for index in range(length))
    sent = content[found.start : found.end]
    match found.status:
        case 200:
            assert sent == content
        case 206:
            wanted = content[-last:] if first is None else content[first : None if last is None else last + 1]
            assert sent == wanted
            assert len(sent) == int(found.headers["Content-Length"]) > 0
        case 416:
            assert not sent
            assert (last == 0) if first is None else (first >= length)
        case _:
            pytest.fail(f"status {found.status}")


@given(st.text(max_size=60).map(lambda text: f"bytes={text}") | st.text(max_size=60))
def test_any_range_header_has_an_answer(header):
    assert ask(Range=header).status in (200, 206, 416)


# --- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_None_Match": ETAG}, 304),
        ({"If_None_Match": f'W/{ETAG}, "x"'}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": '"x"'}, 200),
        ({"If_None_Match": ETAG.strip('"')}, 200),
        ({"If_None_Match": '"x"', "If_Modified_Since": date()}, 200),
        ({"If_Modified_Since": date()}, 304),
        ({"If_Modified_Since": date(+60)}, 304),
        ({"If_Modified_Since": date(-1)}, 200),
        ({"If_Modified_Since": "yesterday"}, 200),
        ({"If_Match": ETAG}, 200),
        ({"If_Match": "*"}, 200),
        ({"If_Match": f"W/{ETAG}"}, 412),
        ({"If_Match": '"x"'}, 412),
        ({"If_Match": ETAG, "If_Unmodified_Since": date(-60)}, 200),
        ({"If_Unmodified_Since": date()}, 200),
        ({"If_Unmodified_Since": date(-1)}, 412),
        ({"If_Match": '"x"', "If_None_Match": ETAG}, 412),
        ({"If_None_Match": ETAG, "Range": "bytes=0-9"}, 304),
        ({"Range": "bytes=0-9", "If_Range": ETAG}, 206),
        ({"Range": "bytes=0-9", "If_Range": f"W/{ETAG}"}, 200),
        ({"Range": "bytes=0-9", "If_Range": '"x"'}, 200),
        ({"Range": "bytes=0-9", "If_Range": date()}, 206),
        ({"Range": "bytes=0-9", "If_Range": date(-1)}, 200),
    ],
    ids=str,
)
def test_conditions(headers, status):
    found = ask(**headers)
    assert found.status == status
    assert found.headers["ETag"] == ETAG
    assert found.has_body is (status in (200, 206))


@given(
    st.sampled_from(["If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range"]),
    st.text(max_size=80),
)
def test_any_condition_has_an_answer(name, value):
    assert answer("GET", {name: value, "Range": "bytes=0-1"}, a_file()).status in (200, 206, 304, 412)


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        "image/svg+xml",
        "text/html",
        "application/xhtml+xml",
        "text/xml",
        "application/javascript",
        "text/css",
        "image/x+xml",
        "image/svg",
        "audio/x+xml",
        "video/xhtml+xml",
        "image/PNG",
    ],
)
def test_what_a_browser_would_run_is_a_download(content_type):
    headers = ask(a_file(content_type=content_type, name="x")).headers
    assert headers["Content-Disposition"].startswith("attachment;")
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "content_type", ["text/javascript", "application/x-javascript", "text/javascript1.5", "text/ecmascript", "text/css"]
)
def test_what_a_page_would_load_as_a_script_or_a_style_is_bytes_of_no_type(content_type):
    assert ask(a_file(content_type=content_type)).headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize("content_type", ["image/avif", "video/mp4", "audio/mpeg", "application/pdf", "text/plain"])
def test_what_a_browser_only_shows_is_shown(content_type):
    headers = ask(a_file(content_type=content_type, name="x")).headers
    assert headers["Content-Disposition"].startswith("inline;")
    assert "Content-Security-Policy" not in headers


def test_anything_can_be_a_download_and_be_kept_for_as_long_as_one_says():
    found = answer("GET", {}, a_file(), cache_control="public, max-age=60", download=True, vary="Accept")
    assert found.headers["Content-Disposition"] == 'attachment; filename="cat.jpg"'
    assert (found.headers["Cache-Control"], found.headers["Vary"]) == ("public, max-age=60", "Accept")


@pytest.mark.parametrize("content_type", ["text/html\r\nX-Evil: 1", "", "png", "image/png; charset=x"])
def test_a_content_type_that_somebody_wrote_into_the_row_is_not_trusted(content_type):
    assert ask(a_file(content_type=content_type)).headers["Content-Type"] == "application/octet-stream"


@given(st.text(max_size=50))
def test_every_name_survives_the_header_and_none_leaves_it(name):
    header = content_disposition(name, inline=False)
    assert re.fullmatch(
        r"attachment; filename=\"[^\"\\\x00-\x1f\x7f-\uffff]*\"(; filename\*=UTF-8''[A-Za-z0-9._~%-]*)?", header
    )
    encoded = header.partition("filename*=UTF-8''")[2]
    plain = header.split('"')[1]
    assert (unquote(encoded) if encoded else plain) == name
