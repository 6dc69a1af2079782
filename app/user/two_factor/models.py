"""The tables of second factors: secrets of authenticator apps, and recovery codes."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, ForeignKey, LargeBinary, func
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED


class TwoFactorSecret(Base):
    """The secret that a user shares with an authenticator app."""

    __tablename__ = "two_factor_secrets"
    # A copy of production has neither the secrets nor the key to them.
    __sanitize__ = EMPTIED

    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    """Encrypted: the application must compute codes from it."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    confirmed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When a first code was entered. Until then, logins need no code."""
    last_used_step: Mapped[int | None] = mapped_column(BigInteger)
    """The time step of the last accepted code. Codes of this step and before are refused."""


class RecoveryCode(Base):
    """A code that replaces a lost authenticator app once. Only its SHA-256 digest is stored."""

    __tablename__ = "recovery_codes"
    __sanitize__ = EMPTIED

    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
