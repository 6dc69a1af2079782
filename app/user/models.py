"""The users table."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Identity, Index, String, func
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base

USERNAME_LENGTH = 25
EMAIL_LENGTH = 254  # the longest address SMTP can carry


class User(Base):
    """Somebody who can log in."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    username: Mapped[str] = mapped_column(String(USERNAME_LENGTH))
    email: Mapped[str] = mapped_column(String(EMAIL_LENGTH))
    password_hash: Mapped[str] = mapped_column(String(255))
    session_version: Mapped[int] = mapped_column(server_default="1")
    """Part of the login cookie: raising it ends every session of this user."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


# Unique whatever the case: "Ada" and "ada" are one user. The names tell which field was taken.
UNIQUE_USERNAME = Index("uq_users_username", func.lower(User.username), unique=True)
UNIQUE_EMAIL = Index("uq_users_email", func.lower(User.email), unique=True)
