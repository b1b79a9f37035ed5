"""What the driver's words leave out when a statement of ours fails."""

import re

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import _schema
from queue_kit._database import Database
from queue_kit._transient import is_sqlite_busy, sqlstate
from queue_kit.errors import SchemaMismatch

_UNDEFINED = {"42P01", "42703"}
"""PostgreSQL's states for a table and for a column that is not there."""
_SQLITE_UNDEFINED = re.compile("no such (table|column)|has no column named")

_OURS = r"\bqueue_kit_(?:job|cron|worker|history|schema|(?P<files>file)|(?P<sessions>session(?:_token)?))\b"
_NAMED = re.compile(_OURS)
_ON_OURS = re.compile(rf'\b(?:FROM|INTO|UPDATE|JOIN) [\w".]*{_OURS}')


def explain(error: DBAPIError, db: Database) -> None:
    """Raise `SchemaMismatch` when a statement on our tables failed since one of them, or a column of it, is not there.
    What is missing of the caller's own is left as it is: in a flush of theirs, in a trigger of theirs on our table.

    When an engine of SQLite waited in vain for the one writer, note who that may be.
    """
    if isinstance(db, AsyncEngine) and is_sqlite_busy(error):
        error.add_note(
            "SQLite has one writer, and an engine's write is a transaction of its own: if yours is open here, pass its "
            "session or connection instead of the engine"
        )
    said, state = str(error.orig), sqlstate(error)
    is_undefined = state in _UNDEFINED if state else _SQLITE_UNDEFINED.search(said)
    missing = _NAMED.search(said)
    if not (is_undefined and missing and _ON_OURS.search(error.statement or "")):
        return
    extra = missing.lastgroup
    raise SchemaMismatch(
        f"the table {missing[0]} is missing, or of another version: {_schema.mend(extra)}",
        found=None,
        needed=_schema.EXTRAS[extra] if extra else _schema.VERSION,
    ) from error
