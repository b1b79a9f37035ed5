"""What is asked of the database itself and of a transaction in it: the clock, the schema's version, time limits, a
notification.
"""

from functools import cache

from sqlalchemy import Executable, Text, bindparam, func, literal_column, select, text

from queue_kit._dialect.clock import clock_time
from queue_kit.models import SchemaRow


@cache
def database_time() -> Executable:
    """The database's clock."""
    return select(clock_time())


@cache
def schema_version() -> Executable:
    """The schema's version and the oldest one it is compatible with."""
    return select(SchemaRow.version, SchemaRow.compatible_from).order_by(SchemaRow.version.desc()).limit(1)


@cache
def statement_timeout() -> Executable:
    """The milliseconds that a session gives each statement (PostgreSQL); 0 is for ever."""
    return text("SELECT setting::integer FROM pg_settings WHERE name = 'statement_timeout'")


@cache
def limit_lock_wait() -> Executable:
    """Bound the wait for a lock in this transaction (PostgreSQL). Parameters: `milliseconds`, as text."""
    return _set_locally("lock_timeout")


@cache
def limit_statements() -> Executable:
    """Bound each statement of this transaction from here on (PostgreSQL). Parameters: `milliseconds`, as text."""
    return _set_locally("statement_timeout")


def _set_locally(setting: str) -> Executable:
    return select(func.set_config(setting, bindparam("milliseconds", type_=Text()), literal_column("true")))


@cache
def notify() -> Executable:
    """Wake workers when this transaction commits (PostgreSQL). Parameters: `channel`."""
    return select(func.pg_notify(bindparam("channel", type_=Text()), ""))
