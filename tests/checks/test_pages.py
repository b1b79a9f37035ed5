"""The pages keep their word: each snippet of the documentation that is new here is run as it stands, on SQLite."""

import socket
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import sqlite_engine
from tests.checks.reader import Notebook, Shell
from tests.checks.test_documents import blocks

DOCS = Path(__file__).resolve().parents[2] / "docs"
ELSEWHERE = {"testing.md", "telemetry.md"}
"""Pages that other tests run."""

OLDER = {"operating.md", "dashboard.md", "scaling.md", "cli.md", "performance.md", "reliability.md"}
"""Pages whose few snippets are shown in the tests of what they describe."""

STARTS = sorted((DOCS / "start").glob("*.md"))
PAGES = sorted(
    page
    for page in [*DOCS.glob("*.md"), *DOCS.glob("moving/*.md")]
    if page.name not in ELSEWHERE | OLDER and "```python" in page.read_text()
)


@pytest.fixture
async def sqlite(sqlite_path: Path):
    engine: AsyncEngine = sqlite_engine(sqlite_path)
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in STARTS])
async def test_a_start_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shell = Shell(tmp_path, port)
    try:
        for block in blocks(page.read_text()):
            await shell.read(block)
    finally:
        await shell.close()
    assert shell.commands >= 5


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
async def test_a_page_does_what_it_says(
    page: Path, sqlite: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    notebook = Notebook(f"page_{page.stem.replace('-', '_')}", engine=sqlite)
    for block in blocks(page.read_text()):
        if block.title:
            with (tmp_path / block.title).open("a") as file:
                file.write(block.text + "\n\n")
        elif block.language == "python":
            await notebook.read(block)
    notebook.close()
    assert notebook.promised


def test_there_are_pages_to_run() -> None:
    assert len(STARTS) == 3
    assert {"enqueue.md", "handlers.md", "time.md", "cron.md"} <= {page.name for page in PAGES}
