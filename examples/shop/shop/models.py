"""The shop's tables. The queue's, the files' and the sessions' lie beside them in the same database."""

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, MetaData, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from queue_kit.contrib.files.models import File


class Base(DeclarativeBase):
    """The base of the shop's own tables; constraints have names, so that later revisions can change them."""

    metadata = MetaData(
        naming_convention={
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's


class Customer(Base):
    """Somebody who can log in. `is_staff` changes products and sees the queue."""

    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    password: Mapped[str]
    is_staff: Mapped[bool] = mapped_column(default=False)


class Product(Base):
    """Something to sell, as long as there is some in stock."""

    __tablename__ = "product"
    __table_args__ = (CheckConstraint("stock >= 0", name="stock"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    cents: Mapped[int]
    stock: Mapped[int]
    image_id: Mapped[UUID | None] = mapped_column(ForeignKey(File.id, ondelete="SET NULL"))
    image: Mapped[File | None] = relationship(File, lazy="joined")


class Order(Base):
    """An order. `key` was chosen by the form that placed it: sent twice, it is still one order."""

    __tablename__ = "customer_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[UUID] = mapped_column(unique=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id), index=True)
    product_id: Mapped[int] = mapped_column(ForeignKey(Product.id))
    quantity: Mapped[int]
    cents: Mapped[int]
    placed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    confirmed_at: Mapped[datetime | None]
    customer: Mapped[Customer] = relationship(lazy="joined", innerjoin=True)
    product: Mapped[Product] = relationship(lazy="joined", innerjoin=True)


class Sale(Base):
    """One line of the shop's books for each confirmed order. No constraint would hide a second one."""

    __tablename__ = "sale"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), index=True)
    cents: Mapped[int]
    sold_at: Mapped[datetime] = mapped_column(index=True)


class Report(Base):
    """What was sold on a day, in UTC."""

    __tablename__ = "report"

    day: Mapped[date] = mapped_column(primary_key=True)
    sales: Mapped[int]
    cents: Mapped[int]


def euros(cents: int) -> str:
    """An amount as people read it."""
    return f"€ {Decimal(cents) / 100:.2f}"
