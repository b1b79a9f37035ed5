"""A revision that no release has: what the next version of the library might bring. The tests of upgrades copy it into
a folder of revisions.

Its first half touches nothing that is in use, its second needs the lock of the jobs' table. With `PAUSE` set it says
that it is half-way and waits for a line. On PostgreSQL it notes how long it would have waited for a lock. `INDEXES` is
for a way of migrating that builds them beforehand, while the table is in use.
"""

import os
import sys

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INDEXES = {"queue_kit_job_by_name": "queue_kit_job (name) WHERE status = 1"}


def upgrade() -> None:
    op.create_table("queue_kit_half", sa.Column("lock_timeout", sa.Text()))
    if op.get_context().dialect.name == "postgresql":
        op.execute("INSERT INTO queue_kit_half VALUES (current_setting('lock_timeout'))")
    if os.environ.get("PAUSE"):
        print("half-way", flush=True)
        sys.stdin.readline()
    for name, on in INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {on}")
    op.add_column("queue_kit_job", sa.Column("note", sa.Text()))
    op.execute("INSERT INTO queue_kit_schema (version, compatible_from) VALUES (3, 1)")


def downgrade() -> None:
    op.execute("DELETE FROM queue_kit_schema WHERE version = 3")
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
    op.drop_column("queue_kit_job", "note")
    op.drop_table("queue_kit_half")
