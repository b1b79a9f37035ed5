"""How the package is put together: what it imports, what it declares, and what an import of it costs."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import queue_kit

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "queue_kit"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
MODULES = sorted([*PACKAGE.rglob("*.py"), *(CHECKOUT / "alembic").rglob("*.py")])

PARTS = {
    "pydantic_core": "pydantic",
    "opentelemetry": "opentelemetry_api",
    "PIL": "pillow",
    "jwt": "pyjwt",
}
"""Modules that are not called as the dependency that they come with: which one."""


@functools.cache
def trees() -> list[tuple[str, ast.Module]]:
    return [(f"{path.relative_to(CHECKOUT)}", ast.parse(path.read_text())) for path in MODULES]


def nodes(*kinds: type[ast.AST]) -> list[tuple[str, ast.AST]]:
    return [(path, node) for path, tree in trees() for node in ast.walk(tree) if isinstance(node, kinds)]


def distribution(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement)[0].replace("-", "_")


def imports() -> set[str]:
    """The top level of every module that the package imports, anywhere."""
    found: set[str] = set()
    for _, node in nodes(ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, ast.unparse(node)
            found.add(str(node.module).split(".")[0])
    return found - sys.stdlib_module_names - {"queue_kit"}


def optional() -> set[str]:
    """What only an extra brings."""
    extras = PROJECT["project"]["optional-dependencies"]
    return {distribution(each) for names in extras.values() for each in names} - {"queue_kit"}


def test_what_is_imported_is_declared_and_the_reverse():
    declared = {distribution(each) for each in PROJECT["project"]["dependencies"]}
    imported = {PARTS.get(name, name) for name in imports()}
    # SQLAlchemy imports asyncpg when it makes an engine, zoneinfo reads tzdata on Windows.
    assert imported - optional() | {"asyncpg", "tzdata"} == declared
    assert {"prometheus_client", "opentelemetry_api", "starlette", "jinja2", "uvicorn", "pyjwt"} <= imported


def test_an_import_needs_no_extra_and_stays_light():
    lines = "import sys, queue_kit.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    loaded = {PARTS.get(name, name) for name in done.stdout.split()}
    assert "sqlalchemy" in loaded
    assert {"aiosqlite", "rich", "fastapi", "prometheus_client", "starlette"} < optional()
    # pydantic is loaded by the first typed handler, the driver by the first engine, Alembic by who migrates.
    assert loaded & (optional() | {"pydantic", "asyncpg", "alembic"}) == set()


def test_types_are_imported_for_all_to_see():
    # A name that only the type checker sees cannot be resolved when a handler's annotation is read.
    hidden = [
        where
        for where, node in nodes(ast.Name, ast.Attribute, ast.alias)
        if "TYPE_CHECKING" in (getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "name", ""))
    ]
    assert hidden == []


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_no_plugin_limits_the_time_of_the_tests():
    # A time limit of a plugin's hides what hangs; the tests have their own (`until`, `asyncio.timeout`).
    plugin = "pytest" + "-timeout"
    texts = [CHECKOUT / "pyproject.toml", *(CHECKOUT / ".ci").glob("*"), *(CHECKOUT / "tests").rglob("*.py")]
    used = [path.name for path in texts if re.search(rf"{plugin}|mark\.{plugin[7:]}\b", path.read_text())]
    assert used == []


def test_the_version_is_said_once():
    assert "version" in PROJECT["project"]["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", queue_kit.__version__)


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("queue_kit.dashboard", "starlette", "dashboard"),
        ("queue_kit.dashboard", "jinja2", "dashboard"),
        ("queue_kit.contrib.sessions", "jwt", "sessions"),
        ("queue_kit.contrib.files", "obstore", "files"),
        ("queue_kit.contrib.files", "PIL", "files"),
        ("queue_kit.contrib.files", "jwt", "files"),
        ("queue_kit.telemetry.metrics", "prometheus_client", "metrics"),
        ("queue_kit.telemetry.queue_state", "prometheus_client", "metrics"),
        ("queue_kit.telemetry.tracing", "opentelemetry", "tracing"),
    ],
)
def test_what_needs_an_extra_says_which(monkeypatch, module, missing, extra):
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'queue-kit[{extra}]'")):
        importlib.import_module(module)


def test_what_the_dashboard_brings_along_has_its_licence():
    static = PACKAGE / "dashboard" / "static"
    own = {"dashboard.css", "dashboard.js", "favicon.svg"}
    brought = {path.name for path in static.iterdir() if not path.name.endswith(".LICENSE.txt")} - own
    assert brought == {"inter.woff2"}
    assert all((static / f"{name.partition('.')[0]}.LICENSE.txt").stat().st_size > 1_000 for name in brought)
