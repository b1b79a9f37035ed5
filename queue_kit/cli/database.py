"""The database that a command works on: its URL, an engine for it, and errors in words that hold no password."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import quote, quote_plus

import click
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import migrate
from queue_kit._sqlite import sqlite_engine
from queue_kit._transient import LOCK_NOT_AVAILABLE, sqlstate
from queue_kit.errors import ConfigurationError, QueueKitError

T = TypeVar("T")

_DRIVERS = {"postgres": "postgresql+asyncpg", "postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}
_FORMS = (
    "postgresql://user:password@host/name"  # pragma: allowlist secret
    " (other characters than letters and digits as %XX) or sqlite:///path"
)


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
        callback=_read_option,
        envvar="QUEUE_KIT_DATABASE_URL",
        show_envvar=True,
        required=required,
        help="Prefer the variable: other users of the machine see arguments.",
    )


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


def on_database(url: URL, action: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    """Run an action on the database; its errors become a line, and exit status 1."""

    async def run() -> T:
        engine = engine_for(url)
        try:
            return await action(engine)
        finally:
            await engine.dispose()

    try:
        return asyncio.run(run())
    except click.ClickException:
        raise
    except Exception as error:  # noqa: BLE001 - a traceback might hold the password
        raise click.ClickException(masked(words(error), url)) from None


def words(error: Exception) -> str:
    """An error as a line for people."""
    if isinstance(error, QueueKitError | ValueError):
        return str(error)
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
