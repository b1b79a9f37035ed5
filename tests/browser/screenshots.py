"""The pictures of the documents: `python -m tests.browser.screenshots` takes them anew, of a queue of its own."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, ViewportSize
from starlette.applications import Starlette
from starlette.routing import Mount

from queue_kit import migrate, sqlite_engine
from queue_kit.dashboard import Access, dashboard
from tests.browser.seeding import seed
from tests.browser.serving import browsing, serving

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
WIDE, NARROW = ViewportSize(width=1200, height=860), ViewportSize(width=390, height=780)


def demo(path: Path, known: dict[str, int]) -> Starlette:
    """An application with a dashboard under /queue, on a queue of its own."""
    engine = sqlite_engine(path)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await migrate.upgrade(engine)
        known.update(await seed(engine))
        yield
        await engine.dispose()

    app = dashboard(engine, authorize=lambda _request: Access("ada", act=True), title="shop")
    return Starlette(routes=[Mount("/queue", app)], lifespan=lifespan)


async def shoot(
    browser: Browser, url: str, name: str, size: ViewportSize = WIDE, *, scheme: str = "light", full: bool = True
) -> None:
    """Take one picture."""
    page = await browser.new_page(viewport=size, color_scheme="dark" if scheme == "dark" else "light")
    await page.goto(url)
    await page.evaluate("document.fonts.ready")
    await page.screenshot(path=IMAGES / f"dashboard-{name}.png", full_page=full)
    await page.close()


async def shoot_all(base: str, known: dict[str, int]) -> None:
    """Take all pictures."""
    async with browsing() as browser:
        await shoot(browser, f"{base}/queue/", "overview", full=False)
        await shoot(browser, f"{base}/queue/?period=day", "dark", scheme="dark", full=False)
        await shoot(browser, f"{base}/queue/jobs?state=failed", "jobs", full=False)
        await shoot(browser, f"{base}/queue/jobs/{known['email.send']}", "job")
        await shoot(browser, f"{base}/queue/names", "names")
        await shoot(browser, f"{base}/queue/cron", "cron")
        await shoot(browser, f"{base}/queue/workers", "workers")
        await shoot(browser, f"{base}/queue/", "phone", NARROW, full=False)


def main() -> None:
    """Draw the pictures."""
    known: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, serving(demo(Path(folder) / "queue.db", known)) as base:
        asyncio.run(shoot_all(base, known))


if __name__ == "__main__":
    main()
