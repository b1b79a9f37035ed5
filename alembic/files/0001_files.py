"""Files: the table of the file store. It stands beside the queue's tables and knows none of them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
_JSON = sa.JSON().with_variant(JSONB(), "postgresql").with_variant(sa.Text(), "sqlite")
_C_TEXT = sa.Text(collation="C").with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    """Create the table."""
    postgresql = op.get_context().dialect.name == "postgresql"
    now = sa.text("clock_timestamp()" if postgresql else "(strftime('%Y-%m-%d %H:%M:%f', 'now'))")
    op.create_table(
        "queue_kit_file",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("object_key", _C_TEXT, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("content_length", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("meta", _JSON, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("original_id", sa.Uuid(), nullable=True),
        sa.Column("variant", _C_TEXT, nullable=True),
        sa.Column("created_at", _INSTANT, server_default=now, nullable=False),
        sa.Column("updated_at", _INSTANT, server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("id", name="queue_kit_file_pkey"),
        sa.UniqueConstraint("object_key", name="queue_kit_file_object_key"),
        sa.UniqueConstraint("original_id", "variant", name="queue_kit_file_variant_key"),
        sa.ForeignKeyConstraint(
            ["original_id"], ["queue_kit_file.id"], name="queue_kit_file_original_id_fkey", ondelete="CASCADE"
        ),
        sa.CheckConstraint("(original_id IS NULL) = (variant IS NULL)", name="queue_kit_file_variant"),
        sa.CheckConstraint("content_length >= 0", name="queue_kit_file_content_length"),
    )


def downgrade() -> None:
    """Drop the table. The objects stay in storage."""
    op.drop_table("queue_kit_file")
