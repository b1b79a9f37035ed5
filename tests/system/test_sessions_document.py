"""docs/sessions.md keeps its word: its code is run as it stands there, block after block."""

import ast
import inspect
import re
from pathlib import Path
from types import CodeType
from typing import Any

import httpx
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import QueueWorker, migrate, register_cron_jobs
from queue_kit.contrib import sessions
from tests.checks.test_documents import blocks

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "sessions.md").read_text()


def compiled(code: str) -> CodeType:
    return compile(code, "docs/sessions.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


async def test_the_code_of_the_document_runs(engine: AsyncEngine, monkeypatch) -> None:
    monkeypatch.setenv("SESSION_KEY", "one secret of the environment, long enough")
    await migrate.upgrade(engine, extras=["sessions"])
    shown: dict[str, Any] = {"engine": engine, "__name__": "document"}
    python = [block.text for block in blocks(DOCUMENT) if block.language == "python"]
    assert len(python) == 7
    for code in python:
        if inspect.isawaitable(running := eval(compiled(code), shown)):
            await running
    assert shown["session"].data.items == ["tea"]

    pair = await shown["store"].create(engine, shown["Cart"](user_id=1))
    assert (pair.refresh_expires_at - pair.access_expires_at).total_seconds() == 86_400 - 300
    bearer = {"Authorization": f"Bearer {pair.access_token}"}
    shown["app"].state.engine = engine
    async with httpx.AsyncClient(transport=httpx.ASGITransport(shown["app"]), base_url="http://shop") as client:
        assert (await client.get("/cart", headers=bearer)).json() == {"user_id": 1, "items": []}
        assert (await client.get("/cart")).status_code == 401
        answer = await client.post("/refresh", json={"refresh_token": pair.refresh_token})
    async with TestClient(TestServer(shown["web_app"])) as other:
        bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        assert await (await other.get("/cart", headers=bearer)).json() == []
        assert (await other.get("/cart")).status == 401
        assert (await other.post("/log-in")).status == 200
    transport = httpx.ASGITransport(shown["site"])
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", headers={"Origin": "http://shop"}) as it:
        assert (await it.post("/log-out")).headers["location"] == "/log-in"
        assert (await it.post("/log-in")).headers["location"] == "/"
        assert set(it.cookies) == {"session-access", "session-refresh"}
        assert (await it.post("/log-out")).headers["location"] == "/"
        assert not it.cookies

    assert {cron_job.name for cron_job in shown["CRON"]} < set(shown["jobs"])
    await register_cron_jobs(engine, shown["CRON"])
    assert set((await QueueWorker(engine, shown["jobs"]).drain()).values()) == {0}

    sql = next(block.text for block in blocks(DOCUMENT) if block.language == "sql")
    async with engine.connect() as connection:
        assert {row.key_id for row in await connection.execute(text(sql))} == {"2026-11"}


def test_the_document_names_every_error_and_all_that_is_public() -> None:
    public = {name: getattr(sessions, name) for name in sessions.__all__}
    errors = {name for name, each in public.items() if isinstance(each, type) and issubclass(each, Exception)}
    assert set(re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)) == errors - {"SessionError", "Unauthorized"}
    assert {name for name in public if name not in DOCUMENT} == {"SessionRow", "SessionTokenRow", "TokenPair"}
