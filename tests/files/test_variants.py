"""Which variant a browser gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_kit.contrib.files.variants import accepted

BOTH = ("avif", "webp")


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "avif"),
        ("image/webp,*/*", "webp"),
        ("IMAGE/WEBP ; q=0.3", "webp"),
        ("image/avif;q=0, image/webp", "webp"),
        ("image/avif;q=0.0,image/webp;q=0", "original"),
        ("image/avif;q=x,image/webp;q=nan", "original"),
        ("image/avif;level=1;q=0.5", "avif"),
        ("image/*", "original"),
        ("*/*", "original"),
        ("text/html", "original"),
        (",;,=", "original"),
        ("", "original"),
        (None, "original"),
    ],
)
def test_the_first_format_that_is_named_is_sent(accept, format):
    assert accepted(accept, BOTH) == format


def test_only_what_is_offered_is_sent():
    assert accepted("image/avif,image/webp", ("webp",)) == "webp"
    assert accepted("image/avif,image/webp", ()) == "original"


@given(st.text())
def test_any_header_has_an_answer(accept):
    assert accepted(accept, BOTH) in {*BOTH, "original"}
