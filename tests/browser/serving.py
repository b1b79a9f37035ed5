"""A dashboard, or an example, on a port of this machine, served by a thread, and a browser to look at it."""

import asyncio
import contextlib
import importlib
import importlib.util
import os
import shutil
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import uvicorn
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.routing import Mount

from queue_kit import engine_from_url, migrate, sqlite_engine
from queue_kit.dashboard import Access, dashboard

CHROMIUM = shutil.which("chromium")
ELSEWHERE = "queue.test"
PREFIX = "/admin/queue"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@contextlib.contextmanager
def serving_dashboard(path: Path, seed: Callable[[AsyncEngine], Awaitable[None]], **options: Any) -> Iterator[str]:
    """Serve an application with a dashboard under a prefix, on an SQLite file of its own, and say where that is."""
    engine = sqlite_engine(path)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await migrate.upgrade(engine)
        await seed(engine)
        yield
        await engine.dispose()

    app = dashboard(engine, authorize=lambda _request: Access("ada", act=True), **options)
    with serving(Starlette(routes=[Mount(PREFIX, app)], lifespan=lifespan)) as address:
        yield f"{address}{PREFIX}"


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application, and say where. It has an event loop of its own, as in production."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listening],), name="serving")
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                thread.join(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def photographs(folder: Path) -> Iterator[str]:
    """The example of the file store, with its files in a folder."""
    spec = importlib.util.spec_from_file_location("images_example", EXAMPLES / "images.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    settings = {"DATABASE_URL": f"sqlite:///{folder / 'images.db'}", "IMAGES": f"{folder / 'uploads'}"}
    with mock.patch.dict(os.environ, settings), serving(example.create_app()) as address:
        yield address


@contextlib.contextmanager
def shop(folder: Path, password: str) -> Iterator[str]:
    """The shop of the examples, with its data in a folder; the staff's password is the given one."""
    with mock.patch.object(sys, "path", [str(EXAMPLES / "shop"), *sys.path]):
        prepare, app, settings = (importlib.import_module(f"shop.{name}") for name in ("prepare", "app", "settings"))
    url = f"sqlite:///{folder / 'shop.db'}"

    async def prepare_database() -> None:
        engine = engine_from_url(url)
        await prepare.upgrade(engine)
        await prepare.fill(engine, password)
        await engine.dispose()

    with ThreadPoolExecutor(1) as pool:  # the browser has an event loop in this thread
        pool.submit(lambda: asyncio.run(prepare_database())).result()
    with serving(app.create_app(settings.Settings(folder, url, session_key=password * 3))) as address:
        yield address


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """A Chromium without a window."""
    with sync_playwright() as playwright:
        # To a browser, another machine: it says less of itself to one without TLS.
        args = ["--no-sandbox", f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        try:
            yield browser
        finally:
            browser.close()
