"""The session store: what is stored and given out, what each error means, how tokens follow one another, and what goes
when. Which tokens are refused is in `test_session_security`."""

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from queue_kit import ConfigurationError, Handlers, Job, JobState, QueueKitError, QueueWorker, add_job, list_jobs
from queue_kit.contrib.sessions import (
    ExpiredToken,
    InvalidSessionData,
    InvalidToken,
    LeakedSession,
    LeakReport,
    RevokedSession,
    RevokedToken,
    Session,
    SessionConflict,
    SessionError,
    SessionStore,
    SigningKey,
    TokenAges,
    TokenPair,
    Unauthorized,
    UnknownSession,
    job_session_store_cleanup,
    session_jobs,
)
from queue_kit.contrib.sessions import store as store_module
from queue_kit.contrib.sessions.models import SESSIONS, TOKENS
from queue_kit.testing import assert_enqueued, rolled_back
from tests.database.clock import WAYS, database_now, reach
from tests.database.movable_clock import START, database_with_clock
from tests.database.session_stores import (
    KEY,
    OTHER_KEY,
    Cart,
    both,
    cart_store,
    change_sessions,
    claims_of,
    make_tables,
    move_back,
    pair_rows,
    session_rows,
)
from tests.support import count_jobs

LEAKED = "queue_kit.session_store.potential_leaked_session"
DAY = 86_400.0
PUBLIC_KEY = f"-----BEGIN PUBLIC KEY-----\n{'x' * 64}\n-----END PUBLIC KEY-----\n"


@pytest.fixture
async def engine(engine: AsyncEngine) -> AsyncEngine:
    await make_tables(engine)
    return engine


@pytest.fixture
async def timed(database: Any) -> Any:
    """An engine and the clock of its database, which a test moves."""
    async with database_with_clock(database) as (engine, clock):
        await make_tables(engine)
        yield engine, clock


# --- create and get ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_session_comes_back_as_it_was_created(engine, way):
    store = cart_store()
    async with reach(engine, way) as db:
        pair = await store.create(db, Cart(["tea"], 7))
        session = await store.get(db, pair.access_token)
    assert session.data == Cart(["tea"], 7)
    assert session.id == pair.session_id
    assert session.created_at == session.updated_at
    assert await store.get(engine, pair.access_token) == session


async def test_a_session_exists_when_the_caller_commits_and_never_after_a_rollback(engine):
    store = cart_store()
    async with AsyncSession(engine) as session:
        pair = await store.create(session, Cart())
        await session.rollback()
    with pytest.raises(UnknownSession):
        await store.get(engine, pair.access_token)
    assert await session_rows(engine) == []


async def test_a_pair_says_when_it_expires_and_hides_its_tokens(engine):
    pair = await cart_store(ages=TokenAges(60, timedelta(hours=2))).create(engine, Cart())
    (row,) = await pair_rows(engine)
    assert row.access_expires_at - row.created_at == pytest.approx(timedelta(seconds=60), abs=timedelta(seconds=1))
    assert row.refresh_expires_at - row.created_at == pytest.approx(timedelta(hours=2), abs=timedelta(seconds=1))
    assert pair.access_expires_at == row.access_expires_at.replace(microsecond=0)
    assert pair.refresh_expires_at == row.refresh_expires_at.replace(microsecond=0)
    assert not any(token in repr(pair) for token in both(pair))


async def test_a_token_carries_ids_and_times_alone(engine):
    pair = await cart_store(audience="api").create(engine, Cart(["secret"], 7))
    for token, type_ in zip(both(pair), ("access", "refresh"), strict=True):
        claims = claims_of(token)
        assert set(claims) == {"jti", "sid", "typ", "iss", "aud", "iat", "exp"}
        assert claims["sid"] == str(pair.session_id)
        assert (claims["typ"], claims["iss"], claims["aud"]) == (type_, "shop", f"api/{type_}")


async def test_the_function_of_ages_is_given_the_session_at_each_refresh(engine):
    seen: list[Session[Cart]] = []

    def ages(session: Session[Cart]) -> TokenAges:
        seen.append(session)
        return TokenAges(access=60, refresh=120 if session.data.user_id else 90)

    store = cart_store(ages=ages)
    pair = await store.create(engine, Cart())
    session = await store.get(engine, pair.access_token)
    await store.update(engine, replace(session, data=Cart(user_id=7)))
    await store.refresh_tokens(engine, pair.refresh_token)
    assert [each.data.user_id for each in seen] == [None, 7]
    ages_given = [(row.refresh_expires_at - row.created_at).total_seconds() for row in await pair_rows(engine)]
    assert ages_given == pytest.approx([90, 120], abs=1)


async def test_a_function_of_ages_that_fails_stores_nothing(engine):
    async with AsyncSession(engine) as session:
        with pytest.raises(ConfigurationError, match="ages must return TokenAges, not int"):
            await cart_store(ages=lambda session: 300).create(session, Cart())
        with pytest.raises(ZeroDivisionError):
            await cart_store(ages=lambda session: 1 / 0).create(session, Cart())
        await session.commit()  # of a caller who goes on
    assert await session_rows(engine) == []


class Profile(BaseModel):
    name: str
    since: datetime


async def test_data_is_of_any_type_that_a_payload_can_be(engine):
    for type_, data in (
        (dict[str, Any], {"a": [1, 2.5, None, "ü"]}),
        (Profile, Profile(name="Ada", since=datetime(2026, 1, 1, tzinfo=UTC))),
        (list[int], [1, 2]),
        (Any, "text"),
    ):
        store = SessionStore[Any](type_, keys=[KEY], issuer="shop")
        pair = await store.create(engine, data)
        session = await store.get(engine, pair.access_token)
        assert session.data == data
        assert await store.update(engine, session) is session  # there is nothing to write


async def test_data_that_does_not_fit_is_refused_before_anything_is_stored(engine):
    for type_, data, problem in (
        (Cart, {"items": "tea"}, r"data at \$\.items: "),
        (Cart, 7, r"data at \$: must be Cart, not int"),
        (dict[str, Any], [1], r"data at \$: must be an object \(dict\), not list"),
        (dict[str, Any], {"a": "\0"}, r"data at \$\.a: holds a NUL"),
        (dict[str, Any], {"a": "x" * 1_100_000}, "at most 1,048,576 are allowed"),
        (Any, None, r"data at \$: must not be null"),
    ):
        store = SessionStore[Any](type_, keys=[KEY], issuer="shop")
        with pytest.raises(InvalidSessionData, match=problem):
            await store.create(engine, data)
    assert await session_rows(engine) == []


async def test_data_that_does_not_fit_its_type_any_more_says_where(engine):
    pair = await SessionStore(dict[str, Any], keys=[KEY], issuer="shop").create(engine, {"items": [1]})
    with pytest.raises(InvalidSessionData, match=r"data at \$\.items\[0\]"):
        await cart_store().get(engine, pair.access_token)


# --- what each error means --------------------------------------------------------------------------------------------


async def test_an_expired_token_is_told_by_the_databases_clock(timed):
    engine, clock = timed
    store = cart_store(ages=TokenAges(access=60, refresh=600))
    pair = await store.create(engine, Cart())
    await clock.move(START + timedelta(seconds=59))
    await store.get(engine, pair.access_token)
    await clock.move(START + timedelta(seconds=60))
    with pytest.raises(ExpiredToken):
        await store.get(engine, pair.access_token)
    await store.refresh_tokens(engine, pair.refresh_token)
    await clock.move(START + timedelta(seconds=600))
    with pytest.raises(ExpiredToken):
        await store.refresh_tokens(engine, pair.refresh_token)
    assert await count_jobs(engine) == 0  # what has expired is no leak


async def test_an_expired_token_is_expired_also_when_its_row_is_gone(timed):
    engine, clock = timed
    store = cart_store(ages=TokenAges(access=60, refresh=600))
    pair = await store.create(engine, Cart())
    async with engine.begin() as connection:
        await connection.execute(delete(SESSIONS))
    with pytest.raises(UnknownSession):
        await store.get(engine, pair.access_token)
    with pytest.raises(UnknownSession):
        await store.refresh_tokens(engine, pair.refresh_token)
    await clock.move(START + timedelta(seconds=60))
    with pytest.raises(ExpiredToken):
        await store.get(engine, pair.access_token)


async def test_the_errors_of_tokens_are_one_family_and_say_no_token(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    await store.invalidate(engine, pair.session_id)
    with pytest.raises(RevokedSession) as revoked:
        await store.get(engine, pair.access_token)
    with pytest.raises(InvalidToken) as invalid:
        await store.get(engine, pair.access_token[:-2])
    assert revoked.value.session_id == pair.session_id
    for caught in (revoked.value, invalid.value):
        assert isinstance(caught, Unauthorized)
        assert isinstance(caught, SessionError)
        assert isinstance(caught, QueueKitError)
        assert pair.access_token[:20] not in f"{caught!r} {caught.__cause__!r} {caught.__context__!r}"
    assert issubclass(LeakedSession, RevokedSession)
    assert issubclass(RevokedSession, RevokedToken)
    assert issubclass(UnknownSession, LookupError)


# --- update and invalidate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_an_update_is_seen_by_the_next_get(engine, way):
    store = cart_store()
    pair = await store.create(engine, Cart())
    session = await store.get(engine, pair.access_token)
    async with reach(engine, way) as db:
        changed = await store.update(db, replace(session, data=Cart(["tea"])))
    assert changed == await store.get(engine, pair.access_token)
    assert changed.data == Cart(["tea"])
    assert changed.created_at == session.created_at
    assert changed.checksum != session.checksum


async def test_an_update_without_a_change_writes_nothing(engine):
    store = cart_store()
    pair = await store.create(engine, Cart(["tea"]))
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    await change_sessions(engine, updated_at=long_ago)
    session = await store.get(engine, pair.access_token)
    assert await store.update(engine, replace(session, data=Cart(["tea"]))) == session
    session.data.items.append("milk")  # data that is changed in place counts as well
    assert (await store.update(engine, session)).updated_at > long_ago
    assert (await store.get(engine, pair.access_token)).data == Cart(["tea", "milk"])


async def test_of_two_changes_of_what_both_have_read_the_second_is_refused(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    session = await store.get(engine, pair.access_token)
    await store.update(engine, replace(session, data=Cart(["tea"])))
    with pytest.raises(SessionConflict, match="get it again"):
        await store.update(engine, replace(session, data=Cart(["milk"])))
    assert (await store.get(engine, pair.access_token)).data == Cart(["tea"])


async def test_of_many_changes_at_once_none_is_lost(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())

    async def put(item: str) -> None:
        while True:
            session = await store.get(engine, pair.access_token)
            try:
                await store.update(engine, replace(session, data=Cart([*session.data.items, item])))
            except SessionConflict:
                continue
            return

    items = [f"item {number}" for number in range(6)]
    await asyncio.gather(*map(put, items))
    assert sorted((await store.get(engine, pair.access_token)).data.items) == items


async def test_what_cannot_be_updated(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    session = await store.get(engine, pair.access_token)
    with pytest.raises(InvalidSessionData):
        await store.update(engine, replace(session, data=7))
    with pytest.raises(UnknownSession):
        await store.update(engine, replace(session, id=uuid4(), data=Cart(["tea"])))
    with pytest.raises(TypeError, match="session must be a Session, as get returns it, not dict"):
        await store.update(engine, {"id": session.id})
    await store.invalidate(engine, session)
    with pytest.raises(RevokedSession):
        await store.update(engine, replace(session, data=Cart(["tea"])))
    assert [row.data for row in await session_rows(engine)] == [{"items": [], "user_id": None}]


@pytest.mark.parametrize("way", WAYS)
async def test_invalidate_ends_a_session_at_once(engine, way):
    store = cart_store()
    pair, other = [await store.create(engine, Cart()) for _ in range(2)]
    session = await store.get(engine, pair.access_token)
    async with reach(engine, way) as db:
        await store.invalidate(db, session)
    with pytest.raises(RevokedSession):
        await store.get(engine, pair.access_token)
    with pytest.raises(RevokedSession):
        await store.refresh_tokens(engine, pair.refresh_token)
    await store.get(engine, other.access_token)
    await store.refresh_tokens(engine, other.refresh_token)
    assert await count_jobs(engine) == 0


async def test_invalidate_by_id_is_harmless_twice_and_knows_what_there_is(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    await store.invalidate(engine, pair.session_id)
    (first,) = await session_rows(engine)
    await store.invalidate(engine, pair.session_id)
    assert await session_rows(engine) == [first]
    with pytest.raises(UnknownSession):
        await store.invalidate(engine, uuid4())
    with pytest.raises(TypeError, match="session must be a Session"):
        await store.invalidate(engine, str(pair.session_id))


async def test_a_database_is_one_of_three_things(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    session = replace(await store.get(engine, pair.access_token), data=Cart(["tea"]))
    for method, argument in {
        "create": Cart(),
        "get": pair.access_token,
        "update": session,
        "invalidate": session,
        "refresh_tokens": pair.refresh_token,
        "cleanup": 14,
    }.items():
        with pytest.raises(TypeError, match="db must be an AsyncSession, AsyncConnection or AsyncEngine, not Engine"):
            await getattr(store, method)(engine.sync_engine, argument)


# --- refresh ----------------------------------------------------------------------------------------------------------


async def test_a_refresh_replaces_both_tokens(engine):
    store = cart_store()
    first = await store.create(engine, Cart(["tea"]))
    second = await store.refresh_tokens(engine, first.refresh_token)
    assert len({*both(first), *both(second)}) == 4
    assert second.session_id == first.session_id
    with pytest.raises(RevokedToken) as caught:
        await store.get(engine, first.access_token)
    assert not isinstance(caught.value, RevokedSession)
    assert (await store.get(engine, second.access_token)).data == Cart(["tea"])
    third = await store.refresh_tokens(engine, second.refresh_token)
    await store.get(engine, third.access_token)


@pytest.mark.parametrize("way", ["session", "connection"])
async def test_a_refresh_is_a_transaction_of_its_own(engine, way):
    store = cart_store()
    pair = await store.create(engine, Cart())
    async with reach(engine, way) as db:
        if way == "session":
            await db.connection()
        with pytest.raises(ConfigurationError, match=r"refresh_tokens commits by itself.*that is in no transaction"):
            await store.refresh_tokens(db, pair.refresh_token)
    opened = AsyncSession(engine) if way == "session" else engine.connect()
    async with opened as db:
        second = await store.refresh_tokens(db, pair.refresh_token)
        assert not db.in_transaction()
        await store.get(engine, second.access_token)  # committed


async def test_inside_of_a_test_that_rolls_back_all_of_it_works(engine):
    store = cart_store()
    async with rolled_back(engine) as connection, AsyncSession(connection) as session:
        pair = await store.create(session, Cart())
        await session.commit()
        second = await store.refresh_tokens(session, pair.refresh_token)
        assert (await store.get(session, second.access_token)).data == Cart()
        rotated = await session.scalar(select(TOKENS.c.rotated_at).where(TOKENS.c.rotated_at.is_not(None)))
        earlier = {"rotated_at": rotated - timedelta(seconds=16)}
        await session.execute(update(TOKENS).where(TOKENS.c.rotated_at.is_not(None)).values(earlier))
        await session.commit()
        with pytest.raises(LeakedSession):
            await store.refresh_tokens(session, pair.refresh_token)
        await assert_enqueued(session, LEAKED)
    assert await session_rows(engine) == []


async def refreshed_by(
    engines: list[AsyncEngine], store: SessionStore[Cart], token: str, times: int
) -> list[TokenPair]:
    return await asyncio.gather(
        *(store.refresh_tokens(engines[number % len(engines)], token) for number in range(times))
    )


async def test_s6_fifty_refreshes_at_once_give_one_successor(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    pairs = await refreshed_by([engine], store, pair.refresh_token, 50)
    assert len({both(each) for each in pairs}) == 1
    assert len(await pair_rows(engine)) == 2
    await store.get(engine, pairs[0].access_token)
    # Each of the clients goes on with what it was given.
    pairs = await refreshed_by([engine], store, pairs[0].refresh_token, 20)
    assert len({both(each) for each in pairs}) == 1
    assert len(await pair_rows(engine)) == 3
    assert await count_jobs(engine) == 0


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
async def test_refreshes_at_once_on_engines_of_another_isolation_do_not_fight(pg_engine, level):
    await make_tables(pg_engine)
    store = cart_store()
    pair = await store.create(pg_engine, Cart())
    pairs = await refreshed_by([pg_engine.execution_options(isolation_level=level)], store, pair.refresh_token, 12)
    assert len({both(each) for each in pairs}) == 1
    assert len(await pair_rows(pg_engine)) == 2


async def test_processes_that_sign_with_different_keys_give_the_same_pair(engine):
    old_first, new_first = cart_store(KEY, OTHER_KEY), cart_store(OTHER_KEY, KEY)
    pair = await old_first.create(engine, Cart())
    first = await old_first.refresh_tokens(engine, pair.refresh_token)
    again = await new_first.refresh_tokens(engine, pair.refresh_token)
    assert both(first) == both(again)
    after = [await each.refresh_tokens(engine, first.refresh_token) for each in (new_first, old_first)]
    assert len({both(each) for each in after}) == 1
    assert [row.key_id for row in await pair_rows(engine)] == ["k1", "k1", "k2"]
    with pytest.raises(ConfigurationError, match="signed with key 'k2', which is not among this store's"):
        await cart_store(KEY).refresh_tokens(engine, first.refresh_token)


async def test_within_the_grace_a_token_gives_the_same_pair_and_the_grace_does_not_grow(timed):
    engine, clock = timed
    store = cart_store()
    pair = await store.create(engine, Cart())
    first = await store.refresh_tokens(engine, pair.refresh_token)
    for seconds in (5, 14, 15):
        await clock.move(START + timedelta(seconds=seconds))
        assert both(await store.refresh_tokens(engine, pair.refresh_token)) == both(first)
    await clock.move(START + timedelta(seconds=15.001))
    with pytest.raises(LeakedSession):
        await store.refresh_tokens(engine, pair.refresh_token)


@pytest.mark.parametrize("way", ["engine", "session", "connection"])
async def test_s6_a_copy_that_is_used_after_the_grace_ends_the_session_and_is_reported(engine, way):
    store = cart_store()
    first = await store.create(engine, Cart(["tea"]))
    second = await store.refresh_tokens(engine, first.refresh_token)
    await move_back(engine, rotated_at=16)
    async with AsyncSession(engine) as session, engine.connect() as connection:
        db = {"engine": engine, "session": session, "connection": connection}[way]
        with pytest.raises(LeakedSession) as caught:
            await store.refresh_tokens(db, first.refresh_token)
    assert caught.value.session_id == first.session_id
    for token in (first.access_token, second.access_token):
        with pytest.raises(RevokedSession):
            await store.get(engine, token)
    with pytest.raises(RevokedSession):
        await store.refresh_tokens(engine, second.refresh_token)

    (job,) = await list_jobs(engine)
    assert (job.name, job.state) == (LEAKED, JobState.ready)
    (row,) = await session_rows(engine)
    assert job.data["session_id"] == str(first.session_id)
    assert datetime.fromisoformat(job.data["revoked_at"]) == row.revoked_at
    assert len(job.data["refreshed_at"]) == 1
    assert not any(token in str(job.data) for pair in (first, second) for token in both(pair))


async def test_a_leak_is_reported_once_however_often_the_copy_comes(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    await store.refresh_tokens(engine, pair.refresh_token)
    await move_back(engine, rotated_at=16)
    again = [store.refresh_tokens(engine, pair.refresh_token) for _ in range(10)]
    caught = await asyncio.gather(*again, return_exceptions=True)
    assert {type(each) for each in caught} <= {LeakedSession, RevokedSession}
    assert LeakedSession in {type(each) for each in caught}
    assert await count_jobs(engine) == 1
    await QueueWorker(engine, session_jobs(store)).drain()
    with pytest.raises(RevokedSession):
        await store.refresh_tokens(engine, pair.refresh_token)
    assert await count_jobs(engine) == 1


async def test_the_revocation_and_its_report_are_one(engine, monkeypatch):
    store = cart_store()
    pair = await store.create(engine, Cart())
    second = await store.refresh_tokens(engine, pair.refresh_token)
    await move_back(engine, rotated_at=16)
    real = store_module.report_leak

    async def fails(*arguments: Any) -> None:
        await real(*arguments)
        raise ConnectionError

    monkeypatch.setattr(store_module, "report_leak", fails)
    with pytest.raises(ConnectionError):
        await store.refresh_tokens(engine, pair.refresh_token)
    assert await count_jobs(engine) == 0
    await store.get(engine, second.access_token)


async def test_a_log_out_is_no_leak(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    await store.refresh_tokens(engine, pair.refresh_token)
    await store.invalidate(engine, pair.session_id)
    await move_back(engine, rotated_at=3_600)
    with pytest.raises(RevokedSession) as caught:
        await store.refresh_tokens(engine, pair.refresh_token)
    assert not isinstance(caught.value, LeakedSession)
    assert await count_jobs(engine) == 0


# --- the report -------------------------------------------------------------------------------------------------------


async def leak(engine: AsyncEngine, store: SessionStore[Cart], refreshes: int) -> tuple[TokenPair, list[datetime]]:
    """A session whose first refresh token is used again, and when its tokens were refreshed."""
    first = pair = await store.create(engine, Cart(["private"]))
    for _ in range(refreshes):
        await move_back(engine, rotated_at=60)
        pair = await store.refresh_tokens(engine, pair.refresh_token)
    await move_back(engine, rotated_at=60)
    with pytest.raises(LeakedSession):
        await store.refresh_tokens(engine, first.refresh_token)
    return first, [row.rotated_at for row in await pair_rows(engine) if row.rotated_at]


async def test_the_report_has_the_last_four_refreshes_in_order(engine):
    reports: list[LeakReport] = []
    jobs = Handlers()

    @jobs.handler(LEAKED)
    async def report(event: Any, session: Any, job: Job[LeakReport]) -> None:
        reports.append(job.data)

    pair, times = await leak(engine, cart_store(), 6)
    await QueueWorker(engine, jobs).drain()
    (row,) = await session_rows(engine)
    assert reports == [
        LeakReport(pair.session_id, row.created_at, row.updated_at, row.revoked_at, tuple(sorted(times)[-4:]))
    ]


@pytest.mark.parametrize("use_dump", [False, True])
async def test_the_report_is_logged_in_words_or_as_json(engine, caplog, use_dump):
    store = cart_store()
    pair, times = await leak(engine, store, 1)
    with caplog.at_level(logging.WARNING, "queue_kit.job"):
        assert (await QueueWorker(engine, session_jobs(store, use_dump=use_dump)).drain())["completed"] == 1
    (record,) = [each for each in caplog.records if hasattr(each, "leaked_session")]
    assert record.leaked_session.session_id == pair.session_id
    message = record.getMessage()
    if use_dump:
        assert '"refreshed_at": ["' in message
        assert message.startswith("{")
    else:
        assert message.startswith(f"session {pair.session_id} was revoked at ")
        assert message.endswith(f"last refreshed {times[0].isoformat()}")
    assert "private" not in caplog.text
    assert not any(token in caplog.text for token in both(pair))


# --- cleanup ----------------------------------------------------------------------------------------------------------


async def left(engine: AsyncEngine) -> tuple[int, int]:
    """How many sessions and pairs there are."""
    return len(await session_rows(engine)), len(await pair_rows(engine))


async def test_cleanup_leaves_what_is_in_use(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    pair = await store.refresh_tokens(engine, pair.refresh_token)
    await store.invalidate(engine, (await store.create(engine, Cart())).session_id)
    assert await store.cleanup(engine) == 0
    assert await left(engine) == (2, 3)
    await store.get(engine, pair.access_token)


async def test_a_replaced_pair_stays_until_its_refresh_token_expires(engine):
    store = cart_store(ages=TokenAges(60, 3_600))
    first = await store.create(engine, Cart())
    second = await store.refresh_tokens(engine, first.refresh_token)
    await move_back(engine, rotated_at=30 * DAY)  # rotated long ago, and still not expired
    assert await store.cleanup(engine, 0) == 0
    expired = await database_now(engine) - timedelta(seconds=1)
    async with engine.begin() as connection:
        await connection.execute(
            update(TOKENS).where(TOKENS.c.rotated_at.is_not(None)).values(refresh_expires_at=expired)
        )
    assert await store.cleanup(engine, 14) == 1
    assert await left(engine) == (1, 1)
    await store.get(engine, second.access_token)


@pytest.mark.parametrize("ended", ["revoked", "expired"])
async def test_a_session_is_kept_for_some_days_after_its_end(engine, ended):
    store = cart_store(ages=TokenAges(60, 3_600))
    for days in (13.9, 14.1):
        pair = await store.create(engine, Cart())
        if ended == "revoked":
            await store.invalidate(engine, pair.session_id)
            await move_back(engine, pair.session_id, session_revoked_at=days * DAY)
        else:
            await move_back(engine, pair.session_id, refresh_expires_at=days * DAY + 3_600)
    assert await store.cleanup(engine) == 1
    assert await left(engine) == (1, 1)
    assert await store.cleanup(engine, max_revoked_age_in_days=20) == 0
    assert await store.cleanup(engine, max_revoked_age_in_days=13) == 1
    assert await left(engine) == (0, 0)


async def test_a_session_can_be_given_a_longest_life(engine):
    store = cart_store()
    pairs = [await store.create(engine, Cart()) for _ in range(2)]
    await store.refresh_tokens(engine, pairs[0].refresh_token)
    await move_back(engine, pairs[0].session_id, session_created_at=31 * DAY)
    assert await store.cleanup(engine) == 0
    assert await store.cleanup(engine, max_session_lifetime_in_days=30) == 2
    assert [row.id for row in await session_rows(engine)] == [pairs[1].session_id]
    with pytest.raises(UnknownSession):
        await store.get(engine, pairs[0].access_token)


async def test_cleanup_goes_in_batches_that_its_caller_bounds(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    for _ in range(4):
        pair = await store.refresh_tokens(engine, pair.refresh_token)
    await store.invalidate(engine, pair.session_id)
    await move_back(engine, session_revoked_at=1)  # longer ago than a tick of SQLite's clock
    assert [await store.cleanup(engine, 0, limit=2) for _ in range(4)] == [2, 2, 1, 0]
    assert await left(engine) == (0, 0)


@pytest.mark.parametrize("way", ["session", "connection"])
async def test_cleanup_in_a_callers_transaction_is_theirs_to_commit(engine, way):
    store = cart_store()
    await store.invalidate(engine, (await store.create(engine, Cart())).session_id)
    await move_back(engine, session_revoked_at=1)  # longer ago than a tick of SQLite's clock
    opened = AsyncSession(engine) if way == "session" else engine.connect()
    async with opened as db:
        assert await store.cleanup(db, 0) == 1
        await db.rollback()
    assert await left(engine) == (1, 1)


async def test_cleanups_at_once_leave_no_empty_session(engine):
    store = cart_store()
    for _ in range(5):
        pair = await store.create(engine, Cart())
        await store.refresh_tokens(engine, pair.refresh_token)
        await store.invalidate(engine, pair.session_id)
    await move_back(engine, session_revoked_at=1)  # longer ago than a tick of SQLite's clock
    deleted = await asyncio.gather(*(store.cleanup(engine, 0, limit=3) for _ in range(6)))
    while sum(deleted) < 10:
        deleted.append(await store.cleanup(engine, 0))
        assert deleted[-1]
    assert await left(engine) == (0, 0)


async def test_of_two_cleanups_that_share_a_session_the_last_one_deletes_it(engine):
    store = cart_store()
    pair = await store.create(engine, Cart())
    await store.refresh_tokens(engine, pair.refresh_token)
    await store.invalidate(engine, pair.session_id)
    await move_back(engine, session_revoked_at=1)  # longer ago than a tick of SQLite's clock
    async with engine.connect() as first:
        assert await store.cleanup(first, 0, limit=1) == 1
        second = asyncio.create_task(store.cleanup(engine, 0, limit=1))
        await asyncio.wait({second}, timeout=0.3)  # it has the other pair, and must not end before the first one
        await first.commit()
    assert await second == 1
    assert await left(engine) == (0, 0)


async def test_the_cleanup_job_deletes_all_there_is(engine, monkeypatch):
    monkeypatch.setattr("queue_kit.contrib.sessions.jobs.BATCH", 2)
    store = cart_store()
    pair = await store.create(engine, Cart())
    for _ in range(4):
        pair = await store.refresh_tokens(engine, pair.refresh_token)
    await store.invalidate(engine, pair.session_id)
    jobs = session_jobs(store, max_revoked_age_in_days=0)
    assert sorted(jobs) == ["queue_kit.session_store.cleanup", LEAKED]
    application = Handlers()
    application.include(jobs)
    await add_job(engine, "queue_kit.session_store.cleanup")
    assert (await QueueWorker(engine, application).drain())["completed"] == 1
    assert await left(engine) == (0, 0)


# --- what is refused before anything happens --------------------------------------------------------------------------


@pytest.mark.parametrize("days", [-1, float("nan"), float("inf"), 40_000, True, "14"])
async def test_a_number_of_days_is_one(days):
    store = cart_store()
    for arguments in ((days,), (14, days)):
        with pytest.raises(ConfigurationError, match="in_days is a number of days from 0 to 36,500"):
            job_session_store_cleanup(store, *arguments)
    for limit in (0, True):
        with pytest.raises(ConfigurationError, match=f"limit is a number of pairs, at least 1, not {limit}"):
            await store.cleanup(AsyncConnection.__new__(AsyncConnection), limit=limit)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"keys": []}, "keys needs at least one SigningKey"),
        ({"keys": KEY}, "keys is a list of SigningKey values, not SigningKey"),
        ({"keys": "secret"}, "keys are SigningKey values, not str"),
        ({"keys": ["secret"]}, "keys are SigningKey values, not str"),
        ({"keys": [KEY, SigningKey("k1", "x" * 64)]}, "two keys have the id 'k1'"),
        ({"keys": [SigningKey("k", "x" * 31)]}, "has 31 bytes, HS256 needs at least 32"),
        ({"keys": [SigningKey("k", b"x" * 47)], "algorithm": "HS384"}, "has 47 bytes, HS384 needs at least 48"),
        ({"keys": [SigningKey("k", "x" * 63)], "algorithm": "HS512"}, "has 63 bytes, HS512 needs at least 64"),
        ({"keys": [SigningKey("k", PUBLIC_KEY)]}, "key 'k' is half of a key pair"),
        ({"algorithm": "none"}, "algorithm is one of HS256, HS384, HS512, not 'none'"),
        ({"algorithm": "RS256"}, "algorithm is one of HS256, HS384, HS512, not 'RS256'"),
        ({"issuer": ""}, "issuer is 1 to 200 characters"),
        ({"issuer": 'a"b'}, "issuer is 1 to 200 characters"),
        ({"audience": "a\nb"}, "audience is 1 to 200 characters"),
        ({"ages": 300}, "ages is TokenAges or a function that returns them, not int"),
    ],
    ids=str,
)
def test_a_store_that_could_not_be_safe_is_refused(options, problem):
    with pytest.raises(ConfigurationError, match=problem) as caught:
        SessionStore(Cart, **{"keys": [KEY], "issuer": "shop", **options})
    assert "xxx" not in str(caught.value)


def test_a_data_type_that_cannot_be_read_is_refused():
    with pytest.raises(ConfigurationError, match="cannot be read from JSON"):
        SessionStore(asyncio.Event, keys=[KEY], issuer="shop")


@pytest.mark.parametrize(
    ("ages", "problem"),
    [
        ((0, 60), "access is from 1 second"),
        ((60, timedelta(days=3_651)), "refresh is from 1 second to 3,650 days"),
        ((61, 60), "access must not be longer than refresh"),
        (("60", 60), "access is seconds"),
        ((60, float("nan")), "refresh is from 1 second"),
        ((True, 60), "access is seconds"),
    ],
    ids=str,
)
def test_ages_are_times(ages, problem):
    with pytest.raises(ConfigurationError, match=problem):
        TokenAges(*ages)


def test_a_key_hides_its_secret():
    assert repr(SigningKey("k", "x" * 40)) == "SigningKey(id='k')"
    for secret in (None, 7):
        with pytest.raises(ConfigurationError, match="secret is text or bytes"):
            SigningKey("k", secret)
    with pytest.raises(ConfigurationError, match="id is 1 to 200 characters"):
        SigningKey("", "x" * 40)
