"""Puts the dashboard together: guard, routes, and the answers to what goes wrong."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from queue_kit._link import in_a_line
from queue_kit._reach import UNREADABLE
from queue_kit.dashboard._access import Authorize
from queue_kit.dashboard._actions import Actions
from queue_kit.dashboard._guard import Guard
from queue_kit.dashboard._pages import Pages
from queue_kit.dashboard._pool import CUT, Pool
from queue_kit.dashboard._privacy import HIDDEN_KEYS, Privacy
from queue_kit.dashboard._render import STATIC, Renderer
from queue_kit.errors import ConfigurationError, SchemaMismatch

_logger = logging.getLogger("queue_kit.dashboard")


def dashboard(
    engine: AsyncEngine,
    *,
    authorize: Authorize | None = None,
    title: str = "queue_kit",
    hidden_names: Collection[str] = (),
    hidden_keys: Collection[str] = HIDDEN_KEYS,
) -> ASGIApp:
    """The dashboard as an ASGI application, to be mounted under any prefix.

    `authorize` is asked for every request but those of static files, and returns an `Access`, or None. `hidden_names`
    are patterns (`payment.*`) of the jobs whose payloads and errors' texts nobody sees here, `hidden_keys` those of the
    payload keys whose values are hidden. `title` stands in the corner. It reads on two connections of its own, which
    are closed when the engine is disposed of. Raises `ConfigurationError` without `authorize`, for patterns that are
    none and for an SQLite engine that is not `sqlite_engine`'s, and `TypeError` for what is no `AsyncEngine`.

    >>> from queue_kit.dashboard import Access, dashboard
    >>> async def authorize(request):
    ...     user = request.session.get("user")
    ...     return Access(user, act=user == "ada") if user else None
    >>> app = dashboard(engine, authorize=authorize)
    """
    if not isinstance(engine, AsyncEngine):
        raise TypeError(f"engine must be an AsyncEngine, not {type(engine).__name__}")
    if not callable(authorize):
        raise ConfigurationError(
            "the dashboard shows payloads and changes jobs: say who may, with dashboard(engine, authorize=...), "
            "a function of the request that returns an Access, or None"
        )
    renderer = Renderer(title)
    pool = Pool(engine)
    privacy = Privacy(hidden_names, hidden_keys)
    pages, actions = Pages(pool, renderer, privacy), Actions(pool, privacy)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return renderer.refusal(request, error)

    async def unreachable(request: Request, error: Exception) -> Response:
        _logger.warning("the database did not serve the dashboard: %s", in_a_line(error))
        detail = (
            "The database did not take the change, or did not answer in time. Look before you try again."
            if request.method == "POST"
            else "The database did not answer in time, or has no queue that may be read. The page tries again."
        )
        return renderer.refusal(request, HTTPException(503, detail))

    async def unreadable(request: Request, error: Exception) -> Response:
        _logger.error("the dashboard cannot read what the database gave", exc_info=error)
        detail = "A row of the queue has something in it that cannot be read. The log says more."
        return renderer.refusal(request, HTTPException(500, detail))

    app = Starlette(
        routes=[
            Route("/", _in_time(pages.overview)),
            Route("/jobs", _in_time(pages.jobs)),
            Route("/jobs/confirm", _in_time(pages.confirm)),
            Route("/jobs/change", actions.jobs, methods=["POST"]),
            Route("/jobs/{job_id}", _in_time(pages.job)),
            Route("/jobs/{job_id}/{action}", actions.job, methods=["POST"]),
            Route("/names", _in_time(pages.names)),
            Route("/cron", _in_time(pages.cron)),
            Route("/cron/{action}", actions.cron, methods=["POST"]),
            Route("/workers", _in_time(pages.workers)),
            Mount("/static", _Files(directory=STATIC)),
        ],
        exception_handlers={
            HTTPException: refused,
            SQLAlchemyError: unreachable,
            SchemaMismatch: unreachable,
            OSError: unreachable,  # TimeoutError is one
            **dict.fromkeys(UNREADABLE, unreadable),
        },
    )
    app.router.redirect_slashes = False  # it would redirect to an absolute address, made of the Host header
    return Guard(app, authorize, renderer)


def _in_time(page: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """A page that reads several things, each in time, and is not late by their sum."""

    async def answer(request: Request) -> Response:
        async with asyncio.timeout(CUT):
            return await page(request)

    return answer


class _Files(StaticFiles):
    """The files of the package, which browsers may keep: their addresses change with what is in them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, with how long it may be kept."""
        response = await super().get_response(path, scope)
        if response.status_code in (200, 304):
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response
