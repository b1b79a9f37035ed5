"""What runs came to, by minute and name; and indexes to look for finished jobs by key and by cron entry, and for failed
and cancelled ones. An older library goes on working: it knows nothing of either.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
_NAME = sa.Text(collation="C").with_variant(sa.Text(), "sqlite")

# A job that has no key, belongs to no cron entry and completes has no entry in any of these.
INDEXES = {
    "queue_kit_job_key": "queue_kit_job (unique_key, id) WHERE unique_key IS NOT NULL",
    "queue_kit_job_cron": "queue_kit_job (cron_name, id) WHERE cron_name IS NOT NULL",
    "queue_kit_job_failed_name": "queue_kit_job (name, id) WHERE status = 3",
    "queue_kit_job_cancelled": "queue_kit_job (id) WHERE status = 4",
}


def upgrade() -> None:
    """Create the history, and what is not there yet of the indexes."""
    counts = ("completed", "retried", "failed", "snoozed", "cancelled", "released", "lost")
    seconds = ("run_seconds", "longest_run", "wait_seconds", "longest_wait")
    zero = sa.text("0")
    op.create_table(
        "queue_kit_history",
        sa.Column("minute", _INSTANT, nullable=False),
        sa.Column("name", _NAME, nullable=False),
        *(sa.Column(name, sa.Integer(), server_default=zero, nullable=False) for name in counts),
        *(sa.Column(name, sa.Float(53), server_default=zero, nullable=False) for name in seconds),
        sa.PrimaryKeyConstraint("minute", "name", name="queue_kit_history_pkey"),
    )
    for name, on in INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {on}")
    op.execute("INSERT INTO queue_kit_schema (version, compatible_from) VALUES (2, 1)")


def downgrade() -> None:
    """Drop both; jobs are not touched."""
    op.execute("DELETE FROM queue_kit_schema WHERE version = 2")
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
    op.drop_table("queue_kit_history")
