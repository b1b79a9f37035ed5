"""How the package is put together: what it imports, what it declares, and what an import of it costs."""

import ast
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

PARTS = {"pydantic_core": "pydantic"}
"""Modules that come with a dependency: which one."""


def nodes(*kinds: type[ast.AST]) -> list[tuple[str, ast.AST]]:
    found = [(path.relative_to(CHECKOUT), ast.parse(path.read_text())) for path in MODULES]
    return [(f"{path}", node) for path, tree in found for node in ast.walk(tree) if isinstance(node, kinds)]


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


def test_what_is_imported_is_declared_and_the_reverse():
    declared = {distribution(each) for each in PROJECT["project"]["dependencies"]}
    # An extra is imported where it is asked for; the next test sees that nothing else needs it.
    optional = {"rich"}
    # SQLAlchemy imports asyncpg when it makes an engine, zoneinfo reads tzdata on Windows.
    assert {PARTS.get(name, name) for name in imports()} | {"asyncpg", "tzdata"} == declared | optional


@pytest.mark.parametrize("module", ["queue_kit", "queue_kit.cli"])
def test_an_import_needs_no_extra_and_stays_light(module):
    lines = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "sqlalchemy" in loaded
    extras = PROJECT["project"]["optional-dependencies"]
    optional = {distribution(each) for names in extras.values() for each in names} - {"queue_kit"}
    assert {"aiosqlite", "rich", "fastapi"} < optional
    # pydantic is loaded by the first typed handler, the driver by the first engine.
    assert loaded & (optional | {"pydantic", "asyncpg"}) == set()


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


def test_the_tests_need_no_plugin_that_is_not_declared():
    # A time limit of a plugin's hides what hangs; the tests have their own (`until`, `asyncio.timeout`).
    plugin = "pytest" + "-timeout"
    texts = [CHECKOUT / "pyproject.toml", *(CHECKOUT / ".ci").glob("*"), *(CHECKOUT / "tests").rglob("*.py")]
    used = [path.name for path in texts if re.search(rf"{plugin}|mark\.{plugin[7:]}\b", path.read_text())]
    assert used == []


def test_the_version_is_said_once():
    assert "version" in PROJECT["project"]["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", queue_kit.__version__)
