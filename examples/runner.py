"""The main example: count the lines and words of every text file in a folder, one job a file.

    python examples/runner.py [FOLDER] [--parallel N] [--database FILE]
    python examples/runner.py [FOLDER] --database-url postgresql+asyncpg://user@host/name
    python examples/runner.py [FOLDER] --serve

FOLDER is the checkout unless you say otherwise. The queue lives in an SQLite file, `queue_kit_runner.db` in the current
directory, or in a PostgreSQL database of its own (registering cron jobs replaces all that are there). Each file's
result is written through the handler's session, so it and the job's completion are one commit: kill the runner with
SIGKILL, start it again, and it finishes exactly the rest. A file that has changed is a new one.

Each start adds two jobs in trouble: one fails twice and then succeeds, one never ends and is stopped by its timeout.
`--serve` goes on as a worker until SIGTERM or Ctrl-C; a cron job looks for new files every minute.
"""

import argparse
import asyncio
import fnmatch
import hashlib
import importlib.util
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import BigInteger, delete, not_, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from queue_kit import (
    CronJob,
    Discard,
    Event,
    Handlers,
    Job,
    JobRow,
    QueueWorker,
    add_jobs,
    engine_from_url,
    migrate,
    queue_insights,
    register_cron_jobs,
    sqlite_engine,
)

LARGEST = 1024 * 1024
SKIPPED_FOLDERS = (".git", ".hg", ".svn", ".venv*", "venv*", "node_modules", "__pycache__", ".*cache*", ".hypothesis")
LANGUAGES = {
    ".c": "C", ".cfg": "INI", ".css": "CSS", ".go": "Go", ".h": "C", ".html": "HTML", ".ini": "INI", ".java": "Java",
    ".js": "JavaScript", ".json": "JSON", ".mako": "Mako", ".md": "Markdown", ".py": "Python", ".pyi": "Python",
    ".rs": "Rust", ".rst": "reStructuredText", ".sh": "Shell", ".sql": "SQL", ".toml": "TOML", ".ts": "TypeScript",
    ".txt": "Text", ".yaml": "YAML", ".yml": "YAML",
}  # fmt: skip


# --- the application's own table --------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    """The base of this example's tables; queue_kit keeps its own apart."""


class FileCount(Base):
    """One counted file. Nothing here is unique: that a file is here once is the queue's doing, not a constraint's."""

    __tablename__ = "runner_file_count"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(index=True)
    path: Mapped[str]
    language: Mapped[str]
    sha256: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    lines: Mapped[int]
    words: Mapped[int]
    job_id: Mapped[int] = mapped_column(BigInteger)


# --- the jobs ---------------------------------------------------------------------------------------------------------

jobs = Handlers()


@dataclass(frozen=True)
class SourceFile:
    """A file as it was found: the payload of its job."""

    path: str
    size: int
    modified: int

    @property
    def key(self) -> str:
        """The same for the same version of a file: the unique key of its job and the name of its result."""
        return hashlib.sha256(repr(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class Folder:
    """A folder to look into."""

    path: str


@jobs.handler("runner.count", timeout=60)
async def count_file(_event: Event, session: AsyncSession, job: Job[SourceFile]) -> None:
    """Count one file. The session is used last and briefly: the result and the completion commit together."""
    try:
        content = await asyncio.to_thread(Path(job.data.path).read_bytes)
    except FileNotFoundError:
        raise Discard("the file is gone") from None
    session.add(
        FileCount(
            key=job.data.key,
            path=job.data.path,
            language=LANGUAGES.get(Path(job.data.path).suffix.lower(), "other"),
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            lines=len(content.splitlines()),
            words=len(content.split()),
            job_id=job.id,
        )
    )


@jobs.handler("runner.flaky", max_retry_count=3, retry_delay=0.2)
async def flaky(_event: Event, _session: AsyncSession, job: Job[dict[str, str]]) -> None:
    """Fail twice, then succeed."""
    if job.attempt < 3:
        raise ConnectionError(f"the service is away (try {job.attempt})")


@jobs.handler("runner.slow", timeout=0.5, max_retry_count=1)
async def slow(_event: Event, _session: AsyncSession, _job: Job[dict[str, str]]) -> None:
    """Never end; the timeout does it."""
    await asyncio.Event().wait()


@jobs.handler("runner.scan", timeout=300)
async def scan(event: Event, session: AsyncSession, job: Job[Folder]) -> None:
    """The cron job: add jobs for files that have appeared or changed."""
    files = await asyncio.to_thread(find_files, Path(job.data.path))
    event.log.info("%d new files", await enqueue(session, files))


# --- finding and adding files -----------------------------------------------------------------------------------------


def find_files(folder: Path) -> list[SourceFile]:
    """The text files below a folder, without version control, environments and caches."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not any(fnmatch.fnmatch(name, skip) for skip in SKIPPED_FOLDERS)
        )
        for path in (Path(parent, name) for name in sorted(names)):
            try:
                if path.is_symlink() or not path.is_file() or not is_text(path):
                    continue
                status = path.stat()
            except OSError:  # gone, or not ours to read
                continue
            found.append(SourceFile(str(path), status.st_size, status.st_mtime_ns))
    return found


def is_text(path: Path) -> bool:
    """Whether a file is small, has no NUL in it, and a name that can be written down; an SQLite log is never text."""
    if (
        path.stat().st_size > LARGEST
        or path.name.endswith((".db", ".db-wal", ".db-shm"))
        or not path.name.isprintable()
    ):
        return False
    with path.open("rb") as file:
        return b"\0" not in file.read(8192)


async def enqueue(session: AsyncSession, files: Sequence[SourceFile]) -> int:
    """Add a job for each file that has neither a result nor a live job; return how many. The caller commits."""
    counted = set(await session.scalars(select(FileCount.key)))
    new = [file for file in files if file.key not in counted]
    added: dict[str, int] = {}
    for start in range(0, len(new), 500):
        batch = new[start : start + 500]
        ids = await add_jobs(session, [count_file.new(file, unique_key=file.key) for file in batch])
        added |= {file.key: job_id for file, job_id in zip(batch, ids, strict=True) if job_id is not None}
    # A file's key is free before its job and after it. Another worker may have ended one since we looked: look again.
    counted = set(await session.scalars(select(FileCount.key)))
    ended = [added.pop(key) for key in counted & added.keys()]
    if ended:
        await session.execute(delete(JobRow).where(JobRow.id.in_(ended)))
    return len(added)


# --- the run ----------------------------------------------------------------------------------------------------------


async def main(options: argparse.Namespace) -> None:
    """Prepare the database, add the jobs, run them, report."""
    url = options.database_url
    engine = engine_from_url(url) if url else sqlite_engine(options.database)
    try:
        await migrate.upgrade(engine)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

        folder = options.folder.resolve()
        plan = await register_cron_jobs(engine, [CronJob("runner.scan", "* * * * *", data={"path": str(folder)})])
        print(f"cron      runner.scan every minute: {len(plan.added)} added, {len(plan.changed)} changed")
        left = len(await live_jobs(engine))
        files = await asyncio.to_thread(find_files, folder)
        async with AsyncSession(engine) as session:
            added = await enqueue(session, files)
            await flaky.add(session, unique_key="runner.flaky")
            await slow.add(session, unique_key="runner.slow")
            await session.commit()
        print(f"files     {len(files)} text files in {folder}, {added} of them new")
        print(f"unfinished jobs of an earlier run: {left}", flush=True)

        # The lease is short, so that jobs of a runner that was killed come back within seconds.
        worker = QueueWorker(engine, jobs, parallel_count=options.parallel, lease=5, poll_interval=0.5)
        ours = await live_jobs(engine)
        if options.serve:
            print(f"serving   as process {os.getpid()}, until SIGTERM or Ctrl-C", flush=True)
            await worker.run()
            files = await asyncio.to_thread(find_files, folder)
        else:
            async with worker:
                with progress(len(ours)) as show:
                    while running := len(await live_jobs(engine)):
                        show(max(len(ours) - running, 0))
                        await asyncio.sleep(0.1)
                    show(len(ours))
        await report(engine, files, ours)
    finally:
        await engine.dispose()


async def live_jobs(engine: AsyncEngine) -> set[int]:
    """The ids of jobs that wait or run, without the occurrences of cron jobs: of those there is always one."""
    live = select(JobRow.id).where(JobRow.name.in_(jobs), JobRow.cron_name.is_(None), not_(JobRow.is_complete))
    async with AsyncSession(engine) as session:
        return set(await session.scalars(live))


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], object]]:
    """Show how many jobs are done: with rich if it is installed, and without when nobody watches."""
    if not sys.stdout.isatty():
        yield lambda _done: None
    elif importlib.util.find_spec("rich") is None:
        yield lambda done: print(f"\r{done} of {total} jobs", end="" if done < total else "\n", flush=True)
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        with Progress("jobs", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
            task = bar.add_task("jobs", total=total)
            yield lambda done: bar.update(task, completed=done)


async def report(engine: AsyncEngine, files: Sequence[SourceFile], ours: set[int]) -> None:
    """Print the counts by language, what failed, and the state of the queue."""
    found = {file.key for file in files}
    totals: dict[str, Counter[str]] = {}
    async with AsyncSession(engine) as session:
        for row in await session.scalars(select(FileCount)):
            if row.key in found:
                totals.setdefault(row.language, Counter()).update(files=1, lines=row.lines, words=row.words)
        with_errors = select(JobRow).where(JobRow.name.in_(jobs), JobRow.errors.is_not(None)).order_by(JobRow.id)
        troubled = [job for job in await session.scalars(with_errors) if job.id in ours and job.errors]

    print(f"\n{'language':18}{'files':>8}{'lines':>10}{'words':>10}")
    for language, counts in sorted(totals.items(), key=lambda each: -each[1]["lines"]):
        print(f"{language:18}{counts['files']:8,}{counts['lines']:10,}{counts['words']:10,}")
    total = sum(totals.values(), Counter())
    print(f"{'total':18}{total['files']:8,}{total['lines']:10,}{total['words']:10,}")

    print("\njobs with errors")
    for job in troubled:
        errors = job.errors or []
        print(f"  {job.id} {job.name}: {job.state} after {len(errors)} failed tries")
        for error in errors:
            print(f"    try {error['try']}: {error.get('reason') or error['class'] + ': ' + error['message']}")

    insights = await queue_insights(engine)
    print(
        f"\nqueue     pending {insights.pending}, scheduled {insights.scheduled}, running {insights.running}, "
        f"failed {insights.failed} (all runs)"
    )
    for name, counted in insights.by_name.items():
        print(f"  {name}: pending {counted.pending}, scheduled {counted.scheduled}, failed {counted.failed}")


def parse_options() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Count the text files of a folder, one job a file.")
    checkout = Path(__file__).resolve().parent.parent
    parser.add_argument("folder", nargs="?", type=Path, default=checkout, help="default: the checkout")
    parser.add_argument("--database", default="queue_kit_runner.db", help="an SQLite file (default: %(default)s)")
    parser.add_argument("--database-url", help="postgresql+asyncpg://..., in place of the SQLite file")
    parser.add_argument("--parallel", type=int, default=8, help="how many jobs run at once (default: %(default)s)")
    parser.add_argument("--serve", action="store_true", help="go on as a worker until SIGTERM or Ctrl-C")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    if options.parallel < 1:
        parser.error("--parallel is at least 1")
    return options


if __name__ == "__main__":
    chosen = parse_options()
    # Failed jobs, which are logged as warnings, are part of this show: the report names them.
    logging.basicConfig(level=logging.INFO if chosen.serve else logging.ERROR)
    asyncio.run(main(chosen))
