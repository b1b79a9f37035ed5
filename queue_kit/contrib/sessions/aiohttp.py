"""The session store in aiohttp: a middleware that lets no request pass without a session, except to the handlers
that are named; and the session of a request.
"""

import json
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeAlias, TypeVar

from aiohttp import web

from queue_kit._database import Database
from queue_kit.contrib.sessions._bearer import bearer_token, challenge, description
from queue_kit.contrib.sessions.errors import Unauthorized
from queue_kit.contrib.sessions.session import Session
from queue_kit.contrib.sessions.store import SessionStore

T = TypeVar("T")

_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
_LOADED: Any = getattr(web, "RequestKey", lambda name, _: name)("queue_kit_sessions", dict)
"""Where a request keeps its sessions, by store. An aiohttp that has typed keys warns of any other."""

Middleware: TypeAlias = Callable[[web.Request, _Handler], Awaitable[web.StreamResponse]]


def session_middleware(
    store: SessionStore[Any], db: Callable[[web.Request], Database], *, public: Collection[Callable[..., Any]] = ()
) -> Middleware:
    """A middleware that loads the session of each request, and answers 401 where there is none.

    `db` finds the database of a request; an engine is best, since nothing is held then while the request is served.
    `public` names the handlers, or classes of views, that need no session: the log-in, the refresh.

    >>> def make_app(store, engine):
    ...     middleware = session_middleware(store, lambda request: engine, public=[log_in, refresh])
    ...     return web.Application(middlewares=[middleware])
    """

    @web.middleware
    async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.match_info.handler not in public:
            loaded = await load_session(request, store, db(request))
            request[_LOADED] = {**request.get(_LOADED, {}), store: loaded}
        return await handler(request)

    return middleware


def session_of(request: web.Request, store: SessionStore[T]) -> Session[T]:
    """The session that the store's middleware has loaded. Raises `LookupError` where it has not: in a public handler.

    >>> async def show_cart(request):
    ...     return web.json_response(session_of(request, store).data)
    """
    session: Session[T] | None = request.get(_LOADED, {}).get(store)
    if session is None:
        raise LookupError("no session was loaded for this request: its handler is public, or there is no middleware")
    return session


async def load_session(request: web.Request, store: SessionStore[T], db: Database) -> Session[T]:
    """The session of the access token in a request's `Authorization: Bearer` header, without a middleware.

    Raises `web.HTTPUnauthorized` with `WWW-Authenticate` when there is none, or none that is valid.

    >>> async def show_cart(request):
    ...     return web.json_response((await load_session(request, store, request.app[ENGINE])).data)
    """
    try:
        token = bearer_token(request.headers.getall("Authorization", []))
        if token is not None:
            return await store.get(db, token)
    except Unauthorized as error:
        raise unauthorized(store, error) from None
    raise unauthorized(store)


def unauthorized(store: SessionStore[Any], error: Unauthorized | None = None) -> web.HTTPUnauthorized:
    """The answer to a request without a token, or with one that the store refused; for a handler that refreshes.

    >>> async def refresh(request):
    ...     try:
    ...         pair = await store.refresh_tokens(request.app[ENGINE], (await request.json())["refresh_token"])
    ...     except Unauthorized as error:
    ...         raise unauthorized(store, error) from None
    """
    return web.HTTPUnauthorized(
        text=json.dumps({"detail": description(error)}),
        content_type="application/json",
        headers={"WWW-Authenticate": challenge(store.issuer, error)},
    )
