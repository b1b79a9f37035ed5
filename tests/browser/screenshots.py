"""The pictures of the documents: `python -m tests.browser.screenshots` takes them anew, of a queue of its own."""

import secrets
import tempfile
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser

from tests.browser.seeding import Known, seed
from tests.browser.serving import browsing, photographs, serving_dashboard, shop
from tests.files.corpus import landscape, written

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


def shoot_images(browser: Browser, url: str, folder: Path) -> None:
    """Take the picture of the example with photographs, when its variants are there."""
    names = ("morning", "noon", "evening", "spring", "summer", "autumn")
    for number, name in enumerate(names):
        (folder / f"{name}.jpg").write_bytes(written(landscape(number), quality=92))
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    page.goto(url)
    page.set_input_files("input", [folder / f"{name}.jpg" for name in names])
    page.wait_for_selector(f"figure:nth-of-type({len(names)})")
    page.wait_for_timeout(8_000)  # for the pictures' placeholders and variants; the browser keeps the first for 5 s
    page.reload(wait_until="networkidle")
    page.screenshot(path=IMAGES / "files-images.png")
    page.close()


def shoot_shop(browser: Browser, url: str, folder: Path, password: str) -> None:
    """Take the pictures of the shop: its products, as the staff sees them on a wide screen and on a phone."""
    page = browser.new_page(viewport={"width": 1000, "height": 560})
    page.goto(f"{url}/log-in")
    page.get_by_label("E-mail").fill("staff@example.org")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(written(landscape(number), quality=92))
        form = page.get_by_role("listitem").nth(number)
        form.locator("input[type=file]").set_input_files(folder / f"{number}.jpg")
        form.get_by_role("button", name="Upload").click()
    page.goto(f"{url}/", wait_until="networkidle")
    page.screenshot(path=IMAGES / "shop.png")
    page.get_by_role("button", name="Order").first.click()
    page.get_by_text("Confirmed.").wait_for()
    page.set_viewport_size({"width": 390, "height": 300})
    page.screenshot(path=IMAGES / "shop-phone.png")
    page.close()


def main() -> None:
    """Take the pictures."""
    known = Known()
    password = secrets.token_urlsafe()
    with browsing() as browser, tempfile.TemporaryDirectory() as folder, shop(Path(folder), password) as address:
        shoot_shop(browser, address, Path(folder), password)
    with browsing() as browser, tempfile.TemporaryDirectory() as folder, photographs(Path(folder)) as address:
        shoot_images(browser, address, Path(folder))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving_dashboard(Path(folder) / "queue.db", lambda engine: seed(engine, known), title="shop") as base,
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
