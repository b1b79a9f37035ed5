"""The documents keep their word: what README and CHANGELOG show compiles, is called as it can be called, and exists;
what any of them links to is there."""

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click import Group

import _queue_kit_pytest
import queue_kit
from queue_kit.cli import main

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text()
CHANGELOG = (CHECKOUT / "CHANGELOG.md").read_text()


class Block(NamedTuple):
    line: int
    language: str
    text: str
    title: str = ""


def blocks(document: str) -> list[Block]:
    """The fenced blocks, also those inside of lists."""
    fence = re.compile(r'^( *)```(\w*)(?: title="([^"\n]*)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
    return [
        Block(document.count("\n", 0, found.start()) + 1, found[2], textwrap.dedent(found[4]), found[3] or "")
        for found in fence.finditer(document)
    ]


def prose(document: str) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", document, flags=re.MULTILINE | re.DOTALL)


def parsed(code: str) -> ast.Module:
    """A fragment: it may await at its top level."""
    tree = compile(code, "README.md", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(tree, ast.Module)
    return tree


PYTHON = [pytest.param(block.text, id=f"line {block.line}") for block in blocks(README) if block.language == "python"]


def headings(document: str) -> set[str]:
    """What a link can lead to behind its `#`."""
    return {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    }


LINK = re.compile(r"\]\(([^)]+)\)")
DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])


@pytest.mark.parametrize("document", [pytest.param(path, id=f"{path.relative_to(CHECKOUT)}") for path in DOCUMENTS])
def test_links_lead_to_files_and_to_their_headings(document):
    for target in LINK.findall(prose(document.read_text())):
        name, _, heading = target.partition("#")
        if "://" not in target:
            file = document.parent / name if name else document
            assert file.exists(), target
            assert not heading or heading in headings(file.read_text()), target


# --- README -----------------------------------------------------------------------------------------------------------


def test_the_readme_opens_with_one_line_to_see_it_and_one_to_test_it():
    assert README.startswith("# queue_kit\n\n```sh\n")
    first, second = blocks(README)[0].text.splitlines()
    for command, ending in ((first, ".venv/bin/python examples/runner.py"), (second, ".venv/bin/pytest -q -n 4")):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -e '.[")
        assert command.endswith(ending)


def test_there_are_code_and_links_to_check():
    assert len(PYTHON) >= 5
    assert len(LINK.findall(prose(README))) > 20
    assert {block.language for block in blocks(README)} == {"sh", "python", ""}


@pytest.mark.parametrize("code", PYTHON)
def test_the_code_imports_what_there_is(code):
    for node in ast.walk(parsed(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "queue_kit":
            exec(ast.unparse(node), {})


@pytest.mark.parametrize("code", PYTHON)
def test_the_code_calls_what_it_shows_as_it_can_be_called(code):
    handler = queue_kit.NamedHandler[Any]
    methods = {"handler": queue_kit.Handlers.handler, "include": queue_kit.Handlers.include, "new": handler.new}
    for call in (node for node in ast.walk(parsed(code)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in queue_kit.__all__:
            function, own = getattr(queue_kit, call.func.id), []
        elif isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "migrate":
            function, own = getattr(queue_kit.migrate, call.func.attr), []
        elif isinstance(call.func, ast.Attribute) and call.func.attr in methods:
            function, own = methods[call.func.attr], [None]
        elif isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == "send_email.add":
            function, own = handler.add, [None]
        else:
            continue
        keywords = {str(keyword.arg): None for keyword in call.keywords}
        inspect.signature(function).bind(*own, *call.args, **keywords)


def test_the_readme_names_only_what_exists():
    folders = ("queue_kit", "alembic", "examples")
    sources = [path for folder in folders for path in (CHECKOUT / folder).rglob("*.py")]
    sources += [CHECKOUT / "pyproject.toml", CHECKOUT / "tests" / "conftest.py"]
    known = {word for path in sources for word in re.findall(r"\w+", path.read_text())}
    quoted = re.findall(r"`([^`\n]+)`", prose(README))
    # Words that can only be names: snake_case, CamelCase, an argument's. (`queue_kit_*` is many.)
    names = {
        word
        for text in quoted
        for word in re.findall(r"\b[A-Za-z]+_\w+\b(?!\*)|\b[A-Z][a-z]+[A-Z]\w+|\b\w+(?==)", text)
    }
    assert {"unique_key", "cancel_grace", "AsyncEngine", "session_isolation", "retry_delay"} < names
    # The reader's, SQLAlchemy's, PostgreSQL's.
    elsewhere = {"direct_engine", "pool_pre_ping", "idle_in_transaction_session_timeout"}
    assert sorted(names - known - elsewhere) == []


def test_the_readme_names_only_commands_and_files_that_exist():
    assert isinstance(main, Group)
    commands = set(re.findall(r"`queue-kit (\w+)", README))
    assert commands
    assert commands <= set(main.commands)
    files = set(re.findall(r"`((?:\w+/)*\w+\.(?:py|toml|ini))`", README))
    assert "pyproject.toml" in files
    assert [
        name for name in files if not any((CHECKOUT / at / name).exists() for at in ("", "queue_kit", "alembic"))
    ] == []


def test_the_readme_has_every_module_of_the_package():
    modules = {path.name for path in (CHECKOUT / "queue_kit").glob("*.py") if not path.name.startswith("__")}
    folders = {path.parent.name for path in (CHECKOUT / "queue_kit").glob("*/__init__.py")}
    listed = README.partition("\n## Architecture\n")[2].partition("\n## ")[0]
    assert (modules | folders) - set(re.findall(r"\b\w+(?:\.py)?\b", listed)) == set()


# --- docs/testing.md (its code is run by tests/system/test_pytest_plugin.py) -----------------------------------------


def test_the_page_on_testing_lists_the_fixtures():
    fixtures = {
        name: each
        for name, each in vars(_queue_kit_pytest).items()
        if type(each).__name__ == "FixtureFunctionDefinition"
    }
    assert [name for name, each in fixtures.items() if not each.__doc__] == []
    offered = {name for name in fixtures if not name.startswith("_")}
    assert {"queue_kit_session"} < offered
    assert {name for name in offered if not name.startswith("queue_kit_")} == set()
    page = (CHECKOUT / "docs" / "testing.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == offered


# --- CHANGELOG --------------------------------------------------------------------------------------------------------


def test_the_changelog_keeps_its_format():
    assert CHANGELOG.startswith("# Changelog\n\n")
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    releases = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d{2}-\d{2}", each) for each in headings[1:]]
    assert None not in releases
    versions = [tuple(map(int, each.groups())) for each in releases if each]
    assert versions == sorted(set(versions), reverse=True)
    for _, body in re.findall(r"^### (.*)\n\n((?:.+\n)*)", CHANGELOG, re.MULTILINE):
        assert body.startswith("- ")
    kinds = set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE))
    assert kinds
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_a_released_version_has_its_section():
    released = re.findall(r"^## \[(\d.*?)\]", CHANGELOG, re.MULTILINE)
    assert not released or queue_kit.__version__ in released  # there is none before the first
