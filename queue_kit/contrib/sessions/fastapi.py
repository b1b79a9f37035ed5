"""The session store in FastAPI: a dependency that gives the session of a request, typed, and shows in the OpenAPI
document as a bearer token. Everything else is as in Starlette (`load_session`, `unauthorized`).
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from fastapi.openapi.models import HTTPBearer
from fastapi.openapi.models import SecurityBase as SecurityModel
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from queue_kit._database import Database
from queue_kit.contrib.sessions.session import Session
from queue_kit.contrib.sessions.starlette import load_session, unauthorized
from queue_kit.contrib.sessions.store import SessionStore

__all__ = ["SessionBearer", "load_session", "unauthorized"]

T = TypeVar("T")


class SessionBearer(SecurityBase, Generic[T]):
    """A dependency: the session of the request's access token, else 401. `db` finds the database of a request; an
    engine is best, since nothing is held then while the request is served.

    >>> def add_routes(app, store):
    ...     bearer = SessionBearer(store, lambda request: request.app.state.engine)
    ...
    ...     @app.get("/cart")
    ...     async def show_cart(session: Annotated[Session[dict[str, str]], Depends(bearer)]) -> dict[str, str]:
    ...         return session.data
    """

    def __init__(
        self, store: SessionStore[T], db: Callable[[Request], Database], *, scheme_name: str = "session"
    ) -> None:
        self.model: SecurityModel = HTTPBearer(bearerFormat="JWT", description="The access token of a session.")
        self.scheme_name: str = scheme_name
        self._store = store
        self._db = db

    async def __call__(self, request: Request) -> Session[T]:
        """What FastAPI calls for each request."""
        return await load_session(request, self._store, self._db(request))
