"""The shop of the examples in a real browser that runs no JavaScript: an image is uploaded, an order is confirmed."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.serving import CHROMIUM, shop
from tests.files.corpus import landscape, written

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")

PASSWORD = "a password of the staff"  # pragma: allowlist secret
PHONE = {"width": 390, "height": 780}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with shop(tmp_path_factory.mktemp("shop"), PASSWORD) as address:
        yield address


def opened(browser: Browser, base: str) -> tuple[BrowserContext, Page]:
    """Somebody on a phone, who has never been here."""
    context = browser.new_context(viewport=PHONE, base_url=base, java_script_enabled=False)
    return context, context.new_page()


def log_in(page: Page, email: str, password: str, button: str) -> None:
    page.goto("/log-in")
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name=button).click()


def test_an_image_is_uploaded_and_an_order_confirmed(browser, base, tmp_path):
    photo, text = tmp_path / "tea.jpg", tmp_path / "text.jpg"
    photo.write_bytes(written(landscape(1)))
    text.write_text("no image")

    _, staff = opened(browser, base)
    log_in(staff, "staff@example.org", PASSWORD, "Log in")
    tea = staff.get_by_role("listitem").filter(has_text="Tea, 100 g")
    for file in (text, photo):
        tea.get_by_label("Image of Tea").set_input_files(file)
        tea.get_by_role("button", name="Upload").click()
        if file is text:
            expect(staff.get_by_role("alert")).to_contain_text("not an image")
    expect(staff.get_by_alt_text("Tea, 100 g")).to_be_visible()

    context, ada = opened(browser, base)
    asked: list[str] = []
    ada.on("request", lambda request: asked.append(request.url))
    log_in(ada, "ada@example.org", "wrong password", "Log in")
    expect(ada.get_by_role("alert")).to_contain_text("do not belong together")
    log_in(ada, "ada@example.org", "analytical engine", "I am new here")
    image = ada.get_by_alt_text("Tea, 100 g")
    expect(image).to_be_visible()
    source = image.get_attribute("src")
    answer = context.request.get(source)
    assert (answer.status, answer.headers["content-type"].partition("/")[0]) == (200, "image")
    assert ada.locator("body").bounding_box()["width"] <= PHONE["width"]

    tea = ada.get_by_role("listitem").filter(has_text="Tea, 100 g")
    tea.get_by_label("Quantity").fill("2")
    tea.get_by_role("button", name="Order").click()
    expect(ada.get_by_text("Confirmed.")).to_be_visible()  # the page asks again by itself
    expect(ada.get_by_role("main")).to_contain_text("Tea, 100 g, € 17.00")
    assert {cookie["name"] for cookie in context.cookies() if cookie["httpOnly"] and cookie["sameSite"] == "Lax"} == {
        "session-access",
        "session-refresh",
    }
    assert all(address.startswith(base) for address in asked)

    assert ada.goto("/queue/").status == 403
    ada.goto("/")
    ada.get_by_role("button", name="Log out").click()
    ada.goto("/queue/")
    expect(ada).to_have_url(f"{base}/log-in")
    staff.get_by_role("link", name="Queue").click()
    staff.get_by_role("link", name="Cron").click()
    staff.get_by_role("row").filter(has_text="report.daily").get_by_role("button", name="Run now").click()
    expect(staff.get_by_text("The entry is due now.")).to_be_visible()
