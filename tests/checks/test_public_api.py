"""What applications rely on: the public names, their arguments, and what their docstrings say and show.

A change of `api.txt` is a change for users. Write it with `.venv/bin/python -m tests.checks.test_public_api`.
"""

import ast
import doctest
import enum
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import queue_kit
import queue_kit.contrib.files.aiohttp
import queue_kit.contrib.files.starlette
import queue_kit.contrib.sessions.aiohttp
import queue_kit.contrib.sessions.cookies
import queue_kit.contrib.sessions.fastapi
import queue_kit.contrib.sessions.starlette
from queue_kit import dashboard, migrate, testing
from queue_kit.contrib import files, sessions
from queue_kit.telemetry import metrics, queue_state, tracing

FRAMEWORKS = (files.aiohttp, files.starlette, sessions.aiohttp, sessions.cookies, sessions.fastapi, sessions.starlette)
MODULES = (dashboard, files, metrics, migrate, queue_state, sessions, testing, tracing, *FRAMEWORKS)
SNAPSHOT = Path(__file__).with_name("api.txt")


def public() -> dict[str, Any]:
    """The public functions and classes: those of `queue_kit`, and of the modules that are imported by name."""
    names = {name: getattr(queue_kit, name) for name in queue_kit.__all__}
    own = {
        f"{module.__name__.removeprefix('queue_kit.')}.{name}": getattr(module, name)
        for module in MODULES
        for name in getattr(module, "__all__", None) or _defined_in(module)
    }
    return {name: value for name, value in {**names, **own}.items() if not re.search(r"(^|\.)_", name)}


def _defined_in(module: ModuleType) -> list[str]:
    members = inspect.getmembers(module, lambda each: inspect.isfunction(each) or inspect.isclass(each))
    return [
        name
        for name, each in members
        if each.__module__ == module.__name__ and not getattr(each, "_is_protocol", False)
    ]


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that queue_kit itself gives to a class."""
    for base in cls.__mro__:
        if base.__module__.startswith("queue_kit"):
            for name, value in vars(base).items():
                if not name.startswith("_") and (callable(value) or hasattr(value, "__func__") or is_property(value)):
                    yield name, value


def is_property(value: object) -> bool:
    return isinstance(value, property) or type(value).__name__ == "hybrid_property"


def arguments(call: Callable[..., object]) -> str:
    """The signature without its types, which the type checkers hold."""
    if isinstance(call, type) and call.__init__ in (Exception.__init__, ValueError.__init__):
        return ""  # an exception that takes what any exception takes
    signature = inspect.signature(call)
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    shown = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return re.sub(r"<[\w.]*?(\w+) object at 0x\w+>", r"<\1>", shown)


def lines_of(name: str, value: Any) -> Iterator[str]:
    if not callable(value) or not hasattr(value, "__module__"):
        yield name
    elif not isinstance(value, type):
        yield f"{name}{arguments(value)}" if inspect.isfunction(value) else name
    elif issubclass(value, enum.Enum):
        yield f"{name}: {', '.join(value.__members__)}"
    else:
        yield f"{name}{arguments(value)}"
        for member, what in sorted(dict(members(value)).items()):
            call = getattr(what, "__func__", what)
            yield f"{name}.{member}" if is_property(what) else f"{name}.{member}{arguments(call)}"
    if value is queue_kit.JobRow:
        for column in sorted(value.__mapper__.column_attrs.keys()):
            yield f"{name}.{column}"


def description() -> str:
    return "".join(f"{line}\n" for name, value in sorted(public().items()) for line in lines_of(name, value))


def test_the_api_is_the_one_that_was_agreed():
    assert description().splitlines() == SNAPSHOT.read_text().splitlines()


def test_the_public_names_are_sorted_and_complete():
    assert sorted(set(queue_kit.__all__)) == queue_kit.__all__
    imported = {
        alias.asname or alias.name
        for statement in ast.walk(ast.parse(inspect.getsource(queue_kit)))
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert imported == set(queue_kit.__all__)


def test_the_typed_example_of_the_api_runs():
    api = importlib.import_module("tests.typing.api")
    assert sorted(api.jobs)[:2] == ["email.render", "email.send"]


# --- docstrings -------------------------------------------------------------------------------------------------------


ALIASES = ("HandlerFunction", "dashboard.Authorize")
"""Names of types, which can have no docstring."""


def documented() -> dict[str, Any]:
    found = {name: value for name, value in public().items() if name not in ALIASES}
    for name, value in list(found.items()):
        if isinstance(value, type):
            found |= {f"{name}.{member}": what for member, what in members(value)}
    return found


def test_everything_public_has_a_docstring_of_its_own():
    said = {name: value.__doc__ or "" for name, value in documented().items()}
    # A dataclass that nobody described says `Name(field: type, ...)`.
    assert [
        name for name, doc in said.items() if not doc.strip() or doc.startswith(f"{name.rpartition('.')[2]}(")
    ] == []


def test_every_public_function_shows_how_it_is_called():
    functions = {name: value for name, value in public().items() if inspect.isfunction(value)}
    helpers = {"migrate.configuration"}  # for env.py
    silent = [name for name, value in functions.items() if f"{value.__name__}(" not in (value.__doc__ or "")]
    assert sorted(set(silent) - helpers) == []


@dataclass
class Email:
    to: str


EXAMPLES = [
    test
    for name, value in sorted(documented().items())
    for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={})
    if test.examples
]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_the_examples_of_docstrings_run(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in test.examples:  # also of what is skipped: a fragment that needs a database
        compile(example.source, test.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    engine = create_async_engine("postgresql+asyncpg://nobody@nowhere/nothing")
    known = {name.rpartition(".")[2]: value for name, value in public().items()}
    test.globs.update(known, AsyncSession=AsyncSession, Email=Email, engine=engine, jobs=queue_kit.Handlers())
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert "".join(report) == ""


def test_there_are_examples_to_run():
    assert {"NewJob", "Event.span", "exponential", "migrate.upgrade"} < {test.name for test in EXAMPLES}


if __name__ == "__main__":
    SNAPSHOT.write_text(description())
