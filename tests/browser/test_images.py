"""The example of the file store in a real browser: files are chosen, and come back as small as they are shown."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Response, expect

from tests.browser.serving import CHROMIUM, photographs
from tests.files.corpus import landscape, moving, written

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")

# Until the worker has made it; the browser's own cache has the image itself for a while.
IS_AVIF = """async (image) => {
  const answer = await fetch(image.currentSrc, { headers: { Accept: "image/avif" }, cache: "no-store" });
  return answer.headers.get("Content-Type") === "image/avif";
}"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with photographs(tmp_path_factory.mktemp("photographs")) as address:
        yield address


def looked_at(browser: Browser, base: str, width: int) -> tuple[Page, list[Response]]:
    """The page as it is on a screen so wide, seen for the first time, and the images that came."""
    page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
    responses: list[Response] = []
    page.on("response", lambda response: responses.append(response) if "/images/" in response.url else None)
    page.goto(base, wait_until="networkidle")
    return page, responses


def test_photographs_are_sent_as_small_as_they_are_shown(browser, base, tmp_path):
    photo, animation, text = (tmp_path / name for name in ("hills & <sun>.jpg", "moving.webp", "notes.jpg"))
    photo.write_bytes(written(landscape(3), quality=95))
    animation.write_bytes(moving("WEBP"))
    text.write_text("no image")

    page, _ = looked_at(browser, base, 1200)
    page.set_input_files("input", text)
    expect(page.locator("output")).to_contain_text("text/plain is not allowed")
    page.set_input_files("input", [photo, animation])
    expect(page.locator("figure")).to_have_count(2)
    expect(page.get_by_text("hills & <sun>.jpg")).to_be_visible()
    image = page.get_by_alt_text("hills & <sun>.jpg")
    expect(image).to_have_js_property("complete", value=True)
    page.wait_for_function(IS_AVIF, arg=image.element_handle())

    sizes = {}
    for width in (390, 1200):
        page, _ = looked_at(browser, base, width)
        page.wait_for_function(IS_AVIF, arg=page.get_by_alt_text("hills & <sun>.jpg").element_handle())
        page, responses = looked_at(browser, base, width)
        image = page.get_by_alt_text("hills & <sun>.jpg")
        assert image.get_attribute("style").startswith("background-image: url(data:image/jpeg;base64,")
        assert (image.get_attribute("width"), image.get_attribute("height")) == ("1600", "1067")
        (sent,) = (each for each in responses if each.url == image.evaluate("image => image.currentSrc"))
        assert sent.headers["content-type"] == "image/avif"
        assert image.evaluate("image => image.naturalWidth") > 0
        sizes[int(re.search(r"w=(\d+)", sent.url)[1])] = len(sent.body())
        # What moves is sent as it is.
        assert {each.headers["content-type"] for each in responses} == {"image/avif", "image/webp"}
    assert list(sizes) == [256, 384]
    assert sizes[256] < sizes[384] < photo.stat().st_size / 10

    figure = page.locator("figure", has_text="hills & <sun>.jpg")
    figure.get_by_title("turn it").click()
    page.wait_for_function(
        "() => { const image = document.querySelector('img[alt^=hills]'); "
        "return image?.naturalHeight > image?.naturalWidth; }"
    )
    page.locator("figure", has_text="moving.webp").get_by_title("turn it").click()
    expect(page.locator("output")).to_contain_text("animated")
    page.locator("figure", has_text="moving.webp").get_by_title("remove it").click()
    expect(page.locator("figure")).to_have_count(1)
