"""A reader who does what a page says: saves the files that it shows, types the lines for a shell, runs the code, and
compares what comes out with what the page promises.

Blocks with a title are pieces of that file. A shell's line that starts a server starts one, on a port that is free.
`json` after a shell is the answer to the last `curl`, `text` what the last command prints. In code, `print(x)  # y`
prints y, and `# y, then z` both; the comment may stand on the next line.
"""

import ast
import asyncio
import contextlib
import inspect
import json
import os
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx

from tests.checks.test_documents import Block
from tests.support import until

PROMISE = re.compile(r"^\s*print\(.*\)(?:  |\n\s*)# (.*)$", re.MULTILINE)

MODULES = {"queue-kit": ["-m", "queue_kit"], "alembic": ["-m", "alembic"]}


def save(block: Block, folder: Path) -> None:
    """Write a piece of a file behind those that are there."""
    path = folder / block.title
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(block.text + "\n\n")


class Shell:
    """The reader's terminals, in a folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = str(port)
        self._environment = dict(os.environ)
        self._server: asyncio.subprocess.Process | None = None
        # One for all: to make it takes longer than to ask. Each question has a connection of its own, as curl's has.
        self._client = httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0))
        self._asked: list[str] = []
        self._printed = ""
        self.commands = 0

    async def read(self, block: Block) -> None:
        """Do what one block says."""
        if block.title:
            save(block, self._folder)
        elif block.language == "sh":
            for line in block.text.splitlines():
                await self._type(shlex.split(line, comments=True))
        elif block.language == "json":
            expected = json.loads(block.text)
            await until(lambda: self._answers(expected))
        elif block.language == "text":
            assert self._printed == block.text

    async def close(self) -> None:
        """End the server; it must end well."""
        await self._client.aclose()
        if self._server is not None:
            self._server.terminate()
            _, err = await asyncio.wait_for(self._server.communicate(), 40)
            assert "Traceback" not in err.decode()

    async def _type(self, words: list[str]) -> None:
        command = words[0].rpartition("/")[2]
        self.commands += 1
        if command in ("python3", "pip"):
            return  # it is installed
        if command == "export":
            name, _, value = words[1].partition("=")
            self._environment[name] = value
        elif command == "curl":
            self._asked = [word.replace("8000", self._port) for word in words[1:]]
            self._printed = (await self._ask()).text
        elif command == "uvicorn" or words[1:] == ["club.py"]:
            await self._serve(["-m", *words, "--port", self._port] if command == "uvicorn" else words[1:])
        else:
            arguments = MODULES.get(command, []) + words[1:]
            process = await self._start(arguments)
            out, err = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0, (words, out.decode(), err.decode())
            self._printed = out.decode()
            assert self._printed or command == "alembic"

    async def _start(self, arguments: list[str]) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        arguments = [argument.rpartition("/")[2] if "/bin/" in argument else argument for argument in arguments]
        return await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=self._folder, env=self._environment, stdout=pipe, stderr=pipe
        )

    async def _serve(self, arguments: list[str]) -> None:
        for file in self._folder.glob("*.py"):
            file.write_text(file.read_text().replace("port=8000", f"port={self._port}"))
        self._server = await self._start(arguments)
        await until(self._is_served, seconds=60)

    async def _is_served(self) -> bool:
        assert self._server is not None
        assert self._server.returncode is None
        with contextlib.suppress(httpx.TransportError):
            await self._client.get(f"http://localhost:{self._port}/")
            return True
        return False

    async def _ask(self) -> httpx.Response:
        method = "POST" if self._asked[:2] == ["-X", "POST"] else "GET"
        answer = await self._client.request(method, f"http://{self._asked[-1]}")
        assert answer.is_success, answer.text
        return answer

    async def _answers(self, expected: object) -> bool:
        if "-X" not in self._asked:  # looking again is allowed, doing it again is not
            self._printed = (await self._ask()).text
        return bool(json.loads(self._printed) == expected)


class Notebook:
    """The fragments of one page, run one after the other in one namespace; they may await."""

    def __init__(self, name: str, **given: Any) -> None:
        self._module = ModuleType(name)
        self._names = vars(self._module)
        self._names |= given | {"print": lambda *words: self.printed.append(" ".join(map(str, words)))}
        self.printed: list[str] = []
        self.promised: list[str] = []
        sys.modules[name] = self._module  # dataclasses look their module up

    async def read(self, block: Block) -> None:
        """Run one block."""
        self.promised += [each for line in PROMISE.findall(block.text) for each in line.split(", then ")]
        code = compile("\n" * block.line + block.text, self._module.__name__, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        running = eval(code, self._names)
        if inspect.isawaitable(running):
            await running

    def close(self) -> None:
        """All that was promised was printed, and nothing else."""
        del sys.modules[self._module.__name__]
        assert sorted(self.printed) == sorted(self.promised), (self.printed, self.promised)
