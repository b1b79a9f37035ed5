"""The table of files, on a metadata of its own: whoever uses the queue alone does not get it.

A row points to one object in storage, which is never changed: an update writes another object and points to that. The
migration is alembic/files; `queue_kit.migrate.upgrade(engine, extras=["files"])` runs it.
"""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID, uuid4

from sqlalchemy import CheckConstraint, ForeignKey, MetaData, String, Text, UniqueConstraint, Uuid, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from queue_kit._dialect.clock import clock_time
from queue_kit._dialect.columns import BIGINT, JSON_TYPE, UtcDateTime

REFUSED = "image_refused"
"""The key of `meta` that says why an image is not worked on, until its content is changed."""

_C_TEXT = Text(collation="C").with_variant(Text(), "sqlite")


class Base(DeclarativeBase):
    """The base of the file store's own table."""

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "ck": "%(table_name)s_%(constraint_name)s",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "pk": "%(table_name)s_pkey",
            "uq": "%(table_name)s_%(constraint_name)s",
        },
    )


class File(Base):
    """A file: what it is, and under which key its content lies in storage.

    `content_type` was found from the content. `sha256` is of the content, in hex. `meta` is JSON of the application's
    own, in which the jobs write `width`, `height` (pixels, as shown) and `placeholder` (a data URI).

    A transform, say a smaller WebP of an image, is a file as well: `original_id` is what it was made of, `variant` how.
    It goes when its original goes.
    """

    __tablename__ = "queue_kit_file"
    __mapper_args__: Any = {"eager_defaults": True}  # noqa: RUF012 - SQLAlchemy's

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
    object_key: Mapped[str] = mapped_column(_C_TEXT)
    name: Mapped[str] = mapped_column(Text)
    content_type: Mapped[str] = mapped_column(Text)
    content_length: Mapped[int] = mapped_column(BIGINT)
    sha256: Mapped[str] = mapped_column(String(64))
    meta: Mapped[dict[str, Any]] = mapped_column(JSON_TYPE, server_default=text("'{}'"))
    original_id: Mapped[UUID | None] = mapped_column(Uuid, ForeignKey("queue_kit_file.id", ondelete="CASCADE"))
    variant: Mapped[str | None] = mapped_column(_C_TEXT)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=clock_time())
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=clock_time(), onupdate=clock_time())

    __table_args__: Any = (
        UniqueConstraint("object_key", name="object_key"),
        UniqueConstraint("original_id", "variant", name="variant_key"),
        CheckConstraint("(original_id IS NULL) = (variant IS NULL)", name="variant"),
        CheckConstraint("content_length >= 0", name="content_length"),
    )

    @property
    def etag(self) -> str:
        """The content's entity tag, as HTTP writes it: the same content has the same one, on every server."""
        return f'"{self.sha256[:32]}"'


def content_id(object_key: str) -> str:
    """What names one content of a file: an update gives it another one. Jobs on it are keyed by that, so that one that
    is still at work on the old content keeps none for the new one away."""
    return object_key[-32:]
