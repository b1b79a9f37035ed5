"""What a process of the torture test is told when it starts, as the one argument of its command."""

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Role:
    """One process. `actor` is unique to it: another process that takes its place has another."""

    actor: str
    url: str
    ledger: str
    seed: str
    lease: float
    pullers: int
    poll: float
    prefetch: int | None = None
    mutant: str | None = None

    @classmethod
    def given(cls) -> Self:
        """The role of this process."""
        return cls(**json.loads(sys.argv[1]))

    def command(self, module: str) -> list[str]:
        """What starts a process with this role."""
        return [sys.executable, "-m", f"tests.torture.{module}", json.dumps(asdict(self))]


def end_with_parent() -> None:
    """Leave when the controller does, however it ended: it holds the other end of our standard input."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(99)

    threading.Thread(target=wait, daemon=True).start()
