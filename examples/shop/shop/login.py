"""Who somebody is: passwords, and the session of the browser. The cookies are `SessionCookies`'s work (`app.py`)."""

import asyncio
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from fastapi import HTTPException, Request

from queue_kit.contrib.sessions import Session, SessionStore
from queue_kit.contrib.sessions.cookies import session_in


@dataclass(frozen=True)
class Login:
    """The data of a session."""

    customer_id: int
    email: str
    is_staff: bool


Logins = SessionStore[Login]


async def hash_password(password: str, salt: bytes | None = None) -> str:
    """scrypt's hash, with its salt. In a thread: it is slow on purpose."""
    salt = salt or secrets.token_bytes(16)
    derived = await asyncio.to_thread(hashlib.scrypt, password.encode(), salt=salt, n=2**14, r=8, p=5)
    return f"{salt.hex()}:{derived.hex()}"


async def is_password(password: str, stored: str | None) -> bool:
    """Whether it is the one; without a `stored` one it takes as long to say no."""
    salt = bytes.fromhex((stored or secrets.token_hex(16)).partition(":")[0])
    return hmac.compare_digest(await hash_password(password, salt), stored or "")


async def find_login(request: Request) -> Session[Login] | None:
    """Who is logged in, if anybody is."""
    logins: Logins = request.app.state.logins
    return await session_in(request, logins)


async def current_login(request: Request) -> Session[Login]:
    """Who is logged in; everybody else is led to the log-in."""
    login = await find_login(request)
    if login is None:
        raise HTTPException(303, headers={"Location": "/log-in"})
    return login


async def current_staff(request: Request) -> Session[Login]:
    """The same for the staff alone."""
    login = await current_login(request)
    if not login.data.is_staff:
        raise HTTPException(403, "This is for the staff.")
    return login
