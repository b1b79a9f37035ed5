"""Access tokens: one file, one key, one algorithm, a short time; everything else is refused."""

import itertools
import time
from datetime import timedelta
from uuid import UUID, uuid4

import jwt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from queue_kit import ConfigurationError
from queue_kit.contrib.files import (
    InvalidFileToken,
    format_file_metadata,
    sign_file_access_token,
    verify_file_access_token,
)
from queue_kit.contrib.files.models import File

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
FILE = UUID(int=7)
DAY = 86_400  # these are made when the run begins, and read much later
TOKEN = sign_file_access_token(FILE, signing_key=KEY, max_age=DAY)
NOW = int(time.time())
CLAIMS = {"aud": "queue_kit.file", "sub": str(FILE), "iat": NOW, "exp": NOW + DAY}


def accepts(token, file_id=FILE, **options):
    try:
        verify_file_access_token(token, file_id, signing_key=KEY, **options)
    except InvalidFileToken:
        return False
    return True


def signed(key=KEY, algorithm="HS256", headers=None, **claims):
    kept = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    return jwt.encode(kept, key, algorithm, headers=headers)


def test_a_token_lets_see_its_file_and_no_other():
    assert accepts(TOKEN)
    assert accepts(signed())
    assert not accepts(TOKEN, uuid4())


@pytest.mark.parametrize("token", [TOKEN, "no token"])
def test_an_id_that_is_none_is_a_mistake_of_the_program_whatever_the_token(token):
    with pytest.raises(TypeError, match="file_id must be a UUID, not str"):
        accepts(token, str(FILE))


def test_a_key_may_be_changed_without_breaking_links():
    old = sign_file_access_token(FILE, signing_key=OTHER_KEY)
    assert not accepts(old)
    assert accepts(old, previous_keys=[OTHER_KEY])


@pytest.mark.parametrize(
    "token",
    [
        signed(key=OTHER_KEY),
        signed(key=None, algorithm="none"),
        signed(algorithm="HS512", key=KEY * 2),
        signed(algorithm="HS384", key=KEY * 2),
        signed(exp=NOW - 60),
        signed(exp=None),
        signed(iat=None),
        signed(iat=NOW + DAY // 2),
        signed(nbf=NOW + DAY // 2),
        signed(sub=None),
        signed(sub=str(uuid4())),
        signed(sub=f"{FILE}".upper() + " "),
        signed(aud=None),
        signed(aud="queue_kit.session"),
        signed(aud=[]),
        TOKEN + "=",
        TOKEN + " ",
        TOKEN + "x" * 2_000,
        TOKEN.replace(".", "..", 1),
        TOKEN.rpartition(".")[0] + ".",
        "",
        "..",
        "a.b.c",
        "ü.ü.ü",
        None,
        TOKEN.encode(),
    ],
    ids=itertools.count(),  # not the tokens: they differ from process to process
)
def test_every_other_token_is_refused(token):
    assert not accepts(token)


@settings(max_examples=300)
@given(st.integers(0, len(TOKEN) - 1), st.characters(max_codepoint=0x2FF))
def test_a_token_with_one_character_changed_is_refused(position, character):
    assume(TOKEN[position] != character)
    assert not accepts(TOKEN[:position] + character + TOKEN[position + 1 :])


@given(st.text(max_size=200))
def test_any_text_can_be_refused(token):
    assert not accepts(token)


@given(st.uuids(), st.uuids(), st.integers(1, 10_000))
def test_a_token_is_for_one_file(signed_id, asked_id, age):
    token = sign_file_access_token(signed_id, signing_key=KEY, max_age=age)
    assert accepts(token, asked_id) is (signed_id == asked_id)


@pytest.mark.parametrize("key", [b"", b"k" * 31, "short", None, 3])
def test_a_key_that_can_be_guessed_is_refused(key):
    with pytest.raises(ConfigurationError, match="at least 32 bytes"):
        sign_file_access_token(FILE, signing_key=key)
    with pytest.raises(ConfigurationError, match="at least 32 bytes"):
        verify_file_access_token(TOKEN, FILE, signing_key=key)
    with pytest.raises(ConfigurationError, match="previous_keys"):
        verify_file_access_token(TOKEN, FILE, signing_key=KEY, previous_keys=[key])


@pytest.mark.parametrize("age", [0, -1, float("nan"), float("inf"), True, "60", timedelta(days=400)])
def test_an_age_that_is_none_is_refused(age):
    with pytest.raises(ConfigurationError, match="max_age"):
        sign_file_access_token(FILE, signing_key=KEY, max_age=age)


def test_an_error_shows_neither_key_nor_token():
    with pytest.raises(InvalidFileToken) as caught:
        verify_file_access_token(TOKEN, uuid4(), signing_key=KEY)
    assert TOKEN not in str(caught.value)
    assert "kkk" not in str(caught.value)


# --- what a client is told --------------------------------------------------------------------------------------------


def a_file(**columns):
    return File(
        **{"id": FILE, "name": "cat.jpg", "content_type": "image/jpeg", "content_length": 3, "meta": {}} | columns
    )


def test_a_client_is_told_what_a_file_is_and_not_where_it_lies():
    meta = {"width": 640, "height": 480, "placeholder": "data:image/jpeg;base64,AA", "alt_text": "A cat", "own": 1}
    told = format_file_metadata(a_file(object_key="files/secret", meta=meta), url="/files/7")
    assert told == {
        "id": str(FILE), "name": "cat.jpg", "content_type": "image/jpeg", "content_length": 3, "url": "/files/7",
        "width": 640, "height": 480, "placeholder": "data:image/jpeg;base64,AA", "alt_text": "A cat",
    }  # fmt: skip
    assert format_file_metadata(a_file(), url="/x")["placeholder"] is None


@pytest.mark.parametrize(
    ("url", "start"), [("/f/7", "/f/7?access_token="), ("https://a.b/f?w=1#top", "https://a.b/f?w=1&access_token=")]
)
def test_a_link_may_carry_its_token(url, start):
    told = format_file_metadata(a_file(), url=url, signing_key=KEY, max_age=60)["url"]
    assert told.startswith(start)
    assert accepts(told.removeprefix(start).removesuffix("#top"))
