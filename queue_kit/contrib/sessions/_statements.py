"""Every SQL statement of the session store, once, as a function that returns an executable. None knows a connection."""

# A parameter never has the name of a column: SQLAlchemy would take it for a value to set.

from functools import cache
from typing import Any

from sqlalchemy import (
    Executable,
    Float,
    LargeBinary,
    Text,
    Uuid,
    and_,
    bindparam,
    delete,
    exists,
    insert,
    or_,
    select,
    update,
)

from queue_kit._dialect.clock import clock_time, statement_time, time_from_now
from queue_kit._dialect.columns import JSON_TYPE, UtcDateTime
from queue_kit.contrib.sessions._tokens import TokenType
from queue_kit.contrib.sessions.models import SESSIONS, TOKENS

SESSION, TOKEN = SESSIONS.c, TOKENS.c
_HASHES = {TokenType.access: TOKEN.access_hash, TokenType.refresh: TOKEN.refresh_hash}
_EXPIRIES = {TokenType.access: TOKEN.access_expires_at, TokenType.refresh: TOKEN.refresh_expires_at}


def _id(name: str) -> Any:
    return bindparam(name, type_=Uuid())


def _time(name: str) -> Any:
    return bindparam(name, type_=UtcDateTime())


@cache
def add_session() -> Executable:
    """Store a session. Parameters: `session, content, sum, at`."""
    values = {
        "id": _id("session"),
        "data": bindparam("content", type_=JSON_TYPE),
        "checksum": bindparam("sum"),
        "created_at": _time("at"),
        "updated_at": _time("at"),
    }
    return insert(SESSIONS).values(values)


@cache
def add_pair() -> Executable:
    """Store a pair of tokens; returns its times. Parameters: `pair, session, key, access, refresh` (hashes),
    `access_age, refresh_age` (seconds)."""
    values = {
        "id": _id("pair"),
        "session_id": _id("session"),
        "key_id": bindparam("key", type_=Text()),
        "access_hash": bindparam("access", type_=LargeBinary()),
        "refresh_hash": bindparam("refresh", type_=LargeBinary()),
        "access_expires_at": time_from_now(bindparam("access_age", type_=Float())),
        "refresh_expires_at": time_from_now(bindparam("refresh_age", type_=Float())),
    }
    return insert(TOKENS).values(values).returning(*_times_of_pair())


@cache
def pair() -> Executable:
    """A pair's key and times. Parameters: `pair`."""
    return select(TOKEN.key_id, *_times_of_pair()).where(TOKEN.id == _id("pair"))


def _times_of_pair() -> Any:
    return TOKEN.created_at, TOKEN.access_expires_at, TOKEN.refresh_expires_at


@cache
def token(type_: TokenType) -> Executable:
    """A token's pair and session, and the database's clock, in exactly one row: with NULL where there is no such token.
    Parameters: `hash`.

    The index finds a hash of 256 secret bits, and only for a token whose signature was verified: how long that takes
    tells nobody anything.
    """
    clock = select(statement_time().label("now")).subquery("clock")
    pair = clock.outerjoin(TOKENS, _HASHES[type_] == bindparam("hash", type_=LargeBinary()))
    return select(
        clock.c.now,
        TOKEN.id.label("pair_id"),
        TOKEN.key_id,
        _EXPIRIES[type_].label("expires_at"),
        TOKEN.rotated_at,
        TOKEN.successor_id,
        *_session(),
    ).select_from(pair.outerjoin(SESSIONS, SESSION.id == TOKEN.session_id))


@cache
def session() -> Executable:
    """A session. Parameters: `session`."""
    return select(*_session()).where(SESSION.id == _id("session"))


def _session() -> Any:
    return (
        SESSION.id,
        SESSION.data,
        SESSION.checksum,
        SESSION.created_at,
        SESSION.updated_at,
        SESSION.revoked_at,
    )


@cache
def change_session() -> Executable:
    """Write a session's data, if nobody did since it was read; returns the time. Parameters: `session, content, sum,
    sum_before`."""
    values = {
        "data": bindparam("content", type_=JSON_TYPE),
        "checksum": bindparam("sum"),
        "updated_at": clock_time(),
    }
    unchanged = and_(SESSION.checksum == bindparam("sum_before", type_=Text()), SESSION.revoked_at.is_(None))
    return update(SESSIONS).values(values).where(SESSION.id == _id("session"), unchanged).returning(SESSION.updated_at)


@cache
def revoke_session() -> Executable:
    """Revoke a session that is not revoked yet; returns its times. Parameters: `session`."""
    return (
        update(SESSIONS)
        .values(revoked_at=clock_time())
        .where(SESSION.id == _id("session"), SESSION.revoked_at.is_(None))
        .returning(SESSION.created_at, SESSION.updated_at, SESSION.revoked_at)
    )


@cache
def rotate() -> Executable:
    """Rotate a pair that nobody has rotated yet: of many at once, one gets its id back. The time is written here and
    never again, so a copy that is used over and over does not extend the grace. Parameters: `pair, successor`."""
    return (
        update(TOKENS)
        .values(rotated_at=clock_time(), successor_id=_id("successor"))
        .where(TOKEN.id == _id("pair"), TOKEN.rotated_at.is_(None))
        .returning(TOKEN.id)
    )


@cache
def last_rotations() -> Executable:
    """When a session's tokens were refreshed, the last four times, the newest first. Parameters: `session`."""
    of_session = and_(TOKEN.session_id == _id("session"), TOKEN.rotated_at.is_not(None))
    return select(TOKEN.rotated_at).where(of_session).order_by(TOKEN.rotated_at.desc()).limit(4)


@cache
def delete_expired_pairs() -> Executable:
    """Delete some pairs whose refresh token has expired: at once when they were rotated, else when they have been for
    a while; returns their sessions. Parameters: `until, ended_before, most`."""
    done = or_(TOKEN.rotated_at.is_not(None), TOKEN.refresh_expires_at < _time("ended_before"))
    return _delete_pairs(TOKEN.refresh_expires_at < _time("until"), done)


@cache
def delete_pairs_of_ended_sessions() -> Executable:
    """Delete some pairs of sessions that were revoked or made too long ago; returns their sessions. Parameters:
    `ended_before, made_before, most`."""
    ended = or_(SESSION.revoked_at < _time("ended_before"), SESSION.created_at < _time("made_before"))
    return _delete_pairs(TOKEN.session_id.in_(select(SESSION.id).where(ended)))


def _delete_pairs(*conditions: Any) -> Executable:
    # Rows that another cleanup has in hand are left to it. (SQLite has one writer, and knows no locks of rows.)
    some = select(TOKEN.id).where(*conditions).limit(bindparam("most")).with_for_update(skip_locked=True)
    return delete(TOKENS).where(TOKEN.id.in_(some)).returning(TOKEN.session_id)


@cache
def lock_sessions() -> Executable:
    """Wait for all who deleted pairs of these sessions, so that one of them sees that none is left. Parameters:
    `sessions`."""
    return select(SESSION.id).where(_among()).order_by(SESSION.id).with_for_update()


@cache
def delete_empty_sessions() -> Executable:
    """Delete those of some sessions that have no pair left. Parameters: `sessions`."""
    return delete(SESSIONS).where(_among(), ~exists().where(TOKEN.session_id == SESSION.id))


def _among() -> Any:
    return SESSION.id.in_(bindparam("sessions", type_=Uuid(), expanding=True))
