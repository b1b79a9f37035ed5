"""examples/shop: its own tests, and its process killed while orders come in."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from textwrap import indent
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.checks.test_documents import blocks
from tests.conftest import Server, engine_for
from tests.crowd import running
from tests.support import free_port, reading, until
from tests.system.test_pytest_plugin import run

SHOP = Path(__file__).resolve().parents[2] / "examples" / "shop"
PASSWORD = "analytical engine"  # pragma: allowlist secret
ORDERS = 200
LIVE = "SELECT count(*) FROM queue_kit_job WHERE status = 1 AND name = 'order.confirm'"


async def test_its_own_tests_pass(database: Server | Path, tmp_path: Path) -> None:
    tests = sum(path.read_text().count("async def test_") for path in (SHOP / "tests").glob("test_*.py"))
    arguments = () if isinstance(database, Path) else ("--queue-kit-server", database.url)

    assert f"{tests} passed" in await run(SHOP, "--basetemp", tmp_path / "run", *arguments, cwd=tmp_path)


def test_the_page_shows_the_shop_as_it_is() -> None:
    shown = [
        block for block in blocks((SHOP.parents[1] / "docs" / "shop.md").read_text()) if block.language == "python"
    ]
    assert len(shown) >= 10
    for block in shown:
        source = (SHOP.parents[1] / block.title).read_text()
        assert all(part in source or indent(part, "    ") in source for part in block.text.strip().split("\n\n\n"))


@contextlib.asynccontextmanager
async def started(port: int, folder: Path, database_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The shop as a process, when it answers; it is gone afterwards."""
    settings = {"SHOP_FOLDER": str(folder), "SHOP_DATABASE_URL": database_url, "SHOP_PORT": str(port)}
    settings |= {"SHOP_LEASE": "2", "SHOP_STAFF_PASSWORD": PASSWORD}
    with (folder.parent / "log").open("ab") as log:
        options = {"cwd": SHOP, "stdout": log, "stderr": log, "env": {**os.environ, **settings}}
        async with running(sys.executable, "-m", "shop", **options) as process:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                await until(lambda: answers(client), seconds=40)
            yield process


async def answers(client: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return (await client.get("/health")).status_code == 200
    return False


async def number(engine: AsyncEngine, sql: str) -> int:
    """Also while a frozen process has SQLite's lock."""
    async with reading(engine).connect() as connection:
        return int(await connection.scalar(text(sql)) or 0)


async def frozen_at_work(process: asyncio.subprocess.Process, engine: AsyncEngine, placed: list[str]) -> bool:
    """Whether it stands still in the middle: orders are placed, and some of them wait for their confirmation."""
    if len(placed) < ORDERS // 4:
        return False
    process.send_signal(signal.SIGSTOP)
    if await number(engine, LIVE):
        return True
    process.send_signal(signal.SIGCONT)
    return False


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = engine_for(empty_database_url)
    yield engine
    await engine.dispose()


async def test_killed_under_load_it_confirms_every_order_once(
    empty: AsyncEngine, empty_database_url: str, tmp_path: Path
) -> None:
    port = free_port()
    folder = tmp_path / "data"
    placed: list[str] = []
    broken = 0
    keys = [str(uuid4()) for _ in range(ORDERS)]
    waiting = iter(keys)

    async def buy(client: httpx.AsyncClient) -> None:
        """Send each form until it is answered, as somebody does whose page did not load."""
        nonlocal broken
        for key in waiting:
            form = {"product_id": 1, "quantity": 1, "key": key}
            while True:
                try:
                    answer = await client.post("/orders", data=form)
                    break
                except httpx.TransportError:
                    broken += 1
                    await asyncio.sleep(0.1)
            assert answer.status_code == 303
            placed.append(answer.headers["location"])

    headers = {"Origin": f"http://127.0.0.1:{port}"}
    async with (
        contextlib.AsyncExitStack() as stack,
        httpx.AsyncClient(base_url=headers["Origin"], headers=headers, timeout=30) as client,
    ):
        async with started(port, folder, empty_database_url) as process:
            await client.post("/sign-up", data={"email": "ada@example.org", "password": PASSWORD})
            buyers = await stack.enter_async_context(asyncio.TaskGroup())
            for _ in range(8):
                buyers.create_task(buy(client))
            await until(lambda: frozen_at_work(process, empty, placed))
            process.kill()
            await process.wait()
        assert len(placed) < ORDERS
        await stack.enter_async_context(started(port, folder, empty_database_url))
        await until(lambda: len(placed) == ORDERS, seconds=40)
        await until(lambda: nothing_waits(empty), seconds=40)

    assert broken
    assert len(set(placed)) == ORDERS
    assert await number(empty, "SELECT count(*) FROM customer_order WHERE confirmed_at IS NOT NULL") == ORDERS
    assert await number(empty, "SELECT count(*) FROM sale") == ORDERS
    assert await number(empty, "SELECT count(DISTINCT order_id) FROM sale") == ORDERS
    assert await number(empty, "SELECT stock FROM product WHERE id = 1") == 500 - ORDERS
    assert await number(empty, "SELECT count(*) FROM queue_kit_job WHERE status IN (3, 4)") == 0
    assert len(list((folder / "outbox").glob("*.eml"))) == ORDERS


async def nothing_waits(engine: AsyncEngine) -> bool:
    """No confirmation, and no mail."""
    live = "SELECT count(*) FROM queue_kit_job WHERE status IN (0, 1) AND name IN ('order.confirm', 'email.send')"
    return await number(engine, live) == 0
