"""Which schema this library needs, and how a database comes to it: for those who look (`migrate`), and for those whose
statement finds no table."""

VERSION = 2
"""The schema that this library was built for. Version N is Alembic's revision `f"{N:04d}"`."""

EXTRAS = {"files": 1, "sessions": 1}
"""The same of the extras that have tables."""

LOCK_TIMEOUT = "3s"
"""How long a migration waits for a table's lock on PostgreSQL: all that queues behind it waits as long."""


def mend(extra: str | None = None) -> str:
    """What brings the queue's tables, or an extra's, to that version."""
    needed, option, more, of = VERSION, "", "", ""
    if extra is not None:
        needed, option = EXTRAS[extra], f" --with {extra}"
        more, of = f", extras=[{extra!r}]", f", extra={extra!r}"
    return (
        f"run `queue-kit migrate{option}`, or await queue_kit.migrate.upgrade(engine{more}), or call "
        f"queue_kit.migrate.upgrade_in_revision(op, to={needed}{of}) in a revision of your own Alembic history"
    )
