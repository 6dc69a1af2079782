"""The table of linked logins."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, ForeignKey, Identity, String, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from app.user.models import EMAIL_LENGTH
from app.user.oidc.settings import NAME_LENGTH
from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED

ISSUER_LENGTH = 255
SUBJECT_LENGTH = 255  # the limit of OpenID Connect Core 1.0, section 2


class LinkedLogin(Base):
    """An account at a provider, with which its owner logs in here.

    The subject identifies the account at the provider. The email address does not, because it can
    change or be given to someone else.
    """

    __tablename__ = "linked_logins"
    # In a preview, a linked login would let its owner in as in production.
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), index=True
    )
    provider: Mapped[str] = mapped_column(String(NAME_LENGTH))
    issuer: Mapped[str] = mapped_column(String(ISSUER_LENGTH))
    subject: Mapped[str] = mapped_column(String(SUBJECT_LENGTH))
    email: Mapped[str | None] = mapped_column(String(EMAIL_LENGTH))
    """The email address at the provider, as of the last login. Shown to the user, nothing more."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    last_used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    __table_args__ = (UniqueConstraint("provider", "issuer", "subject"),)
