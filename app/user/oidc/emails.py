"""Emails about linked logins."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.mail.delivery import external_url
from quart_upsun.mail.letters import Composers, Letter


async def compose_linked(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    return _compose("provider-linked", data)


async def compose_unlinked(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    return _compose("provider-unlinked", data)


def _compose(template: str, data: dict[str, Any]) -> Letter:
    context = {
        "username": data["username"],
        "provider": data["provider"],
        "logins": external_url("oidc.index"),
        "forgot": external_url("recovery.forgot"),
    }
    return Letter(data["to"], template, context)


COMPOSERS: Composers = {
    "provider-linked": compose_linked,
    "provider-unlinked": compose_unlinked,
}
