"""A small disk of a test's own, and how to fill it. A guard process unmounts it, also when the run is killed."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

GUARD = """
cat
umount -l "$1"
rmdir "$1"
"""


@contextlib.contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A folder that holds no more than this (`3m`); skips the test where none can be mounted."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root, with mount, can make a small disk")
    folder = Path(tempfile.mkdtemp(prefix="qk-disk-"))
    options = f"size={size},mode=0755"
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        folder.rmdir()
        pytest.skip(f"this machine mounts no tmpfs: {mount.stderr.strip()}")
    guard = subprocess.Popen(
        ["sh", "-c", GUARD, "guard", folder], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield folder
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait(20)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """The disk is full for as long as this lasts."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        assert os.statvfs(folder).f_bavail == 0
        yield
    finally:
        ballast.unlink()
