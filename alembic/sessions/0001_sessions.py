"""The session store: sessions, and the hashes of their tokens."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
_JSON = sa.JSON().with_variant(JSONB(), "postgresql").with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    """Create both tables."""
    postgresql = op.get_context().dialect.name == "postgresql"
    now = sa.text("clock_timestamp()" if postgresql else "(strftime('%Y-%m-%d %H:%M:%f', 'now'))")
    op.create_table(
        "queue_kit_session",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("data", _JSON, nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.Column("created_at", _INSTANT, server_default=now, nullable=False),
        sa.Column("updated_at", _INSTANT, server_default=now, nullable=False),
        sa.Column("revoked_at", _INSTANT),
        sa.PrimaryKeyConstraint("id", name="queue_kit_session_pkey"),
    )
    op.create_index("queue_kit_session_created_at", "queue_kit_session", ["created_at"])
    revoked = sa.text("revoked_at IS NOT NULL")
    op.create_index(
        "queue_kit_session_revoked_at",
        "queue_kit_session",
        ["revoked_at"],
        postgresql_where=revoked,
        sqlite_where=revoked,
    )
    op.create_table(
        "queue_kit_session_token",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("access_hash", sa.LargeBinary(), nullable=False),
        sa.Column("refresh_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _INSTANT, server_default=now, nullable=False),
        sa.Column("access_expires_at", _INSTANT, nullable=False),
        sa.Column("refresh_expires_at", _INSTANT, nullable=False),
        sa.Column("rotated_at", _INSTANT),
        sa.Column("successor_id", sa.Uuid()),
        sa.PrimaryKeyConstraint("id", name="queue_kit_session_token_pkey"),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["queue_kit_session.id"],
            name="queue_kit_session_token_session_id_fkey",
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("access_hash", name="queue_kit_session_token_access_hash_key"),
        sa.UniqueConstraint("refresh_hash", name="queue_kit_session_token_refresh_hash_key"),
    )
    op.create_index("queue_kit_session_token_session_id", "queue_kit_session_token", ["session_id"])
    op.create_index("queue_kit_session_token_refresh_expires_at", "queue_kit_session_token", ["refresh_expires_at"])


def downgrade() -> None:
    """Drop both tables: everybody is logged out."""
    op.drop_table("queue_kit_session_token")
    op.drop_table("queue_kit_session")
