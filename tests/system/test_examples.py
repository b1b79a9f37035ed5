"""The examples, each run for real: the scripts as processes of their own, the web applications in this one."""

import asyncio
import contextlib
import hashlib
import importlib
import sqlite3
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import JobRow, JobState, list_jobs
from tests.crowd import running
from tests.database.running import alone
from tests.database.session_stores import move_back
from tests.files.corpus import landscape, written
from tests.support import count_jobs, move, reading, until

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = CHECKOUT / "examples"


def started(
    script: str, *arguments: object, cwd: Path
) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """An example as a process."""
    return running(sys.executable, EXAMPLES / script, *arguments, cwd=cwd)


async def finished(process: asyncio.subprocess.Process, *, seconds: float = 40.0) -> str:
    """What the process printed; it must end by itself with status 0 and nothing on stderr but its log."""
    async with asyncio.timeout(seconds):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert "Traceback" not in err.decode()
    return out.decode()


async def output(script: str, *arguments: object, cwd: Path) -> str:
    async with started(script, *arguments, cwd=cwd) as process:
        return await finished(process)


def where(database_url: str) -> tuple[str, str]:
    """The runner's options for a database."""
    if database_url.startswith("sqlite"):
        return "--database", str(make_url(database_url).database)
    return "--database-url", database_url


async def query(engine: AsyncEngine, sql: str) -> list[Any]:
    async with reading(engine).connect() as connection:
        return list((await connection.execute(text(sql))).all())


async def counted(engine: AsyncEngine) -> int:
    """How many rows the runner has written; none while its table is not there."""
    try:
        ((rows,),) = await query(engine, "SELECT count(*) FROM runner_file_count")
    except DBAPIError:
        return 0
    return int(rows)


def table(printed: str) -> dict[str, list[str]]:
    """The runner's report: by language, files, lines and words."""
    lines = printed.split("language", 1)[1].split("\n\n", maxsplit=1)[0].splitlines()[1:]
    return {words[0]: words[1:] for words in map(str.split, lines)}


# --- runner.py --------------------------------------------------------------------------------------------------------


async def test_runner_counts_the_text_files_of_a_folder(database_url: str, engine: AsyncEngine, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    for name, content in {
        "a.py": b"import this\n\nthat = 1\n",
        "sub/b.py": b"no newline at the end",
        "sub/readme.md": "ünïcode wörds\nhere\n".encode(),
        "empty": b"",
        "binary.bin": b"abc\0def",
        "large.txt": b"x" * (1024 * 1024 + 1),
        ".git/config": b"skipped",
        ".venv-3.13/lib.py": b"skipped",
        "sub/__pycache__/x.txt": b"skipped",
        ".pytest_cache/README.md": b"skipped",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link.py").symlink_to(folder / "a.py")

    printed = await output("runner.py", folder, *where(database_url), "--parallel", 3, cwd=tmp_path)

    assert "4 text files in" in printed
    assert "runner.scan every minute: 1 added" in printed
    assert table(printed) == {
        "Python": ["2", "4", "10"],
        "Markdown": ["1", "2", "3"],
        "other": ["1", "0", "0"],
        "total": ["4", "6", "13"],
    }
    assert "runner.flaky: completed after 2 failed tries" in printed
    assert "try 2: ConnectionError: the service is away (try 2)" in printed
    assert (
        "runner.slow: failed after 1 failed tries\n    try 1: DeadlineExceeded: the handler's 0.5 s are over" in printed
    )
    assert "failed 1 (all runs)" in printed
    rows = await query(engine, "SELECT path, sha256 FROM runner_file_count WHERE language = 'Markdown'")
    readme = folder / "sub/readme.md"
    assert [tuple(row) for row in rows] == [(str(readme), hashlib.sha256(readme.read_bytes()).hexdigest())]

    (folder / "a.py").write_bytes(b"changed\n")
    printed = await output("runner.py", folder, *where(database_url), cwd=tmp_path)

    assert "4 text files in" in printed
    assert "1 of them new" in printed
    assert table(printed)["Python"] == ["2", "2", "6"]
    assert await counted(engine) == 5


async def test_runner_needs_no_arguments(tmp_path: Path) -> None:
    printed = await output("runner.py", cwd=tmp_path)

    assert f"text files in {CHECKOUT}" in printed
    assert int(table(printed)["Python"][0]) > 40
    with contextlib.closing(sqlite3.connect(tmp_path / "queue_kit_runner.db")) as database:
        (paths,) = database.execute("SELECT count(*) FROM runner_file_count WHERE path LIKE '%/queue_kit/worker.py'")
    assert paths == (1,)


FILES = 600


async def test_killed_runner_finishes_exactly_the_rest(database_url: str, engine: AsyncEngine, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number}.txt").write_text(f"file {number}\n" * (number % 50 + 1))
    arguments = ("runner.py", folder, *where(database_url), "--parallel", 4)

    async with started(*arguments, cwd=tmp_path) as process:
        await until(lambda: enough(engine, 20))
        process.kill()
        await process.wait()
    await alone(engine)
    done = await counted(engine)
    assert 20 <= done < FILES
    # A result is there exactly when its job is complete.
    assert await count_jobs(engine, JobRow.name == "runner.count", JobRow.is_complete) == done

    printed = await output(*arguments, cwd=tmp_path)

    assert f"{FILES} text files" in printed
    assert ", 0 of them new" in printed
    left = int(printed.split("unfinished jobs of an earlier run: ")[1].split()[0])
    assert FILES - done <= left <= FILES - done + 2  # two more jobs are in trouble
    rows = await query(engine, "SELECT path, lines, words, job_id FROM runner_file_count")
    assert len(rows) == len({row.job_id for row in rows}) == FILES
    expected = {str(folder / f"{number}.txt"): (number % 50 + 1, 2 * (number % 50 + 1)) for number in range(FILES)}
    assert {row.path: (row.lines, row.words) for row in rows} == expected
    lines = sum(each for each, _ in expected.values())
    assert table(printed)["total"] == [f"{FILES:,}", f"{lines:,}", f"{2 * lines:,}"]
    assert await count_jobs(engine, JobRow.name == "runner.count") == FILES


async def enough(engine: AsyncEngine, rows: int) -> bool:
    return await counted(engine) >= rows


async def test_runner_serves_until_sigterm(database_url: str, engine: AsyncEngine, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "first.txt").write_text("one\n")
    async with started("runner.py", folder, *where(database_url), "--serve", cwd=tmp_path) as process:
        await until(lambda: enough(engine, 1))
        assert process.returncode is None
        (folder / "second.txt").write_text("two words\n")
        (scan,) = await until(lambda: list_jobs(engine, name="runner.scan", state=JobState.scheduled))
        await move(engine, scan.id, scheduled_at=-120)  # the minute is over
        await until(lambda: enough(engine, 2))
        process.terminate()
        printed = await finished(process)
    assert f"serving   as process {process.pid}" in printed
    assert table(printed)["total"] == ["2", "2", "3"]


async def test_runner_adds_no_file_that_is_counted_meanwhile(
    pg_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = imported("runner", monkeypatch)
    async with pg_engine.begin() as connection:
        await connection.run_sync(runner.Base.metadata.create_all)
    files = [runner.SourceFile(f"/{number}.py", 1, 1) for number in range(3)]
    add_jobs = runner.add_jobs

    async def add_after_another_worker(session: AsyncSession, new: list[Any]) -> Any:
        async with AsyncSession(pg_engine) as other:
            row = {"path": "/1.py", "language": "Python", "sha256": "", "size": 1, "lines": 1, "words": 1, "job_id": 1}
            other.add(runner.FileCount(key=files[1].key, **row))
            await other.commit()
        return await add_jobs(session, new)

    monkeypatch.setattr(runner, "add_jobs", add_after_another_worker)
    async with AsyncSession(pg_engine) as session:
        assert await runner.enqueue(session, files) == 2
        await session.commit()

    assert {job.data["path"] for job in await list_jobs(pg_engine)} == {"/0.py", "/2.py"}


async def test_runner_shows_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runner = imported("runner", monkeypatch)

    with runner.progress(3) as show:
        show(3)
    assert capsys.readouterr().out == ""

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with runner.progress(3) as show:
        show(1)
        show(3)
    assert "3/3" in capsys.readouterr().out

    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda _name: None)
    with runner.progress(3) as show:
        show(1)
        show(3)
    assert capsys.readouterr().out == "\r1 of 3 jobs\r3 of 3 jobs\n"


async def test_runner_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    for arguments in (("nowhere",), (tmp_path, "--parallel", 0)):
        async with started("runner.py", *arguments, cwd=tmp_path) as process:
            _, err = await process.communicate()
        assert process.returncode == 2
        assert b"Traceback" not in err
    assert not list(tmp_path.iterdir())


# --- cron.py, transactional.py ----------------------------------------------------------------------------------------


async def test_cron_shows_plan_and_ticks(database_url: str, tmp_path: Path) -> None:
    given = () if database_url.startswith("sqlite") else ("--database-url", database_url)
    printed = await output("cron.py", 2, *given, cwd=tmp_path)

    names = "queue_kit.queue.cleanup, queue_kit.queue.insights, example.tick, example.report"
    assert f"registered\n  added: {names}\nagain\n  unchanged: {names}\n" in printed
    ticks = [line.split()[1] for line in printed.splitlines() if line.startswith("tick ")]
    assert len(set(ticks)) == 2
    assert "removed\n  removed: example.report, example.tick" in printed


async def test_transactional_effect_survives_kill_once(database_url: str, engine: AsyncEngine, tmp_path: Path) -> None:
    printed = await output("transactional.py", "--database-url", database_url, cwd=tmp_path)

    assert "job 1 is running, the ledger has 0 entries" in printed
    assert "job 1 is completed, the ledger has 2 entries for it\n   ada    -100\n   grace  +100\n" in printed
    assert "exit status is 0" in printed
    rows = await query(engine, "SELECT account, amount, job_id FROM transactional_entry ORDER BY id")
    assert [tuple(row) for row in rows] == [("ada", -100, 1), ("grace", 100, 1)]
    (job,) = await list_jobs(engine)
    assert (job.state, job.lost) == (JobState.completed, 1)


async def test_transactional_needs_no_arguments(tmp_path: Path) -> None:
    assert "is completed, the ledger has 2 entries" in await output("transactional.py", cwd=tmp_path)
    assert not list(tmp_path.iterdir())


# --- the web applications ---------------------------------------------------------------------------------------------


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


async def test_fastapi(database_url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    module = imported("fastapi_app", monkeypatch)
    app = module.create_app()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):

        async def confirmed(order_id: int) -> bool:
            answer = (await client.get(f"/orders/{order_id}")).json()
            return bool(answer == {"id": order_id, "email": "ada@example.org", "confirmed": True})

        answer = await client.post("/orders", json={"email": "ada@example.org"})
        assert (answer.status_code, answer.json()["confirmed"]) == (201, False)
        await until(lambda: confirmed(answer.json()["id"]))
        assert (await client.get("/orders/999")).status_code == 404
        assert (await client.post("/orders", json={})).status_code == 422

        # What fails after both were written leaves neither.
        add = module.confirm_order.add

        async def add_and_fail(*args: Any) -> None:
            await add(*args)
            raise RuntimeError("no")

        monkeypatch.setattr(module.confirm_order, "add", add_and_fail)
        assert (await client.post("/orders", json={"email": "b"})).status_code == 500
        assert len(await query(engine, "SELECT id FROM fastapi_order")) == 1
        assert await count_jobs(engine) == 1
    (job,) = await list_jobs(engine)
    assert job.state == JobState.completed


async def test_images(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("IMAGES", str(tmp_path / "uploads"))
    app = imported("images", monkeypatch).create_app()
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        answer = await client.post("/images", params={"name": "hills.jpg"}, content=written(landscape(1), quality=95))
        assert answer.status_code == 201
        address = f"/images/{answer.json()['id']}"

        async def shown(accept: str) -> bool:
            image = await client.get(address, params={"w": 300}, headers={"Accept": accept})
            return bool(image.headers["Content-Type"] == "image/avif" and len(image.content) < 20_000)

        await until(lambda: shown("image/avif,image/webp,*/*;q=0.8"))

        async def listed() -> bool:
            page = (await client.get("/")).text
            assert 'alt="hills.jpg"' in page
            return "background-image: url(data:image/jpeg;base64," in page

        await until(listed)  # the placeholder is another job's, which may end after the variant's
        turns = await asyncio.gather(*(client.post(f"{address}/turn") for _ in range(2)))  # a double click
        assert sorted(turn.status_code for turn in turns) == [204, 409]
        assert (await client.delete(address)).status_code == 204
        assert (await client.get(address)).status_code == 404
        assert (await client.post("/images", params={"name": "x.jpg"}, content=b"<svg/>")).status_code == 415


async def test_aiohttp(database_url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    module = imported("aiohttp_app", monkeypatch)
    async with TestClient(TestServer(module.create_app())) as client:

        async def confirmed(order_id: int) -> bool:
            answer = await (await client.get(f"/orders/{order_id}")).json()
            return bool(answer == {"id": order_id, "email": "ada@example.org", "confirmed": True})

        answer = await client.post("/orders", json={"email": "ada@example.org"})
        assert answer.status == 201
        body = await answer.json()
        assert body["confirmed"] is False
        await until(lambda: confirmed(body["id"]))
        assert (await client.get("/orders/999")).status == 404
        assert (await client.post("/orders", data=b"{")).status == 400
        assert len(await query(engine, "SELECT id FROM aiohttp_order")) == 1
    (job,) = await list_jobs(engine)
    assert job.state == JobState.completed


async def test_sessions(
    database_url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("SESSION_KEY", "one secret of the environment, long enough")
    app = imported("sessions", monkeypatch).create_app()
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):

        async def post(path: str, token: str | None = None, **body: str) -> httpx.Response:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return await client.post(path, json=body, headers=headers)

        assert (await post("/log-in", name="ada", passphrase="guessed")).status_code == 401
        answer = await post("/log-in", name="ada", passphrase="engine")
        assert answer.headers["cache-control"] == "no-store"
        first = answer.json()
        puts = [post("/cart", first["access_token"], name=item) for item in ("tea", "milk", "sugar")]
        assert {each.status_code for each in await asyncio.gather(*puts)} == {200}
        assert (await client.get("/cart")).headers["www-authenticate"] == 'Bearer realm="shop"'

        second = (await post("/refresh", refresh_token=first["refresh_token"])).json()
        assert (await post("/refresh", refresh_token=first["refresh_token"])).json() == second
        cart = await client.get("/cart", headers={"Authorization": f"Bearer {second['access_token']}"})
        assert (cart.json()["user"], sorted(cart.json()["items"])) == ("ada", ["milk", "sugar", "tea"])
        assert (await post("/cart", first["access_token"], name="late")).status_code == 401

        await move_back(engine, rotated_at=16)
        with caplog.at_level("WARNING", "queue_kit.job"):
            assert (await post("/refresh", refresh_token=first["refresh_token"])).status_code == 401
            await until(lambda: "a refresh token of it came again" in caplog.text)
        assert (await post("/log-out", second["access_token"])).status_code == 401

        third = (await post("/log-in", name="ada", passphrase="engine")).json()
        assert (await post("/log-out", third["access_token"])).status_code == 204
        assert (await post("/log-out", third["access_token"])).status_code == 401
