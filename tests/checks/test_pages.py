"""The pages keep their word: each snippet of the documentation that is new here is run as it stands, on SQLite."""

import ast
import re
import runpy
import tomllib
from pathlib import Path

import pytest
from click import Group
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import queue_kit
from queue_kit import CronJob, Handlers, QueueWorker, get_job, sqlite_engine
from queue_kit.cli import main
from tests.checks.reader import Notebook, Shell, save
from tests.checks.test_documents import blocks
from tests.support import free_port

DOCS = Path(__file__).resolve().parents[2] / "docs"
ELSEWHERE = {"testing.md", "telemetry.md", "dashboard.md", "files.md", "sessions.md", "shop.md"}
"""Pages that other tests run."""

FRAGMENTS = ("operating.md", "scaling.md", "performance.md")
"""Pages whose few snippets take the names of the library, an engine and handlers for given."""

STARTS = [*sorted((DOCS / "start").glob("*.md")), DOCS / "alembic.md"]
"""Pages whose files and commands make a small application."""

PAGES = sorted(
    page
    for page in [*DOCS.glob("*.md"), *DOCS.glob("moving/*.md")]
    if page.name not in {*ELSEWHERE, *FRAGMENTS, "alembic.md"} and "```python" in page.read_text()
)


@pytest.fixture
async def sqlite(sqlite_path: Path):
    engine: AsyncEngine = sqlite_engine(sqlite_path)
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in STARTS])
async def test_a_start_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path, free_port())
    try:
        for block in blocks(page.read_text()):
            await shell.read(block)
    finally:
        await shell.close()
    assert shell.commands >= 4


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
async def test_a_page_does_what_it_says(
    page: Path, sqlite: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    notebook = Notebook(f"page_{page.stem.replace('-', '_')}", engine=sqlite)
    for block in blocks(page.read_text()):
        if block.title:
            save(block, tmp_path)
        elif block.language == "python":
            await notebook.read(block)
    notebook.close()
    assert notebook.promised


async def test_fragments_run_with_what_they_take_for_given(sqlite: AsyncEngine) -> None:
    jobs = Handlers()

    @jobs.handler("broken", max_retry_count=1)
    async def broken(event, session, job):
        raise ValueError("no such user: 7")

    job_id = await broken.add(sqlite)
    await QueueWorker(sqlite, jobs).drain()
    given = {name: getattr(queue_kit, name) for name in queue_kit.__all__}
    given |= {"create_async_engine": create_async_engine, "jobs": jobs}
    for page in FRAGMENTS:
        notebook = Notebook("fragments", engine=sqlite, **given)
        snippets = [block for block in blocks((DOCS / page).read_text()) if block.language == "python"]
        assert snippets
        for block in snippets:
            await notebook.read(block)
        if page == "operating.md":
            assert notebook.printed[0].startswith("1 broken ValueError")
            assert (await get_job(sqlite, job_id)).state == "ready"
            notebook.printed.clear()  # a traceback, which no page can promise
        notebook.close()


def test_there_are_pages_to_run() -> None:
    assert len(STARTS) == 4
    assert {"enqueue.md", "handlers.md", "time.md", "cron.md"} <= {page.name for page in PAGES}


def test_the_expressions_of_the_page_on_cron_can_be_scheduled() -> None:
    expressions = re.findall(r"^\| `([^`]+)` \|", (DOCS / "cron.md").read_text(), re.MULTILINE)
    assert len(expressions) >= 5
    assert all(CronJob("any", expression).schedule() for expression in expressions)


def test_the_runbook_has_every_alert_and_only_commands_that_exist() -> None:
    page = (DOCS / "runbook.md").read_text()
    rules = (DOCS / "monitoring" / "prometheus-alerts.yml").read_text()
    assert re.findall(r"^\| `(Queue\w+)` \|", page, re.MULTILINE) == re.findall(r"alert: (\w+)", rules)
    assert isinstance(main, Group)
    for command, options in re.findall(r"`queue-kit (\w+)([^`]*)`", page):
        known = {option for parameter in main.commands[command].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", options)) <= known


VARIABLE = re.compile(r"\.\.\.|: |\d+(?:\.\d+)?|pdf\.render|report\.daily|\b(?:released|failed|lost)(?= after| \.\.\.)")
"""What differs between two lines of the log that say the same."""


def texts_in_the_code() -> list[str]:
    found = []
    for path in (DOCS.parent / "queue_kit").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        texts = (node for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings)
        found += [node.value for node in texts if isinstance(node.value, str)]
    return found


def test_the_page_on_reliability_explains_lines_that_are_logged() -> None:
    table = (DOCS / "reliability.md").read_text().partition("## What the log says")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(lines) > 10
    texts = texts_in_the_code()
    parts = {part.strip(" ,;:") for line in lines for part in VARIABLE.split(line)}
    assert [part for part in parts if not any(part in text for text in texts)] == []


def test_the_drawings_are_what_their_script_draws() -> None:
    drawings = runpy.run_path(str(DOCS / "_site" / "drawings.py"))["DRAWINGS"]
    stale = [name for name, draw in drawings.items() if (DOCS / "images" / name).read_text() != draw()]
    assert stale == [], "draw them again: python docs/_site/drawings.py"


def test_the_page_on_dependencies_has_them_all() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    page = (DOCS / "dependencies.md").read_text()
    for each in project["dependencies"]:
        assert re.search(rf"^\| `{re.escape(each.split(';')[0])}` \| \w", page, re.MULTILINE), each
    for extra, requirements in project["optional-dependencies"].items():
        if extra not in {"test", "all"}:
            brought = ", ".join(f"`{each}`" for each in requirements)
            assert f"| `{extra}` | {brought} |" in page, extra


def test_the_reference_has_every_public_name() -> None:
    named = set(re.findall(r"^::: queue_kit\.(\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    listed = {line.strip() for line in (DOCS.parent / "tests" / "checks" / "api.txt").read_text().splitlines()}
    public = {re.sub(r"[(:].*", "", line) for line in listed}
    methods = {name for name in public if name.rpartition(".")[0] in public}
    assert public - methods - named == set()
