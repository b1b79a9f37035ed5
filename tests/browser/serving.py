"""A dashboard on a port of this machine, served by a thread, and a browser to look at it."""

import contextlib
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from playwright.async_api import Browser, async_playwright

CHROMIUM = shutil.which("chromium")


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application, and say where. It has an event loop of its own, as in production."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listening],), name="dashboard")
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """A Chromium without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()
