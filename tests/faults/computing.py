"""What a worker that is to be broken runs in a process: such a function is imported, so it has a module of its own."""

import os
import time
from pathlib import Path


def compute(data: dict[str, str]) -> None:
    """Tells which process it is in, and runs until a file is there."""
    Path(data["pid"]).write_text(str(os.getpid()))
    while not Path(data["until"]).exists():
        time.sleep(0.02)
