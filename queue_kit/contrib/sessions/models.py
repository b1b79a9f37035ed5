"""The session store's tables, on a metadata of their own: a user of the queue alone has neither. Alembic owns the
schema (`queue_kit.migrate`, extra `sessions`); these only describe it.

No token lies in them, nor anything that a token could be made of without the signing key and the token before it.
"""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import ForeignKey, Index, LargeBinary, MetaData, Text, Uuid, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from queue_kit._dialect.clock import clock_time
from queue_kit._dialect.columns import JSON_TYPE, UtcDateTime


class Base(DeclarativeBase):
    """The base of the session store's tables."""

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_name)s_key",
        },
    )


class SessionRow(Base):
    """A session: its data as JSON, and when it was revoked."""

    __tablename__ = "queue_kit_session"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    data: Mapped[Any] = mapped_column(JSON_TYPE)
    checksum: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=clock_time())
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=clock_time())
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__: Any = (
        Index("queue_kit_session_created_at", "created_at"),
        Index(
            "queue_kit_session_revoked_at",
            "revoked_at",
            postgresql_where=text("revoked_at IS NOT NULL"),
            sqlite_where=text("revoked_at IS NOT NULL"),
        ),
    )


class SessionTokenRow(Base):
    """A pair of an access and a refresh token, as the hashes of their ids. `key_id` names the key they are signed with.

    `rotated_at` is when its refresh token was first used, which put the pair `successor_id` in its place. It stays
    until the refresh token expires, so that one that comes again is known.
    """

    __tablename__ = "queue_kit_session_token"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[UUID] = mapped_column(Uuid, ForeignKey(SessionRow.id, ondelete="CASCADE"))
    key_id: Mapped[str] = mapped_column(Text)
    access_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    refresh_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=clock_time())
    access_expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    refresh_expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    rotated_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    successor_id: Mapped[UUID | None] = mapped_column(Uuid)

    __table_args__: Any = (
        Index("queue_kit_session_token_session_id", "session_id"),
        Index("queue_kit_session_token_refresh_expires_at", "refresh_expires_at"),
    )


SESSIONS, TOKENS = (Base.metadata.tables[each.__tablename__] for each in (SessionRow, SessionTokenRow))
