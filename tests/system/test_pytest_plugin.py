"""pytest's plugin, found by its entry point in runs of their own: docs/testing.md, the examples, users' settings."""

import asyncio
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Server
from tests.crowd import running

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIGURATION = "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"


async def run(*arguments: object, cwd: Path, status: int = 0, **variables: str) -> str:
    """What a run of pytest printed that ended with this status."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    stdout = asyncio.subprocess.STDOUT
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment |= variables
    async with running(*command, cwd=cwd, stderr=stdout, env=environment) as process, asyncio.timeout(150):
        printed, _ = await process.communicate()
    assert process.returncode == status, printed.decode()
    return printed.decode()


async def test_the_document_is_a_test_file(tmp_path: Path, server: Server) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (CHECKOUT / "docs/testing.md").read_text(), re.MULTILINE | re.DOTALL)
    code = "\n\n".join(blocks)
    tests = code.count("async def test_")
    assert tests >= 7
    (tmp_path / "pytest.ini").write_text(CONFIGURATION + "asyncio_mode = auto\n")
    (tmp_path / "test_document.py").write_text(code)

    assert f"{tests} passed" in await run(cwd=tmp_path, TEST_DATABASE_URL=server.url)


@pytest.mark.parametrize("on", ["postgresql", "sqlite"])
async def test_the_examples_of_tests_pass(on: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = CHECKOUT / "examples" / "testing"
    tests = sum(path.read_text().count("async def test_") for path in folder.glob("test_*.py"))
    arguments: tuple[object, ...] = ()
    if on == "postgresql":
        arguments = "-n", 2, "--queue-kit-server", request.getfixturevalue("server").url

    assert f"{tests} passed" in await run(folder, "--basetemp", tmp_path / "run", *arguments, cwd=tmp_path)


MARKED = """
import pytest
from queue_kit import add_job, list_jobs

@pytest.mark.LIBRARY
@pytest.mark.parametrize("number", range(2))
async def test_rolled_back(queue_kit_session, number):
    await add_job(queue_kit_session, "x")
    await queue_kit_session.commit()
    assert len(await list_jobs(queue_kit_session)) == 1

@pytest.mark.LIBRARY
async def test_committed(queue_kit_engine):
    assert await add_job(queue_kit_engine, "x") == 1

def test_url(queue_kit_database_url):
    assert "queue_kit_test_" in queue_kit_database_url
"""


SPOILING = """
import pytest
from queue_kit import add_job, list_jobs
from sqlalchemy import text

@pytest.mark.parametrize("sent", [[], ["COMMIT"], [], ["COMMIT", "BEGIN"], ["ROLLBACK"], []], ids=str)
async def test_rolled_back(queue_kit_session, sent):
    assert await list_jobs(queue_kit_session) == []
    await add_job(queue_kit_session, "x")
    for words in sent:
        await queue_kit_session.execute(text(words))
"""


@pytest.mark.parametrize("on", ["postgresql", "sqlite"])
async def test_what_one_test_commits_no_other_sees(on: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n" + CONFIGURATION.removeprefix("[pytest]\n"))
    (tmp_path / "test_spoiling.py").write_text(SPOILING)
    server = () if on == "sqlite" else ("--queue-kit-server", request.getfixturevalue("server").url)

    printed = await run(*server, cwd=tmp_path, status=1)

    assert "6 passed, 3 errors" in printed
    assert printed.count("has sent the text COMMIT or ROLLBACK; what was") == 3


async def test_pytest_asyncio_may_be_strict(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(CONFIGURATION)
    (tmp_path / "test_strict.py").write_text(MARKED.replace("LIBRARY", "asyncio"))

    assert "4 passed" in await run(cwd=tmp_path)


async def test_anyio_runs_the_fixtures_where_pytest_asyncio_is_not(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    backend = "import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    (tmp_path / "test_anyio.py").write_text(backend + MARKED.replace("LIBRARY", "anyio"))
    # As if it were not installed: neither for pytest nor for the plugin.
    (tmp_path / "without.py").write_text("import sys\nsys.modules['pytest_asyncio'] = None\n")

    assert "4 passed" in await run("-p", "without", "-p", "no:asyncio", cwd=tmp_path)


def test_nothing_is_imported_that_is_not_asked_for() -> None:
    (found,) = importlib.metadata.entry_points(group="pytest11", name="queue_kit")
    line = f"import sys, {found.value}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pytest" in loaded
    assert loaded & {"queue_kit", "sqlalchemy", "alembic", "aiosqlite", "asyncpg"} == set()
