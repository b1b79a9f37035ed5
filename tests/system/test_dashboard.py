"""The dashboard where applications serve it: under aiohttp, and by `queue-kit dashboard` as a process of its own."""

import asyncio
import base64
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy import text

from queue_kit import JobState, add_job
from tests.database.running import waits_for_a_lock
from tests.support import SQLALCHEMY_2_0, row_of, until
from tests.system.test_examples import imported

VARIABLE = "QUEUE_KIT_DATABASE_URL"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "dashboard.md"
SAME_SITE = {"sec-fetch-site": "same-origin"}


def token_in(page: str) -> str:
    found = re.search(r'name="token" value="(\w+)"', page)
    assert found
    return found[1]


def test_the_documents_pictures_are_small():
    sizes = [path.stat().st_size for path in (DOCUMENT.parent / "images").glob("dashboard-*.png")]
    assert sizes
    assert max(sizes) < 150_000


async def test_the_document_shows_how_to_mount_it(engine):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    namespace: dict[str, Any] = {"engine": engine, "OPERATORS": {"ada"}}
    exec(code, namespace)

    async def look(session: dict[str, str]) -> httpx.Response:
        async def app(scope: Any, receive: Any, send: Any) -> None:  # as a session's middleware does
            await namespace["app"]({**scope, "session": session}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as visitor:
            return await visitor.get("/queue/")

    assert (await look({})).status_code == 403
    assert "read only" in (await look({"user": "bob"})).text
    assert "read only" not in (await look({"user": "ada"})).text


async def test_aiohttp(database_url: str, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("DASHBOARD_PASSWORD", "open sesame")
    app = imported("aiohttp_dashboard", monkeypatch).create_app()
    job_id = await add_job(engine, "email.send", {"note": "<é>"}, delay=60)
    async with TestClient(TestServer(app)) as stranger:
        refused = await stranger.get("/queue/")
        assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Basic realm="queue"')
        assert (await stranger.get("/queue/jobs", headers={"authorization": "Basic !"})).status == 401
        assert (await stranger.get("/elsewhere")).status == 404
        ada = {"authorization": f"Basic {base64.b64encode(b'ada:open sesame').decode()}"}
        overview = await stranger.get("/queue", headers=ada)  # to the prefix with its slash, by a relative redirect
        assert overview.url.path == "/queue/"
        assert overview.headers["content-security-policy"].startswith("default-src 'none'")
        page = await (await stranger.get(f"/queue/jobs/{job_id}", headers=ada)).text()
        assert "&lt;é&gt;" in page
        styles = await stranger.get("/queue/static/dashboard.css")
        assert styles.headers["content-type"].startswith("text/css")
        form = {"token": token_in(page)}
        answer = await stranger.post(f"/queue/jobs/{job_id}/cancel", data=form, headers=SAME_SITE | ada)
        assert answer.url.path == f"/queue/jobs/{job_id}"
        assert "The job is cancelled." in await answer.text()
        group = {
            "action": "retry",
            "name": "a&b",
            "error_class": "E",
            "message": "no … & = + %",
        }  # what links say of one
        page = await (await stranger.get("/queue/jobs/confirm", params=group, headers=ada)).text()
        assert "<dd>no … &amp; = + %</dd>" in page
        assert "<dd>a&amp;b</dd>" in page
        too_much = await stranger.post(f"/queue/jobs/{job_id}/retry", data={"x": "x" * 70_000}, headers=ada)
        assert too_much.status == 413
    assert (await row_of(engine, job_id)).state == JobState.cancelled


@asynccontextmanager
async def served(*options: str, url: str, cwd: Path) -> AsyncIterator[str]:
    """`queue-kit dashboard` as a process; yields the address that it prints. It ends by SIGINT, without a word."""
    command = [sys.executable, "-m", "queue_kit", "dashboard", "--port", "0", *options]
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, VARIABLE: url, "USER": "ada", "LOGNAME": "ada"}
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = (await process.stdout.readline()).decode()
        assert line, (await process.communicate())[1].decode()
        yield line.split()[-1]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(30):
                _, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            raise
    assert process.returncode == 0
    assert SQLALCHEMY_2_0 or "Traceback" not in errors.decode()
    secret = line.split("/")[-2]
    assert secret not in errors.decode()


async def test_the_command_serves_whoever_knows_its_address(database_url, engine, tmp_path):
    job_id = await add_job(engine, "email.send", delay=60)
    async with served(url=database_url, cwd=tmp_path) as address:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", address)
        root, key = re.fullmatch(r"(.*:\d+/)(.*)/", address).groups()  # type: ignore[union-attr]
        async with httpx.AsyncClient(base_url=address, follow_redirects=True) as visitor:
            page = await visitor.get(f"jobs/{job_id}")
            assert "email.send" in page.text
            assert (await visitor.get(address.removesuffix("/"))).url == address
            for wrong in (
                root,
                f"{root}jobs",
                f"{root}{key[:-1]}/",
                f"{root}{key}x/jobs",
                f"{root}static/dashboard.js",
            ):
                answer = await visitor.get(wrong)
                assert (answer.status_code, "printed" in answer.text) == (404, True), wrong
            for host in ("attacker.test", "127.0.0.1", "attacker.test:80"):  # a name that was made to lead here
                assert (await visitor.get("", headers={"host": host})).status_code == 404
            form = {"token": token_in(page.text)}
            answer = await visitor.post(f"jobs/{job_id}/cancel", data=form, headers=SAME_SITE)
            assert "The job is cancelled." in answer.text
    assert (await row_of(engine, job_id)).state == JobState.cancelled


async def test_the_command_can_be_told_to_change_nothing(sqlite_path, tmp_path):
    url = f"sqlite:///{sqlite_path}"
    async with served("--read-only", url=url, cwd=tmp_path) as address, httpx.AsyncClient(base_url=address) as visitor:
        assert "read only" in (await visitor.get("")).text
        assert (await visitor.post("jobs/1/cancel", headers=SAME_SITE)).status_code == 403


async def test_the_command_ends_at_once_while_a_page_waits(pg_engine, tmp_path):
    url = pg_engine.url.render_as_string(hide_password=False)
    async with pg_engine.begin() as connection, httpx.AsyncClient() as visitor:
        async with served(url=url, cwd=tmp_path) as address:
            await connection.execute(text("LOCK TABLE queue_kit_job IN ACCESS EXCLUSIVE MODE"))
            page = asyncio.create_task(visitor.get(f"{address}jobs", timeout=30))
            await until(lambda: waits_for_a_lock(pg_engine))
        (ended,) = await asyncio.gather(page, return_exceptions=True)
    # Cut off: that the database does not answer would be another page, and later.
    assert isinstance(ended, httpx.TransportError) or ended.text == "The dashboard has ended.\n"
