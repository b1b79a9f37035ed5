"""Tokens without a database: what is made is read back, and nothing else passes for it."""

import json
import string
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import jwt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from queue_kit import ConfigurationError
from queue_kit.contrib.sessions import InvalidToken, SigningKey
from queue_kit.contrib.sessions._tokens import PairIds, Tokens, TokenType, hash_of

KEY, OTHER = SigningKey("k1", "an old secret of more than 32 bytes: k1"), SigningKey("k2", b"\xff" * 32)
ACCESS, REFRESH = TokenType.access, TokenType.refresh
NOW = datetime(2030, 1, 1, tzinfo=UTC)
SESSION = UUID(int=7)


def tokens_of(*keys: SigningKey, issuer: str = "shop", audience: str = "api") -> Tokens:
    return Tokens(keys or [KEY, OTHER], issuer=issuer, audience=audience, algorithm="HS256")


TOKENS = tokens_of()
TOKEN = TOKENS.sign(ACCESS, "id", SESSION, "k1", NOW, NOW + timedelta(hours=1))


@given(
    type_=st.sampled_from(TokenType),
    token_id=st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=64),
    session_id=st.uuids(),
    key=st.sampled_from([KEY, OTHER]),
    created_at=st.integers(0, 6_000_000_000_000).map(lambda ms: datetime.fromtimestamp(ms / 1000, UTC)),
    age=st.integers(1, 315_360_000),
)
@settings(max_examples=60)
def test_what_is_signed_is_verified_and_says_the_same(type_, token_id, session_id, key, created_at, age):
    expires_at = created_at + timedelta(seconds=age)
    token = TOKENS.sign(type_, token_id, session_id, key.id, created_at, expires_at)
    claims = TOKENS.verify(token, type_)
    assert (claims.hash, claims.session_id, claims.key_id) == (hash_of(token_id), session_id, key.id)
    assert claims.expires_at == expires_at.replace(microsecond=0)
    assert token == TOKENS.sign(type_, token_id, session_id, key.id, created_at, expires_at)
    for other in (
        lambda: TOKENS.verify(token, ACCESS if type_ is REFRESH else REFRESH),
        lambda: tokens_of(issuer="other").verify(token, type_),
        lambda: tokens_of(audience="other").verify(token, type_),
        lambda: tokens_of(OTHER if key is KEY else KEY).verify(token, type_),
    ):
        with pytest.raises(InvalidToken):
            other()


@given(at=st.integers(0, len(TOKEN) - 1), character=st.characters(max_codepoint=0x2FF))
@settings(max_examples=300)
@example(at=len(TOKEN) - 1, character="l")
def test_no_character_can_be_changed(at, character):
    altered = TOKEN[:at] + character + TOKEN[at + 1 :]
    if altered != TOKEN:
        with pytest.raises(InvalidToken):
            TOKENS.verify(altered, ACCESS)


@given(st.one_of(st.text(max_size=40), st.from_regex(r"[\w-]{0,60}\.[\w-]{0,60}\.[\w-]{0,60}"), st.binary(max_size=9)))
@settings(max_examples=200)
def test_garbage_is_refused_and_nothing_else(garbage):
    with pytest.raises(InvalidToken):
        TOKENS.verify(garbage, ACCESS)


LOOKALIKES = [None, 7, b"", "", ".", "..", TOKEN.encode(), f" {TOKEN}", f"{TOKEN}\n", f"{TOKEN}.", f"{TOKEN}="]


@pytest.mark.parametrize("token", [*LOOKALIKES, f"Bearer {TOKEN}"])
def test_what_only_looks_like_a_token_is_refused(token):
    with pytest.raises(InvalidToken):
        TOKENS.verify(token, ACCESS)


@pytest.mark.parametrize("header", ["[" * 700, '{"kid":' * 100, "7", "[]", "null", '{"kid": ["k1"]}', '{"kid": null}'])
def test_a_header_that_is_none_is_refused(header):
    encoded = jwt.utils.base64url_encode(header.encode()).decode()
    with pytest.raises(InvalidToken):
        TOKENS.verify(".".join([encoded, *TOKEN.split(".")[1:]]), ACCESS)


def test_a_token_with_the_longest_names_is_still_read():
    longest = "x" * 200
    for algorithm in ("HS256", "HS384", "HS512"):
        key = SigningKey(longest, "x" * 64)
        tokens = Tokens([key], issuer=longest, audience=longest, algorithm=algorithm)
        ids = tokens.new_ids()
        for type_, token_id in ((ACCESS, ids.access), (REFRESH, ids.refresh)):
            token = tokens.sign(type_, token_id, SESSION, longest, NOW, NOW)
            assert tokens.verify(token, type_).hash == hash_of(token_id)


def test_a_long_token_is_not_parsed(monkeypatch):
    monkeypatch.setattr(jwt, "get_unverified_header", lambda token: pytest.fail("parsed"))
    claims = {"jti": "x" * 2_000}
    with pytest.raises(InvalidToken):
        TOKENS.verify(jwt.encode(claims, KEY.secret, headers={"kid": "k1"}), ACCESS)


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512"])
def test_s5_the_algorithm_is_the_one_of_the_configuration(algorithm):
    claims = jwt.decode(TOKEN, options={"verify_signature": False})
    key = None if algorithm == "none" else "x" * 64
    tokens = tokens_of(SigningKey("k1", "x" * 64))
    with pytest.raises(InvalidToken):
        tokens.verify(jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "k1"}), ACCESS)
    tokens.verify(jwt.encode(claims, "x" * 64, algorithm="HS256", headers={"kid": "k1"}), ACCESS)


@pytest.mark.parametrize(
    "claims",
    [
        *({name: ...} for name in ("jti", "sid", "typ", "iss", "aud", "iat", "exp")),
        *({name: None} for name in ("jti", "sid", "typ", "iss", "aud", "iat", "exp")),
        {"aud": "api"},
        {"aud": ["api/access"]},
        {"aud": "api/refresh"},
        {"aud": "api/access "},
        {"iss": "Shop"},
        {"iss": ["shop"]},
        {"typ": "refresh"},
        {"typ": "ACCESS"},
        {"typ": ["access"]},
        {"jti": 7},
        {"sid": "7"},
        {"sid": 7},
        {"sid": str(SESSION).upper().replace("0", "O")},
        {"exp": "1893459600"},
        {"exp": 1893459600.5},
        {"exp": True},
        {"exp": 10**30},
        {"exp": -(10**30)},
        {"exp": []},
        {"nbf": 4_000_000_000},
        {"nbf": []},
    ],
    ids=str,
)
def test_s5_every_claim_is_needed_and_is_what_it_must_be(claims):
    said = {**jwt.decode(TOKEN, options={"verify_signature": False}), **claims}
    payload = json.dumps({name: value for name, value in said.items() if value is not ...}).encode()
    token = jwt.api_jws.encode(payload, KEY.octets, headers={"kid": "k1"})  # which lets anything pass
    with pytest.raises(InvalidToken):
        TOKENS.verify(token, ACCESS)


@pytest.mark.parametrize(
    "headers",
    [{}, {"kid": "k2"}, {"kid": "k3"}, {"kid": ""}, {"kid": "k1", "crit": ["exp"]}, {"kid": "k1", "b64": False}],
)
def test_a_key_is_found_by_its_id_alone(headers):
    claims = jwt.decode(TOKEN, options={"verify_signature": False})
    assert jwt.encode(claims, KEY.secret, headers={"kid": "k1"}) == TOKEN
    with pytest.raises(InvalidToken):
        TOKENS.verify(jwt.encode(claims, KEY.secret, headers=headers), ACCESS)


def test_a_successor_is_the_same_for_each_holder_of_the_token_and_for_nobody_else():
    claims = TOKENS.verify(TOKENS.sign(REFRESH, "r", SESSION, "k1", NOW, NOW), REFRESH)
    other = TOKENS.verify(TOKENS.sign(REFRESH, "s", SESSION, "k1", NOW, NOW), REFRESH)
    successor = uuid4()
    ids = TOKENS.next_ids(claims, successor, "k1")
    assert ids == tokens_of(OTHER, KEY).next_ids(claims, successor, "k1")
    differing = [
        TOKENS.next_ids(other, successor, "k1"),
        TOKENS.next_ids(claims, uuid4(), "k1"),
        TOKENS.next_ids(claims, successor, "k2"),
        TOKENS.new_ids(),
        TOKENS.new_ids(),
    ]
    all_ids = [each for pair in [ids, *differing] for each in (pair.access, pair.refresh)]
    assert len(set(all_ids)) == len(all_ids)
    assert all(len(each) == 43 for each in all_ids)
    assert repr(ids) == "PairIds()"
    assert isinstance(ids, PairIds)
    with pytest.raises(ConfigurationError, match="signed with key 'k3'"):
        TOKENS.next_ids(claims, successor, "k3")
