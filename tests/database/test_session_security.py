"""The session store as an attacker meets it: tokens that were forged, altered, mixed up, kept or copied. None opens a
session, none changes anything, and what is stored makes no token."""

import asyncio
import hashlib
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit.contrib.sessions import (
    ExpiredToken,
    InvalidToken,
    LeakedSession,
    RevokedSession,
    RevokedToken,
    SigningKey,
    TokenAges,
    TokenPair,
    Unauthorized,
    UnknownSession,
)
from queue_kit.contrib.sessions.models import SESSIONS, TOKENS
from tests.database.movable_clock import START, database_with_clock
from tests.database.session_stores import (
    KEY,
    OTHER_KEY,
    Cart,
    both,
    cart_store,
    claims_of,
    forged,
    make_tables,
    move_back,
    pair_rows,
    session_rows,
)
from tests.support import count_jobs


@pytest.fixture
async def engine(engine: AsyncEngine) -> AsyncEngine:
    await make_tables(engine)
    return engine


async def snapshot(engine: AsyncEngine) -> Any:
    return await session_rows(engine), await pair_rows(engine), await count_jobs(engine)


async def opens(engine: AsyncEngine, store: Any, token: Any) -> list[str]:
    """What a token opens, by any of the doors; nothing may have changed by a refused one."""
    before, opened = await snapshot(engine), []
    for door in (store.get, store.refresh_tokens):
        try:
            await door(engine, token)
        except Unauthorized:
            assert await snapshot(engine) == before
        else:
            opened.append(door.__name__)
    return opened


LATER = int((START + timedelta(days=3_650)).timestamp())
STRANGER = SigningKey("k1", "somebody else's secret, under the same id")


def forgeries(pair: TokenPair, other: TokenPair) -> dict[str, str]:
    """Tokens that only the store could have made, and did not."""
    made: dict[str, str] = {}
    for name, token in (("access", pair.access_token), ("refresh", pair.refresh_token)):
        crossed = "refresh" if name == "access" else "access"
        claims = claims_of(token)
        header, payload, signature = token.split(".")
        made |= {
            f"{name} of a stranger's key": forged(token, key=STRANGER),
            f"{name} of another of our keys": forged(token, key=OTHER_KEY),
            f"{name} of our key under another id": forged(token, headers={"kid": "k2"}),
            f"{name} without a key's id": forged(token, headers={"kid": ""}),
            f"{name} that lives longer": forged(token, exp=LATER),
            f"{name} that lives a second longer": forged(token, exp=claims["exp"] + 1),
            f"{name} that has expired": forged(token, exp=claims["iat"] - 1),
            f"{name} without an end": forged(token, exp=...),
            f"{name} crossed by type": forged(token, typ=crossed),
            f"{name} crossed by audience": forged(token, aud=f"shop/{crossed}"),
            f"{name} crossed by both": forged(token, typ=crossed, aud=f"shop/{crossed}"),
            f"{name} of another issuer": forged(token, iss="bank"),
            f"{name} for another audience": forged(token, aud=f"bank/{name}"),
            f"{name} of another session": forged(token, sid=str(other.session_id)),
            f"{name} of no session": forged(token, sid=str(uuid4())),
            f"{name} with a guessed id": forged(token, jti="A" * 43),
            f"{name} with its hash for an id": forged(token, jti=hashlib.sha256(claims["jti"].encode()).hexdigest()),
            f"{name} with the other one's id": forged(token, jti=claims_of(both(pair)[name == "access"])["jti"]),
            f"{name} unsigned": f"{header}.{payload}.",
            f"{name} with the other's signature": f"{header}.{payload}.{both(other)[name == 'refresh'].split('.')[2]}",
            f"{name} with the other's payload": f"{header}.{both(other)[name == 'refresh'].split('.')[1]}.{signature}",
        }
    return made


async def test_s5_no_forged_or_mixed_up_token_opens_anything(engine):
    store = cart_store(KEY, OTHER_KEY)
    pair, other = [await store.create(engine, Cart()) for _ in range(2)]
    tokens = forgeries(pair, other)
    assert len(set(tokens.values())) == len(tokens)
    assert {name: found for name, token in tokens.items() if (found := await opens(engine, store, token))} == {}
    # The real ones open one door each, and no harm was done to them.
    assert await opens(engine, store, pair.access_token) == ["get"]
    assert await opens(engine, store, pair.refresh_token) == ["refresh_tokens"]


async def test_a_token_of_another_store_on_the_same_tables_and_keys_is_refused(engine):
    store = cart_store(KEY)
    pair = await store.create(engine, Cart())
    strangers = [
        cart_store(KEY, issuer="admin"),
        cart_store(KEY, audience="admin"),
        cart_store(STRANGER),
        cart_store(OTHER_KEY),
        cart_store(SigningKey("k1", "x" * 64), algorithm="HS512"),
    ]
    for stranger in strangers:
        for token in both(pair):
            assert await opens(engine, stranger, token) == []
    assert await opens(engine, store, pair.access_token) == ["get"]


async def test_keys_rotate_without_logging_anybody_out_and_a_retired_one_opens_nothing(engine):
    old = cart_store(KEY)
    pair = await old.create(engine, Cart())
    added, moved, retired = cart_store(KEY, OTHER_KEY), cart_store(OTHER_KEY, KEY), cart_store(OTHER_KEY)
    for store in (added, moved):
        await store.get(engine, pair.access_token)
    assert await opens(engine, retired, pair.access_token) == []
    next_pair = await moved.refresh_tokens(engine, pair.refresh_token)
    assert [row.key_id for row in await pair_rows(engine)] == ["k1", "k2"]
    for store in (added, moved, retired):
        await store.get(engine, next_pair.access_token)
    assert await opens(engine, old, next_pair.access_token) == []
    assert await opens(engine, retired, pair.refresh_token) == []


async def test_neither_what_is_stored_nor_the_key_makes_a_token_and_both_together_do_not(engine):
    store = cart_store()
    first = await store.create(engine, Cart())
    second = await store.refresh_tokens(engine, first.refresh_token)
    async with engine.connect() as connection:
        rows = [row for table in (SESSIONS, TOKENS) for row in await connection.execute(select(table))]
    stored = [value for row in rows for value in row]
    secrets = [claims_of(token)["jti"] for pair in (first, second) for token in both(pair)]
    for value in stored:
        text = value.decode("latin1") if isinstance(value, bytes) else str(value)
        assert not any(secret in text for secret in secrets)
    # Who has the database and the key, but no token, has no id: each value that is stored is tried as one.
    for value in {value.hex() if isinstance(value, bytes) else str(value) for value in stored}:
        for token in both(second):
            assert await opens(engine, store, forged(token, jti=value)) == []


async def test_a_copy_cannot_extend_its_grace_by_being_used(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    await store.refresh_tokens(engine, pair.refresh_token)
    (first, _) = await pair_rows(engine)
    for _ in range(3):
        await store.refresh_tokens(engine, pair.refresh_token)
    assert (await pair_rows(engine))[0].rotated_at == first.rotated_at
    await move_back(engine, rotated_at=15.1)
    with pytest.raises(LeakedSession):
        await store.refresh_tokens(engine, pair.refresh_token)


async def test_thief_and_victim_who_share_a_pair_are_found_out_at_the_next_refresh(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    mine, stolen = [await store.refresh_tokens(engine, pair.refresh_token) for _ in range(2)]
    assert both(mine) == both(stolen)
    await move_back(engine, rotated_at=300)
    thiefs = await store.refresh_tokens(engine, stolen.refresh_token)
    await move_back(engine, rotated_at=300)
    with pytest.raises(LeakedSession):
        await store.refresh_tokens(engine, mine.refresh_token)
    for token in (*both(mine), *both(thiefs)):
        assert await opens(engine, store, token) == []
    assert await count_jobs(engine) == 1


async def test_s6_an_old_ancestor_is_a_leak_too(engine):
    store = cart_store()
    first = pair = await store.create(engine, Cart())
    for _ in range(3):
        pair = await store.refresh_tokens(engine, pair.refresh_token)
        await move_back(engine, rotated_at=60)
    with pytest.raises(LeakedSession):
        await store.refresh_tokens(engine, first.refresh_token)
    assert await opens(engine, store, pair.access_token) == []


async def test_cleanup_does_not_make_a_copy_useful_again(engine):
    store = cart_store()
    first = await store.create(engine, Cart())
    await store.refresh_tokens(engine, first.refresh_token)
    await move_back(engine, rotated_at=60)
    await store.cleanup(engine, 0)
    with pytest.raises(LeakedSession):
        await store.refresh_tokens(engine, first.refresh_token)
    await move_back(engine, session_revoked_at=1)  # longer ago than a tick of SQLite's clock
    await store.cleanup(engine, 0)
    assert await snapshot(engine) == ([], [], 1)
    with pytest.raises(UnknownSession):
        await store.refresh_tokens(engine, first.refresh_token)
    assert await count_jobs(engine) == 1


async def test_revocation_wins_over_a_refresh_at_the_same_time(engine):
    store = cart_store()
    for _ in range(6):
        pair = await store.create(engine, Cart())
        refreshes = [store.refresh_tokens(engine, pair.refresh_token) for _ in range(3)]
        done = await asyncio.gather(*refreshes, store.invalidate(engine, pair.session_id), return_exceptions=True)
        pairs = [each for each in done if isinstance(each, TokenPair)]
        assert {type(each) for each in done} <= {TokenPair, RevokedSession, type(None)}
        for token in {token for each in [pair, *pairs] for token in both(each)}:
            assert await opens(engine, store, token) == []
    assert await count_jobs(engine) == 0


async def test_a_copy_and_its_owner_at_the_same_time(engine):
    """The owner refreshes the current token while a copy of the one before comes: whoever is first, none stays open."""
    store = cart_store()
    for _ in range(4):
        first = await store.create(engine, Cart())
        second = await store.refresh_tokens(engine, first.refresh_token)
        await move_back(engine, first.session_id, rotated_at=60)
        done = await asyncio.gather(
            *(store.refresh_tokens(engine, token) for token in (second.refresh_token, first.refresh_token)),
            return_exceptions=True,
        )
        assert isinstance(done[1], LeakedSession)
        pairs = [each for each in done if isinstance(each, TokenPair)]
        for token in {token for each in [first, second, *pairs] for token in both(each)}:
            assert await opens(engine, store, token) == []
    assert await count_jobs(engine) == 4


async def test_the_databases_clock_decides_and_no_claim_of_a_token(database):
    async with database_with_clock(database) as (engine, clock):
        await make_tables(engine)
        store = cart_store(ages=TokenAges(60, 600))
        pair = await store.create(engine, Cart())
        # The process's clock is years behind: by it, these tokens would not be valid yet.
        await store.get(engine, pair.access_token)
        # A row that lives on does not keep a token alive, nor a token its row.
        async with engine.begin() as connection:
            await connection.execute(update(TOKENS).values(access_expires_at=START + timedelta(days=1)))
        with pytest.raises(InvalidToken):
            await store.get(engine, pair.access_token)
        await clock.move(START + timedelta(seconds=600))
        with pytest.raises(ExpiredToken):
            await store.refresh_tokens(engine, pair.refresh_token)
        with pytest.raises(InvalidToken):
            await store.refresh_tokens(engine, forged(pair.refresh_token, exp=LATER))


async def test_one_token_of_a_pair_never_stands_for_the_other(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    with pytest.raises(InvalidToken):
        await store.get(engine, pair.refresh_token)
    with pytest.raises(InvalidToken):
        await store.refresh_tokens(engine, pair.access_token)
    await store.refresh_tokens(engine, pair.refresh_token)
    with pytest.raises(RevokedToken):
        await store.get(engine, pair.access_token)


async def test_the_log_of_the_database_has_no_token(engine, caplog):
    store = cart_store()
    with caplog.at_level("DEBUG"), caplog.at_level("DEBUG", "sqlalchemy"):
        pair = await store.create(engine, Cart())
        await store.get(engine, pair.access_token)
        second = await store.refresh_tokens(engine, pair.refresh_token)
        await move_back(engine, rotated_at=60)
        with pytest.raises(LeakedSession):
            await store.refresh_tokens(engine, pair.refresh_token)
    assert "queue_kit_session_token" in caplog.text
    for token in (*both(pair), *both(second)):
        assert token not in caplog.text
        assert claims_of(token)["jti"] not in caplog.text
