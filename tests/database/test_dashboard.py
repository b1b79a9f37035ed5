"""The dashboard without a browser: what it shows, what it changes, and whom it lets do so."""

import asyncio
import html
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount

from queue_kit import (
    ConfigurationError,
    CronJob,
    JobState,
    QueueWorker,
    add_job,
    get_job,
    list_cron_jobs,
    pause_cron_job,
    register_cron_jobs,
    retry_job,
    run_cron_job,
)
from queue_kit.dashboard import Access, _pages, _pool, dashboard
from queue_kit.dashboard._local import Door
from queue_kit.dashboard._payload import MAX_SHOWN
from queue_kit.dashboard._pool import Pool
from queue_kit.dashboard._privacy import HIDDEN_KEYS, Privacy
from queue_kit.dashboard._shared import Shared
from queue_kit.models import FAILED, JobRow, WorkerRow
from tests.database.running import Gate, statements
from tests.proxy import through_proxy
from tests.support import change, move, row_of, until

BASE = "http://queue.test"
SAME_SITE = {"sec-fetch-site": "same-origin"}
SECRET = "correct horse battery staple"  # pragma: allowlist secret


@asynccontextmanager
async def visiting(app: Any, base: str = BASE, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody who looks at it."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base, **options) as visitor:
        yield visitor


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> None:
    """Each change writes its line, as where INFO is logged."""
    caplog.set_level(logging.INFO, logger="queue_kit.dashboard")


@pytest.fixture
async def ada(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody who may change things."""
    async with visiting(dashboard(engine, authorize=lambda _: Access("ada", act=True))) as visitor:
        yield visitor


async def token_on(visitor: httpx.AsyncClient, path: str) -> str:
    """The token of the forms on a page."""
    found = re.search(r'name="token" value="(\w+)"', (await visitor.get(path)).text)
    assert found
    return found[1]


async def press(visitor: httpx.AsyncClient, on: str, path: str, **fields: Any) -> httpx.Response:
    """Send a form of a page, as a browser does."""
    return await visitor.post(path, data={"token": await token_on(visitor, on), **fields}, headers=SAME_SITE)


async def fail(engine: AsyncEngine, job_id: int, kind: str = "ValueError", message: str = "no luck") -> None:
    """Make a job one that has failed."""
    error = {"at": "2026-01-02T03:04:05+00:00", "try": 2, "class": kind, "message": message, "traceback": "Trace\nback"}
    await change(engine, job_id, status=FAILED, retry_count=2, errors=[error])


async def spoil(engine: AsyncEngine, job_id: int, column: str, value: str) -> None:
    """Write a column as only plain SQL can."""
    kind = "timestamptz" if re.match(r"\d{5}-|infinity", value) else "json"
    given = f"CAST(CAST(:value AS text) AS {kind})" if engine.dialect.name == "postgresql" else ":value"
    async with engine.begin() as connection:
        update = text(f"UPDATE queue_kit_job SET {column} = {given} WHERE id = :id")
        await connection.execute(update, {"value": value, "id": job_id})


PATHS = [
    "/",
    "/?period=day",
    "/jobs",
    "/jobs/1",
    "/names",
    "/cron",
    "/workers",
    "/jobs/confirm?action=retry&state=failed",
]


# --- who --------------------------------------------------------------------------------------------------------------


async def test_s1_nothing_is_mounted_without_saying_who_may_see_it(engine):
    for refused in (None, True):
        with pytest.raises(ConfigurationError, match="say who may"):
            dashboard(engine, authorize=refused)
    with pytest.raises(TypeError, match="must be an AsyncEngine"):
        dashboard("postgresql://", authorize=lambda _: None)
    with pytest.raises(ConfigurationError, match="hidden_names is a collection of patterns"):
        dashboard(engine, authorize=lambda _: None, hidden_names="payment")


async def test_s1_a_stranger_sees_nothing(engine):
    await add_job(engine, "email.send", {"to": SECRET})
    async with visiting(dashboard(engine, authorize=lambda _: None)) as stranger:
        for path in [*PATHS, "/nowhere", "/static/../jobs/1", "/static/%2e%2e/jobs"]:
            answer = await stranger.get(path)
            assert answer.status_code in (403, 404), path
            assert "email.send" not in answer.text
            assert "<nav" not in answer.text
        answer = await stranger.post("/jobs/1/cancel", headers=SAME_SITE)
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert (await row_of(engine, 1)).state == JobState.ready


async def test_authorize_is_asked_each_time_and_may_be_async_or_raise(engine):
    asked = []

    async def authorize(request):
        asked.append(request.url.path)
        if "login" in request.headers:
            return Access("ada")
        raise HTTPException(303, headers={"location": "/login"})

    async with visiting(dashboard(engine, authorize=authorize)) as visitor:
        answer = await visitor.get("/jobs")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert (await visitor.get("/jobs", headers={"login": "1"})).status_code == 200
    assert asked == ["/jobs", "/jobs"]


async def test_authorize_may_refuse_in_its_own_way(engine):
    def authorize(request):
        raise HTTPException(440, "Your session is over.")

    async with visiting(dashboard(engine, authorize=authorize)) as visitor:
        answer = await visitor.get("/jobs")
    assert (answer.status_code, "Your session is over." in answer.text) == (440, True)


async def test_what_authorize_gives_must_be_an_access(engine):
    async with visiting(dashboard(engine, authorize=lambda _: True)) as visitor:
        with pytest.raises(TypeError, match="authorize gave bool"):
            await visitor.get("/")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"who": 7}, "who must be text, .* not int: give str"),
        ({"who": None}, "who must be text, .* not NoneType"),
        ({"act": "no"}, "act must be True or False, not str"),
        ({"act": None}, "act must be True or False, not NoneType"),
        ({"payloads": 0}, "payloads must be True or False, not int"),
    ],
)
def test_s1_an_access_says_clearly_who_and_what(given, says):
    with pytest.raises(TypeError, match=says):
        Access(**{"who": "ada", **given})


async def test_s1_who_may_only_read_finds_no_button_and_no_way(engine, caplog):
    job_id = await add_job(engine, "email.send")
    await fail(engine, job_id)
    await register_cron_jobs(engine, [CronJob("report", "0 6 * * *")])
    async with visiting(dashboard(engine, authorize=lambda _: Access("bob"))) as bob:
        for path in PATHS:
            text = (await bob.get(path)).text
            assert "read only" in text
            assert 'method="post"' not in text
        for path in ("/jobs/1/retry", "/jobs/change", "/cron/run"):
            answer = await bob.post(path, headers=SAME_SITE)
            assert answer.status_code == 403
            assert "change nothing" in answer.text
    assert (await row_of(engine, job_id)).state == JobState.failed
    assert "refused /jobs/1/retry to bob" in caplog.text


# --- what a change must show ------------------------------------------------------------------------------------------


async def test_s3_a_change_comes_from_this_site(ada, engine):
    job_id = await add_job(engine, "email.send", delay=60)
    token = await token_on(ada, f"/jobs/{job_id}")
    refused: list[dict[str, str]] = [
        {"origin": "null"},
        {"origin": "http://elsewhere.test"},
        {"origin": "http://[elsewhere"},
        {"sec-fetch-site": "same-site", "origin": BASE},
        {"sec-fetch-site": "cross-site", "origin": BASE},
        {"sec-fetch-site": "none"},
    ]
    for headers in refused:
        answer = await ada.post(f"/jobs/{job_id}/cancel", data={"token": token}, headers=headers)
        assert answer.status_code == 403, headers
        assert "says that this came from another site" in answer.text
    answer = await ada.post(f"/jobs/{job_id}/cancel", data={"token": token})
    assert answer.status_code == 403
    assert "does not say where this came from" in answer.text
    assert (await row_of(engine, job_id)).state == JobState.scheduled
    # A form has the origin "null" where pages send no referrer.
    for headers in ({"sec-fetch-site": "same-origin", "origin": "null"}, {"origin": BASE}):
        answer = await ada.post(f"/jobs/{job_id}/cancel", data={"token": token}, headers=headers)
        assert answer.status_code == 303, headers
    assert (await row_of(engine, job_id)).state == JobState.cancelled


async def test_s3_a_change_has_the_token_of_this_browser_and_person(engine):
    job_id = await add_job(engine, "email.send", delay=60)
    app = dashboard(engine, authorize=lambda request: Access(request.headers.get("who", "ada"), act=True))
    path = f"/jobs/{job_id}/cancel"
    async with visiting(app) as ada, visiting(app) as eve:
        token, other = await token_on(ada, f"/jobs/{job_id}"), await token_on(eve, f"/jobs/{job_id}")
        assert token != await token_on(ada, f"/jobs/{job_id}")
        for wrong in ("", "x", token[:-1], token + "0", other, "é" * 80):
            answer = await ada.post(path, data={"token": wrong}, headers=SAME_SITE)
            assert answer.status_code == 403
            assert "out of date" in answer.text
        assert (await ada.post(path, headers=SAME_SITE)).status_code == 415
        assert (await ada.post(path, data={"token": token}, headers=SAME_SITE | {"who": "mallory"})).status_code == 403
        assert (await eve.post(path, data={"token": token}, headers=SAME_SITE)).status_code == 403
        ada.cookies.clear()
        assert (await ada.post(path, data={"token": token}, headers=SAME_SITE)).status_code == 403
    assert (await row_of(engine, job_id)).state == JobState.scheduled


async def test_s3_only_a_post_of_a_form_changes_something(ada, engine, caplog):
    job_id = await add_job(engine, "email.send", delay=60)
    path = f"/jobs/{job_id}/cancel"
    token = await token_on(ada, f"/jobs/{job_id}")
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = await ada.request(method, f"{path}?token={token}", headers=SAME_SITE)
        assert (answer.status_code, answer.headers["allow"]) in [(405, "POST"), (405, "GET, HEAD, POST")]
    assert (await ada.post(path, json={"token": token}, headers=SAME_SITE)).status_code == 415
    assert (await ada.post(path, data={"token": token, "x": "x" * 70_000}, headers=SAME_SITE)).status_code == 413
    many = {f"x{number}": "1" for number in range(700)}
    assert (await ada.post(path, data={"token": token} | many, headers=SAME_SITE)).status_code == 400
    refused = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(refused) == 4 + 3  # each but the GET
    assert all(line.startswith(f"refused {path} to ada: ") for line in refused)
    assert (await row_of(engine, job_id)).state == JobState.scheduled


async def test_the_cookie_is_out_of_the_reach_of_scripts_and_other_sites(engine):
    app = dashboard(engine, authorize=lambda _: Access("ada"))
    async with visiting(app) as visitor:
        cookie = (await visitor.get("/")).headers["set-cookie"]
        assert re.fullmatch(r"queue_kit_dashboard=[\w-]{43}; Path=/; HttpOnly; SameSite=Strict", cookie)
        assert "set-cookie" not in (await visitor.get("/")).headers
    async with visiting(app, "https://queue.test") as visitor:
        cookie = (await visitor.get("/")).headers["set-cookie"]
        assert cookie.startswith("__Host-queue_kit_dashboard=")
        assert cookie.endswith("; Path=/; HttpOnly; SameSite=Strict; Secure")


async def test_s2_every_answer_has_the_headers(ada):
    for path in [*PATHS, "/nowhere", "/jobs/1/x", "/static/dashboard.js", "/static/nothing"]:
        headers = (await ada.get(path)).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "frame-ancestors 'none'; base-uri 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        is_file = path == "/static/dashboard.js"
        assert ("immutable" if is_file else "no-store") in headers["cache-control"], path


@pytest.mark.parametrize(("port", "status"), [(80, 200), (8_765, 404)])
async def test_the_port_of_http_is_not_said_in_a_host(engine, port, status):
    door = Door(dashboard(engine, authorize=lambda _: Access("ada")), "key", port)
    for name in ("127.0.0.1", "localhost"):
        async with visiting(door, f"http://{name}") as visitor:
            assert (await visitor.get("/key/")).status_code == status
            assert (await visitor.get("/key/", headers={"host": f"{name}:{port}"})).status_code == 200
            assert (await visitor.get("/key/", headers={"host": "attacker.test"})).status_code == 404


async def test_a_websocket_is_closed(engine):
    sent = []

    async def send(message):
        sent.append(message)

    await dashboard(engine, authorize=lambda _: Access("ada"))({"type": "websocket", "path": "/"}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --- pages ------------------------------------------------------------------------------------------------------------


async def test_an_empty_queue_says_so_on_every_page(ada):
    overview = (await ada.get("/")).text
    assert "Nothing has failed" in overview
    assert "No worker is alive. Nothing is due yet." in overview
    assert "Nothing ran in the last day" in (await ada.get("/?period=day")).text
    assert "No jobs yet" in (await ada.get("/jobs")).text
    assert "No job fits" in (await ada.get("/jobs?name=nobody")).text
    assert "No names yet" in (await ada.get("/names")).text
    assert "No cron entries" in (await ada.get("/cron")).text
    assert "No worker is alive" in (await ada.get("/workers")).text
    assert "No job fits any more" in (await ada.get("/jobs/confirm?action=retry&state=failed")).text


async def test_the_overview_says_what_an_operator_should_know(ada, engine):
    for _ in range(3):
        await fail(engine, await add_job(engine, "email.send"), "TimeoutError", "no answer within 10 s")
    await add_job(engine, "legacy.export")
    text = (await ada.get("/")).text
    assert "No worker is alive, and a job is due." in text
    assert re.search(r"<strong>3</strong>.*?TimeoutError.*?email\.send.*?no answer within … s", text, re.DOTALL)


async def test_the_overview_says_what_failed_at_once_and_until_it_is_mended(ada, engine):
    job_id = await add_job(engine, "email.send")
    await fail(engine, job_id)  # and no worker has written a history
    assert "1 job failed for good in the last hour." in (await ada.get("/")).text
    await retry_job(engine, job_id)

    async def mended():
        return "failed for good in the last hour" not in (await ada.get("/")).text

    await until(mended)


async def test_of_many_names_those_that_matter_most_are_shown(ada, engine):
    names = ["failed", "waits", *(f"idle {number:03}" for number in range(298))]
    async with engine.begin() as connection:
        await connection.execute(insert(JobRow.__table__), [{"name": name} for name in names])
    await fail(engine, 1)
    await move(engine, 2, scheduled_at=-1000)
    page = (await ada.get("/names")).text
    assert page.count("<tr data-key=") == 200
    assert "100 more names are not shown." in page
    assert all(f'<tr data-key="{name}">' in page for name in ("failed", "waits"))
    offered = (await ada.get("/jobs")).text
    assert offered.count("<option value=") - offered.split("</datalist>")[1].count("<option value=") == 200
    assert '<option value="failed"></option>' in offered


async def test_the_overview_says_which_cron_entries_do_not_go_on(ada, engine):
    await register_cron_jobs(engine, [CronJob("late", "0 0 1 1 *"), CronJob("paused", "0 0 1 1 *")])
    await pause_cron_job(engine, "paused")
    late = await run_cron_job(engine, "late")
    await move(engine, late, scheduled_at=-400)
    text = (await ada.get("/")).text
    assert "A cron entry is paused." in text
    assert "A cron entry has been due for 6 min" in text


async def test_a_worker_and_what_it_runs_is_shown(ada, engine):
    gate = Gate()
    job_id = await add_job(engine, "email.send")
    async with QueueWorker(engine, {"email.send": gate}, poll_interval=0.05):

        async def shown():
            return f'href="./jobs/{job_id}"' in (await ada.get("/workers")).text

        await until(shown)
        assert "All is well" in (await ada.get("/")).text
        assert 'class="badge running"' in (await ada.get(f"/jobs/{job_id}")).text
        assert "Knows 1 name" in (await ada.get("/workers")).text
        answer = await press(ada, f"/jobs/{job_id}", f"/jobs/{job_id}/cancel")
        assert answer.headers["location"] == f"../{job_id}?notice=asked"
        gate.open.set()


async def test_jobs_are_filtered_and_found(ada, engine):
    one = await add_job(engine, "email.send", unique_key="order-7")
    two = await add_job(engine, "email.send", delay=60)
    three = await add_job(engine, "image.resize")
    await fail(engine, three)

    async def ids(query: str) -> list[int]:
        return [int(each) for each in re.findall(r'<tr data-key="(\d+)">', (await ada.get(f"/jobs{query}")).text)]

    assert await ids("") == [three, two, one]
    assert await ids("?name=email.send") == [two, one]
    assert await ids("?name=+email.send+&state=scheduled") == [two]
    assert await ids("?state=failed") == [three]
    assert await ids("?q=order-7") == [one]
    assert await ids("?q=order-8") == []
    assert await ids("?age=hour") == [three, two, one]
    await change(engine, one, created_at=(await row_of(engine, one)).created_at.replace(year=2020))
    assert await ids("?age=hour") == [three, two]
    found = await ada.get(f"/jobs?q={two}")
    assert (found.status_code, found.headers["location"]) == (303, f"jobs/{two}")
    assert await ids("?q=987654321") == []
    for wrong in ("?state=lost", "?age=century"):
        assert (await ada.get(f"/jobs{wrong}")).status_code == 400


async def test_pages_of_jobs_go_back_to_the_first(ada, engine):
    async with engine.begin() as connection:
        await connection.execute(insert(JobRow.__table__), [{"name": "many"}] * 120)
    seen, query = [], "/jobs?name=many"
    while query:
        text = (await ada.get(query)).text
        seen += re.findall(r'<tr data-key="(\d+)">', text)
        older = re.search(r'href="(\?[^"]*after=[^"]*)"', text)
        query = "/jobs" + older[1].replace("&amp;", "&") if older else ""
    assert len(seen) == len(set(seen)) == 120


async def test_a_rare_name_is_looked_for_as_far_back_as_one_says(ada, engine, monkeypatch):
    monkeypatch.setattr(_pages, "LOOKED_BACK", 10)
    rare = await add_job(engine, "rare")
    async with engine.begin() as connection:
        await connection.execute(insert(JobRow.__table__), [{"name": "many"}] * 25)
    query, looks = "?name=rare", 0
    while f'data-key="{rare}"' not in (text := (await ada.get(f"/jobs{query}")).text):
        further = re.search(r'href="(\?[^"]*after=\d+)" rel="next">Look further back', text)
        assert further
        query, looks = further[1].replace("&amp;", "&"), looks + 1
    assert looks == 2
    assert "further back" not in text
    assert "further back" not in (await ada.get("/jobs?name=rare&state=ready")).text


async def test_a_list_reads_no_payloads(ada, engine):
    await add_job(engine, "email.send", {"to": SECRET})
    with statements() as sent:
        assert SECRET not in (await ada.get("/jobs")).text
    lists = [each for each in sent if "unique_key" in each and "FROM queue_kit_job" in each]
    assert lists
    assert not any(f"queue_kit_job.{unshown}" in each for each in lists for unshown in ("data", "trace_context"))


async def test_a_job_is_shown_with_payload_and_errors(ada, engine):
    job_id = await add_job(
        engine, "email.send", {"to": "a@b.c", "n": 1.5, "nested": [{"Api-Key": SECRET}]}, unique_key="k1"
    )
    await fail(engine, job_id, message="no luck <at> all")
    text = (await ada.get(f"/jobs/{job_id}")).text
    for shown in (
        "a@b.c",
        "1.5",
        "k1",
        "ValueError",
        "no luck &lt;at&gt; all",
        "Trace\nback",
        "2026-01-02 03:04:05 UTC",
    ):
        assert shown in text
    assert SECRET not in text
    assert "[hidden]" in text
    for nobody in ("0", "999999", "9" * 30, "-1", "abc", "%00", "1.5", "\u0661"):
        assert (await ada.get(f"/jobs/{nobody}")).status_code == 404


async def test_s8_keys_that_look_like_secrets_hide_their_values(ada, engine):
    keys = ["pwd", "pass", "passcode", "auth", "bearer", "jwt", "otp", "pin", "pan", "session", "sessionid"]
    keys += ["signature", "database_url", "api key", "API.KEY", "X-Signature", "db_pwd", "Access Key"]
    data = {
        "object": {key: f"{key} {SECRET}" for key in keys},
        "pairs": [*([key, f"{key} {SECRET}"] for key in keys), ["to", "a@b.c"]],
        "list": ["violet", "indigo"],
    }
    text = (await ada.get(f"/jobs/{await add_job(engine, 'email.send', data)}")).text
    assert re.findall(f"[^\n]*{SECRET}", text) == []
    assert text.count("[hidden]") == 2 * len(keys)
    assert all(each in text for each in ("a@b.c", "violet", "indigo"))


async def test_the_names_of_innocent_keys_are_no_secrets(ada, engine):
    data = {"author": "grace", "pinned": "yes", "company": "shop", "passenger": "bob", "sessions": "three"}
    text = (await ada.get(f"/jobs/{await add_job(engine, 'email.send', data)}")).text
    assert all(each in text for each in ("grace", "yes", "shop", "bob", "three"))
    assert "[hidden]" not in text


async def test_a_page_is_bounded_whatever_a_job_carries(ada, engine):
    many = {f"key{number}": number for number in range(50_000)} | {"last_key": SECRET}
    errors = [{"class": f"E{number}!", "message": "m" * 10_000, "traceback": "t" * 100_000} for number in range(30)]
    job_id = await add_job(engine, "email.send", many)
    await change(engine, job_id, errors=errors)
    text = (await ada.get(f"/jobs/{job_id}")).text
    assert "Only the beginning is shown." in text
    assert "E29!" in text
    assert "E19!" not in text
    assert len(text) < 2_000_000


def test_what_is_not_shown_is_not_looked_through():
    looked = []

    class Noted(str):
        __slots__ = ()

        def lower(self) -> str:
            looked.append(self)
            return str(self).lower()

    privacy = Privacy((), HIDDEN_KEYS)
    data = {Noted(f"key{number}"): {"password": SECRET} for number in range(80_000)}
    shown = json.dumps(privacy.redacted(data, MAX_SHOWN), indent=2)
    whole = {key: {"password": "[hidden]"} for key in data}
    assert len(looked) < 10_000
    assert json.dumps(whole, indent=2)[:MAX_SHOWN] == shown[:MAX_SHOWN]
    assert len(shown) > MAX_SHOWN


def hiding(engine: AsyncEngine) -> list[Any]:
    """Dashboards that hide payloads: those of some names, and all of them from who may not see any."""
    return [
        dashboard(engine, authorize=lambda _: Access("ada", act=True), hidden_names=["payment.*"]),
        dashboard(engine, authorize=lambda _: Access("ada", act=True, payloads=False)),
    ]


async def test_s8_hidden_payloads_hide_what_errors_quote(engine):
    job_id = await add_job(engine, "payment.capture", {"card": SECRET})
    await fail(engine, job_id, message=SECRET)
    for app in hiding(engine):
        async with visiting(app) as ada:
            for path in (*PATHS, f"/jobs/{job_id}", "/jobs?state=failed"):
                text = (await ada.get(path)).text
                assert SECRET not in text
            assert "hidden from you" in (await ada.get(f"/jobs/{job_id}")).text
            assert "ValueError" in (await ada.get(f"/jobs/{job_id}")).text


async def test_a_page_has_no_control_characters_and_gives_them_back(ada, engine):
    name = "red \x1b[31m\x7f"
    job_id = await add_job(engine, name, {"key": name})
    for path in ("/jobs", f"/jobs/{job_id}", f"/jobs?name={quote(name)}"):
        page = (await ada.get(path)).text
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page)
        assert "red &#27;[31m&#127;" in page


async def test_rows_written_by_hand_are_shown(ada, engine):
    strange: list[Any] = [
        None,
        7,
        {"class": 5, "message": ["x"], "at": "yesterday", "try": {}},
        {"at": "0001-01-01T00:00:00+14:00"},
    ]
    for errors in (strange, {"not": "a list"}, "text", 5):
        job_id = await add_job(engine, "odd")
        await change(engine, job_id, errors=errors, status=FAILED, trace_context=[1], data="just text")
        for path in (f"/jobs/{job_id}", "/jobs", "/"):
            assert (await ada.get(path)).status_code == 200


async def test_s8_nobody_guesses_what_is_hidden(engine):
    job_id = await add_job(engine, "payment.capture")
    await fail(engine, job_id, message=SECRET)
    for app in hiding(engine):
        async with visiting(app) as ada:
            for name, status in (("payment.capture", 403), ("", 400)):
                fields = {"action": "retry", "name": name, "message": SECRET}
                answers = [
                    await ada.get("/jobs/confirm", params=fields),
                    await press(ada, f"/jobs/{job_id}", "/jobs/change", **fields, confirmed="1"),
                ]
                assert [answer.status_code for answer in answers] == [status, status]
            link = re.search(r'href="\./(jobs/confirm\?[^"]*)"', (await ada.get("/")).text)
            assert link
            assert "Retry 1 job?" in (await ada.get("/" + link[1].replace("&amp;", "&"))).text
    assert (await row_of(engine, job_id)).state == JobState.failed


DEEP = "[" * 3_000 + "]" * 3_000
UNREADABLE = [
    ("data", DEEP, "Cannot be read"),
    ("data", "[" * 700 + "]" * 700, ""),
    ("data", "1" * 6_000, "Cannot be read"),
    ("errors", DEEP, "What failed cannot be read"),
    ("trace_context", DEEP, ""),
    ("scheduled_at", "12000-01-01", "12000-01-01"),
    ("created_at", "12000-01-01", "12000-01-01"),
    ("cron_tick", "12000-01-01", "12000-01-01"),
]


async def test_a_row_that_cannot_be_read_is_so_for_itself_alone(ada, engine):
    """What anybody may write who may insert a row by SQL."""
    good = await add_job(engine, "email.send")
    for column, value, says in UNREADABLE:
        bad = await add_job(engine, "odd")
        await spoil(engine, bad, column, value)
        rows = (await ada.get("/jobs")).text
        assert all(f'<tr data-key="{job_id}">' in rows for job_id in (good, bad))
        assert ("unreadable" in rows) is (column == "scheduled_at"), column
        page = await ada.get(f"/jobs/{bad}")
        assert (page.status_code, says in page.text) == (200, True), column
        assert (await ada.get(f"/jobs?q={bad}")).status_code == 303
        assert (await ada.get("/")).status_code == 200
        answer = await press(ada, f"/jobs/{good}", "/jobs/change", id=[bad], action="cancel")
        assert "count=1" in answer.headers["location"]
        async with engine.begin() as connection:
            await connection.execute(text("DELETE FROM queue_kit_job WHERE id = :id"), {"id": bad})


async def test_a_row_that_cannot_be_read_is_mended_as_its_page_says(ada, engine):
    for column, value, says in UNREADABLE:
        if value.startswith("["):  # some versions of Python read that
            continue
        bad = await add_job(engine, "odd", {"to": "a@b.c"}, delay=60)
        await spoil(engine, bad, column, value)
        page = (await ada.get(f"/jobs/{bad}")).text
        assert says in page
        assert ("a@b.c" in page) is (column != "data")
        found = re.search(rf"<code>{column}</code>.*?<code>(UPDATE [^<]*)</code>", page)
        assert found
        async with engine.begin() as connection:
            await connection.execute(text(html.unescape(found[1])))
        mended = (await ada.get(f"/jobs/{bad}")).text
        assert "UPDATE" not in mended
        assert (await row_of(engine, bad)).name == "odd"


async def test_a_job_for_a_year_that_there_is_not_is_run_now_or_cancelled(ada, engine):
    for action, state in (("run", JobState.ready), ("cancel", JobState.cancelled)):
        bad = await add_job(engine, "odd", delay=60)
        await spoil(engine, bad, "scheduled_at", "12000-01-01")
        answer = await press(ada, f"/jobs/{bad}", f"/jobs/{bad}/{action}")
        assert answer.status_code == 303
        async with engine.connect() as connection:
            found = await connection.scalar(select(JobRow.state).where(JobRow.id == bad))
        assert found == state
        again = await press(ada, f"/jobs/{bad}", f"/jobs/{bad}/retry")
        assert again.status_code == (409 if action == "run" else 303)


async def test_a_job_that_is_parked_for_ever_is_not_unreadable(pg_engine):
    job_id = await add_job(pg_engine, "odd", delay=60)
    await spoil(pg_engine, job_id, "scheduled_at", "infinity")
    async with visiting(dashboard(pg_engine, authorize=lambda _: Access("ada"))) as ada:
        for path in ("/jobs", f"/jobs/{job_id}"):
            page = (await ada.get(path)).text
            assert ("infinity" in page, "unreadable" in page, "UPDATE" in page) == (True, False, False)


async def test_a_list_is_one_statement_whatever_is_in_it(ada, engine):
    ids = [await add_job(engine, "odd", delay=60) for _ in range(5)]
    for job_id in ids:
        await spoil(engine, job_id, "scheduled_at", "12000-01-01")
    with statements() as sent:
        page = (await ada.get("/jobs")).text
    assert all(f'<tr data-key="{job_id}">' in page for job_id in ids)
    assert len([each for each in sent if "FROM queue_kit_job" in each and "unique_key" in each]) == 1


async def test_hidden_failures_of_one_class_can_be_told_apart(engine):
    first, second = [await add_job(engine, "payment.capture") for _ in range(2)]
    await fail(engine, first, message=SECRET)
    await fail(engine, second, message=SECRET * 2)
    app = dashboard(engine, authorize=lambda _: Access("ada", act=True), hidden_names=["payment.*"])
    async with visiting(app) as ada:
        page = (await ada.get("/")).text
    assert SECRET not in page
    for job_id in (first, second):
        assert f'hidden, as in job <a href="./jobs/{job_id}">{job_id}</a>' in page


async def test_of_hidden_failures_one_group_is_retried_without_its_text(engine, caplog):
    first, alike, other = [await add_job(engine, "payment.capture") for _ in range(3)]
    for job_id, message in ((first, SECRET), (alike, f"{SECRET}\nand more"), (other, "another")):
        await fail(engine, job_id, message=message)
    app = dashboard(engine, authorize=lambda _: Access("ada", act=True), hidden_names=["payment.*"])
    async with visiting(app) as ada:
        links = re.findall(r'href="\./(jobs/confirm\?[^"]*)"', (await ada.get("/")).text)
        link = next(html.unescape(link) for link in links if f"like={other}" not in link)
        page = (await ada.get(f"/{link}")).text
        assert "Retry 2 jobs?" in page
        assert SECRET not in page
        form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
        answer = await ada.post("/jobs/change", data=form, headers=SAME_SITE)
        assert "count=2" in answer.headers["location"]
        for wrong in ({"like": "1"}, {"like": "1", "name": "payment.capture", "message": "x"}):
            assert (await ada.get("/jobs/confirm", params={"action": "retry", **wrong})).status_code == 400
        gone = await ada.get("/jobs/confirm", params={"action": "retry", "name": "payment.capture", "like": first})
        assert "No job fits any more" in gone.text
    assert [(await row_of(engine, job_id)).state for job_id in (first, alike, other)] == ["ready", "ready", "failed"]
    assert SECRET not in caplog.text
    assert "like=" in caplog.text


async def test_a_worker_row_of_any_text_is_shown(ada, engine):
    async with engine.begin() as connection:
        values = {"id": uuid4(), "label": "<b>", "host": '"><i>', "pid": 1, "names": ["<u>"]}
        await connection.execute(insert(WorkerRow.__table__).values(**values))
    text = (await ada.get("/workers")).text
    assert "&lt;b&gt;" in text
    assert not re.search("<b>|<i>|<u>", text)


# --- changes ----------------------------------------------------------------------------------------------------------


async def test_a_failed_job_is_retried_and_the_log_says_by_whom(ada, engine, caplog):
    job_id = await add_job(engine, "email.send")
    await fail(engine, job_id)
    answer = await press(ada, f"/jobs/{job_id}", f"/jobs/{job_id}/retry")
    assert (answer.status_code, answer.headers["location"]) == (303, f"../{job_id}?notice=retried")
    assert (await row_of(engine, job_id)).state == JobState.ready
    assert "queued again, with all its tries" in (await ada.get(f"/jobs/{job_id}?notice=retried")).text
    (line,) = [record for record in caplog.records if record.name == "queue_kit.dashboard"]
    assert line.message == f"retry by ada: job_id={job_id} result=retried"
    assert (line.who, line.action, line.job_id) == ("ada", "retry", job_id)


async def test_a_scheduled_job_is_run_and_cancelled(ada, engine):
    job_id = await add_job(engine, "email.send", delay=3_600)
    assert (await press(ada, f"/jobs/{job_id}", f"/jobs/{job_id}/run")).headers["location"].endswith("notice=run")
    assert (await row_of(engine, job_id)).state == JobState.ready
    assert (await press(ada, f"/jobs/{job_id}", f"/jobs/{job_id}/cancel")).headers["location"].endswith("=cancelled")
    assert (await row_of(engine, job_id)).state == JobState.cancelled


async def test_a_change_that_comes_too_late_says_why(ada, engine):
    first = await add_job(engine, "email.send", unique_key="k")
    await fail(engine, first)
    second = await add_job(engine, "email.send", unique_key="k")
    answer = await press(ada, f"/jobs/{first}", f"/jobs/{first}/retry")
    assert answer.status_code == 409
    assert f"its unique key is held by job {second}" in answer.text
    for path in ("/jobs/999/retry", "/jobs/abc/retry", f"/jobs/{first}/explode", "/cron/explode"):
        assert (await press(ada, f"/jobs/{first}", path)).status_code == 404


async def test_picked_jobs_are_changed_together(ada, engine):
    ids = [await add_job(engine, "email.send") for _ in range(3)]
    for job_id in ids:
        await fail(engine, job_id)
    answer = await press(ada, "/jobs?state=failed", "/jobs/change", id=ids[:2], action="retry", state="failed")
    address = answer.headers["location"].removeprefix("..")
    assert address.startswith("/jobs?state=failed&notice=many_retried&count=2&proof=")
    assert [(await row_of(engine, job_id)).state for job_id in ids] == ["ready", "ready", "failed"]
    assert "2 jobs queued again." in (await ada.get(address)).text
    for forged in (address.replace("count=2", "count=99999"), "/jobs?notice=many_retried&count=99999"):
        assert "queued again." not in (await ada.get(forged)).text
    async with visiting(dashboard(engine, authorize=lambda _: Access("ada", act=True))) as elsewhere:
        assert "queued again." not in (await elsewhere.get(address)).text
    assert (await press(ada, "/jobs", "/jobs/change", id=ids, action="explode")).status_code == 400


async def test_nothing_picked_changes_nothing(ada, engine):
    """Also in a list that is filtered: only the confirming page means all that fit."""
    ids = [await add_job(engine, "pdf.render") for _ in range(3)]
    listed = "/jobs?state=ready&name=pdf.render"
    fields = {"state": "ready", "name": "pdf.render", "action": "cancel"}
    answer = await press(ada, listed, "/jobs/change", **fields)
    assert answer.status_code == 422
    assert "No job was picked, so nothing was changed." in answer.text
    assert [(await row_of(engine, job_id)).state for job_id in ids] == ["ready"] * 3
    assert (await press(ada, listed, "/jobs/change", confirmed="1", action="cancel")).status_code == 400  # nor are all
    answer = await press(ada, listed, "/jobs/change", **fields, confirmed="1")
    assert "count=3" in answer.headers["location"]


async def test_all_jobs_of_one_error_are_retried_after_a_look(ada, engine, caplog):
    timeouts = [await add_job(engine, "email.send") for _ in range(3)]
    for job_id in timeouts:
        await fail(engine, job_id, "TimeoutError", "no answer within 10 s")
    other = await add_job(engine, "email.send")
    await fail(engine, other)
    overview = (await ada.get("/")).text
    link = re.search(r'href="\./(jobs/confirm\?[^"]*TimeoutError[^"]*)"', overview)
    assert link
    path = "/" + link[1].replace("&amp;", "&")
    page = (await ada.get(path)).text
    assert "Retry 3 jobs?" in page
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
    answer = await ada.post("/jobs/change", data=form, headers=SAME_SITE)
    assert "count=3" in answer.headers["location"]
    assert [(await row_of(engine, job_id)).state for job_id in timeouts] == ["ready"] * 3
    assert (await row_of(engine, other)).state == JobState.failed
    (line,) = [record for record in caplog.records if record.name == "queue_kit.dashboard"]
    assert line.message == "retry by ada: job_name=email.send error_class=TimeoutError changed=3 skipped=0"
    assert (line.job_name, line.changed) == ("email.send", 3)


async def test_a_log_that_fails_does_not_hide_that_the_change_was_made(ada, engine, capsys):
    job_id = await add_job(engine, "email.send")

    def broken(record):
        raise RuntimeError("the log is full")

    logger = logging.getLogger("queue_kit.dashboard")
    logger.addFilter(broken)
    try:
        answer = await press(ada, f"/jobs/{job_id}", f"/jobs/{job_id}/cancel")
    finally:
        logger.removeFilter(broken)
    assert answer.status_code == 303
    assert "the log is full" in capsys.readouterr().err


async def test_what_is_asked_for_is_what_would_be_changed(ada, engine):
    """A filter that the change would not heed is refused, or not offered."""
    await fail(engine, await add_job(engine, "email.send", unique_key="k"))
    answer = await ada.get("/jobs/confirm?action=cancel&state=running&error_class=")
    assert (answer.status_code, "cannot be cancelled" in answer.text) == (400, True)
    for query, offered in (("", True), ("&name=email.send", True), ("&age=hour", False), ("&q=k", False)):
        text = (await ada.get(f"/jobs?state=failed{query}")).text
        assert 'data-key="1"' in text
        assert ("Retry all failed" in text) is offered, query


async def test_cron_entries_are_run_paused_and_resumed(ada, engine):
    name = "report/daily & <more>"
    await register_cron_jobs(engine, [CronJob(name, "0 6 * * *")])
    for action, paused in (("pause", True), ("resume", False)):
        assert (await press(ada, "/cron", f"/cron/{action}", name=name)).status_code == 303
        assert (await list_cron_jobs(engine))[0].paused is paused
    assert (await press(ada, "/cron", "/cron/run", name=name)).status_code == 303
    (entry,) = await list_cron_jobs(engine)
    assert entry.job_id is not None
    row = await get_job(engine, entry.job_id)
    assert row is not None
    assert row.state == JobState.ready
    await pause_cron_job(engine, name)
    assert 'class="badge paused"' in (await ada.get("/cron")).text
    assert (await press(ada, "/cron", "/cron/run", name="nobody")).status_code == 404


@pytest.mark.parametrize("name", ["\0", "a\0b", " ", "x" * 201])
async def test_a_name_that_can_be_none_finds_nothing(ada, engine, name):
    job_id = await add_job(engine, "email.send", delay=60)
    for action in ("cancel", "retry"):
        answer = await ada.get("/jobs/confirm", params={"action": action, "name": name})
        assert (answer.status_code, "No job fits any more" in answer.text) == (200, True)
    on = f"/jobs/{job_id}"
    assert (await press(ada, on, "/cron/run", name=name)).status_code == 404
    answer = await press(ada, on, "/jobs/change", action="cancel", name=name, confirmed="1")
    assert (answer.status_code, "count=0" in answer.headers["location"]) == (303, True)
    assert (await ada.get("/jobs", params={"name": name, "q": name})).status_code == 200


async def test_a_notice_cannot_be_put_into_an_address(ada):
    text = (await ada.get("/?notice=Call+0900+now&count=<b>")).text
    assert "0900" not in text
    assert '<p class="notice"' not in text


# --- where it stands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [FastAPI, Starlette])
async def test_it_works_under_any_prefix(engine, frame):
    job_id = await add_job(engine, "email.send")
    app = frame()
    app.router.routes.append(Mount("/admin/queue", dashboard(engine, authorize=lambda _: Access("ada", act=True))))
    async with visiting(app, follow_redirects=True) as ada:
        for path in PATHS:
            text = (await ada.get(f"/admin/queue{path}")).text
            links = re.findall(r'(?:href|action|src)="([^"#]+)"', text)
            assert links
            assert not [link for link in links if link.startswith("/") or "//" in link], path
        answer = await press(ada, f"/admin/queue/jobs/{job_id}", f"/admin/queue/jobs/{job_id}/cancel")
        assert answer.url.path == f"/admin/queue/jobs/{job_id}"
        assert "The job is cancelled." in answer.text
        assert (await ada.get("/admin/queue")).url.path == "/admin/queue/"


async def test_a_page_finds_its_files_whatever_its_address(ada):
    for path, up in {
        "/": "./",
        "/jobs/1": "../",
        "/a/b/c": "../../",
        "/a%2Fb%2fc": "./",
        "/jobs/..%2F..%2Fx": "../",
    }.items():
        assert f'src="{up}static/dashboard.js?' in (await ada.get(path)).text, path


async def test_the_prefix_itself_leads_below_it(engine):
    app = dashboard(engine, authorize=lambda _: Access("ada"))
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/a/queue",
        "root_path": "/a/queue",
        "headers": [],
    }
    sent = []

    async def send(message):
        sent.append(message)

    await app(scope | {"query_string": b"", "scheme": "http", "server": ("x", 80)}, None, send)
    assert sent[0]["status"] == 307
    assert dict(sent[0]["headers"])[b"location"] == b"queue/"


# --- the database -----------------------------------------------------------------------------------------------------


async def test_a_database_that_does_not_answer_is_a_page_and_a_line(caplog):
    engine = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    async with visiting(dashboard(engine, authorize=lambda _: Access("ada"))) as ada:
        answer = await ada.get("/")
    assert answer.status_code == 503
    assert "The queue does not answer" in answer.text
    assert "the database did not serve the dashboard" in caplog.text
    await engine.dispose()


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times for which pages wait, so short that a test can."""
    monkeypatch.setattr(_pool, "PATIENCE", 0.5)
    monkeypatch.setattr(_pool, "CUT", 0.8)


@pytest.mark.parametrize("way", ["stalled", "mute"])
async def test_no_page_waits_for_a_database_that_is_silent(pg_engine, monkeypatch, way):
    """Neither on a connection that it had, nor on a new one; and when the database is back, so are the pages."""
    async with (
        through_proxy(pg_engine) as (proxy, engine),
        visiting(dashboard(engine, authorize=lambda _: Access("ada", act=True))) as ada,
    ):
        job_id = await add_job(pg_engine, "email.send")
        token = await token_on(ada, f"/jobs/{job_id}")
        impatient(monkeypatch)
        if way == "stalled":
            proxy.stall()
        else:
            proxy.cut()
            proxy.mute = True
        async with asyncio.timeout(10):  # a minute, and longer, without the limits
            pages = [ada.get(path) for path in (*PATHS, "/names", "/names", "/jobs")]
            change = ada.post(f"/jobs/{job_id}/cancel", data={"token": token}, headers=SAME_SITE)
            answers = await asyncio.gather(change, *pages)
        assert {answer.status_code for answer in answers} <= {200, 503}, way
        assert 503 in {answer.status_code for answer in answers}
        proxy.mute = False
        proxy.cut()

        async def back():
            return (await ada.get("/names")).status_code == 200

        await until(back)


async def test_those_who_wait_for_one_thing_are_told_together(pg_engine, monkeypatch):
    pool, reads = Pool(pg_engine), []
    async with pool.reading():
        pass
    impatient(monkeypatch)

    async def once() -> None:
        async with pool.reading() as session:
            reads.append(session)
            await session.execute(text("SELECT 1 FROM queue_kit_job"))

    shared = Shared(once)
    async with pg_engine.begin() as connection:
        await connection.execute(text("LOCK TABLE queue_kit_job IN ACCESS EXCLUSIVE MODE"))
        failures = await asyncio.gather(*(shared.get() for _ in range(6)), return_exceptions=True)
    assert len(reads) == 1
    assert all(isinstance(failure, SQLAlchemyError) for failure in failures)


async def test_two_pages_are_read_at_once_and_a_third_waits(engine):
    pool = Pool(engine)
    async with pool.reading(), pool.reading():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_pool, "PATIENCE", 0.2)
            with pytest.raises(TimeoutError):
                await pool.reading().__aenter__()
    async with pool.reading() as session:
        assert (await session.execute(text("SELECT 1"))).scalar_one() == 1


async def test_a_page_cannot_write_and_its_statements_end(pg_engine):
    pool = Pool(pg_engine)
    async with pool.reading() as session:
        assert (await session.execute(text("SHOW statement_timeout"))).scalar_one() == "5s"
        with pytest.raises(DBAPIError, match="read-only transaction"):
            await session.execute(text("DELETE FROM queue_kit_job"))
    async with pool.writing() as session:
        assert (await session.execute(text("SHOW statement_timeout"))).scalar_one() == "5s"


async def test_the_pool_closes_with_the_engine(pg_engine):
    async with visiting(dashboard(pg_engine, authorize=lambda _: Access("ada"))) as ada:
        assert (await ada.get("/jobs")).status_code == 200
    look = create_async_engine(pg_engine.url)
    count = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
    async with look.connect() as connection:
        assert (await connection.execute(count)).scalar_one() >= 1
        await connection.rollback()
        await pg_engine.dispose()

        async def gone():
            found = (await connection.execute(count)).scalar_one()
            await connection.rollback()
            return found == 0

        await until(gone)
    await look.dispose()


async def test_an_unfit_sqlite_engine_is_refused(tmp_path):
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(ConfigurationError, match="sqlite_engine"):
        dashboard(engine, authorize=lambda _: None)
