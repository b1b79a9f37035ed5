"""An engine from a database's URL, as configuration has it: its driver, and the settings that a queue needs."""

from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit._sqlite import sqlite_engine
from queue_kit.errors import ConfigurationError

_OPTIONS = {
    *("host", "port", "user", "password", "passfile", "service", "servicefile", "target_session_attrs"),
    *("ssl", "direct_tls", "krbsrvname", "gsslib", "statement_cache_size", "prepared_statement_cache_size"),
}
"""What a PostgreSQL URL may say after its `?`: what the driver takes as text."""

_DRIVERS = {"postgres": "postgresql+asyncpg", "postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}
_FORMS = (
    "postgresql://user:password@host/name"  # pragma: allowlist secret
    " (other characters than letters and digits as %XX) or sqlite:///path"
)


def engine_from_url(url: str, **engine_options: Any) -> AsyncEngine:
    """An engine on `postgresql://user@host/name`, through asyncpg, or on `sqlite:///path/of/a/file`, made by
    `sqlite_engine`.

    On PostgreSQL it has `pool_pre_ping`, so that a restart of the server costs nobody an error. `engine_options` go to
    `create_async_engine`. Raises `ConfigurationError` for another database, and for a URL that cannot be read, which
    is not quoted.

    >>> engine = engine_from_url("sqlite:///app.db")
    """
    read = read_url(url)
    if read.get_backend_name() == "sqlite":
        return sqlite_engine(read.database or "", **engine_options)
    return create_async_engine(read, **{"pool_pre_ping": True, **engine_options})


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
        backend = url.get_backend_name()
        if backend in _DRIVERS:
            ours = _DRIVERS[backend].partition("+")[2]
            raise ConfigurationError(
                f"the queue runs on {backend} through {ours}, not on {url.drivername}: write {backend}://..."
            )
        raise ConfigurationError(f"the queue runs on postgresql and sqlite, not on {url.drivername}")
    if url.port is not None and not 0 < url.port < 2**16:
        raise ConfigurationError(f"the database URL's port is from 1 to 65535; the URL looks like {_FORMS}")
    if "sslmode" in url.query:  # as libpq and most hosters spell it
        url = url.update_query_dict({"ssl": url.query["sslmode"]}).difference_update_query(["sslmode"])
    if driver == _DRIVERS["postgresql"] and url.query.keys() - _OPTIONS:
        options = ", ".join(sorted(_OPTIONS))
        raise ConfigurationError(f"the database URL has an option after ? that there is not; there are {options}")
    return url.set(drivername=driver)
