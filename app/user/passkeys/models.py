"""The tables of passkeys."""

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    ForeignKey,
    Identity,
    LargeBinary,
    String,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED

NAME_LENGTH = 80


class Passkey(Base):
    """A passkey of a user: the public half of a key pair that their device keeps."""

    __tablename__ = "passkeys"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), index=True
    )
    rp_id: Mapped[str] = mapped_column(String(253))
    """The host it was made for. Browsers do not offer it on another one."""
    credential_id: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    """The public key in COSE format, as the authenticator sent it."""
    sign_count: Mapped[int] = mapped_column(BigInteger)
    """The authenticator's counter at the last use. Passkeys that are synced always send 0."""
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    transports: Mapped[list[str]] = mapped_column(ARRAY(String(20)))
    """How browsers reach the authenticator, such as `internal` or `usb`."""
    is_backed_up: Mapped[bool]
    """Whether the passkey is synced, and so survives the loss of the device."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    last_used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class PasskeyOwner(Base):
    """A user who has or had passkeys."""

    __tablename__ = "passkey_owners"
    __sanitize__ = EMPTIED

    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    handle: Mapped[bytes] = mapped_column(LargeBinary)
    """The random user handle that authenticators store. Not the user id: an authenticator replaces
    a passkey of the same host and handle, and every database on localhost has a user 1."""
    is_required: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether a login with the password also needs a passkey."""


class UsedChallenge(Base):
    """A challenge that was answered, until it expires. It is not accepted again."""

    __tablename__ = "passkey_used_challenges"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    challenge: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    used_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
