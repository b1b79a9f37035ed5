"""The session store for browsers, in Starlette and FastAPI: the tokens lie in cookies. They are refreshed when the
access token has expired, no script can read them, and no page of another site can act with them.
"""

import asyncio
from collections.abc import Callable
from email.utils import format_datetime
from typing import Any, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from queue_kit._same_origin import is_same_origin
from queue_kit.contrib.sessions.errors import Unauthorized
from queue_kit.contrib.sessions.session import Session, TokenPair
from queue_kit.contrib.sessions.store import SessionStore

T = TypeVar("T")

_COOKIES = "queue_kit.sessions.cookies"
"""Where a request keeps what is known of its cookies, by store."""

_READING = ("GET", "HEAD", "OPTIONS", "TRACE")


class SessionCookies:
    """A middleware for sessions of browsers. `session_in`, `start_session` and `end_session` work beneath it.

    `db` finds the engine of a request. `name` is what the names of the two cookies begin with; over TLS they are bound
    to the host (`__Host-`), so the application must know that it is asked over TLS: a proxy in front tells it by
    `X-Forwarded-Proto`, which the server must be told to believe.

    What changes something (any method but GET, HEAD, OPTIONS and TRACE, and a WebSocket) is refused with 403 when the
    browser says that it comes from another origin, and, when it brings these cookies, unless the browser says that it
    comes from this one.

    >>> def make_app(store, engine):
    ...     app = FastAPI()
    ...     app.add_middleware(SessionCookies, store=store, db=lambda connection: engine)
    ...     return app
    """

    def __init__(
        self,
        app: ASGIApp,
        store: SessionStore[Any],
        db: Callable[[HTTPConnection], AsyncEngine],
        *,
        name: str = "session",
    ) -> None:
        self._app = app
        self._store = store
        self._db = db
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        cookies = _Cookies(connection, self._store, self._db, self._name)
        if _changes_something(scope) and not cookies.may_act:
            refusal: ASGIApp = PlainTextResponse("This came from another site, so nothing was changed.", 403)
            await (WebSocketClose(1008) if scope["type"] == "websocket" else refusal)(scope, receive, send)
            return
        scope = {**scope, _COOKIES: {**scope.get(_COOKIES, {}), self._store: cookies}}
        try:
            await self._app(scope, receive, cookies.sent_with(send))
        except Exception:
            if cookies.are_refreshed:  # who answers for this error stands outside, and knows of no cookies
                await PlainTextResponse("Internal Server Error", 500)(scope, receive, cookies.sent_with(send))
            raise


async def session_in(connection: HTTPConnection, store: SessionStore[T]) -> Session[T] | None:
    """The session of a browser, `None` when it has none that is valid. It is read from the database when it is first
    asked for in a request; its tokens are refreshed then if need be, and the answer takes the new ones along.

    Raises `LookupError` without the middleware of this store, and `InvalidSessionData` as `SessionStore.get` does.

    >>> async def current_login(request):
    ...     session = await session_in(request, store)
    ...     if session is None:
    ...         raise HTTPException(303, headers={"Location": "/log-in"})
    ...     return session
    """
    return await _cookies_of(connection, store).session()


def start_session(connection: HTTPConnection, store: SessionStore[Any], pair: TokenPair) -> None:
    """Give a browser the tokens of a session with the answer to this request; `session_in` knows it from the next one
    on. Raises `LookupError` without the middleware of this store, `RuntimeError` when the answer has begun.

    >>> async def log_in(request):
    ...     start_session(request, store, await store.create(engine, Login(user.id)))
    ...     return RedirectResponse("/", 303)
    """
    _cookies_of(connection, store).replace(pair)


def end_session(connection: HTTPConnection, store: SessionStore[Any]) -> None:
    """Take a browser's tokens away with the answer to this request. A copy of them ends with `invalidate` alone. Raises
    as `start_session` does.

    >>> async def log_out(request, session):
    ...     await store.invalidate(engine, session)
    ...     end_session(request, store)
    ...     return RedirectResponse("/", 303)
    """
    _cookies_of(connection, store).replace(None)


class _Cookies(Generic[T]):
    """The cookies of one request, and what its answer makes of them."""

    def __init__(
        self,
        connection: HTTPConnection,
        store: SessionStore[T],
        db: Callable[[HTTPConnection], AsyncEngine],
        name: str,
    ) -> None:
        self._connection = connection
        self._store = store
        self._db = db
        self._is_secure = connection.url.scheme in ("https", "wss")
        prefix = "__Host-" if self._is_secure else ""
        self._names = f"{prefix}{name}-access", f"{prefix}{name}-refresh"
        self._access, self._refresh = (connection.cookies.get(each) for each in self._names)
        self._looking = asyncio.Lock()
        self._is_looked_up = False
        self._session: Session[T] | None = None
        self._changed = False
        self._pair: TokenPair | None = None
        self._is_refreshed = False
        self._has_begun = connection.scope["type"] == "websocket"
        """Whether the answer is on its way, so that no cookie can go with it."""

    @property
    def may_act(self) -> bool:
        """Whether this is no page of another site that acts with these cookies, nor one that logs somebody in."""
        same = is_same_origin(self._connection.headers)
        return not (self._access or self._refresh) if same is None else same

    @property
    def are_refreshed(self) -> bool:
        """Whether the browser must have the new tokens, as the old ones will look like a copy, and has not got them."""
        return self._is_refreshed and not self._has_begun

    async def session(self) -> Session[T] | None:
        """The session, looked up once."""
        async with self._looking:
            if not self._is_looked_up:
                self._session = await self._look_up()
                self._is_looked_up = True
        return self._session

    async def _look_up(self) -> Session[T] | None:
        engine = self._db(self._connection)
        try:
            if self._access:
                return await self._store.get(engine, self._access)
        except Unauthorized:
            pass  # expired, or replaced by another request of this browser
        if not self._refresh or self._has_begun:
            return None
        try:
            pair = await self._store.refresh_tokens(engine, self._refresh)
            session = await self._store.get(engine, pair.access_token)
        except Unauthorized:
            return None  # the cookies stay: others may have come to this browser meanwhile
        if not (self._changed or self._has_begun):  # a log-in or log-out of this very request counts
            self.replace(pair)
            self._is_refreshed = True
        return session

    def replace(self, pair: TokenPair | None) -> None:
        """Have the answer bring these tokens, or take away those that there are."""
        if self._has_begun:
            raise RuntimeError("the answer has begun, so no cookie goes with it: do this before")
        self._changed, self._pair, self._is_refreshed = True, pair, False

    def sent_with(self, send: Send) -> Send:
        """What sends an answer, with the cookies that changed."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._has_begun = True
                self._add_to(MutableHeaders(scope=message))
            await send(message)

        return sending

    def _add_to(self, headers: MutableHeaders) -> None:
        if self._is_looked_up:
            headers.add_vary_header("Cookie")
        if self._changed:
            headers["cache-control"] = "no-store"  # or a cache would give the tokens to others
            for cookie in self._given():
                headers.append("set-cookie", cookie)

    def _given(self) -> list[str]:
        rest = "; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if self._is_secure else "")
        if self._pair is None:
            return [f'{name}=""; Max-Age=0{rest}' for name in self._names]
        # Both for as long: which token is valid is not left to the clock of a browser.
        until = format_datetime(self._pair.refresh_expires_at, usegmt=True)
        tokens = self._pair.access_token, self._pair.refresh_token
        return [f"{name}={token}; Expires={until}{rest}" for name, token in zip(self._names, tokens, strict=True)]


def _changes_something(scope: Scope) -> bool:
    return scope["type"] == "websocket" or scope["method"] not in _READING


def _cookies_of(connection: HTTPConnection, store: SessionStore[T]) -> _Cookies[T]:
    cookies: _Cookies[T] | None = connection.scope.get(_COOKIES, {}).get(store)
    if cookies is None:
        raise LookupError("this request has not passed the SessionCookies of this store: app.add_middleware it")
    return cookies
