"""Personal access tokens, and the answers that a repeated request gets again."""

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    ForeignKey,
    Identity,
    Integer,
    LargeBinary,
    String,
    Text,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base
from app.preview.columns import EMPTIED

TOKEN_NAME_LENGTH = 80
KEY_LENGTH = 255


class AccessToken(Base):
    """What lets a program act for a user. Only a digest is kept: nobody can read the token here."""

    __tablename__ = "access_tokens"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), index=True
    )
    name: Mapped[str] = mapped_column(String(TOKEN_NAME_LENGTH))
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String(20)))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    last_used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class IdempotentAnswer(Base):
    """What a request with an `Idempotency-Key` was answered, written with what it changed."""

    __tablename__ = "idempotent_answers"
    __sanitize__ = EMPTIED

    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(String(KEY_LENGTH), primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    """Of method, path and body: the same key with another request is a mistake of the client."""
    status: Mapped[int] = mapped_column(Integer)
    headers: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """Names and values in turn."""
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), index=True
    )
