"""docs/files.md keeps its word: its code runs, in one piece from top to bottom, and it names what there is."""

import ast
import inspect
import re

from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit import migrate
from queue_kit.contrib import files as package
from queue_kit.contrib.files import FileStore, file_jobs
from tests.checks.test_documents import CHECKOUT, blocks

PAGE = (CHECKOUT / "docs" / "files.md").read_text()


async def test_the_code_of_the_page_runs(engine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(block.text for block in blocks(PAGE) if block.language == "python")
    known = {"engine": engine, "migrate": migrate, "AsyncSession": AsyncSession}
    run = eval(compile(code, "docs/files.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), known)
    assert inspect.iscoroutine(run)
    await run
    told = capsys.readouterr().out
    assert "text/csv 12 " in told
    assert "'url': '/files/" in told
    assert "1600 sea.webp image/webp {'width': 640, 'height': 480}" in told
    assert {path.name for path in tmp_path.iterdir()} >= {"uploads"}


def test_the_page_lists_the_jobs_that_there_are():
    assert set(re.findall(r"^\| `(queue_kit\.file\.\w+)` \|", PAGE, re.MULTILINE)) == set(file_jobs(FileStore.memory()))


def test_the_page_names_every_function_that_is_exported():
    functions = {name for name in package.__all__ if inspect.isfunction(getattr(package, name))}
    in_file_jobs = {"job_file_generate_placeholder_image", "job_file_transform_image"}
    assert functions - set(re.findall(r"\w+", PAGE)) == in_file_jobs
