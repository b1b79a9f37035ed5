"""The dashboard in a real browser: how pages look and read, what their buttons do, and that nothing gets in or out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import add_job
from queue_kit.models import FAILED, CronRow, JobRow, WorkerRow
from tests.browser.seeding import Known, seed
from tests.browser.serving import CHROMIUM, ELSEWHERE, PREFIX, serving_dashboard

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")

PAGES = [
    "/",
    "/?period=day",
    "/jobs",
    "/jobs?state=failed",
    "/jobs?q=nothing",
    "/names",
    "/cron",
    "/workers",
    "/nowhere",
]
CONFIRM = "/jobs/confirm?action=retry&state=failed"

# What no page of ours has: elements that load or run something, and attributes that run something.
FOREIGN = """(page) => [
  ...(page ?? document).querySelectorAll(
    "script:not([src*='/static/']), img, iframe, object, embed, base, style, [style]"),
  ...[...(page ?? document).querySelectorAll("*")].filter((each) => [...each.attributes].some(
    ({ name, value }) => name.startsWith("on")
      || (/^(href|src|(form)?action)$/.test(name) && /^\\s*(javascript|data):/i.test(value)))),
].map((each) => each.outerHTML)"""

# The same of pages that are read, but not gone to.
FOREIGN_THERE = f"""async (paths) => {{
  const read = async (path) => new DOMParser().parseFromString(await (await fetch(path)).text(), "text/html");
  return (await Promise.all(paths.map(read))).flatMap({FOREIGN});
}}"""

# Texts whose contrast with what is behind them is below that of WCAG AA.
PALE = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const once = (found, known = new Map()) => (key) => {
    if (!known.has(key)) known.set(key, found(key));
    return known.get(key);
  };
  const rgba = once((colour) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  });
  const over = ([r, g, b, a], under) => [r, g, b].map((each, at) => (each * a + under[at] * (255 - a)) / 255);
  const ground = once((node) => node === null ? [255, 255, 255]
    : over(rgba(getComputedStyle(node).backgroundColor), ground(node.parentElement)));
  const light = (rgb) => rgb.map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
  const pale = [];
  for (const node of document.querySelectorAll("body *:not(svg *)")) {
    const says = [...node.childNodes].some((each) => each.nodeType === Node.TEXT_NODE && each.data.trim());
    if (!says || !node.checkVisibility() || node.closest(".unseen, .skip")) continue;
    const behind = ground(node), text = over(rgba(getComputedStyle(node).color), behind);
    const [dark, bright] = [light(behind), light(text)].sort((one, other) => one - other);
    if ((bright + 0.05) / (dark + 0.05) < 4.5) pale.push(`${node.className}: ${node.textContent.trim().slice(0, 40)}`);
  }
  return pale;
}"""

NAMES = "all => all.map((each) => each.ariaLabel || each.labels?.[0]?.innerText || each.innerText)"
SCHEMES: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")


@pytest.fixture(scope="module")
def known() -> Known:
    return Known()


@pytest.fixture(scope="module")
def base(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the dashboard of an ordinary day is."""
    path = tmp_path_factory.mktemp("dashboard") / "queue.db"
    with serving_dashboard(path, lambda engine: seed(engine, known)) as address:
        yield address


@contextmanager
def watched(browser: Browser, base: str, **options: Any) -> Iterator[BrowserContext]:
    """A browser's context; nothing is asked of another host meanwhile, and nothing is complained of."""
    origin = base.removesuffix(PREFIX)
    context = browser.new_context(**options)
    asked: list[str] = []
    complaints: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("dialog", lambda dialog: complaints.append(dialog.message))
    try:
        yield context
    finally:
        context.close()
    assert [url for url in asked if not url.startswith(f"{origin}/")] == []
    harmless = r"status of (4..|503)|Cross-Origin-Opener-Policy header has been ignored"  # without TLS, elsewhere
    assert [each for each in complaints if not re.search(harmless, each)] == []


@pytest.fixture
def page(browser: Browser, base: str) -> Iterator[Page]:
    with watched(browser, base) as context:
        yield context.new_page()


def click_and_read(page: Page, button: str, notice: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()
    expect(page.locator("#notice")).to_contain_text(notice)


def test_every_page_is_readable_in_the_light_and_in_the_dark_on_a_desk_and_in_a_hand(browser, base, known):
    jobs = [f"/jobs/{job_id}" for job_id in (known.failed, known.running, known.scheduled, known.cancelled)]
    with watched(browser, base, reduced_motion="reduce") as context:
        page = context.new_page()
        for path in [*PAGES, CONFIRM, *jobs]:
            page.goto(base + path)
            assert page.evaluate(FOREIGN) == [], path
            assert page.locator("h1").count() == 1, path
            for landmark in ("banner", "main", "navigation"):
                expect(page.get_by_role(landmark).first).to_be_visible()
            assert all(page.locator("input:not([type=hidden]), select, button").evaluate_all(NAMES)), path
            for width in (1200, 380):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)
                for scheme in SCHEMES:
                    page.emulate_media(color_scheme=scheme)
                    assert page.evaluate(PALE) == [], (path, width, scheme)
        fonts = page.evaluate("document.fonts.ready.then(() => [...document.fonts].map(({status}) => status))")
        assert fonts == ["loaded"]


def test_a_failure_is_found_read_and_retried(page, base):
    page.goto(f"{base}/")
    page.get_by_role("link", name="ConnectionRefusedError", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("email.send")
    expect(page.locator("main")).to_contain_text("Connect call failed ('10.0.4.17', 587)")
    expect(page.locator("main")).not_to_contain_text("not for everybody")
    click_and_read(page, "Retry now", "queued again")
    expect(page.locator(".head .badge")).to_have_text("ready")
    assert "notice" not in page.url
    assert page.evaluate("document.activeElement.id") == "content"
    click_and_read(page, "Cancel", "The job is cancelled.")
    expect(page.locator(".head .badge")).to_have_text("cancelled")


def test_a_change_that_is_refused_leaves_the_page_and_says_why(page, base, known):
    page.goto(f"{base}/jobs/{known.scheduled}")
    page.locator("main [name=token]").first.evaluate("each => { each.value = 'x' }")
    page.get_by_role("button", name="Run now").click()
    expect(page.locator("#notice")).to_contain_text("out of date")
    expect(page.get_by_role("heading", level=1)).to_have_text("invoice.render")
    page.reload()
    click_and_read(page, "Run now", "due now")


def test_many_jobs_are_picked_or_changed_by_their_error(page, base):
    page.goto(f"{base}/jobs?state=failed&name=webhook.deliver")
    rows = page.locator("tbody tr")
    before = rows.count()
    click_and_read(page, "Retry", "No job was picked")
    expect(rows).to_have_count(before)
    for job in rows.locator("input").all()[:2]:
        job.check()
    click_and_read(page, "Retry", "2 jobs queued again.")
    expect(rows).to_have_count(before - 2)
    page.get_by_role("link", name="Overview").click()
    page.get_by_role("link", name="Retry: InvalidPayload in invoice.render").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Retry 4 jobs?")
    click_and_read(page, "Retry them", "4 jobs queued again.")
    page.get_by_role("link", name="Cron").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Cron")


def test_what_a_change_came_to_is_not_kept_in_the_address(page, base):
    page.goto(f"{base}/jobs?state=failed&notice=retried&count=2&skipped=1&more=1&proof=0")
    expect(page.get_by_role("status").filter(has_text="The job is queued again")).to_be_visible()
    expect(page).to_have_url(f"{base}/jobs?state=failed")


def test_what_to_do_with_picked_jobs_is_in_view_in_a_long_list(page, base):
    page.set_viewport_size({"width": 1200, "height": 500})
    page.goto(f"{base}/jobs")
    assert page.evaluate("document.documentElement.scrollHeight > 1000")
    expect(page.locator(".picked").get_by_role("button", name="Retry")).to_be_in_viewport()


def test_where_a_try_spent_its_time_is_seen_on_a_desk_and_in_a_hand(page, base, known):
    page.goto(f"{base}/jobs/{known.failed}")
    for width in (1200, 380):
        page.set_viewport_size({"width": width, "height": 800})
        table = page.locator(".spans").first.bounding_box()
        bars = page.locator(".spans").first.locator(".bar").evaluate_all("all => all.map((each) => each.clientWidth)")
        assert table
        assert len(bars) == 6
        assert len(set(bars)) == 1
        assert bars[0] > 0.7 * table["width"], width
    bar = "all => [...new Set(all.map((each) => getComputedStyle(each).borderBottomWidth))]"
    assert page.locator(".spans .bar").evaluate_all(bar) == ["0px"], "it is no bar of the page"
    expect(page.locator(".spans").first.get_by_role("row", name="level 2: template.fonts")).to_contain_text("417 ms")


def test_all_of_a_page_are_picked_with_one_click(page, base):
    page.goto(f"{base}/jobs?state=failed&name=webhook.deliver")
    picked, all_of_them = page.locator("tbody input:checked"), page.get_by_label("Pick all on this page")
    rows = page.locator("tbody tr").count()
    assert rows > 1
    all_of_them.check()
    expect(picked).to_have_count(rows)
    page.locator("tbody input").first.uncheck()
    expect(all_of_them).not_to_be_checked()
    all_of_them.check()
    all_of_them.uncheck()
    expect(picked).to_have_count(0)
    expect(page.locator(".picked").get_by_role("button")).to_have_text(["Retry"])


def test_cron_entries_are_run_paused_and_resumed(page, base):
    page.goto(f"{base}/cron")
    row = page.locator("tr", has_text="report.daily")
    for button, notice in (("Pause", "is paused"), ("Resume", "goes on"), ("Run now", "due now")):
        row.get_by_role("button", name=button).click()
        expect(page.locator("#notice")).to_contain_text(notice)


def test_it_works_without_scripts(browser, base):
    with watched(browser, base, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{base}/jobs?state=failed&name=email.send")
        expect(page.locator("#pick-all")).to_be_hidden()
        page.locator("tbody a.name").first.click()
        click_and_read(page, "Retry now", "queued again")
        page.goto(f"{base}/jobs")
        page.get_by_label("Id or unique key").fill("invoice-7100")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("tbody tr")).to_have_count(1)


def test_without_tls_on_another_machine_it_needs_scripts(browser, base):
    """Nothing but the Origin tells there where a change comes from, and a form of a page without referrer has none."""
    base = base.replace("127.0.0.1", ELSEWHERE)
    for scripts, says in ((False, "came from another site"), (True, "is paused")):
        with watched(browser, base, java_script_enabled=scripts) as context:
            page = context.new_page()
            page.goto(f"{base}/cron")
            page.locator("tr", has_text="queue_kit.queue.insights").get_by_role("button", name="Pause").click()
            expect(page.locator("main")).to_contain_text(says)


def test_a_page_is_live_and_leaves_alone_what_somebody_does_there(browser, base, known):
    """Another page makes the change; this one sees it, and keeps its focus, its picks and what is open."""
    look = "document.dispatchEvent(new Event('visibilitychange'))"  # as when a tab is shown again: at once, not in 3 s
    with watched(browser, base) as context:
        page, other = context.new_page(), context.new_page()
        page.goto(f"{base}/jobs?state=cancelled")
        rows = page.locator("tbody tr")
        before = rows.count()  # now: it looks by itself, too
        page.locator("tbody input").first.check()
        picked = page.locator("tbody input:checked").input_value()
        page.get_by_label("Name").fill("half a na")
        other.goto(f"{base}/jobs?state=ready&name=legacy.export")
        other.locator("tbody a.name").first.click()
        click_and_read(other, "Cancel", "cancelled")
        page.evaluate(look)
        expect(rows).to_have_count(before + 1)
        assert page.locator("tbody input:checked").evaluate_all("all => all.map(({value}) => value)") == [picked]
        assert page.evaluate("document.activeElement.value") == "half a na"
        other.evaluate("document.querySelector('h1').textContent = 'stale'")
        other.evaluate(look)
        expect(other.locator("h1")).to_have_text("legacy.export")
        expect(other.locator("#notice")).to_contain_text("cancelled")

        page.goto(f"{base}/jobs/{known.failed}")
        page.locator("summary").last.click()
        page.evaluate("document.querySelector('h1').textContent = 'stale'")
        page.evaluate(look)
        expect(page.locator("h1")).to_have_text("email.send")
        expect(page.locator("details[open]")).to_have_count(3)  # spans and traceback of the last try, and that one


def test_nothing_is_asked_while_paused_or_hidden(page, base):
    page.goto(f"{base}/names")
    page.clock.install()
    page.reload()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_response("**/names"):
        page.clock.run_for(3_100)
    live = page.get_by_role("button", name="Live")
    expect(live).to_have_attribute("aria-pressed", "true")
    live.click()
    expect(live).to_have_attribute("aria-pressed", "false")
    asked.clear()
    page.clock.run_for(60_000)
    assert asked == []
    with page.expect_response("**/names"):
        live.click()
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    asked.clear()
    page.clock.run_for(60_000)
    assert asked == []


def test_a_server_that_is_gone_is_said_and_waited_for(page, base):
    page.goto(f"{base}/names")
    page.route("**/names", lambda route: route.fulfill(status=503, body="down"))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_role("status").first).to_have_text("No answer. Trying again.")
    page.unroute("**/names")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#connection")).to_have_text("")


def test_the_keyboard_is_enough(page, base):
    page.goto(f"{base}/jobs?state=failed&name=image.resize")
    page.goto(page.locator("tbody a.name").first.evaluate("each => each.href"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    passed = []
    for _ in range(12):
        page.keyboard.press("Tab")
        passed.append(page.evaluate("document.activeElement.innerText"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", passed
        if passed[-1] == "Retry now":
            break
    assert passed == ["Jobs", "Retry now"]
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("queued again")


# --- what others write ------------------------------------------------------------------------------------------------

CORPUS = [
    "<script>window.hit=1</script>",
    '"><img src=x onerror="window.hit=1">',
    "' onmouseover='window.hit=1' x='",
    "</title></textarea></script></style><svg onload=window.hit=1>",
    "{{ 7*7 }}{% raw %}${7*7}<%= 7*7 %>",
    "javascript:window.hit=1//",
    "\u202e\u2066<b>turned</b>\x1b[31m",
    "&lt;script&gt;&#60;b&#62; &amp;quot;",
    "a\r\nset-cookie: hit=1\r\n\r\n<b>split</b>",
    "../../%2e%2e/?a=b&c=d#e",
]


async def long_and_turned(engine: AsyncEngine) -> None:
    """A key without a place to break, and a name that turns what follows."""
    await add_job(engine, "\u202eturned", unique_key="k" * 200)


def test_a_long_key_and_a_turned_name_keep_to_themselves(browser, tmp_path):
    with serving_dashboard(tmp_path / "queue.db", long_and_turned) as base, watched(browser, base) as context:
        page = context.new_page()
        page.set_viewport_size({"width": 390, "height": 800})
        page.goto(f"{base}/jobs")
        assert page.locator(".scroll").evaluate("each => each.scrollWidth <= each.clientWidth")
        page.set_viewport_size({"width": 1200, "height": 800})
        left = "each => each.getBoundingClientRect().left"
        name, number = page.locator("td a.name"), page.locator("td .id:not(.tag)")
        assert name.evaluate(left) < number.evaluate(left)
        page.goto(f"{base}/names")
        assert page.locator(".concerns bdi").all_inner_texts() == ["\u202eturned"]


async def poison(engine: AsyncEngine) -> None:
    """Rows with the worst of texts in each field that others can write."""
    jobs, workers, entries = [], [], []
    for text in CORPUS:
        error = {"at": "2026-01-01T00:00:00+00:00", "try": text, "class": text, "message": text, "traceback": text}
        values = {"name": text, "unique_key": text, "data": {text: text, "list": [text]}}
        spans = [{"name": text, "depth": text, "start": text, "seconds": 1, "aborted": text}]
        timed = {"reason": text, "seconds": 1, "spans": spans}
        jobs.append(values | {"status": FAILED, "errors": [error | timed]})
        worker = {"id": uuid4(), "label": text, "host": text, "pid": 1, "names": [text]}
        workers.append(worker)
        entry = {"name": text, "expression": text, "timezone": text, "priority": 4, "paused": True}
        entries.append(entry | {"next_at": datetime(2030, 1, 1, tzinfo=UTC)})
    async with engine.begin() as connection:
        await connection.execute(insert(JobRow.__table__), jobs)
        await connection.execute(insert(WorkerRow.__table__), workers)
        await connection.execute(insert(CronRow.__table__), entries)


def test_s2_what_others_write_stays_text(browser, tmp_path):
    with serving_dashboard(tmp_path / "queue.db", poison) as base, watched(browser, base) as context:
        page = context.new_page()
        for path in [*PAGES, CONFIRM]:
            page.goto(base + path)
            assert page.evaluate(FOREIGN) == [], path
        for number, text in enumerate(CORPUS, start=1):
            page.goto(f"{base}/jobs/{number}")
            assert page.evaluate(FOREIGN) == [], text
            assert re.sub(r"\s+", " ", text).strip() in re.sub(r"\s+", " ", page.locator("body").inner_text()), text
            given = quote(text, safe="")
            said = "&".join(f"{field}={given}" for field in ("q", "name", "notice", "count", "error_class", "message"))
            queries = [f"/jobs?{said}", f"/jobs?state={given}", f"/jobs/confirm?action=retry&{said}"]
            queries += [] if "\n" in text else [f"/jobs/{given}"]  # a mount takes no line breaks
            assert page.evaluate(FOREIGN_THERE, [base + path for path in queries]) == [], text
        page.goto(f"{base}/")
        links = page.locator("a.name").evaluate_all("all => all.map(each => each.href)")
        assert links
        for link in links:
            page.goto(link)
            expect(page.locator("tbody tr, .empty").first).to_be_visible()
        page.goto(f"{base}/cron")
        page.locator("tbody tr").first.get_by_role("button", name="Resume").click()
        expect(page.locator("#notice p")).to_be_visible()
        assert page.evaluate("window.hit") is None
        assert context.cookies()[0]["name"] == "queue_kit_dashboard"
        assert len(context.cookies()) == 1
