"""The session store in Starlette: the session of a request, or a 401 that says why. FastAPI's dependency is in
`fastapi`, beside this.
"""

from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from queue_kit._database import Database
from queue_kit.contrib.sessions._bearer import bearer_token, challenge, description
from queue_kit.contrib.sessions.errors import Unauthorized
from queue_kit.contrib.sessions.session import Session
from queue_kit.contrib.sessions.store import SessionStore

T = TypeVar("T")


async def load_session(request: Request, store: SessionStore[T], db: Database) -> Session[T]:
    """The session of the access token in a request's `Authorization: Bearer` header.

    Raises `HTTPException` with status 401 and `WWW-Authenticate` when there is none, or none that is valid.

    >>> async def show_cart(request):
    ...     session = await load_session(request, store, request.app.state.engine)
    ...     return JSONResponse(session.data)
    """
    try:
        token = bearer_token(request.headers.getlist("authorization"))
        if token is not None:
            return await store.get(db, token)
    except Unauthorized as error:
        raise unauthorized(store, error) from None
    raise unauthorized(store)


def unauthorized(store: SessionStore[Any], error: Unauthorized | None = None) -> HTTPException:
    """The answer to a request without a token, or with one that the store refused; for a route that refreshes.

    >>> async def refresh(request):
    ...     try:
    ...         pair = await store.refresh_tokens(engine, (await request.json())["refresh_token"])
    ...     except Unauthorized as error:
    ...         raise unauthorized(store, error) from None
    """
    return HTTPException(401, description(error), {"WWW-Authenticate": challenge(store.issuer, error)})
