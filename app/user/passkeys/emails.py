"""Emails about passkeys."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.mail.delivery import external_url
from quart_upsun.mail.letters import Composer, Composers, Letter


def _composer(template: str) -> Composer:
    async def compose(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
        links = {
            "forgot": external_url("recovery.forgot"),
            "passkeys": external_url("passkeys.index"),
        }
        return Letter(data["to"], template, {**data, **links})

    return compose


COMPOSERS: Composers = {
    name: _composer(name)
    for name in ("passkey-added", "passkey-removed", "passkey-required", "passkey-not-required")
}
