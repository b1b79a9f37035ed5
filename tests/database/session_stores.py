"""A session store for tests, its tables, and what lies in them."""

import base64
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import jwt
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import migrate
from queue_kit.contrib.sessions import SessionStore, SigningKey, TokenPair
from queue_kit.contrib.sessions.models import SESSIONS, TOKENS

KEY = SigningKey("k1", "an old secret of more than 32 bytes: k1")
OTHER_KEY = SigningKey("k2", "a new secret of more than 32 bytes: k2")


@dataclass
class Cart:
    items: list[str] = field(default_factory=list)
    user_id: int | None = None


def cart_store(*keys: SigningKey, **options: Any) -> SessionStore[Cart]:
    return SessionStore(Cart, keys=keys or [KEY], **{"issuer": "shop", **options})


async def make_tables(engine: AsyncEngine) -> None:
    await migrate.upgrade(engine, ["sessions"])


async def session_rows(engine: AsyncEngine) -> list[Any]:
    async with engine.connect() as connection:
        return list(await connection.execute(select(SESSIONS).order_by(SESSIONS.c.created_at)))


async def pair_rows(engine: AsyncEngine) -> list[Any]:
    """The pairs of tokens, oldest first."""
    async with engine.connect() as connection:
        return list(await connection.execute(select(TOKENS).order_by(TOKENS.c.created_at)))


async def change_sessions(engine: AsyncEngine, **values: Any) -> None:
    """Write columns of all sessions behind the library's back."""
    async with engine.begin() as connection:
        await connection.execute(update(SESSIONS).values(**values))


async def move_back(engine: AsyncEngine, session_id: UUID | None = None, **seconds: float) -> None:
    """Let times of pairs (`rotated_at=20`), or of sessions (`session_revoked_at=20`), lie further back."""
    for name, by in seconds.items():
        table = SESSIONS if name.startswith("session_") else TOKENS
        column = table.c[name.removeprefix("session_")]
        key = SESSIONS.c.id if table is SESSIONS else TOKENS.c.session_id
        async with engine.begin() as connection:
            of = select(table.c.id, column).where(column.is_not(None))
            for id_, time in await connection.execute(of if session_id is None else of.where(key == session_id)):
                earlier = {column.name: time - timedelta(seconds=by)}
                await connection.execute(update(table).where(table.c.id == id_).values(earlier))


def claims_of(token: str) -> dict[str, Any]:
    """What a token says, verified or not."""
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


def forged(token: str, *, key: SigningKey = KEY, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token with some claims of one's own (`...` leaves one out), signed by somebody who has a key."""
    said = {name: value for name, value in {**claims_of(token), **claims}.items() if value is not ...}
    return jwt.encode(said, key.secret, algorithm="HS256", headers={"kid": key.id, **(headers or {})})


def both(pair: TokenPair) -> tuple[str, str]:
    return pair.access_token, pair.refresh_token
