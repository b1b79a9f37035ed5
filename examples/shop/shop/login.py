"""Who somebody is: passwords, and the session store's tokens in the browser's cookies.

The store knows tokens and no browser. What a browser needs is added here: cookies that scripts cannot read and other
sites' forms do not send, a refresh when the access token has expired, and a look at where a form comes from.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit.contrib.sessions import Session, SessionStore, TokenPair, Unauthorized

MAX_BODY = 21_000_000
PUBLIC = {"/log-in", "/sign-up"}


@dataclass(frozen=True)
class Login:
    """The data of a session."""

    customer_id: int
    email: str
    is_staff: bool


Logins = SessionStore[Login]
Next = Callable[[Request], Awaitable[Response]]


async def hash_password(password: str, salt: bytes | None = None) -> str:
    """scrypt's hash, with its salt. In a thread: it is slow on purpose."""
    salt = salt or secrets.token_bytes(16)
    derived = await asyncio.to_thread(hashlib.scrypt, password.encode(), salt=salt, n=2**14, r=8, p=5)
    return f"{salt.hex()}:{derived.hex()}"


async def is_password(password: str, stored: str | None) -> bool:
    """Whether it is the one; without a `stored` one it takes as long to say no."""
    salt = bytes.fromhex((stored or secrets.token_hex(16)).partition(":")[0])
    return hmac.compare_digest(await hash_password(password, salt), stored or "")


class LoginMiddleware:
    """Puts the session, or `None`, into `request.state.login`, before any body is read."""

    def __init__(self, logins: Logins, engine: AsyncEngine) -> None:
        self._logins = logins
        self._engine = engine

    async def __call__(self, request: Request, call_next: Next) -> Response:
        """Answer a request, with new cookies where the tokens were refreshed."""
        login, pair = await self._find(request)
        request.state.login = login
        refused = refuse_change(request, login) if request.method not in {"GET", "HEAD"} else None
        response = refused or await call_next(request)
        if pair and not has_token_cookies(response):  # no log-in or log-out, which has the last word
            set_cookies(request, response, pair)
        response.headers.setdefault("Content-Security-Policy", "default-src 'self'; img-src 'self' data:")
        response.headers.setdefault("Referrer-Policy", "same-origin")
        return response

    async def _find(self, request: Request) -> tuple[Session[Login] | None, TokenPair | None]:
        access, refresh = request.cookies.get("access"), request.cookies.get("refresh")
        try:
            if access:
                return await self._logins.get(self._engine, access), None
        except Unauthorized:
            pass
        if not refresh:
            return None, None
        try:  # two images at once may both come here: for 15 s the same token gives both the same pair
            pair = await self._logins.refresh_tokens(self._engine, refresh)
            return await self._logins.get(self._engine, pair.access_token), pair
        except Unauthorized:
            return None, None


def refuse_change(request: Request, login: Session[Login] | None) -> Response | None:
    """A form of another site, one of a stranger, and a body too long are refused."""
    if not is_of_this_site(request):
        return PlainTextResponse("This form is not of this shop.", 403)
    if login is None and request.url.path not in PUBLIC:
        return RedirectResponse("/log-in", 303)
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > MAX_BODY:
        return PlainTextResponse("That is too large.", 413)
    return None


def is_of_this_site(request: Request) -> bool:
    """Whether the browser says that the page with the form was ours. An old one says only the origin."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host")


def set_cookies(request: Request, response: Response, pair: TokenPair) -> None:
    """Give the browser its tokens: no script sees them, and a form on another site does not send them."""
    secure = request.url.scheme == "https"
    for name, token, expires in (
        ("access", pair.access_token, pair.access_expires_at),
        ("refresh", pair.refresh_token, pair.refresh_expires_at),
    ):
        response.set_cookie(name, token, expires=expires, httponly=True, samesite="lax", secure=secure)
    response.headers["Cache-Control"] = "no-store"


def has_token_cookies(response: Response) -> bool:
    """Whether a response gives or takes the tokens itself. Other cookies, as the dashboard's, say nothing of them."""
    return any(cookie.startswith("access=") for cookie in response.headers.getlist("set-cookie"))


def drop_cookies(response: Response) -> None:
    """Take them away again."""
    for name in ("access", "refresh"):
        response.delete_cookie(name, httponly=True, samesite="lax")


def current_login(request: Request) -> Session[Login]:
    """Who is logged in; everybody else is led to the log-in."""
    login: Session[Login] | None = request.state.login
    if login is None:
        raise HTTPException(303, headers={"Location": "/log-in"})
    return login


def current_staff(request: Request) -> Session[Login]:
    """The same for the staff alone."""
    login = current_login(request)
    if not login.data.is_staff:
        raise HTTPException(403, "This is for the staff.")
    return login
