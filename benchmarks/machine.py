"""What the machine tells: its processors, and what processes use. Processes are read from /proc: Linux only, elsewhere
`None`."""

import os
import platform
from collections.abc import Collection
from pathlib import Path

PROC = Path("/proc")


def describe() -> dict[str, str | int]:
    """The machine, for the report."""
    models = {
        line.split(":", 1)[1].strip() for line in _read(PROC / "cpuinfo").splitlines() if line.startswith("model name")
    }
    return {
        "cpu": ", ".join(sorted(models)) or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def cpu_seconds(pid: int) -> float | None:
    """What a process has used so far."""
    fields = _read(PROC / str(pid) / "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else None


def memory_mb(pid: int, *, peak: bool = True) -> float | None:
    """The resident memory of a process: its peak, or what it is now."""
    key = "VmHWM:" if peak else "VmRSS:"
    lines = _read(PROC / str(pid) / "status").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), None)


def open_files(pid: int) -> int | None:
    """How many files, sockets and pipes a process has open."""
    try:
        return sum(1 for _ in (PROC / str(pid) / "fd").iterdir())
    except OSError:
        return None


def busy_seconds() -> float | None:
    """What all processors have spent on anything so far."""
    fields = [int(field) for field in _read(PROC / "stat").partition("\n")[0].split()[1:9]]
    # Of user, nice, system, idle, iowait, irq, softirq and steal, all but the waiting.
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK") if fields else None


def file_system(path: Path) -> str | None:
    """The kind of file system that a folder of this machine lies on, such as `ext4` or `tmpfs`."""
    if not path.is_absolute() or not path.is_dir():
        return None
    mounts = [line.split(" - ") for line in _read(PROC / "self" / "mountinfo").splitlines()]
    kinds = {Path(before.split()[4]): after.split()[0] for before, after in mounts}
    resolved = path.resolve()
    return next((kinds[folder] for folder in (resolved, *resolved.parents) if folder in kinds), None)


def is_postgres(pid: int) -> bool:
    """Whether this process of this machine is PostgreSQL's, so that a server's pids mean something here."""
    return _read(PROC / str(pid) / "comm").strip() in {"postgres", "postgres.exe"}


def total(pids: Collection[int]) -> float | None:
    """What processes have used together; those that have ended count nothing."""
    used = [seconds for pid in pids if (seconds := cpu_seconds(pid)) is not None]
    return sum(used) if used else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
