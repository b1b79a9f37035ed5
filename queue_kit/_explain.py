"""What the driver's words leave out when a statement of ours fails."""

import re

from sqlalchemy.exc import DBAPIError

from queue_kit import _schema
from queue_kit._transient import sqlstate
from queue_kit.errors import SchemaMismatch

_UNDEFINED = {"42P01", "42703"}
"""PostgreSQL's states for a table and for a column that is not there."""
_SQLITE_UNDEFINED = re.compile("no such (table|column)|has no column named")

_OURS = r"\bqueue_kit_(?:job|cron|worker|history|schema|(?P<files>file)|(?P<sessions>session(?:_token)?))\b"
_NAMED = re.compile(_OURS)
_ON_OURS = re.compile(rf'\b(?:FROM|INTO|UPDATE|JOIN) [\w".]*{_OURS}')


def explain(error: DBAPIError) -> None:
    """Raise `SchemaMismatch` for a statement on a table of ours that lacks it, or a column of it. Others of the
    caller's transaction are left as they are: their flush, their trigger on a table of ours."""
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
