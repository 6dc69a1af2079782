"""The table of stored responses for `Idempotency-Key`."""

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Integer,
    LargeBinary,
    String,
    Text,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED

KEY_LENGTH = 255


class IdempotentAnswer(Base):
    """The stored response to a request with an `Idempotency-Key`."""

    __tablename__ = "idempotent_answers"
    __sanitize__ = EMPTIED

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """The application's user; the application adds the foreign key."""
    key: Mapped[str] = mapped_column(String(KEY_LENGTH), primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    """Digest of method, URL and body, to detect a key that is reused for a different request."""
    status: Mapped[int] = mapped_column(Integer)
    headers: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """Names and values, alternating."""
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), index=True
    )
