"""The application: what it is made of, and how long each part lives."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException

from queue_kit import QueueWorker, engine_from_url, install_hooks, register_cron_jobs
from queue_kit.contrib.files import FileStore, Images
from queue_kit.contrib.sessions import SessionStore, SigningKey
from queue_kit.contrib.sessions.cookies import SessionCookies
from queue_kit.dashboard import Access, dashboard
from queue_kit.telemetry.metrics import PrometheusMetrics
from queue_kit.telemetry.queue_state import QueueStateMetrics
from shop.jobs import CRON, make_jobs
from shop.login import Login, current_login, current_staff
from shop.pages import router, show_problem
from shop.settings import Settings

HERE = Path(__file__).parent
MAX_BODY = 21_000_000


def create_app(settings: Settings) -> FastAPI:
    """The shop, on a database that `python -m shop` has migrated."""
    engine = engine_from_url(settings.database_url)
    store = FileStore.local(settings.folder / "uploads", max_file_bytes=20_000_000, images=Images(widths=(320, 640)))
    logins = SessionStore(Login, keys=[SigningKey("1", settings.session_key)], issuer="shop")
    outbox = settings.folder / "outbox"
    outbox.mkdir(exist_ok=True)
    jobs = make_jobs(store, logins, outbox)
    worker = QueueWorker(engine, jobs, parallel_count=10, lease=settings.lease)
    registry = CollectorRegistry()  # of this application: a test may make a second one in its process
    queue_state = QueueStateMetrics(engine, registry=registry)
    uninstall = install_hooks(PrometheusMetrics(names=jobs, registry=registry))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await register_cron_jobs(engine, CRON)
        async with queue_state, worker:
            yield
        uninstall()
        await engine.dispose()

    app = FastAPI(title="shop", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine, app.state.store, app.state.logins = engine, store, logins
    app.add_middleware(SessionCookies, store=logins, db=lambda _: engine)
    app.middleware("http")(guard)
    for problem in (HTTPException, RequestValidationError):
        app.add_exception_handler(problem, show_problem)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.mount("/queue", dashboard(engine, authorize=authorize, title="shop"))

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        given = request.headers.get("authorization", "")
        expected = f"Bearer {settings.metrics_token}"
        if not settings.metrics_token or not hmac.compare_digest(given.encode(), expected.encode()):
            await current_staff(request)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    def health() -> dict[str, bool]:
        if not worker.healthy:
            raise HTTPException(503, "the worker is not well")
        return {"healthy": True}

    return app


async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse a body too long before it is read, and say what a page may load."""
    length = request.headers.get("content-length", "0" if request.method in {"GET", "HEAD"} else "")
    if not length.isdigit() or int(length) > MAX_BODY:
        return PlainTextResponse("That is too large.", 413)
    response = await call_next(request)
    response.headers.setdefault("Content-Security-Policy", "default-src 'self'; img-src 'self' data:")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    return response


async def authorize(request: Request) -> Access | None:
    """The queue is for the staff: strangers are led to the log-in, customers are refused."""
    login = (await current_login(request)).data
    return Access(login.email, act=True) if login.is_staff else None
