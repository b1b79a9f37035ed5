"""The session store: what an application calls. `_tokens` makes and verifies tokens, `_statements` has the SQL; here
they meet, and each token is held against its row every time it is used.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Executable, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit._database import Database, check_database, own_commit, read_committed
from queue_kit._explain import explain
from queue_kit._reach import session_on
from queue_kit._statements.database import database_time
from queue_kit.contrib.sessions import _statements
from queue_kit.contrib.sessions._cleanup import Limits, clean_some
from queue_kit.contrib.sessions._data import SessionData
from queue_kit.contrib.sessions._tokens import (
    Algorithm,
    Claims,
    PairIds,
    SigningKey,
    Tokens,
    TokenType,
    hash_of,
    whole_second,
)
from queue_kit.contrib.sessions.errors import (
    ExpiredToken,
    InvalidToken,
    LeakedSession,
    RevokedSession,
    RevokedToken,
    SessionConflict,
    UnknownSession,
)
from queue_kit.contrib.sessions.leaks import report_leak
from queue_kit.contrib.sessions.session import Session, TokenAges, TokenPair
from queue_kit.errors import ConfigurationError

T = TypeVar("T")

GRACE_SECONDS = 15.0
"""How long after its first use a refresh token still gives the same pair: for a client that sent it twice at once, or
never saw the answer. Beyond that a copy is in use."""


class SessionStore(Generic[T]):
    """Sessions in the database, behind pairs of an access and a refresh token.

    `data` is the type of a session's data: anything that a handler's payload can be. `keys` sign the tokens: the first
    one those that are made from now on, all of them are accepted. `issuer` and `audience` (by default the issuer) stand
    in each token: two stores that do not share their sessions have different ones. `ages` says how long tokens are
    valid, or is a function of the session that does. It is called at `create` and at each refresh.

    `db` is an `AsyncSession` or `AsyncConnection` (the caller's transaction) or an `AsyncEngine` (one of its own), as
    everywhere. Raises `ConfigurationError` for keys that are too short, and for anything else that could not work.

    >>> store = SessionStore(
    ...     dict[str, str], keys=[SigningKey("2026-11", "x" * 32)], issuer="shop", ages=TokenAges(access=300)
    ... )
    """

    def __init__(
        self,
        data: type[T],
        *,
        keys: Sequence[SigningKey],
        issuer: str,
        audience: str | None = None,
        algorithm: Algorithm = "HS256",
        ages: TokenAges | Callable[[Session[T]], TokenAges] | None = None,
    ) -> None:
        if not (ages is None or isinstance(ages, TokenAges) or callable(ages)):
            raise ConfigurationError(f"ages is TokenAges or a function that returns them, not {type(ages).__name__}")
        self._data: SessionData[T] = SessionData(data)
        self._tokens = Tokens(
            keys, issuer=issuer, audience=issuer if audience is None else audience, algorithm=algorithm
        )
        self._ages = TokenAges() if ages is None else ages

    @property
    def issuer(self) -> str:
        """The store's name in its tokens."""
        return self._tokens.issuer

    async def create(self, db: Database, data: T) -> TokenPair:
        """Store a new session, and return its first pair of tokens. Raises `InvalidSessionData`.

        >>> async def log_in(session, store, user):
        ...     return await store.create(session, {"user_id": user.id})
        """
        content, checksum = self._data.encode(data)
        session_id = uuid4()
        async with session_on(db) as session:
            now = (await session.execute(database_time())).scalar_one()
            ages = self._ages_of(Session(session_id, data, checksum, now, now))  # may fail: nothing is stored yet
            added = {"session": session_id, "content": content, "sum": checksum, "at": now}
            await session.execute(_statements.add_session(), added)
            return await self._add_pair(session, session_id, ages, uuid4(), self._tokens.new_ids())

    async def get(self, db: Database, access_token: str) -> Session[T]:
        """The session of an access token, read from the database each time: what is revoked is so at once.

        Raises `InvalidToken`, `ExpiredToken`, `RevokedToken` when a refresh has replaced it, `RevokedSession`,
        `UnknownSession`, and `InvalidSessionData` when the stored data does not fit the store's type any more.

        >>> async def user_of(engine, store, access_token):
        ...     return (await store.get(engine, access_token)).data["user_id"]
        """
        check_database(db)
        claims = self._tokens.verify(access_token, TokenType.access)
        async with session_on(db, reading=True) as session:
            row = await self._look_up(session, TokenType.access, claims)
        if row.rotated_at is not None:
            raise RevokedToken(row.id)
        return self._session(row)

    async def update(self, db: Database, session: Session[T]) -> Session[T]:
        """Write a session's data, and return the session as it is now. Nothing is written when the data is as it was.

        Raises `SessionConflict` when somebody else changed it since it was read, `RevokedSession`, `UnknownSession`
        and `InvalidSessionData`, and `TypeError` for what is no `Session`.

        >>> async def put(engine, store, session, item):
        ...     return await store.update(engine, replace(session, data=[*session.data, item]))
        """
        _check_session(session)
        check_database(db)
        content, checksum = self._data.encode(session.data)
        if checksum == session.checksum:
            return session
        async with session_on(db) as transaction:
            changes = {"session": session.id, "content": content, "sum": checksum, "sum_before": session.checksum}
            changed = (await transaction.execute(_statements.change_session(), changes)).first()
            if changed is None:
                found = (await transaction.execute(_statements.session(), {"session": session.id})).first()
                if found is None:
                    raise UnknownSession
                raise RevokedSession(session.id) if found.revoked_at else SessionConflict(session.id)
        return Session(session.id, session.data, checksum, session.created_at, changed.updated_at)

    async def invalidate(self, db: Database, session: Session[T] | UUID) -> None:
        """Revoke a session, by itself or by its id, with all of its tokens; harmless when it is revoked already.

        Raises `UnknownSession`, and `TypeError` for what is neither a `Session` nor an id.

        >>> async def log_out(engine, store, session):
        ...     await store.invalidate(engine, session)
        """
        session_id = session if isinstance(session, UUID) else _check_session(session).id
        async with session_on(db) as transaction:
            if (await transaction.execute(_statements.revoke_session(), {"session": session_id})).first() is None:
                await _one(transaction, _statements.session(), {"session": session_id})

    async def refresh_tokens(self, db: Database, refresh_token: str) -> TokenPair:
        """The next pair of tokens; the one before is replaced at once.

        For 15 seconds from its first use, by the database's clock, a refresh token gives the same pair again. After
        that somebody has a copy: the session is revoked, the job `queue_kit.session_store.potential_leaked_session` is
        added in the same transaction, and `LeakedSession` is raised. Else raises as `get`.

        This is always a transaction of its own, committed here, or your rollback after the exception would undo the
        revocation. So a session or connection must not be in one: `ConfigurationError`. Raises `AmbiguousCommit` when
        an engine's connection breaks at COMMIT; then send the same token again.

        >>> async def refresh(engine, store, refresh_token):
        ...     return await store.refresh_tokens(engine, refresh_token)
        """
        check_database(db)
        claims = self._tokens.verify(refresh_token, TokenType.refresh)
        async with _own_transaction(db) as transaction:
            row = await self._look_up(transaction, TokenType.refresh, claims)
            if row.rotated_at is None:
                pair = await self._rotate(transaction, row, claims)
                if pair is not None:
                    return pair
                row = await self._look_up(transaction, TokenType.refresh, claims)  # as the winner left it
            if (row.now - row.rotated_at).total_seconds() <= GRACE_SECONDS:
                return await self._same_again(transaction, row, claims)
            await report_leak(transaction, row.id)
        raise LeakedSession(row.id)

    async def cleanup(
        self,
        db: Database,
        max_revoked_age_in_days: float = 14,
        max_session_lifetime_in_days: float | None = None,
        *,
        limit: int | None = None,
    ) -> int:
        """Delete what has ended, of all stores on this database, and return how many pairs of tokens that were.

        Sessions that were revoked, or whose last refresh token expired, `max_revoked_age_in_days` ago; replaced pairs
        when their refresh token has expired, not sooner, since they are what a copy is known by. With
        `max_session_lifetime_in_days` also sessions that were created so long ago, though they are in use.

        An engine commits after each 1,000 pairs; `limit` stops after so many. Raises `ConfigurationError` for a number
        of days or pairs that is none.

        >>> async def tidy(engine, store):
        ...     return await store.cleanup(engine, max_revoked_age_in_days=30)
        """
        limits = Limits(max_revoked_age_in_days, max_session_lifetime_in_days, limit)
        deleted = 0
        while True:
            most = limits.batch(deleted)
            async with session_on(db) as session:
                some = await clean_some(session, limits, most)
            deleted += some
            if some < most or deleted == limit:
                return deleted

    # --- what they have in common -------------------------------------------------------------------------------------

    async def _look_up(self, session: AsyncSession, type_: TokenType, claims: Claims) -> Row[Any]:
        """A verified token's pair and session, unless its time is over or the session has ended."""
        row = (await session.execute(_statements.token(type_), {"hash": claims.hash})).one()
        if row.id is not None and not _is_said_by(row, claims):
            raise InvalidToken
        if claims.expires_at <= row.now:
            raise ExpiredToken
        if row.id is None:
            raise UnknownSession
        if row.revoked_at is not None:
            raise RevokedSession(row.id)
        return row

    def _session(self, row: Row[Any]) -> Session[T]:
        return Session(row.id, self._data.decode(row.data), row.checksum, row.created_at, row.updated_at)

    async def _rotate(self, transaction: AsyncSession, row: Row[Any], claims: Claims) -> TokenPair | None:
        """The pair that takes the place of a refresh token's; `None` when somebody else was first."""
        successor_id = uuid4()
        won = {"pair": row.pair_id, "successor": successor_id}
        if (await transaction.execute(_statements.rotate(), won)).first() is None:
            return None
        ages = self._ages_of(self._session(row))
        ids = self._tokens.next_ids(claims, successor_id, self._tokens.signing_key_id)
        return await self._add_pair(transaction, row.id, ages, successor_id, ids)

    async def _same_again(self, transaction: AsyncSession, row: Row[Any], claims: Claims) -> TokenPair:
        pair = await _one(transaction, _statements.pair(), {"pair": row.successor_id})
        ids = self._tokens.next_ids(claims, row.successor_id, pair.key_id)
        return self._pair(row.id, ids, pair.key_id, pair)

    def _ages_of(self, session: Session[T]) -> TokenAges:
        ages: object = self._ages if isinstance(self._ages, TokenAges) else self._ages(session)
        if not isinstance(ages, TokenAges):
            raise ConfigurationError(f"ages must return TokenAges, not {type(ages).__name__}")
        return ages

    async def _add_pair(
        self, session: AsyncSession, session_id: UUID, ages: TokenAges, pair_id: UUID, ids: PairIds
    ) -> TokenPair:
        access_age, refresh_age = ages.seconds
        key_id = self._tokens.signing_key_id
        pair = {
            "pair": pair_id,
            "session": session_id,
            "key": key_id,
            "access": hash_of(ids.access),
            "refresh": hash_of(ids.refresh),
            "access_age": access_age,
            "refresh_age": refresh_age,
        }
        times = await _one(session, _statements.add_pair(), pair)
        return self._pair(session_id, ids, key_id, times)

    def _pair(self, session_id: UUID, ids: PairIds, key_id: str, times: Row[Any]) -> TokenPair:
        created, access, refresh = times.created_at, times.access_expires_at, times.refresh_expires_at
        return TokenPair(
            session_id,
            self._tokens.sign(TokenType.access, ids.access, session_id, key_id, created, access),
            self._tokens.sign(TokenType.refresh, ids.refresh, session_id, key_id, created, refresh),
            whole_second(access),
            whole_second(refresh),
        )


def _is_said_by(row: Row[Any], claims: Claims) -> bool:
    """Whether a token says what its row does. One of ours always does."""
    said = (claims.session_id, claims.key_id, claims.expires_at)
    return said == (row.id, row.key_id, whole_second(row.expires_at))


async def _one(session: AsyncSession, statement: Executable, parameters: Mapping[str, Any]) -> Row[Any]:
    """The one row of a statement; without one, there is no such session."""
    row = (await session.execute(statement, parameters)).first()
    if row is None:
        raise UnknownSession
    return row


def _check_session(session: object) -> Session[Any]:
    if not isinstance(session, Session):
        raise TypeError(f"session must be a Session, as get returns it, not {type(session).__name__}")
    return session


@asynccontextmanager
async def _own_transaction(db: Database) -> AsyncIterator[AsyncSession]:
    """A transaction that is committed at the end, in a session or on a connection that is in none yet."""
    if not isinstance(db, AsyncEngine) and db.in_transaction():
        raise ConfigurationError(
            "refresh_tokens commits by itself, so that a revocation outlives your rollback: give it the engine, or a "
            f"{type(db).__name__} that is in no transaction"
        )
    try:
        if isinstance(db, AsyncEngine):
            async with read_committed(db) as connection, AsyncSession(connection) as session:
                yield session
                with own_commit("the refresh"):
                    await session.commit()
        elif isinstance(db, AsyncSession):
            async with db.begin():
                yield db
        else:
            async with AsyncSession(db) as session, session.begin():
                yield session
    except DBAPIError as error:
        explain(error, db)
        raise
