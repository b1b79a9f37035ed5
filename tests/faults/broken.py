"""The processes of one test of faults (`breaking.py`), and what can be seen of them from outside."""

import contextlib
from pathlib import Path

from tests.crowd import Crowd, crowd


def processes(url: str) -> contextlib.AbstractAsyncContextManager[Crowd]:
    """Workers on one database."""
    return crowd("-m", "tests.faults.breaking", url)


def open_files(pid: int) -> set[str]:
    """What a process has open: paths, sockets and pipes."""
    links = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(str(entry.readlink()))
    return links
