"""The users table."""

from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from sqlalchemy import BigInteger, DateTime, Identity, Index, String, func
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import KEPT, ended, replaced

USERNAME_LENGTH = 25
EMAIL_LENGTH = 254  # the longest address SMTP can carry


class Role(StrEnum):
    """What a user may do beyond their own account."""

    MEMBER = "member"
    ADMINISTRATOR = "administrator"


class User(Base):
    """An account."""

    __tablename__ = "users"
    __sanitize__: ClassVar = {
        "id": KEPT,
        "username": replaced("'user-' || id"),
        "email": replaced("CASE WHEN email <> '' THEN 'user-' || id || '@example.invalid' END"),
        "pending_email": replaced(
            "CASE WHEN pending_email <> '' THEN 'user-' || id || '@example.invalid' END"
        ),
        "password_hash": ended("'sanitized'"),
        "session_version": ended("session_version + 1"),
        "role": KEPT,
        "deactivated_at": KEPT,
        "created_at": KEPT,
    }

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    username: Mapped[str] = mapped_column(String(USERNAME_LENGTH))
    email: Mapped[str | None] = mapped_column(String(EMAIL_LENGTH))
    """The confirmed email address; None until one is confirmed."""
    pending_email: Mapped[str | None] = mapped_column(String(EMAIL_LENGTH))
    """The unconfirmed email address. Several accounts may claim one; the first to confirm wins."""
    password_hash: Mapped[str] = mapped_column(String(255))
    session_version: Mapped[int] = mapped_column(server_default="1")
    """Part of the login cookie: incrementing it ends all sessions of the user."""
    role: Mapped[str] = mapped_column(String(20), server_default=Role.MEMBER)
    deactivated_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @property
    def is_administrator(self) -> bool:
        return self.role == Role.ADMINISTRATOR


# Case-insensitive: "Ada" and "ada" are the same user. The index names identify the field.
UNIQUE_USERNAME = Index("uq_users_username", func.lower(User.username), unique=True)
UNIQUE_EMAIL = Index("uq_users_email", func.lower(User.email), unique=True)

# For prefix searches, which the two indexes above support in the C locale only.
for _name in ("username", "email", "pending_email"):
    Index(
        f"ix_users_{_name}_prefix",
        func.lower(getattr(User, _name)).label(_name),
        postgresql_ops={_name: "text_pattern_ops"},
    )
