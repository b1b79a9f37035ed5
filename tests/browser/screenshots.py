"""The pictures of the documents: `python -m tests.browser.screenshots` takes them anew, of a queue of its own."""

import tempfile
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser

from tests.browser.seeding import Known, seed
from tests.browser.serving import application, browsing, serving

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


def shoot(
    browser: Browser,
    url: str,
    name: str,
    *,
    width: int = 1200,
    height: int = 860,
    scheme: Literal["light", "dark"] = "light",
) -> None:
    """Take one picture."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(url)
    page.evaluate("document.fonts.ready")
    page.screenshot(path=IMAGES / f"dashboard-{name}.png")
    page.close()


def main() -> None:
    """Take the pictures."""
    known = Known()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(application(Path(folder) / "queue.db", lambda engine: seed(engine, known), title="shop")) as base,
        browsing() as browser,
    ):
        shoot(browser, f"{base}/", "overview")
        shoot(browser, f"{base}/?period=day", "dark", scheme="dark")
        shoot(browser, f"{base}/jobs?state=failed", "jobs")
        shoot(browser, f"{base}/jobs/{known.failed}", "job")
        shoot(browser, f"{base}/names", "names", height=760)
        shoot(browser, f"{base}/cron", "cron", height=520)
        shoot(browser, f"{base}/workers", "workers", height=460)
        shoot(browser, f"{base}/", "phone", width=390, height=780)


if __name__ == "__main__":
    main()
