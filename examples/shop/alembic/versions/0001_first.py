"""The tables of queue_kit, then the shop's own, one of which points to the files."""

import sqlalchemy as sa
from alembic import op

from queue_kit import migrate

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them all."""
    migrate.upgrade_in_revision(op, to=2)
    migrate.upgrade_in_revision(op, to=1, extra="files")
    migrate.upgrade_in_revision(op, to=1, extra="sessions")
    op.create_table(
        "customer",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("password", sa.String(), nullable=False),
        sa.Column("is_staff", sa.Boolean(), nullable=False),
        sa.UniqueConstraint("email", name="uq_customer_email"),
    )
    op.create_table(
        "product",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("cents", sa.Integer(), nullable=False),
        sa.Column("stock", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.Uuid(), sa.ForeignKey("queue_kit_file.id", ondelete="SET NULL")),
        sa.CheckConstraint("stock >= 0", name=op.f("ck_product_stock")),
    )
    op.create_table(
        "customer_order",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("key", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Integer(), sa.ForeignKey("customer.id"), nullable=False, index=True),
        sa.Column("product_id", sa.Integer(), sa.ForeignKey("product.id"), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("cents", sa.Integer(), nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("confirmed_at", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("key", name="uq_customer_order_key"),
    )
    op.create_table(
        "sale",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("order_id", sa.Integer(), sa.ForeignKey("customer_order.id"), nullable=False, index=True),
        sa.Column("cents", sa.Integer(), nullable=False),
        sa.Column("sold_at", sa.DateTime(timezone=True), nullable=False, index=True),
    )
    op.create_table(
        "report",
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("sales", sa.Integer(), nullable=False),
        sa.Column("cents", sa.Integer(), nullable=False),
    )


def downgrade() -> None:
    """Drop them all. Those of the queue refuse while jobs wait."""
    for table in ("report", "sale", "customer_order", "product", "customer"):
        op.drop_table(table)
    migrate.downgrade_in_revision(op, to=0, extra="sessions")
    migrate.downgrade_in_revision(op, to=0, extra="files")
    migrate.downgrade_in_revision(op, to=0)
