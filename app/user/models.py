"""The tables of users and their sessions."""

from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from sqlalchemy import BigInteger, DateTime, ForeignKey, Identity, Index, String, func
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED, KEPT, ended, replaced

USERNAME_LENGTH = 25
EMAIL_LENGTH = 254  # the longest address SMTP can carry
CLIENT_LENGTH = 45  # the longest IPv6 address
USER_AGENT_LENGTH = 300
# Stored for accounts that `quart adopt` takes over without a password it can verify.
UNUSABLE_HASH = "!"


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
    password_hash: Mapped[str | None] = mapped_column(String(255))
    """None if the user logs in with another provider and has set no password."""
    session_version: Mapped[int] = mapped_column(server_default="1")
    """Part of the login cookie: incrementing it ends all sessions of the user."""
    role: Mapped[str] = mapped_column(String(20), server_default=Role.MEMBER)
    deactivated_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    # The names of Flask-Login's `UserMixin`, for templates.
    is_authenticated: ClassVar = True
    is_anonymous: ClassVar = False

    @property
    def is_administrator(self) -> bool:
        return self.role == Role.ADMINISTRATOR

    @property
    def is_admin(self) -> bool:
        """The same, as templates of cookiecutter-flask call it."""
        return self.is_administrator

    @property
    def is_active(self) -> bool:
        return self.deactivated_at is None

    @property
    def has_password(self) -> bool:
        return self.password_hash not in {None, UNUSABLE_HASH}

    def get_id(self) -> str:
        return str(self.id)


class UserSession(Base):
    """A login of a user in one browser, until it ends."""

    __tablename__ = "user_sessions"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    """Part of the login cookie, whose signature makes it hard to guess."""
    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), index=True
    )
    session_version: Mapped[int]
    """That of the user at the login. Once it differs, the session has ended."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    last_seen_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now()
    )
    proved_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    """When the user last proved their identity, and the cookie was signed."""
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    """When the cookie expires."""
    client: Mapped[str | None] = mapped_column(String(CLIENT_LENGTH))
    """The IP address that was last seen."""
    user_agent: Mapped[str] = mapped_column(String(USER_AGENT_LENGTH))
    is_persistent: Mapped[bool]


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
