"""The database that a command works on: its URL, an engine for it, and errors in words that hold no password."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, quote_plus

import click
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import migrate
from queue_kit._engine import read_url
from queue_kit._sqlite import sqlite_engine
from queue_kit._transient import LOCK_NOT_AVAILABLE, is_transient, sqlstate
from queue_kit.cli.inherited import Inherited
from queue_kit.errors import ConfigurationError, QueueKitError, SchemaMismatch

T = TypeVar("T")

ANSWER = 30.0
"""Seconds in which a command that looks or changes something has its answer, and any command its connection."""

PROBE = 5.0
"""The same of a probe: whoever runs it waits for some ten seconds."""


class NoAnswer(TimeoutError):
    """The database said nothing for too long."""


class Failed(click.ClickException):
    """A command failed on the database, `about` its schema or the database itself: a line, and exit status 1."""

    def __init__(self, message: str, about: str) -> None:
        super().__init__(message)
        self.about = about


def _read_option(_context: click.Context, _option: click.Parameter, text: str | None) -> URL | None:
    try:
        return None if text is None else read_url(text)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None


def database_option(*, required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option `--database-url`, as the argument `url`."""
    return click.option(
        "--database-url",
        "url",
        cls=Inherited,
        callback=_read_option,
        envvar="QUEUE_KIT_DATABASE_URL",
        show_envvar=True,
        required=required,
        help="Prefer the variable: other users of the machine see arguments.",
    )


def engine_for(url: URL, *, create: bool = False) -> AsyncEngine:
    """An engine for a URL of `read_url`. A mistyped path must not become an empty database: only `create` makes one."""
    if url.get_backend_name() == "sqlite":
        path = url.database or ""
        engine = sqlite_engine(path)
        if not create and not Path(path).exists():
            raise ConfigurationError(
                f"there is no file {path!r}, so the queue's tables are missing: run `queue-kit migrate`, which makes it"
            )
        return engine
    # Behind a transaction pooler, statements that an earlier command prepared would be in the way of this one's.
    driver = {"timeout": ANSWER, "statement_cache_size": 0, "prepared_statement_cache_size": 0}
    return create_async_engine(url, connect_args=driver)


@asynccontextmanager
async def answering(within: float | None) -> AsyncIterator[None]:
    """Around what the database answers within so many seconds; else `NoAnswer`."""
    patience = asyncio.timeout(within)
    try:
        async with patience:
            yield
    except TimeoutError as error:
        if patience.expired():
            raise NoAnswer(f"the database did not answer within {within:g} s") from error
        raise


async def reach(engine: AsyncEngine, action: Callable[[AsyncEngine], Awaitable[T]], *, within: float | None) -> T:
    """Do something on the database. When the reason that it failed is the schema, the error is a `SchemaMismatch`."""
    try:
        async with answering(within):
            return await action(engine)
    except (DBAPIError, SchemaMismatch) as error:
        if not is_transient(error):
            with suppress(OSError, DBAPIError):  # the first error says more than that nobody can look any more
                async with answering(PROBE), engine.connect() as connection:
                    await migrate.check_schema(connection)
        raise


def on_database(
    url: URL,
    action: Callable[[AsyncEngine], Awaitable[T]],
    *,
    within: float | None = None,
    create: bool = False,
) -> T:
    """Run an action on the database; its errors become a `Failed`."""

    async def run() -> T:
        engine = engine_for(url, create=create)
        try:
            return await reach(engine, action, within=within)
        finally:
            await engine.dispose()

    try:
        return asyncio.run(run())
    except click.ClickException:
        raise
    except Exception as error:  # noqa: BLE001 - a traceback might hold the password
        about = "schema" if isinstance(error, SchemaMismatch) else "database"
        raise Failed(masked(words(error), url), about) from None


def words(error: Exception) -> str:
    """An error as a line for people."""
    if isinstance(error, NoAnswer):
        return f"{error}, or a lock is held: see `queue-kit check`"
    if isinstance(error, QueueKitError | ValueError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "the database did not answer in time"
    if isinstance(error, OSError):
        return (
            f"the database cannot be reached ({error}): is the server up, and --database-url (or "
            "QUEUE_KIT_DATABASE_URL) right?"
        )
    if sqlstate(error) == LOCK_NOT_AVAILABLE:
        return (
            f"a transaction held a lock of the queue's tables for longer than {migrate.LOCK_TIMEOUT}, so nothing was "
            "changed: run it again when that has ended"
        )
    # SQLAlchemy's own text has the statement in it, and a link.
    return f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"


def masked(text: str, url: URL) -> str:
    """Text without the URL's password, however it is quoted."""
    password = str(url.password or "")
    for form in {password, quote(password, safe=""), quote_plus(password)} - {""}:
        text = text.replace(form, "***")
    return text
