"""What each process notes outside of the database: one JSON line in one write to a file of its own, so that neither
SIGKILL nor another process can tear a line or lose it.

Times are of the monotonic clock, which all processes of a machine share.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""`do` says what happened, `actor` to whom, `t` when; the rest depends on it."""


class Ledger:
    """Appends to one file."""

    def __init__(self, path: str | Path, actor: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._actor = actor

    def write(self, do: str, **fields: Any) -> None:
        line = {"do": do, "actor": self._actor, "t": time.monotonic(), **fields}
        os.write(self._file, json.dumps(line).encode() + b"\n")


class Ledgers:
    """The ledgers of all processes, read as they grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[Line] = []
        self._read: dict[Path, int] = {}

    def path(self, actor: str) -> Path:
        return self.folder / f"{actor}.ledger"

    def read(self) -> list[Line]:
        """What was written since the last call."""
        known = len(self.lines)
        for path in sorted(self.folder.glob("*.ledger")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):  # it is being written
                        break
                    self._read[path] = self._read.get(path, 0) + len(line)
                    self.lines.append(json.loads(line))
        return self.lines[known:]

    def ready(self) -> set[str]:
        """The processes that have begun their work, and hear a signal."""
        self.read()
        return {line["actor"] for line in self.lines if line["do"] in ("ready", "state")}
