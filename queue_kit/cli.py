"""The command line: `queue-kit`. It is the only place that reads the environment, and it never prints a password."""

import asyncio
import dataclasses
import importlib
import inspect
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

import click
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import __version__, _bench, migrate
from queue_kit._sqlite import sqlite_engine
from queue_kit._transient import LOCK_NOT_AVAILABLE, sqlstate
from queue_kit.errors import ConfigurationError, QueueKitError
from queue_kit.worker import QueueWorker

T = TypeVar("T")

_DRIVERS = {"postgres": "postgresql+asyncpg", "postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}
_FORMS = (
    "postgresql://user:password@host/name"  # pragma: allowlist secret
    " (other characters than letters and digits as %XX) or sqlite:///path"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="queue-kit")
def main() -> None:
    """Durable background jobs for asyncio and SQLAlchemy.

    \b
    The database comes from --database-url or QUEUE_KIT_DATABASE_URL:
      postgresql://user@host/name    sqlite:///path/to/file.db

    \b
    Exit status: 0 all is well, 1 it failed or does not fit, 2 wrong usage.
    """


def _read_option(_context: click.Context, _option: click.Parameter, text: str) -> URL:
    try:
        return read_url(text)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None


_database = click.option(
    "--database-url",
    "url",
    callback=_read_option,
    envvar="QUEUE_KIT_DATABASE_URL",
    show_envvar=True,
    required=True,
    help="Prefer the variable: other users of the machine see arguments.",
)


@main.command("migrate")
@_database
def migrate_command(url: URL) -> None:
    """Bring the queue's tables to this version; harmless when they are there.

    \b
    Example:
      queue-kit migrate --database-url postgresql://app@localhost/app
    """

    async def upgrade(engine: AsyncEngine) -> tuple[int | None, int | None]:
        before = await migrate.schema_version(engine)
        await migrate.upgrade(engine)
        return before, await migrate.schema_version(engine)

    before, after = _on_database(url, upgrade)
    if before == after:
        click.echo(f"the schema is at version {after} already")
    else:
        click.echo(f"the schema went from version {before or 0} to {after}")


@main.command()
@_database
def check(url: URL) -> None:
    """Tell whether a worker of this version could start on the database.

    \b
    Example:
      queue-kit check && systemctl restart worker
    """

    async def look(engine: AsyncEngine) -> int | None:
        async with engine.connect() as connection:
            await migrate.check_schema(connection)
        return await migrate.schema_version(engine)

    version = _on_database(url, look)
    click.echo(f"the database answers, its schema is at version {version}: a worker can start")


@main.command()
@_database
@click.option(
    "--jobs",
    type=click.IntRange(1, _bench.MOST_JOBS),
    default=5_000,
    show_default=True,
    help="How many to add and run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(url: URL, jobs: int, as_json: bool) -> None:
    """Measure how fast the queue is on the database, with jobs that do nothing.

    They are added to the real table, run by this process alone, and removed again, also on Ctrl-C.

    \b
    Example:
      queue-kit bench --jobs 20000
    """

    if not as_json:
        click.echo("measuring; it takes some seconds, more on a distant database", err=True)
    figures = _on_database(url, lambda engine: _bench.measure(engine, jobs))
    click.echo(json.dumps(dataclasses.asdict(figures), indent=2) if as_json else _bench.as_table(figures))


@main.command("dashboard")
@_database
@click.option("--port", type=click.IntRange(0, 65_535), default=8_765, show_default=True, help="0 takes a free one.")
@click.option("--read-only", is_flag=True, help="Change nothing, whatever is pressed.")
def dashboard_command(url: URL, port: int, read_only: bool) -> None:
    """Serve the dashboard to the browser of this machine, until Ctrl-C.

    The address that is printed ends with a key that is new each time: only who knows it sees anything. Needs
    pip install 'queue-kit[dashboard]'.

    \b
    Example:
      queue-kit dashboard --read-only
    """

    async def serve(engine: AsyncEngine) -> None:
        try:
            from queue_kit.dashboard import _local
        except ImportError as error:
            raise ConfigurationError(f"{error}") from None
        async with engine.connect() as connection:
            await migrate.check_schema(connection)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        await _local.serve(engine, port=port, may_act=not read_only, announce=click.echo)

    _on_database(url, serve)


@main.command()
@click.argument("target", metavar="MODULE:ATTR")
def work(target: str) -> None:
    """Run a worker until SIGINT or SIGTERM, then stop it gracefully.

    MODULE:ATTR names a QueueWorker, or a function (async or not) that returns one; the current directory is searched
    first. Logs go to stderr unless the module has set up logging.

    \b
    Example:
      queue-kit work app.jobs:worker
    """
    found = _load(target)

    async def run() -> None:
        worker = found() if callable(found) else found
        if inspect.isawaitable(worker):
            worker = await worker
        if not isinstance(worker, QueueWorker):
            raise click.UsageError(f"{target} gives {_kind(worker)}, not a QueueWorker")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        try:
            await worker.run()
        except (QueueKitError, SQLAlchemyError, OSError) as error:
            raise click.ClickException(_words(error)) from error

    asyncio.run(run())


def _load(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise click.UsageError(f"{target!r} is not of the form MODULE:ATTR, like app.jobs:worker")
    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # an import inside the module, whose traceback says where
        raise click.UsageError(f"there is no module {error.name!r} here or among the installed ones") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise click.UsageError(f"{module_name} has no {attribute!r}")
        found = getattr(found, part)
    return found


def _kind(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"


def read_url(text: str) -> URL:
    """A database's URL, with queue_kit's driver. Raises `ConfigurationError`, which never quotes the text."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"the database URL cannot be read; it looks like {_FORMS}") from None
    # An @ in the password ends it too early, and the rest of it would be shown as the host.
    if "@" in (url.host or "") or (url.host and "@" in (url.database or "")):
        raise ConfigurationError(f"the database URL has an @ too many; it looks like {_FORMS}")
    driver = _DRIVERS.get(url.drivername, url.drivername)
    if driver not in _DRIVERS.values():
        raise ConfigurationError(f"the queue runs on postgresql and sqlite, not on {url.drivername}")
    if "sslmode" in url.query:  # as libpq and most hosters spell it
        url = url.update_query_dict({"ssl": url.query["sslmode"]}).difference_update_query(["sslmode"])
    return url.set(drivername=driver)


def engine_for(url: URL) -> AsyncEngine:
    """An engine for a URL of `read_url`."""
    if url.get_backend_name() == "sqlite":
        return sqlite_engine(url.database or "")
    # Behind a transaction pooler, statements that an earlier command prepared would be in the way of this one's.
    return create_async_engine(url, connect_args={"statement_cache_size": 0, "prepared_statement_cache_size": 0})


def _on_database(url: URL, action: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    async def run() -> T:
        engine = engine_for(url)
        try:
            return await action(engine)
        finally:
            await engine.dispose()

    try:
        return asyncio.run(run())
    except Exception as error:  # noqa: BLE001 - a traceback might hold the password
        raise click.ClickException(_masked(_words(error), url)) from None


def _words(error: Exception) -> str:
    if isinstance(error, QueueKitError):
        return str(error)
    if sqlstate(error) == LOCK_NOT_AVAILABLE:
        return (
            f"a transaction held a lock of the queue's tables for longer than {migrate.LOCK_TIMEOUT}, so nothing was "
            "changed: run it again when that has ended"
        )
    # SQLAlchemy's own text has the statement in it, and a link.
    return f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"


def _masked(text: str, url: URL) -> str:
    password = str(url.password or "")
    for form in {password, quote(password, safe=""), quote_plus(password)} - {""}:
        text = text.replace(form, "***")
    return text
