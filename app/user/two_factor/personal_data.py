"""The second factor in the personal data export, without secrets."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import select

from app.user.two_factor import recovery_codes
from app.user.two_factor.models import TwoFactorSecret
from quart_upsun.database import Database


async def export(database: Database, user_id: int) -> AsyncIterator[Sequence[dict[str, Any]]]:
    """Yield when two-factor authentication was turned on, and how many recovery codes are left."""
    async with database.read() as session:
        enabled_at = await session.scalar(
            select(TwoFactorSecret.confirmed_at).where(TwoFactorSecret.user_id == user_id)
        )
        unused = await recovery_codes.count_unused(session, user_id)
    if enabled_at is not None:
        yield [{"enabled_at": enabled_at.isoformat(), "recovery_codes_left": unused}]
